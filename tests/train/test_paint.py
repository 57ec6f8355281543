"""Painting: the noise prediction, the seed, the replaced UNet, and the equality with ComfyUI's sampler."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from train.schedule import DDIMUniformScheduler, unit_noise
from train.sd15 import SD15

SMALL = {"width": 64, "height": 64, "steps": 4}


def host_sigmas():
    """Noise levels of SD1.5 in float64."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = torch.cumprod(1 - betas, dim=0)
    return ((1 - alphas) / alphas).sqrt()


def host_timesteps(steps):
    """ComfyUI's rule in words: from timestep 1 on, every (1000 // steps)th, as long as there are any."""
    chosen, timestep = [], 1
    while timestep < 1000:
        chosen.append(timestep)
        timestep += max(1000 // steps, 1)
    return chosen[::-1]


def euler(model, prompt, negative, seed, steps, guidance, width, height):
    """ComfyUI's `ddim`: Euler's method from one sigma to the next, down to 0."""
    context = model.encode([prompt, negative])
    sigmas, timesteps = host_sigmas(), host_timesteps(steps)
    x = unit_noise(seed, 1, height, width).double()
    first = sigmas[timesteps[0]]
    x = x * ((1 + first**2).sqrt() if timesteps[0] == 999 else first)
    for timestep, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        sigma = sigmas[timestep]
        latents = (x / (1 + sigma**2).sqrt()).float()
        noise, noise_of_negative = model.predict_noise(latents.repeat(2, 1, 1, 1), timestep, context).double()
        noise = noise_of_negative + guidance * (noise - noise_of_negative)
        x = x + noise * ((0 if following is None else sigmas[following]) - sigma)
    return x.float()


@pytest.mark.parametrize(
    ("steps", "count", "first"), [(50, 50, 981), (20, 20, 951), (30, 31, 991), (7, 8, 995), (4, 4, 751)]
)
def test_timesteps_are_those_of_ddim_uniform(steps, count, first):
    scheduler = DDIMUniformScheduler.sd15()
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == host_timesteps(steps)
    assert (len(scheduler.timesteps), scheduler.timesteps[0]) == (count, first)


@pytest.mark.parametrize(("steps", "guidance"), [(4, 7.5), (7, 5.0), (8, 1.0)])
def test_latents_equal_eulers_method_in_sigma_space(sd15, steps, guidance):
    painted = sd15.paint(
        "a red cat", "a dog", seed=5, steps=steps, guidance=guidance, width=32, height=64, output="latents"
    )
    expected = euler(sd15, "a red cat", "a dog", 5, steps, guidance, 32, 64)
    assert painted.shape == (1, 4, 8, 4)
    torch.testing.assert_close(painted, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("steps", [7, 50, 400])
def test_first_latents_are_those_of_comfyui(steps):
    """Noise at the level of the first timestep, but unit noise where that is the very last of training."""
    noise, first = torch.randn(1, 4, 8, 8), host_timesteps(steps)[0]
    sigma = host_sigmas()[first]
    started = noise * ((1 + sigma**2).sqrt() if first == 999 else sigma)
    latents = DDIMUniformScheduler.sd15().first_latents(noise, steps)
    assert (first == 999) == (steps == 400)
    torch.testing.assert_close(latents, (started / (1 + sigma**2).sqrt()).float(), rtol=1e-6, atol=1e-6)


def test_noise_is_one_draw_of_the_seed_for_the_whole_batch():
    torch.manual_seed(11)
    assert torch.equal(unit_noise(11, 3, 64, 32), torch.randn(3, 4, 8, 4))


def test_predicted_noise_equals_a_direct_call_of_the_unet(sd15, models):
    unet = UNet2DConditionModel.from_pretrained(models.base / "unet").eval()
    context, latents = sd15.encode(["a red cat", ""]), torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        expected = unet(latents, 501, encoder_hidden_states=context).sample
    assert torch.equal(sd15.predict_noise(latents, 501, context), expected)


def test_another_unet_takes_the_place_of_the_bases(models):
    """Also as the release has it, in a folder `unet` within the one that is given."""
    replaced = SD15.from_folders(models.base, unet=models.unet)
    within = SD15.from_folders(models.base, unet=models.unet.parent)
    expected = UNet2DConditionModel.from_pretrained(models.unet).state_dict()
    for model in (replaced, within):
        assert all(torch.equal(value, expected[name]) for name, value in model.pipeline.unet.state_dict().items())


def test_images_have_the_size_and_range_that_were_asked_for(sd15):
    images = sd15.paint("a red cat", width=64, height=96, steps=2, batch=2)
    assert images.shape == (2, 3, 96, 64)
    assert images.min() >= 0 and images.max() <= 1 and images.std() > 0.01


def test_the_same_seed_gives_the_same_image(sd15):
    assert torch.equal(sd15.paint("a cat", seed=3, **SMALL), sd15.paint("a cat", seed=3, **SMALL))


@pytest.mark.parametrize("change", [{"seed": 4}, {"prompt": "a dog"}, {"negative": "blue"}, {"strength": 0.5}])
def test_every_input_changes_the_image(sd15, change):
    settings = {"prompt": "a cat", "seed": 3, **SMALL}
    assert (sd15.paint(**settings) - sd15.paint(**{**settings, **change})).abs().max() > 1e-4


def test_the_first_image_of_a_batch_has_the_same_noise_as_a_single_one(sd15):
    batch = sd15.paint("a cat", seed=3, batch=2, **SMALL)
    torch.testing.assert_close(batch[:1], sd15.paint("a cat", seed=3, **SMALL), rtol=0, atol=1e-4)
    assert (batch[0] - batch[1]).abs().max() > 1e-2


def test_guidance_1_ignores_the_negative_prompt(sd15):
    settings = {"seed": 3, "guidance": 1.0, **SMALL}
    assert torch.equal(sd15.paint("a cat", "dog", **settings), sd15.paint("a cat", "boat", **settings))


def test_only_the_unet_computes_in_half_precision(sd15, models):
    """Latents, context and sampler stay in float32, as in ComfyUI."""
    half = SD15.from_folders(models.base, adapter=models.adapter, llm=models.llm, dtype=torch.float16)
    context, latents = sd15.encode(["a red cat", ""]), torch.randn(2, 4, 16, 16)
    exact, rounded = sd15.predict_noise(latents, 501, context), half.predict_noise(latents, 501, context)
    assert half.pipeline.unet.dtype == torch.float16 and rounded.dtype == torch.float32
    assert 0 < (exact - rounded).abs().max() < 0.01 * exact.abs().max()
    painted = half.paint("a cat", output="latents", **SMALL)
    assert painted.dtype == torch.float32 and not torch.equal(painted, painted.half().float())
