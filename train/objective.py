"""The training objective, eq. 6: denoising plus alpha times entity guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from torch import Tensor, nn

from llm4gen_core import CrossAdapter
from llm4gen_core.entity_guidance import GuidanceOptions, GuidanceTargets, time_weights

from .attention import install_guidance
from .families import Family
from .recipe import Loss


class NoiseSchedule:
    """Noise levels and what the UNet is to predict.

    Args:
        alphas_cumprod: alpha_bar [T] of the base model.
        base_prediction: what the base model predicts, "epsilon" or "v_prediction".
        loss: of the recipe.
    """

    def __init__(self, alphas_cumprod: Tensor, base_prediction: str, loss: Loss) -> None:
        alphas = alphas_cumprod.double()
        if loss.zero_terminal_snr:
            betas = 1 - alphas / torch.cat([alphas.new_ones(1), alphas[:-1]])
            alphas = torch.cumprod(1 - rescale_zero_terminal_snr(betas), dim=0)
        self.alphas_cumprod = alphas.float()
        self.prediction = base_prediction if loss.prediction == "base" else loss.prediction
        self.min_snr_gamma = loss.min_snr_gamma

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) noise, and the target of the prediction.

        Args:
            latents, noise: [B, C, h, w] in float32; timesteps: [B].

        Returns:
            x_t and the noise, or v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x_0; both [B, C, h, w].
        """
        alphas = self.alphas_cumprod.to(latents.device)[timesteps].view(-1, 1, 1, 1)
        signal, spread = alphas.sqrt(), (1 - alphas).sqrt()
        noisy = signal * latents + spread * noise
        target = noise if self.prediction == "epsilon" else signal * noise - spread * latents
        return noisy, target

    def weights(self, timesteps: Tensor) -> Tensor:
        """Weight of each sample's squared error [B]: 1, or min-SNR-gamma's (arXiv 2303.09556)."""
        if self.min_snr_gamma is None:
            return torch.ones(timesteps.shape, device=timesteps.device)
        alphas = self.alphas_cumprod.to(timesteps.device)[timesteps]
        snr = alphas / (1 - alphas)
        clipped = snr.clamp(max=self.min_snr_gamma)
        return clipped / snr if self.prediction == "epsilon" else clipped / (snr + 1)


@dataclass
class StepInputs:
    """What the objective needs of a micro-batch, all on one device.

    Attributes:
        latents, noise: [B, C, h, w] in float32.
        timesteps: [B].
        text: c_t [B, L_text, d_text]; None where the text encoders are trained, which then read `token_ids`.
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


class Objective(nn.Module):
    """Everything that gradients flow through, in one module, so that DDP and FSDP wrap all of it.

    Args:
        family: gives the UNet, and the text encoders if they are trained.
        adapter: the CAM; None trains without an LLM.
        schedule: noise levels.
        options: of entity guidance; switched off, the UNet's layers are left alone.
        clip_chunks: of 77 tokens.
        train_text: whether gradients reach the text encoders.
    """

    def __init__(
        self,
        family: Family,
        adapter: CrossAdapter | None,
        schedule: NoiseSchedule,
        options: GuidanceOptions,
        clip_chunks: int = 1,
        train_text: bool = False,
    ) -> None:
        super().__init__()
        self.unet = family.unet
        self.adapter = adapter
        self.text_encoders = nn.ModuleList(family.text_encoders if train_text else ())
        self.options = options
        self.schedule = schedule
        self.clip_chunks = clip_chunks
        # The family is no module; it computes with the very modules that stand above.
        self.family: Any = family
        self.recorder = install_guidance(family.unet, options) if options.is_on else None

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
        noisy, target = self.schedule.add_noise(inputs.latents, inputs.noise, inputs.timesteps)
        if self.recorder is not None:
            self.recorder.begin(inputs.targets)
        prediction = self.family.predict(noisy, inputs.timesteps, context, pooled, inputs.sizes)
        error = (prediction.float() - target).square().mean((1, 2, 3)) * self.schedule.weights(inputs.timesteps)
        if self.recorder is None or inputs.targets is None:
            return error, torch.zeros_like(error), error.new_zeros(len(error), 2)
        guidance, mass = self.recorder.finish(len(error))
        time = inputs.timesteps.float() / (len(self.schedule) - 1)
        return error, guidance * time_weights(time, self.options), mass
