"""Targets and weights against their formulas."""

from __future__ import annotations

import pytest
import torch

from llm4gen_core import LLM4GENError
from llm4gen_diffusers.schedule import NoiseSchedule
from train.loss import NoiseTarget

TIMESTEPS = torch.tensor([0, 250, 700, 999])


@pytest.fixture
def latents() -> torch.Tensor:
    return torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(1))


def test_noise_is_added_and_to_be_predicted(latents: torch.Tensor, noise: torch.Tensor) -> None:
    schedule = NoiseSchedule.stable_diffusion()
    noisy, target = NoiseTarget(schedule).add_noise(latents, noise, TIMESTEPS)
    for b, t in enumerate(TIMESTEPS):
        alpha = schedule.alphas_cumprod[t]
        torch.testing.assert_close(noisy[b], alpha.sqrt() * latents[b] + (1 - alpha).sqrt() * noise[b])
    assert torch.equal(target, noise)


def test_velocity_gives_latents_and_noise_back(latents: torch.Tensor, noise: torch.Tensor) -> None:
    schedule = NoiseSchedule.stable_diffusion("v_prediction")
    noisy, velocity = NoiseTarget(schedule).add_noise(latents, noise, TIMESTEPS)
    alpha = schedule.alphas_cumprod[TIMESTEPS].view(-1, 1, 1, 1)
    torch.testing.assert_close(alpha.sqrt() * noisy - (1 - alpha).sqrt() * velocity, latents, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close((1 - alpha).sqrt() * noisy + alpha.sqrt() * velocity, noise, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("prediction", "added"), [("epsilon", 0), ("v_prediction", 1)])
def test_min_snr_weights(prediction: str, added: int) -> None:
    schedule = NoiseSchedule.stable_diffusion(prediction)
    alpha = schedule.alphas_cumprod.double()[TIMESTEPS]
    snr = alpha / (1 - alpha)
    expected = torch.minimum(snr, torch.tensor(5.0)) / (snr + added)
    torch.testing.assert_close(NoiseTarget(schedule, 5.0).weights(TIMESTEPS).double(), expected, rtol=1e-3, atol=1e-6)
    assert NoiseTarget(schedule).weights(TIMESTEPS).tolist() == [1, 1, 1, 1]


def test_zero_terminal_snr_ends_in_pure_noise(latents: torch.Tensor, noise: torch.Tensor) -> None:
    schedule = NoiseSchedule.stable_diffusion().trained_with("v_prediction", zero_terminal_snr=True)
    denoising = NoiseTarget(schedule, 5.0)
    noisy, velocity = denoising.add_noise(latents, noise, TIMESTEPS)
    assert torch.equal(noisy[3], noise[3])
    assert torch.equal(velocity[3], -latents[3])
    assert denoising.weights(TIMESTEPS).isfinite().all()
    with pytest.raises(LLM4GENError, match="no epsilon to predict"):
        NoiseSchedule.stable_diffusion().trained_with("base", zero_terminal_snr=True)
