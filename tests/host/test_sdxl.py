"""SDXL through the pack's nodes: the wide context, the pooled text and the sizes, in the host's own model and sampler.

The host detects SDXL only at its full size, so that its classes are made by hand here: text encoders of SDXL's widths
with three layers, and a small UNet that reads SDXL's context and conditions.
"""

from __future__ import annotations

import importlib

import host_models
import pytest
import torch
from graphs import DENSE

WIDTHS = {"l": 768, "g": 1280}
SIZES = {"width": 640, "height": 480, "crop_w": 16, "crop_h": 8, "target_width": 1024, "target_height": 768}


@pytest.fixture(scope="module")
def nodes(pack):
    names = ("conditioning", "encode", "host", "host_attention", "host_llm")
    return {name: importlib.import_module(f"{pack.__name__}.nodes.{name}") for name in names}


@pytest.fixture(scope="module")
def clip(comfy):
    """SDXL's pair of text encoders, with SDXL's tokenizer."""
    import comfy.sd
    from comfy import sdxl_clip
    from comfy.supported_models_base import ClipTarget

    def config(width):
        sizes = {"hidden_size": width, "intermediate_size": 4 * width, "projection_dim": width}
        return {**sizes, "num_hidden_layers": 3, "num_attention_heads": width // 64}

    options = {f"clip_{name}_model_config": config(width) for name, width in WIDTHS.items()}
    found = comfy.sd.CLIP(
        ClipTarget(sdxl_clip.SDXLTokenizer, sdxl_clip.SDXLClipModel), model_options={**options, "dtype": torch.float32}
    )
    for seed, name in enumerate(WIDTHS):
        model = getattr(found.cond_stage_model, f"clip_{name}").transformer
        model.load_state_dict(host_models.random_state(model, seed))
    return found


@pytest.fixture(scope="module")
def model(comfy):
    """The host's SDXL with a small UNet."""
    import comfy.model_management as management
    import comfy.model_patcher
    import comfy.supported_models

    layout = {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "use_spatial_transformer": True,
        "legacy": False,
        "model_channels": 64,
        "num_res_blocks": [1, 1],
        "channel_mult": [1, 2],
        "transformer_depth": [0, 2],
        "transformer_depth_output": [0, 0, 2, 2],
        "transformer_depth_middle": 2,
        "num_head_channels": 64,
        "num_classes": "sequential",
        "dtype": torch.float32,
    }
    config_class = comfy.supported_models.SDXL
    config = config_class({**config_class.unet_config, **layout})
    found = config.get_model({}, "", device=torch.device("cpu"))
    found.diffusion_model.load_state_dict(host_models.random_state(found.diffusion_model, 3))
    device = management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(found, load_device=device, offload_device=torch.device("cpu"))


@pytest.fixture(scope="module")
def adapter(nodes, models):
    host_models.save_own_adapter(models / "llm4gen" / "own_sdxl.safetensors", 33, base="sdxl")
    return nodes["host"].HostAdapter.load("own_sdxl.safetensors")


@pytest.fixture(scope="module")
def llm(nodes, models):
    return nodes["host_llm"].load_llm("rankgen.safetensors", {"dtype": torch.float32})


@pytest.fixture(scope="module")
def sides(nodes, clip, adapter, llm):
    """(plain, fused), each (positive, negative)."""

    def encode(text, other):
        plain = nodes["encode"].LLM4GENEncodeCLIP.execute(clip, text, other)[0]
        return plain, nodes["encode"].LLM4GENFuse.execute(adapter, plain, llm.encode(text, llm.spec), 1.0)[0]

    return tuple(zip(encode(DENSE, "blurry"), encode("blurry", DENSE), strict=True))


def generate(model, sides, seed=1):
    import comfy.sample

    latent = torch.zeros(1, 4, 16, 16)
    noise = comfy.sample.prepare_noise(latent, seed)
    return comfy.sample.sample(
        model, noise, 2, 7.5, "ddim", "ddim_uniform", *sides, latent, disable_pbar=True, seed=seed
    )


def test_clip_encode_is_the_hosts_with_both_encoders_and_the_pooled_text(nodes, clip):
    [[context, options]] = nodes["encode"].LLM4GENEncodeCLIP.execute(clip, DENSE)[0]
    [[expected, of_host]] = clip.encode_from_tokens_scheduled(clip.tokenize(DENSE))
    assert context.shape == (1, 77, 2048) and torch.equal(context, expected)
    assert options["pooled_output"].shape == (1, 1280)
    assert torch.equal(options["pooled_output"], of_host["pooled_output"])
    assert not set(SIZES) & set(options)


def test_sizes_stand_among_the_options_where_they_are_given(nodes, clip):
    [[_, options]] = nodes["encode"].LLM4GENEncodeCLIP.execute(clip, DENSE, **SIZES)[0]
    assert {name: options[name] for name in SIZES} == SIZES
    [[_, options]] = nodes["encode"].LLM4GENEncodeCLIP.execute(clip, DENSE, width=512, height=0, crop_w=0)[0]
    assert options["width"] == 512 and "height" not in options


@torch.inference_mode()
def test_sizes_reach_the_condition_that_the_unet_gets(nodes, clip, model):
    def condition(**sizes):
        [[_, options]] = nodes["encode"].LLM4GENEncodeCLIP.execute(clip, DENSE, **sizes)[0]
        return model.model.encode_adm(device="cpu", **{"width": 128, "height": 128, **options})

    expected = model.model.encode_adm(pooled_output=clip.encode_from_tokens(clip.tokenize(DENSE), True)[1], **SIZES)
    assert torch.equal(condition(**SIZES), expected)
    assert not torch.equal(condition(), expected)


def test_both_sides_are_equally_long_for_both_encoders(nodes, clip):
    long = "a red cube and a blue sphere beside a green pyramid, " * 12
    lengths = [
        nodes["encode"].LLM4GENEncodeCLIP.execute(clip, text, other)[0][0][0].shape[1]
        for text, other in ((long, ""), ("", long))
    ]
    assert lengths[0] == lengths[1] > 77


def test_fused_the_context_is_as_wide_and_keeps_pooled_text_and_sizes(nodes, clip, adapter, llm):
    plain = nodes["encode"].LLM4GENEncodeCLIP.execute(clip, DENSE, **SIZES)[0]
    [[context, options]] = nodes["encode"].LLM4GENFuse.execute(adapter, plain, llm.encode(DENSE, llm.spec), 1.0)[0]
    assert context.shape == (1, 77 + 256, 2048) and torch.equal(context[:, :77], plain[0][0])
    assert {name: options[name] for name in SIZES} == SIZES
    assert torch.equal(options["pooled_output"], plain[0][1]["pooled_output"])
    assert torch.equal(options["cross_attn_controlnet"], plain[0][0])


def test_one_call_per_step(model, sides):
    plain, fused = sides
    calls = []
    watched = model.clone()

    def watch(query, context, value, options):
        calls.append(context.shape)
        return query, context, value

    watched.set_model_attn2_patch(watch)
    image = generate(watched, fused)
    assert image.isfinite().all() and not torch.equal(image, generate(model, plain))
    assert set(calls) == {(2, 77 + 256, 2048)}


@pytest.mark.parametrize("mode", ["embedding", "value", "decoupled"])
def test_lambda_works_in_blocks_of_several_transformers(nodes, pack, model, sides, mode):
    schedule = importlib.import_module(f"{pack.__name__}.llm4gen_core.attention").StrengthSchedule
    plain, fused = sides
    images = [
        generate(nodes["host_attention"].patch_attention(model, mode, schedule(strength, strength)), fused)
        for strength in (0.0, 0.5, 1.0)
    ]
    assert torch.equal(images[0], generate(model, plain))
    same = torch.equal(images[2], generate(model, fused))
    assert same == (mode != "decoupled")
    assert not torch.equal(images[1], images[2])


def test_an_adapter_of_sd15_is_refused(nodes, clip, llm, models):
    adapter = nodes["host"].HostAdapter.load("projector.pth")
    plain = nodes["encode"].LLM4GENEncodeCLIP.execute(clip, DENSE)[0]
    with pytest.raises(
        ValueError, match=r"width 2048 \(SDXL\), but adapter projector.pth was trained for 768 \(SD1.5\)"
    ):
        nodes["encode"].LLM4GENFuse.execute(adapter, plain, llm.encode(DENSE, llm.spec), 1.0)
