"""What the UNet learns to predict, and how much each timestep counts."""

from __future__ import annotations

import torch
from torch import Tensor

from llm4gen_diffusers.schedule import NoiseSchedule


class NoiseTarget:
    """The first term of eq. 6.

    Args:
        schedule: noise levels, and what is predicted.
        min_snr_gamma: weight min(SNR, gamma) / SNR of a timestep (arXiv 2303.09556), or / (SNR + 1) for v-prediction;
            None weights all alike, as in the paper.
    """

    def __init__(self, schedule: NoiseSchedule, min_snr_gamma: float | None = None) -> None:
        self.alphas_cumprod = schedule.alphas_cumprod
        self.prediction = schedule.prediction_type
        self.min_snr_gamma = min_snr_gamma

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) noise, and the target of the prediction.

        Args:
            latents, noise: [B, C, h, w] in float32; timesteps: [B].

        Returns:
            x_t and the noise, or v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x_0; both [B, C, h, w].
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
