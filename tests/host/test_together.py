"""LLM4GEN together with the host's own features: LoRA, ControlNet, what patches the model, img2img and inpainting.

By the API, and in the sampler's own numbers. Of every such node: whether Patch Model stands before or behind it makes
no difference; both are seen in the result; and where λ is 0, the result is that of the node with plain CLIP.
"""

from __future__ import annotations

import other_models
import pytest
import torch
from graphs import beside, on_the_model, plain_clip
from PIL import Image

MODES = ("embedding", "value", "decoupled")
SIZE = 64


@pytest.fixture(scope="module", autouse=True)
def others(server, models):
    other_models.fill(models)
    image = Image.linear_gradient("L").resize((SIZE, SIZE))
    # The left half is to be painted again: the host's mask is 1 where an image is transparent.
    alpha = Image.new("L", (SIZE, SIZE), 255)
    alpha.paste(0, (0, 0, SIZE // 2, SIZE))
    (server.base / "input").mkdir(exist_ok=True)
    Image.merge("LA", (image, alpha)).convert("RGBA").save(server.base / "input" / "half.png")


def run(server, *changes, **options):
    return server.latents(beside(*changes, size=SIZE, **options))


def node(class_type, **inputs):
    return lambda nodes: on_the_model(nodes, class_type, class_type, **inputs)


def error(a, b):
    return ((a - b).norm() / b.norm()).item()


def equal_but_for_rounding(a, b):
    return error(a, b) < 1e-4


@pytest.fixture(scope="module")
def llm4gen_alone(server, others):
    """{mode: latents with LLM4GEN and nothing else}."""
    return {mode: run(server, mode=mode) for mode in MODES}


@pytest.fixture
def assert_lives_with(server, llm4gen_alone):
    """The three clauses at the top of this file. Gives the results with and without LLM4GEN."""

    def check(mode, *changes, same=torch.equal):
        both = run(server, *changes, mode=mode)
        assert both.isfinite().all()
        if beside(*changes, mode=mode, patch_first=True) != beside(*changes, mode=mode):
            assert torch.equal(run(server, *changes, mode=mode, patch_first=True), both), "the order makes a difference"
        alone = run(server, *changes, plain_clip)
        assert error(both, alone) > 1e-3, "LLM4GEN is not seen"
        assert error(both, llm4gen_alone[mode]) > 1e-3, "the other node is not seen"
        assert same(run(server, *changes, mode=mode, strength=0.0), alone), "λ = 0 is not plain CLIP"
        return both, alone

    return check


# What patches the model

MODEL_NODES = {
    "FreeU": node("FreeU_V2", b1=1.3, b2=1.4, s1=0.9, s2=0.2),
    "perturbed attention": node("PerturbedAttentionGuidance", scale=3.0),
    "self-attention guidance": node("SelfAttentionGuidance", scale=0.5, blur_sigma=2.0),
    "deep shrink": node(
        "PatchModelAddDownscale",
        block_number=1,
        downscale_factor=2.0,
        start_percent=0.0,
        end_percent=0.6,
        downscale_after_skip=True,
        downscale_method="bicubic",
        upscale_method="bicubic",
    ),
    "rescaled guidance": node("RescaleCFG", multiplier=0.7),
    "attention's weights": node("UNetCrossAttentionMultiply", q=0.9, k=1.2, v=1.1, out=0.9),
}


@pytest.mark.parametrize("other", MODEL_NODES.values(), ids=MODEL_NODES)
def test_a_node_on_the_model(assert_lives_with, other):
    assert_lives_with("decoupled", other)


@pytest.mark.parametrize("mode", MODES)
def test_a_hypernetwork_which_changes_the_same_tokens(assert_lives_with, mode):
    """It computes on more tokens with LLM4GEN than without, which rounds otherwise."""
    other = node("HypernetworkLoader", hypernetwork_name="other.pt", strength=0.5)
    assert_lives_with(mode, other, same=equal_but_for_rounding)


def test_a_full_canvas_has_no_lasting_effect(server):
    before = run(server, MODEL_NODES["FreeU"], plain_clip)
    full = [MODEL_NODES[name] for name in ("FreeU", "perturbed attention", "rescaled guidance")]
    everything = run(server, *full, mode="decoupled")
    assert everything.isfinite().all() and not torch.equal(everything, before)
    assert torch.equal(run(server, MODEL_NODES["FreeU"], plain_clip), before)


# LoRA


def lora(nodes):
    """On the model, where it stands, and on CLIP before LLM4GEN."""
    on_the_model(nodes, "lora", "LoraLoader", clip=["ckpt", 1], lora_name="other_kohya.safetensors")
    nodes["lora"]["inputs"].update(strength_model=0.8, strength_clip=0.8)
    nodes["text"]["inputs"]["clip"] = ["lora", 1]


def test_a_lora_of_unet_and_text_encoder(assert_lives_with):
    assert_lives_with("decoupled", lora)


def test_the_adapter_reads_the_text_encoder_with_its_lora(server, tmp_path):
    contexts = []
    for change in (lambda nodes: nodes, lora):
        run(server, change, positive_path=tmp_path / "positive.pt")
        contexts.append(torch.load(tmp_path / "positive.pt", weights_only=True)[0][0])
    plain, changed = contexts
    assert error(changed[:, :77], plain[:, :77]) > 1e-2, "CLIP's tokens"
    assert error(changed[:, 77:], plain[:, 77:]) > 1e-3, "and what the adapter makes of the LLM's with them"


# ControlNet


def controlnet(nodes):
    nodes["net"] = {"class_type": "ControlNetLoader", "inputs": {"control_net_name": "other.safetensors"}}
    nodes["hint"] = {"class_type": "LoadImage", "inputs": {"image": "half.png"}}
    sampler = nodes["sampler"]["inputs"]
    nodes["control"] = {
        "class_type": "ControlNetApplyAdvanced",
        "inputs": {
            "positive": sampler["positive"],
            "negative": sampler["negative"],
            "control_net": ["net", 0],
            "image": ["hint", 0],
            "strength": 0.5,
            "start_percent": 0.0,
            "end_percent": 1.0,
        },
    }
    sampler.update(positive=["control", 0], negative=["control", 1])


@pytest.mark.parametrize("mode", MODES)
def test_a_controlnet_sees_plain_clip(assert_lives_with, mode):
    """At λ = 0 so does the UNet, so that bit-equal latents show what the ControlNet received."""
    assert_lives_with(mode, controlnet)


# Images to begin with


def from_image(encode, denoise, **inputs):
    def change(nodes):
        nodes["image"] = {"class_type": "LoadImage", "inputs": {"image": "half.png"}}
        nodes["latent"] = {"class_type": encode, "inputs": {"pixels": ["image", 0], "vae": ["ckpt", 2], **inputs}}
        nodes["sampler"]["inputs"]["denoise"] = denoise

    return change


def masked(nodes):
    """Set Latent Noise Mask behind the encoded image."""
    from_image("VAEEncode", 0.6)(nodes)
    nodes["encoded"] = nodes.pop("latent")
    nodes["latent"] = {"class_type": "SetLatentNoiseMask", "inputs": {"samples": ["encoded", 0], "mask": ["image", 1]}}


def inpaint_conditioning(nodes):
    nodes["image"] = {"class_type": "LoadImage", "inputs": {"image": "half.png"}}
    sampler = nodes["sampler"]["inputs"]
    nodes["inpaint"] = {
        "class_type": "InpaintModelConditioning",
        "inputs": {
            "positive": sampler["positive"],
            "negative": sampler["negative"],
            "vae": ["ckpt", 2],
            "pixels": ["image", 0],
            "mask": ["image", 1],
            "noise_mask": True,
        },
    }
    sampler.update(positive=["inpaint", 0], negative=["inpaint", 1], latent_image=["inpaint", 2])


def test_an_image_to_an_image(assert_lives_with):
    assert_lives_with("decoupled", from_image("VAEEncode", 0.6))


@pytest.mark.parametrize(
    "change",
    [masked, from_image("VAEEncodeForInpaint", 1.0, mask=["image", 1], grow_mask_by=0), inpaint_conditioning],
    ids=["noise mask", "VAE encode for inpainting", "inpaint conditioning"],
)
def test_inpainting_changes_only_the_masked_area(assert_lives_with, change):
    both, alone = assert_lives_with("decoupled", change)
    left, right = both.chunk(2, -1)
    assert error(left, alone.chunk(2, -1)[0]) > 1e-3
    assert error(right, alone.chunk(2, -1)[1]) < 1e-5, "what is kept is the image that was given"
