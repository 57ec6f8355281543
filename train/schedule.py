"""ComfyUI's sampler `ddim` with the scheduler `ddim_uniform`, in diffusers' terms.

ComfyUI integrates in sigma space with Euler's method, where x = latents / sqrt(alpha_bar) and
sigma = sqrt((1 - alpha_bar) / alpha_bar). That is DDIM with eta 0, written differently. Four things have to
be chosen for both to give the same image, and diffusers' defaults differ in each:

- the timesteps 1, 1 + s, 1 + 2 s, ... below 1000 with s = 1000 // steps, *all* of them: where `steps` does not
  divide 1000 this is more than `steps` (31 for 30), and none of diffusers' spacings selects them;
- the last step ends at sigma 0 (`set_alpha_to_one`), where the official script of LLM4GEN ends at the noise
  level of timestep 0 (`set_alpha_to_one=False`, as in SD1.5's own scheduler file), a trace of noise more;
- the cumulative product of the alphas is taken in float64;
- the first latents are not unit noise but noise at the level of the first timestep, noise * sqrt(1 - alpha_bar),
  unless that is the last timestep of training.
"""

from __future__ import annotations

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

TRAIN_STEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012


class DDIMUniformScheduler(DDIMScheduler):
    """DDIM over SD1.5's noise schedule with ComfyUI's `ddim_uniform` timesteps; made by `sd15`."""

    @classmethod
    def sd15(cls) -> DDIMUniformScheduler:
        scheduler = cls(
            num_train_timesteps=TRAIN_STEPS,
            beta_start=BETA_START,
            beta_end=BETA_END,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=True,
            steps_offset=1,
        )
        betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, TRAIN_STEPS, dtype=torch.float64) ** 2
        scheduler.alphas_cumprod = torch.cumprod(1 - betas, dim=0).float()
        return scheduler

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str = "cpu") -> None:
        """Select the timesteps; `step` then goes back by the same stride, 1000 // num_inference_steps."""
        super().set_timesteps(num_inference_steps, device)
        self.timesteps = torch.arange(1, TRAIN_STEPS, TRAIN_STEPS // num_inference_steps).flip(0).to(device)

    def first_latents(self, noise: Tensor, steps: int) -> Tensor:
        """Latents to start `steps` steps from.

        Args:
            noise: [B, 4, H/8, W/8], unit variance.
            steps: as for `set_timesteps`.

        Returns:
            [B, 4, H/8, W/8].
        """
        self.set_timesteps(steps)
        first = int(self.timesteps[0])
        if first == TRAIN_STEPS - 1:
            return noise
        return noise * (1 - self.alphas_cumprod[first]).sqrt()


def unit_noise(seed: int, batch: int, height: int, width: int) -> Tensor:
    """The noise of ComfyUI's KSampler: one draw for the whole batch on the CPU, whatever the device.

    Args:
        seed: 0 to 2**64 - 1.
        batch: images.
        height, width: pixels.

    Returns:
        [batch, 4, height/8, width/8] in float32.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn((batch, 4, height // 8, width // 8), generator=generator)
