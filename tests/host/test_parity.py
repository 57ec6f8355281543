"""`python -m llm4gen_diffusers generate` and the host: one set of weights, one prediction, one image."""

from __future__ import annotations

import importlib

import host_models
import numpy as np
import pytest
import torch
from comfy_server import COMFYUI
from diffusers_folder import write_diffusers_folder
from graphs import DENSE, graph
from PIL import Image

NEGATIVE = "blurry"
LONG = "a red cube and a blue sphere beside a green pyramid, " * 12


@pytest.fixture(scope="module")
def twin(models, comfy, tmp_path_factory):
    """The command line's SD1.5 from the checkpoint's weights, with the same adapter and LLM."""
    from llm4gen_diffusers.options import ModelFiles
    from llm4gen_diffusers.sampling import Pipeline

    folder = write_diffusers_folder(
        models / "checkpoints" / "sd15.safetensors",
        COMFYUI / "comfy" / "sd1_tokenizer",
        tmp_path_factory.mktemp("diffusers") / "sd15",
    )
    llm = tmp_path_factory.mktemp("llm") / "rankgen"
    tokenizer = COMFYUI / "comfy" / "text_encoders" / "t5_tokenizer"
    host_models.save_hf_t5(host_models.rankgen_state(20), llm, tokenizer)
    return Pipeline.from_files(ModelFiles(base=folder, adapter=models / "llm4gen" / "projector.pth", llm=llm))


@pytest.fixture(scope="module")
def host_side(pack, models):
    """(the host's UNet, text -> fused context) through the pack's own nodes."""
    import comfy.sd

    conditioning, host, host_llm = (
        importlib.import_module(f"{pack.__name__}.nodes.{name}") for name in ("conditioning", "host", "host_llm")
    )
    unet, clip, *_ = comfy.sd.load_checkpoint_guess_config(str(models / "checkpoints" / "sd15.safetensors"))
    llm = host_llm.load_llm("rankgen.safetensors", {"dtype": torch.float32})
    adapter = host.HostAdapter.load("projector.pth")

    def context(text, other):
        plain = conditioning.encode_clip(clip, text, other)
        return conditioning.fuse_conditioning(adapter, plain, llm.encode(text, llm.spec), 1.0)[0][0]

    return unet, context


def relative_error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(("prompt", "negative"), [(DENSE, NEGATIVE), (LONG, ""), ("", LONG)])
def test_same_context(twin, host_side, prompt, negative):
    _, context = host_side
    expected = torch.cat([context(prompt, negative), context(negative, prompt)])
    found = twin.encode([prompt, negative]).hidden
    assert found.shape == expected.shape
    assert relative_error(found, expected) < 1e-5


def test_the_checkpoint_itself_is_the_same_model(twin, models):
    """The checkpoint against the folder that diffusers wrote: equal weights, and equal outputs but for rounding.

    Their tensors lie at other places in memory, so that kernels may add up in another order.
    """
    from llm4gen_diffusers.families import load_family

    file = load_family(None, models / "checkpoints" / "sd15.safetensors", tokenizer=COMFYUI / "comfy" / "sd1_tokenizer")
    for ours, theirs in (
        (file.unet, twin.family.unet),
        (file.vae, twin.family.vae),
        (file.text_encoders[0], twin.family.text_encoders[0]),
    ):
        expected = theirs.state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.state_dict().items())
    with torch.no_grad():
        latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
        text = twin.family.encode_text([DENSE]).hidden
        assert relative_error(file.encode_text([DENSE]).hidden, text) < 1e-5
        for found, expected in (
            [family.predict(latents, 481, text) for family in (file, twin.family)],
            [family.decode_latents(latents) for family in (file, twin.family)],
        ):
            assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("timestep", [1, 481, 981])
@torch.inference_mode()
def test_same_noise_prediction(twin, host_side, timestep):
    import comfy.model_management

    unet, context = host_side
    comfy.model_management.load_models_gpu([unet])
    sigma = unet.model.model_sampling.sigmas[timestep]
    x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(timestep)) * sigma
    both = torch.cat([context(DENSE, NEGATIVE), context(NEGATIVE, DENSE)])
    denoised = unet.model.apply_model(x, sigma.expand(2), c_crossattn=both)
    expected = (x - denoised) / sigma
    latents = x / (1 + sigma**2).sqrt()
    found = twin.predict_noise(latents, timestep, twin.encode([DENSE, NEGATIVE]))
    assert relative_error(found, expected) < 1e-4


@pytest.mark.parametrize("steps", [4, 7])
def test_same_image(server, twin, steps):
    """7 does not divide 1000: the host's ddim_uniform then makes one step more."""
    from llm4gen_diffusers.options import GenerationOptions

    nodes = graph(positive=DENSE, negative=NEGATIVE, seed=12345, batch=2)
    nodes["sampler"]["inputs"]["steps"] = steps
    result = server.run(nodes)
    assert result.error is None, result.error
    painted = np.stack([np.asarray(Image.open(server.base / "output" / name)) for name in result.images()])
    options = GenerationOptions(negative=NEGATIVE, steps=steps, width=128, height=128)
    images = twin.generate(DENSE, options, seed=12345, batch=2)
    ours = (images.permute(0, 2, 3, 1).numpy() * 255).clip(0, 255).astype(np.uint8)
    difference = np.abs(painted.astype(int) - ours.astype(int))
    assert painted.std() > 10, "the image is flat"
    assert difference.max() <= 3 and difference.mean() < 0.05
