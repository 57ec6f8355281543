"""Training loss (eq. 6), L = L_diffusion + alpha * L_reg: its inputs, its two terms, and the weight alpha."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from llm4gen_core import EntityPair
from llm4gen_core.attention import LLMTokens
from llm4gen_core.entities import context_segments
from llm4gen_core.entity_guidance import (
    GuidanceOptions,
    GuidanceTargets,
    PairPositions,
    guidance_targets,
    pair_positions,
)
from llm4gen_core.llm_spec import prompt_offsets
from llm4gen_diffusers.attention import install_cross_attention, unknown_cross_attention
from llm4gen_diffusers.schedule import NoiseSchedule

from .data.batches import Batch
from .data.order import generator, uniform
from .models import Models

_KEPT_CAPTIONS = 32_768
"""Number of captions whose token positions are kept: 8 KB for a short caption, 19 KB for a paragraph."""


# Inputs


class CaptionDropout(Enum):
    """Part of its caption that a sample does not see, so that the model learns to predict without it."""

    NOTHING = "nothing"
    CAPTION = "caption"
    """Both encoders see the empty prompt: the unconditional input of classifier-free guidance."""
    LLM = "llm"
    """The LLM alone sees the empty prompt."""


@dataclass
class StepInputs:
    """Inputs of the training loss for a micro-batch, all on one device.

    Attributes:
        latents, noise: [B, C, h, w] in float32.
        timesteps: [B].
        text: c_t [B, L_text, d_text]; None where the text encoders are trained, which then read `captions`.
        pooled: [B, d_pooled] for SDXL.
        llm: c_l [B, L_llm, d_llm]; None without an adapter.
        sizes: [B, 6] for SDXL; see `Family.predict`.
        targets: entity pairs to guide; None switches guidance off.
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


class Conditioner:
    """Draws the random numbers of a micro-batch, encodes its captions, and finds their words in the fused context.

    Args:
        models: of the recipe, with the LLM if there is one.
        device: of the tensors that are returned.
    """

    def __init__(self, models: Models, device: torch.device) -> None:
        self.models = models
        self.recipe = models.recipe
        self.device = device
        self._empty: dict[str, Tensor] | None = None
        # The captions of a small data set are then tokenized in its first epoch alone.
        self._positions = functools.lru_cache(_KEPT_CAPTIONS)(self._find_positions)

    def dropout(self, batch: Batch) -> list[CaptionDropout]:
        """Draw the caption dropout of each sample in its epoch."""
        data = self.recipe.data
        drops = []
        for key, epoch in zip(batch.keys, batch.epochs, strict=True):
            draw = uniform(self.recipe.seed, key, epoch, "drop")
            if draw < data.caption_dropout:
                drops.append(CaptionDropout.CAPTION)
            else:
                is_llm = draw < data.caption_dropout + data.llm_dropout
                drops.append(CaptionDropout.LLM if is_llm else CaptionDropout.NOTHING)
        return drops

    def targets(
        self, captions: Sequence[str], pairs: Sequence[Sequence[EntityPair]], drops: Sequence[CaptionDropout]
    ) -> GuidanceTargets | None:
        """Positions of the paired words of each caption in the context; none for a dropped caption.

        Returns:
            None if guidance is off.
        """
        if not self.recipe.guidance.is_on:
            return None
        return guidance_targets(
            [
                self._positions(caption, tuple(of_caption), drop)
                if of_caption and drop is not CaptionDropout.CAPTION
                else []
                for caption, of_caption, drop in zip(captions, pairs, drops, strict=True)
            ]
        )

    def inputs(self, batch: Batch, drops: Sequence[CaptionDropout], targets: GuidanceTargets | None) -> StepInputs:
        """Draw latents, noise and timesteps of a micro-batch, each from the sample's own generators, and encode it."""
        family, recipe, device = self.models.family, self.recipe, self.device
        if batch.latents is not None:
            mean, std = batch.latents
        else:
            assert batch.pixels is not None
            with torch.no_grad():
                mean, std = family.encode_images(batch.pixels.to(device, non_blocking=True))
        shape = tuple(mean.shape[1:])
        latents = mean.to(device, non_blocking=True).float()
        if not family.is_deterministic:
            latents = latents + std.to(device, non_blocking=True).float() * self._draw(batch, "vae", shape)
        noise = self._draw(batch, "noise", shape)
        if recipe.loss.noise_offset:
            noise = noise + recipe.loss.noise_offset * self._draw(batch, "noise offset", (shape[0], 1, 1))
        steps = len(family.alphas_cumprod)
        timesteps = [
            int(uniform(recipe.seed, key, epoch, "timestep") * steps)
            for key, epoch in zip(batch.keys, batch.epochs, strict=True)
        ]
        text = self.encode(batch.captions, drops, batch.text)
        return StepInputs(
            latents=latents,
            noise=noise,
            timesteps=torch.tensor(timesteps, device=device),
            text=text.get("clip"),
            pooled=text.get("pooled"),
            llm=text.get("llm"),
            sizes=batch.sizes.to(device),
            targets=targets.to(device) if targets is not None else None,
            captions=["" if d is CaptionDropout.CAPTION else c for c, d in zip(batch.captions, drops, strict=True)],
        )

    def encode(
        self, captions: Sequence[str], drops: Sequence[CaptionDropout], cached: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Encode B captions with the frozen text encoders, or take them from the cache, with caption dropout.

        Returns:
            As `Models.features`: "clip", "pooled" and "llm", as far as there are such encoders and they are frozen.
        """
        if cached is None:
            found = self.models.features(captions)
        else:
            found = {name: tensor.to(self.device, non_blocking=True) for name, tensor in cached.items()}
        if any(drop is not CaptionDropout.NOTHING for drop in drops):
            if self._empty is None:
                self._empty = self.models.features([""])
            for name, tensor in found.items():
                dropped = [d is CaptionDropout.CAPTION or (d is CaptionDropout.LLM and name == "llm") for d in drops]
                rows = torch.tensor(dropped, device=tensor.device).view(-1, *[1] * (tensor.ndim - 1))
                found[name] = torch.where(rows, self._empty[name], tensor)
        return {name: tensor.to(self.device) for name, tensor in found.items()}

    def _draw(self, batch: Batch, purpose: str, shape: tuple[int, ...]) -> Tensor:
        """Draw normal noise [B, *shape] on the CPU, so that it is the same on every device."""
        drawn = [
            torch.randn(shape, generator=generator(self.recipe.seed, key, epoch, purpose))
            for key, epoch in zip(batch.keys, batch.epochs, strict=True)
        ]
        return torch.stack(drawn).to(self.device, non_blocking=True)

    def _find_positions(self, caption: str, pairs: tuple[EntityPair, ...], drop: CaptionDropout) -> list[PairPositions]:
        models, llm = self.models, None
        if "llm" in models.layout:
            assert models.llm is not None
            text = caption if drop is CaptionDropout.NOTHING else ""
            llm = prompt_offsets(models.llm.tokenizer, text, models.llm.spec)
        offsets = models.family.text_offsets(caption, self.recipe.data.clip_chunks)
        return pair_positions(pairs, context_segments(models.layout, offsets, llm), self.recipe.guidance)


# Loss


class NoiseTarget:
    """Noisy latents, prediction target and timestep weights: the first term of eq. 6.

    Args:
        schedule: noise levels and prediction type.
        min_snr_gamma: weight min(SNR, gamma) / SNR of a timestep (arXiv 2303.09556), or / (SNR + 1) for v-prediction;
            None weights all alike, as in the paper.
    """

    def __init__(self, schedule: NoiseSchedule, min_snr_gamma: float | None = None) -> None:
        self.alphas_cumprod = schedule.alphas_cumprod
        self.prediction = schedule.prediction_type
        self.min_snr_gamma = min_snr_gamma

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Compute x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) noise, and the target of the prediction.

        Args:
            latents, noise: [B, C, h, w] in float32; timesteps: [B].

        Returns:
            x_t, and the noise or v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x_0; both [B, C, h, w].
        """
        alphas = self._alphas(timesteps).view(-1, 1, 1, 1)
        signal, spread = alphas.sqrt(), (1 - alphas).sqrt()
        noisy = signal * latents + spread * noise
        target = noise if self.prediction == "epsilon" else signal * noise - spread * latents
        return noisy, target

    def weights(self, timesteps: Tensor) -> Tensor:
        """Weight of each sample's squared error [B]."""
        if self.min_snr_gamma is None:
            return torch.ones(timesteps.shape, device=timesteps.device)
        alphas = self._alphas(timesteps)
        snr = alphas / (1 - alphas)
        clipped = snr.clamp(max=self.min_snr_gamma)
        return clipped / snr if self.prediction == "epsilon" else clipped / (snr + 1)

    def _alphas(self, timesteps: Tensor) -> Tensor:
        return self.alphas_cumprod.to(timesteps.device)[timesteps]


class TrainingLoss(nn.Module):
    """The modules that receive gradients, in one module that DDP or FSDP can wrap.

    λ is 1 in training, where the mode "value" is the same as "embedding".

    Args:
        models: of the recipe, with the UNet, and the text encoders if they are trained.
    """

    def __init__(self, models: Models) -> None:
        super().__init__()
        recipe, family = models.recipe, models.family
        self.unet = family.unet
        self.adapter = models.adapter
        self.text_encoders = nn.ModuleList(family.text_encoders if models.trains_text else ())
        self.noise_target = NoiseTarget(family.base.schedule, recipe.loss.min_snr_gamma)
        self.clip_chunks = recipe.data.clip_chunks
        # The family is not a module; it computes with the modules above.
        self.family: Any = family
        self.is_decoupled = models.adapter is not None and recipe.adapter.lambda_mode == "decoupled"
        needed = recipe.guidance.is_on or self.is_decoupled
        self.recorder = (
            install_cross_attention(family.unet, recipe.guidance)
            if needed or not unknown_cross_attention(family.unet)
            else None
        )

    def forward(self, inputs: StepInputs) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the losses of each sample, not averaged yet.

        Returns:
            Squared error [B], weighted as the recipe says; L_reg [B], 0 for samples without pairs; attention mass of
            attributes and entities [B, 2], without gradient.
        """
        if inputs.text is None:
            features = self.family.encode_text(inputs.captions, self.clip_chunks)
            text, pooled = features.hidden, features.pooled
        else:
            text, pooled = inputs.text, inputs.pooled
        context = text
        if self.adapter is not None:
            assert inputs.llm is not None
            # As in ComfyUI and `generate`, the CAM computes in float32.
            with torch.autocast(text.device.type, enabled=False):
                context = self.adapter.combine(text.float(), self.adapter(text.float(), inputs.llm.float()))
        noisy, target = self.noise_target.add_noise(inputs.latents, inputs.noise, inputs.timesteps)
        if self.recorder is not None:
            self.recorder.llm = LLMTokens("decoupled", text.shape[1]) if self.is_decoupled else None
            self.recorder.begin(inputs.targets)
        prediction = self.family.predict(noisy, inputs.timesteps, context, pooled, inputs.sizes)
        error = (prediction.float() - target).square().mean((1, 2, 3)) * self.noise_target.weights(inputs.timesteps)
        if self.recorder is None or inputs.targets is None:
            return error, torch.zeros_like(error), error.new_zeros(len(error), 2)
        guidance, mass = self.recorder.finish(len(error))
        return error, guidance, mass


# Weight of the second term


class Alpha:
    """Weight of L_reg: given, or found by its effect as described at `GuidanceOptions.alpha` "balanced".

    Args:
        options: of the run.
        every: steps between two measurements for the log; 0 for none.

    Attributes:
        value: alpha; 0 until it is found.
    """

    def __init__(self, options: GuidanceOptions, every: int) -> None:
        self.options = options
        self.every = every
        self.value = 0.0 if isinstance(options.alpha, str) else float(options.alpha)
        self._ratios: list[float] = []

    def measures(self, step: int) -> bool:
        """Whether |grad L_reg| / |grad L_diff| is measured in a step, counted from 1."""
        return self.options.is_on and (self._is_open() or (self.every > 0 and step % self.every == 0))

    def take(self, ratio: float) -> dict[str, float]:
        """Store a measurement; the last one that is needed sets alpha, from the next step on.

        Returns:
            Values to log: the ratio, and the share of guidance in the gradient, alpha * ratio.
        """
        values = {"gradient_ratio": ratio, "gradient_share": self.value * ratio}
        if self._is_open() and math.isfinite(ratio) and ratio > 0:
            self._ratios.append(ratio)
            if not self._is_open():
                self.value = self.options.balance / statistics.geometric_mean(self._ratios)
        return values

    def state(self) -> dict[str, Any]:
        """State for a checkpoint, as JSON."""
        return {"value": self.value, "ratios": self._ratios}

    def load(self, state: Mapping[str, Any]) -> None:
        """Load the state of a checkpoint."""
        self.value, self._ratios = float(state["value"]), list(state["ratios"])

    def _is_open(self) -> bool:
        return self.options.alpha == "balanced" and len(self._ratios) < self.options.balance_steps


class GradientRatio:
    """|grad L_reg| / |grad L_diff| over the samples of an optimizer step.

    `autograd.grad` bypasses the hooks of DDP: nothing is reduced and nothing accumulates in the parameters.

    Args:
        parameters: with respect to which the gradients are taken.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self._totals: list[Tensor] | None = None

    def add(self, regularizer: Tensor, diffusion: Tensor) -> None:
        """Add the losses of a micro-batch, as sums over its samples; their graph stays usable."""
        gradients = [self._gradient(loss) for loss in (regularizer, diffusion)]
        before = self._totals or [torch.zeros_like(gradient) for gradient in gradients]
        self._totals = [total + gradient for total, gradient in zip(before, gradients, strict=True)]

    def measure(self, sum_over_processes: Callable[[Tensor], Tensor]) -> float:
        """Return the ratio; infinite where the diffusion loss has no gradient."""
        assert self._totals is not None
        regularizer, diffusion = (float(sum_over_processes(total).norm()) for total in self._totals)
        return regularizer / diffusion if diffusion else math.inf

    def _gradient(self, loss: Tensor) -> Tensor:
        """Gradient of a loss with respect to all parameters, as one vector."""
        found = torch.autograd.grad(loss, self.parameters, retain_graph=True, allow_unused=True)
        pairs = zip(self.parameters, found, strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).float().flatten() for p, g in pairs])
