"""SDXL of the trainer and of the host: one set of small weights, one text, one size condition, one prediction.

The host detects SDXL only at its full size, so that its classes are made by hand here; they get the weights as a
checkpoint has them, under Stability's names.
"""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import torch
from checkpoint import checkpoint_state, write_checkpoint
from comfy_server import COMFYUI
from graphs import DENSE

WIDTHS, CHANNELS = (64, 128), 64
LONG = "a red cube and a blue sphere beside a green pyramid, " * 12


@pytest.fixture(scope="module")
def folder(comfy, tmp_path_factory):
    """A small SDXL whose text encoders have CLIP's whole vocabulary."""
    import small_models
    from transformers import CLIPTokenizer

    path = tmp_path_factory.mktemp("sdxl") / "sdxl"
    tokenizer = COMFYUI / "comfy" / "sd1_tokenizer"
    size = len(CLIPTokenizer.from_pretrained(tokenizer))

    def copy(target, pad="<|endoftext|>"):
        shutil.copytree(tokenizer, target)
        return size

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_models, "write_clip_tokenizer", copy)
        return small_models.make_sdxl_folder(path, WIDTHS, (CHANNELS, CHANNELS))


@pytest.fixture(scope="module")
def ours(folder, tmp_path_factory):
    from llm4gen_diffusers.families import load_family

    file = write_checkpoint(folder, tmp_path_factory.mktemp("checkpoint") / "sdxl.safetensors")
    return load_family("sdxl", file, tokenizer=COMFYUI / "comfy" / "sd1_tokenizer")


@pytest.fixture(scope="module")
def host_text(folder, comfy):
    """Text to (context [1, 77 k, d_text], pooled) by the host's tokenizer and both of its CLIPs."""
    import comfy.supported_models
    from comfy import sdxl_clip

    def config(width):
        sizes = {"hidden_size": width, "intermediate_size": 4 * width, "projection_dim": width}
        return {**sizes, "num_hidden_layers": 3, "num_attention_heads": width // 64}

    options = {"clip_l_model_config": config(WIDTHS[0]), "clip_g_model_config": config(WIDTHS[1])}
    clip = sdxl_clip.SDXLClipModel(dtype=torch.float32, model_options=options)
    clip.reset_clip_options()
    state = comfy.supported_models.SDXL.process_clip_state_dict(None, checkpoint_state(folder))
    for part in ("clip_l", "clip_g"):
        prefix = f"{part}.transformer."
        tensors = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
        missing, _ = getattr(clip, part).transformer.load_state_dict(tensors, strict=False)
        assert all("text_projection" in name for name in missing)
    tokenizer = sdxl_clip.SDXLTokenizer()

    def encode(text):
        return clip.encode_token_weights(tokenizer.tokenize_with_weights(text))

    return encode


@pytest.mark.parametrize("text", [DENSE, "", LONG, "ünïcode 猫, 3x10,000"])
@torch.inference_mode()
def test_same_text(ours, host_text, text):
    hidden, pooled = host_text(text)
    found = ours.encode_text([text])
    assert found.hidden.shape == hidden.shape == (1, 77 * (2 if text == LONG else 1), sum(WIDTHS))
    torch.testing.assert_close(found.hidden, hidden, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.pooled, pooled, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("timestep", [1, 981])
@torch.inference_mode()
def test_same_prediction(ours, folder, comfy, host_text, timestep):
    """With the host's own size condition for an image that was scaled and cropped."""
    import comfy.model_base
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import Timestep, UNetModel

    unet = UNetModel(
        image_size=32,
        in_channels=4,
        model_channels=CHANNELS,
        out_channels=4,
        num_res_blocks=[1, 1],
        channel_mult=[1, 1],
        transformer_depth=[0, 2],
        transformer_depth_output=[0, 0, 2, 2],
        transformer_depth_middle=2,
        num_head_channels=64,
        use_spatial_transformer=True,
        use_linear_in_transformer=True,
        context_dim=sum(WIDTHS),
        num_classes="sequential",
        adm_in_channels=WIDTHS[1] + 6 * 256,
        legacy=False,
        dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    )
    prefix = "model.diffusion_model."
    state = {n.removeprefix(prefix): t for n, t in checkpoint_state(folder).items() if n.startswith(prefix)}
    unet.load_state_dict(state, strict=True)
    context, pooled = host_text(DENSE)
    sizes = {"height": 640, "width": 480, "crop_h": 16, "crop_w": 8, "target_height": 1024, "target_width": 768}
    of_model = SimpleNamespace(embedder=Timestep(256), noise_augmentor=None)
    condition = comfy.model_base.SDXL.encode_adm(of_model, pooled_output=pooled, **sizes)
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(timestep))
    expected = unet(latents, torch.tensor([timestep]), context=context, y=condition)
    found = ours.predict(latents, timestep, context, pooled, torch.tensor([list(sizes.values())]))
    assert ((found - expected).norm() / expected.norm()).item() < 1e-4
