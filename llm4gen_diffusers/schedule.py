"""The noise schedule of Stable Diffusion, and ComfyUI's sampler `ddim` with the scheduler `ddim_uniform`.

ComfyUI integrates in sigma space with Euler's method, where x = latents / sqrt(alpha_bar) and
sigma = sqrt((1 - alpha_bar) / alpha_bar). That is DDIM with eta 0, written differently. Both give the same image if
four things agree, in each of which diffusers' defaults differ:

- the timesteps are 1, 1 + s, 1 + 2 s, ... below 1000 with s = 1000 // steps, *all* of them: where `steps` does not
  divide 1000 this is more than `steps` (31 for 30), and none of diffusers' spacings selects them;
- the last step ends at sigma 0 (`set_alpha_to_one`), where the official script of LLM4GEN ends at the noise
  level of timestep 0 (`set_alpha_to_one=False`, as in SD1.5's own scheduler file), slightly more noise;
- the cumulative product of the alphas is taken in float64;
- the first latents are not unit noise but noise at the level of the first timestep, noise * sqrt(1 - alpha_bar),
  unless that is the last timestep of training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from llm4gen_core import LLM4GENError

TRAIN_STEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012
PREDICTION_TYPES = ("epsilon", "v_prediction")
_POWERS = {"scaled_linear": 0.5, "linear": 1.0}
"""Power of beta in which a schedule is a straight line, by diffusers' name for it."""


@dataclass(frozen=True)
class NoiseSchedule:
    """Noise level of each timestep of training, and what the UNet predicts.

    Attributes:
        beta_start, beta_end: noise variance that the first and the last timestep add.
        beta_schedule: diffusers' name of the curve between them, a key of `_POWERS`.
        prediction_type: one of `PREDICTION_TYPES`; "v_prediction" is v = sqrt(alpha_bar) noise -
            sqrt(1 - alpha_bar) x_0 (arXiv 2202.00512).
        zero_terminal_snr: see `rescale_zero_terminal_snr`.
    """

    beta_start: float
    beta_end: float
    beta_schedule: str
    prediction_type: str = "epsilon"
    zero_terminal_snr: bool = False

    @classmethod
    def stable_diffusion(cls, prediction_type: str = "epsilon", zero_terminal_snr: bool = False) -> NoiseSchedule:
        """Schedule of SD1.5 and SDXL."""
        return cls(BETA_START, BETA_END, "scaled_linear", prediction_type, zero_terminal_snr)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], what: str) -> NoiseSchedule:
        """Read the schedule of a diffusers scheduler.

        Args:
            config: content of scheduler_config.json.
            what: name of the file, for errors.

        Raises:
            LLM4GENError: the schedule is not supported.
        """

        def refuse(name: str, expected: str) -> LLM4GENError:
            return LLM4GENError(f"{what}: {name} is {config.get(name)!r}; expected {expected}, as in SD1.5 and SDXL.")

        if "EDM" in str(config.get("_class_name")):
            raise refuse("_class_name", "a scheduler over 1000 timesteps")
        if config.get("num_train_timesteps", TRAIN_STEPS) != TRAIN_STEPS:
            raise refuse("num_train_timesteps", str(TRAIN_STEPS))
        if config.get("trained_betas") is not None:
            raise refuse("trained_betas", "none")
        prediction = config.get("prediction_type", "epsilon")
        if prediction not in PREDICTION_TYPES:
            raise refuse("prediction_type", " or ".join(map(repr, PREDICTION_TYPES)))
        kind = config.get("beta_schedule", "linear")
        if kind not in _POWERS:
            raise refuse("beta_schedule", " or ".join(map(repr, _POWERS)))
        start, end = config.get("beta_start", 0.0001), config.get("beta_end", 0.02)  # diffusers' own defaults
        return cls(start, end, kind, prediction, bool(config.get("rescale_betas_zero_snr")))

    def to_diffusers(self) -> DDIMScheduler:
        """Scheduler whose configuration holds all of it, for diffusers and for `from_config`.

        It is DDIM's: few others support zero terminal SNR, and SD1.5's own does not.
        """
        return DDIMScheduler(
            num_train_timesteps=TRAIN_STEPS,
            beta_start=self.beta_start,
            beta_end=self.beta_end,
            beta_schedule=self.beta_schedule,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type=self.prediction_type,
            rescale_betas_zero_snr=self.zero_terminal_snr,
            # With zero terminal SNR sampling has to start at the last timestep (arXiv 2305.08891).
            timestep_spacing="trailing" if self.zero_terminal_snr else "leading",
        )

    def trained_with(self, prediction: str, zero_terminal_snr: bool) -> NoiseSchedule:
        """Return the schedule that a training makes of this one.

        Args:
            prediction: one of `PREDICTION_TYPES`, or "base" to keep this one's.
            zero_terminal_snr: whether the training rescales it; a rescaled one stays so.

        Raises:
            LLM4GENError: at pure noise there is no epsilon to predict.
        """
        prediction = self.prediction_type if prediction == "base" else prediction
        if zero_terminal_snr and prediction != "v_prediction":
            raise LLM4GENError(
                f"loss.prediction is {prediction}; expected v_prediction with loss.zero_terminal_snr: at pure noise "
                "there is no epsilon to predict."
            )
        return replace(self, prediction_type=prediction, zero_terminal_snr=self.zero_terminal_snr or zero_terminal_snr)

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """alpha_bar [1000] in float32: x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) noise."""
        power = _POWERS[self.beta_schedule]
        ends = self.beta_start**power, self.beta_end**power
        betas = torch.linspace(*ends, TRAIN_STEPS, dtype=torch.float64) ** (1 / power)
        alphas_cumprod = torch.cumprod(1 - betas, dim=0)
        if self.zero_terminal_snr:
            alphas_cumprod = rescale_zero_terminal_snr(alphas_cumprod)
        return alphas_cumprod.float()


def rescale_zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """Shift and scale alpha_bar [T] so that the last timestep is pure noise (arXiv 2305.08891, algorithm 1)."""
    root = alphas_cumprod.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


class DDIMUniformScheduler(DDIMScheduler):
    """DDIM over a noise schedule with ComfyUI's `ddim_uniform` timesteps."""

    @classmethod
    def over(cls, schedule: NoiseSchedule) -> DDIMUniformScheduler:
        """Make a scheduler."""
        scheduler = cls(
            num_train_timesteps=TRAIN_STEPS,
            beta_start=BETA_START,
            beta_end=BETA_END,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=True,
            steps_offset=1,
            prediction_type=schedule.prediction_type,
        )
        scheduler.alphas_cumprod = schedule.alphas_cumprod.cpu()
        return scheduler

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str = "cpu") -> None:
        """Select the timesteps, with the stride 1000 // num_inference_steps that `step` uses."""
        super().set_timesteps(num_inference_steps, device)
        self.timesteps = torch.arange(1, TRAIN_STEPS, TRAIN_STEPS // num_inference_steps).flip(0).to(device)

    def first_latents(self, noise: Tensor, steps: int) -> Tensor:
        """Scale unit noise to the latents that sampling starts from.

        Args:
            noise: [B, C, h, w], unit variance.
            steps: as for `set_timesteps`.

        Returns:
            [B, C, h, w].
        """
        self.set_timesteps(steps)
        first = int(self.timesteps[0])
        if first == TRAIN_STEPS - 1:
            return noise
        return noise * (1 - self.alphas_cumprod[first]).sqrt()


def unit_noise(seed: int, shape: Sequence[int]) -> Tensor:
    """Sample the noise of ComfyUI's KSampler: one draw for the whole batch on the CPU, whatever the device.

    Args:
        seed: 0 to 2**64 - 1.
        shape: shape of the latents, [B, C, h, w].

    Returns:
        [B, C, h, w] in float32.
    """
    return torch.randn(tuple(shape), generator=torch.Generator("cpu").manual_seed(seed))
