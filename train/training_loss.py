"""The training objective, eq. 6: denoising plus alpha times entity guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llm4gen_core import CrossAdapter
from llm4gen_core.entity_guidance import GuidanceOptions, GuidanceTargets
from llm4gen_core.lambda_modes import LLMTokens
from llm4gen_diffusers.attention import install_cross_attention, unknown_cross_attention
from llm4gen_diffusers.families import Family

from .noise_target import NoiseTarget


@dataclass
class StepInputs:
    """What the objective needs of a micro-batch, all on one device.

    Attributes:
        latents, noise: [B, C, h, w] in float32.
        timesteps: [B].
        text: c_t [B, L_text, d_text]; None where the text encoders are trained, which then read `captions`.
        pooled: [B, d_pooled] for SDXL.
        llm: c_l [B, L_llm, d_llm]; None without an adapter.
        sizes: [B, 6] for SDXL; see `Family.predict`.
        targets: pairs to guide; None switches guidance off.
        captions: for text encoders that are trained.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    text: Tensor | None
    pooled: Tensor | None
    llm: Tensor | None
    sizes: Tensor
    targets: GuidanceTargets | None
    captions: list[str]


class TrainingLoss(nn.Module):
    """Everything that gradients flow through, in one module, so that DDP and FSDP wrap all of it.

    Args:
        family: gives the UNet, and the text encoders if they are trained.
        adapter: the CAM; None trains without an LLM.
        denoising: noise levels and target.
        options: of entity guidance.
        clip_chunks: see `Family.encode_text`.
        train_text: whether gradients reach the text encoders.
        lambda_mode: see `LAMBDA_MODES`. λ is 1 in training, where "value" is the same as "embedding".
    """

    def __init__(
        self,
        family: Family,
        adapter: CrossAdapter | None,
        denoising: NoiseTarget,
        options: GuidanceOptions,
        clip_chunks: int = 1,
        train_text: bool = False,
        lambda_mode: str = "embedding",
    ) -> None:
        super().__init__()
        self.unet = family.unet
        self.adapter = adapter
        self.text_encoders = nn.ModuleList(family.text_encoders if train_text else ())
        self.options = options
        self.denoising = denoising
        self.clip_chunks = clip_chunks
        # The family is no module; it computes with the very modules that stand above.
        self.family: Any = family
        self.is_decoupled = adapter is not None and lambda_mode == "decoupled"
        needed = options.is_on or self.is_decoupled
        self.recorder = (
            install_cross_attention(family.unet, options)
            if needed or not unknown_cross_attention(family.unet)
            else None
        )

    def forward(self, inputs: StepInputs) -> tuple[Tensor, Tensor, Tensor]:
        """Losses of each sample, not yet averaged.

        Returns:
            squared error [B], weighted as the recipe says; L_reg [B], 0 for samples without pairs; the attention
            mass of attributes and entities [B, 2], without gradient.
        """
        if inputs.text is None:
            features = self.family.encode_text(inputs.captions, self.clip_chunks)
            text, pooled = features.hidden, features.pooled
        else:
            text, pooled = inputs.text, inputs.pooled
        context = text
        if self.adapter is not None:
            assert inputs.llm is not None
            # As in ComfyUI and `generate`: the CAM is small, and computes in float32.
            with torch.autocast(text.device.type, enabled=False):
                context = self.adapter.combine(text.float(), self.adapter(text.float(), inputs.llm.float()))
        noisy, target = self.denoising.add_noise(inputs.latents, inputs.noise, inputs.timesteps)
        if self.recorder is not None:
            self.recorder.llm = LLMTokens("decoupled", text.shape[1]) if self.is_decoupled else None
            self.recorder.begin(inputs.targets)
        prediction = self.family.predict(noisy, inputs.timesteps, context, pooled, inputs.sizes)
        error = (prediction.float() - target).square().mean((1, 2, 3)) * self.denoising.weights(inputs.timesteps)
        if self.recorder is None or inputs.targets is None:
            return error, torch.zeros_like(error), error.new_zeros(len(error), 2)
        guidance, mass = self.recorder.finish(len(error))
        return error, guidance, mass
