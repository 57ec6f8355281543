"""Patch Model: the adapter's part of the UNet, against diffusers' UNet with the same change merged into it."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import host_models
import pytest
import torch
from diffusers_folder import SDXL_IN_DIFFUSERS, diffusers_unet
from graphs import graph
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

KINDS = ("kv", "lora")
UNET = "model.diffusion_model."
LORA_LAYER = "input_blocks.1.1.transformer_blocks.0.attn2.to_k"
"""A layer under the host's name, which the host LoRA of these tests changes, and both parts as well."""


def linear_layers(unet: nn.Module) -> dict[str, tuple[int, int]]:
    """{module: (out, in)} of diffusers' UNet; its 1x1 convolutions are linear too."""
    return {
        name: tuple(module.weight.shape[:2])
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1))
    }


@pytest.fixture(scope="module")
def checkpoint(models):
    return {name: t.float() for name, t in load_file(models / "checkpoints" / "sd15.safetensors").items()}


@pytest.fixture(scope="module")
def parts(models, checkpoint):
    """One adapter file a kind, the parts in them, one file without, and a LoRA for the host's own node."""
    layers = linear_layers(diffusers_unet(checkpoint))
    parts = {"kv": host_models.kv_part(layers, 1), "lora": host_models.lora_part(layers, 2)}
    for kind, part in parts.items():
        host_models.save_own_adapter(models / "llm4gen" / f"{kind}.safetensors", 30, unet_part=part)
    host_models.save_own_adapter(models / "llm4gen" / "plain.safetensors", 30)
    generator = torch.Generator().manual_seed(3)
    name = "lora_unet_" + LORA_LAYER.replace(".", "_")
    lora = {
        f"{name}.lora_down.weight": torch.randn(4, 768, generator=generator) / 28,
        f"{name}.lora_up.weight": torch.randn(320, 4, generator=generator),
        f"{name}.alpha": torch.tensor(4.0),
    }
    (models / "loras").mkdir(exist_ok=True)
    save_file(lora, models / "loras" / "other.safetensors")
    return parts


@pytest.fixture(scope="module")
def nodes(pack):
    return {name: importlib.import_module(f"{pack.__name__}.nodes.{name}") for name in ("host", "host_unet")}


@pytest.fixture(scope="module")
def model(models, comfy):
    """The host's model, in this process."""
    import comfy.sd

    return comfy.sd.load_checkpoint_guess_config(
        str(models / "checkpoints" / "sd15.safetensors"), output_vae=False, output_clip=False
    )[0]


@pytest.fixture
def patch(nodes, parts, model):
    """(strength, adapter's name) to the patched model."""

    def apply(name, strength=1.0, to=model):
        return nodes["host_unet"].patch_unet(to, nodes["host"].HostAdapter.load(f"{name}.safetensors"), strength)

    return apply


def weights(patcher):
    """The UNet's weights as the sampler computes with them, under the host's names, in float32."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([patcher], force_full_load=True)
    state = patcher.model.diffusion_model.state_dict()
    return {name: tensor.detach().float().clone() for name, tensor in state.items()}


@pytest.mark.parametrize("strength", [1.0, 0.5, -2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_is_base_plus_strength_times_change(patch, model, parts, kind, strength):
    """Compared under diffusers' names, which its own conversion gives, not the host's map."""

    def in_diffusers(patcher):
        return diffusers_unet({UNET + name: tensor for name, tensor in weights(patcher).items()}).state_dict()

    base, patched = in_diffusers(model), in_diffusers(patch(kind, strength))
    changes = {f"{module}.weight": delta for module, delta in parts[kind].deltas()}
    assert len(changes) == {"kv": 14, "lora": 14 * 6}[kind]
    for name, weight in patched.items():
        if name not in changes:
            assert torch.equal(weight, base[name]), name
            continue
        change = strength * changes[name].reshape(weight.shape)
        assert change.norm() > 0.1 * base[name].norm()
        assert (weight - base[name] - change).norm() < 1e-6 * change.norm(), name


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_noise_prediction_equals_that_of_diffusers_with_the_change_merged(patch, parts, checkpoint, kind):
    import comfy.model_management

    twin = diffusers_unet(checkpoint)
    x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    context = torch.randn(2, 77 + 256, 768, generator=torch.Generator().manual_seed(2))
    timestep = 481
    plain = twin(x, timestep, context).sample
    for module, delta in parts[kind].deltas():
        weight = twin.get_submodule(module).weight
        weight.add_(delta.reshape(weight.shape))
    found = twin(x, timestep, context).sample
    patched = patch(kind)
    comfy.model_management.load_models_gpu([patched])
    sigma = patched.model.model_sampling.sigmas[timestep]
    noisy = x * (1 + sigma**2).sqrt()
    expected = (noisy - patched.model.apply_model(noisy, sigma.expand(2), c_crossattn=context)) / sigma
    assert ((found - expected).norm() / expected.norm()).item() < 1e-4
    assert ((plain - expected).norm() / expected.norm()).item() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_stacks_with_a_lora_in_either_order(patch, model, models, parts, kind):
    import comfy.sd

    lora = load_file(models / "loras" / "other.safetensors")

    def with_lora(patcher):
        return comfy.sd.load_lora_for_models(patcher, None, lora, 0.75, 0.0)[0]

    first, last = weights(patch(kind, to=with_lora(model))), weights(with_lora(patch(kind)))
    alone, base = weights(patch(kind)), weights(model)
    for name, weight in first.items():
        assert (weight - last[name]).abs().max() <= 1e-6 * weight.abs().max(), name
    name = f"{LORA_LAYER}.weight"
    up, down = (load_file(models / "loras" / "other.safetensors")[key] for key in sorted(lora)[:0:-1])
    both = 0.75 * (up @ down) + alone[name] - base[name]
    assert (first[name] - base[name] - both).norm() < 1e-6 * both.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_adapter_twice_adds_up(patch, model, parts, kind):
    twice, double = weights(patch(kind, to=patch(kind))), weights(patch(kind, 2.0))
    assert all((twice[name] - weight).abs().max() <= 1e-6 * weight.abs().max() for name, weight in double.items())


@pytest.mark.parametrize("kind", KINDS)
def test_the_input_model_is_unchanged(patch, model, kind):
    before = weights(model)
    assert any(not torch.equal(weight, before[name]) for name, weight in weights(patch(kind)).items())
    assert all(torch.equal(weight, before[name]) for name, weight in weights(model).items())


def test_strength_zero_and_no_part_give_the_model_itself(patch, model):
    assert patch("kv", 0.0) is model
    assert patch("plain") is model


# Real sizes, on the meta device

SD15 = {
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "num_heads": 8,
    "num_head_channels": -1,
}
SDXL = {
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
    "num_heads": -1,
    "num_head_channels": 64,
}


def host_unet(family, layout):
    """The host's model of a family at full size, without memory, as its nodes pass it."""
    import comfy.supported_models

    sizes = {"image_size": 32, "in_channels": 4, "out_channels": 4, "use_spatial_transformer": True, "legacy": False}
    config_class = getattr(comfy.supported_models, family)
    config = config_class({**sizes, **config_class.unet_config, **layout, "dtype": torch.float16})
    return SimpleNamespace(model=config.get_model({}, "", device=torch.device("meta")))


def diffusers_layers(**options):
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return linear_layers(UNet2DConditionModel(**options))


@pytest.fixture(scope="module")
def real(comfy):
    """{family: (the host's model, {module: (out, in)})}."""
    sd15 = diffusers_layers(cross_attention_dim=768)
    sdxl = diffusers_layers(**SDXL_IN_DIFFUSERS)
    return {"SD15": (host_unet("SD15", SD15), sd15), "SDXL": (host_unet("SDXL", SDXL), sdxl)}


def adapter_of(part, base="sd15"):
    return SimpleNamespace(unet_part=part, name="a.safetensors", base=base)


@pytest.mark.parametrize(("family", "count"), [("SD15", 16), ("SDXL", 70)])
def test_every_attention_layer_of_the_real_unet_is_found(real, nodes, family, count):
    model, layers = real[family]
    kv, lora = host_models.kv_part(layers, 0), host_models.lora_part(layers, 0, rank=1)
    assert len(kv.modules) == 2 * count
    for part in (kv, lora):
        names = nodes["host_unet"]._weight_names(model, part, adapter_of(part))
        assert len(set(names.values())) == len(part.modules)
        patches = importlib.import_module("comfy.lora").load_lora(dict(part.tensors), names)
        assert set(patches) == set(names.values())


@pytest.mark.parametrize(("model_of", "part_of"), [("SDXL", "SD15"), ("SD15", "SDXL")])
def test_a_part_of_another_family_is_refused(real, nodes, model_of, part_of):
    layers = real[part_of][1]
    part = host_models.kv_part(layers, 0)
    with pytest.raises(ValueError, match="Adapter a.safetensors changes the UNet of sd15") as caught:
        nodes["host_unet"].patch_unet(real[model_of][0], adapter_of(part), 1.0)
    message = str(caught.value)
    assert "this model lacks" in message and "Connect a model of that family" in message


@pytest.mark.parametrize(
    ("model_of", "width", "fits"), [("SDXL", 768, False), ("SDXL", 2048, True), ("SD15", 768, True)]
)
def test_a_model_that_reads_other_text_is_refused(real, nodes, model_of, width, fits):
    """An adapter without a UNet part has no layers that could fail to fit."""
    adapter = adapter_of(None)
    adapter.config = SimpleNamespace(d_text=width)
    if fits:
        nodes["host_unet"].check_model(real[model_of][0], adapter)
        return
    with pytest.raises(
        ValueError, match=r"reads text of width 768; the model is SDXL and reads width 2048\. Use a base"
    ):
        nodes["host_unet"].check_model(real[model_of][0], adapter)


def test_a_part_of_other_sizes_is_refused(patch, parts, model, nodes):
    layers = {module: (320, 1024) for module in parts["kv"].modules if module.startswith("down_blocks.0.")}
    with pytest.raises(ValueError, match=r"has the size \[320, 1024\]; in this model it is \[320, 768\]"):
        nodes["host_unet"].patch_unet(model, adapter_of(host_models.kv_part(layers, 0)), 1.0)


def test_a_change_that_the_host_drops_is_an_error(parts, model, nodes, monkeypatch):
    real_load = nodes["host_unet"].comfy.lora.load_lora

    def forgetful(lora, to_load):
        patches = real_load(lora, to_load)
        patches.popitem()
        return patches

    monkeypatch.setattr(nodes["host_unet"].comfy.lora, "load_lora", forgetful)
    with pytest.raises(ValueError, match="applied 13 of the 14 changes"):
        nodes["host_unet"].patch_unet(model, adapter_of(parts["kv"]), 1.0)


# On the server


def with_patch(nodes, name, strength=1.0):
    nodes["adapter"]["inputs"]["adapter_name"] = f"{name}.safetensors"
    nodes["patch"] = {
        "class_type": "LLM4GENPatch",
        "inputs": {"model": ["ckpt", 0], "adapter": ["adapter", 0], "strength_model": strength},
    }
    nodes["sampler"]["inputs"]["model"] = ["patch", 0]
    return nodes


def without_patch(name):
    nodes = with_patch(graph(), name)
    del nodes["patch"]
    nodes["sampler"]["inputs"]["model"] = ["ckpt", 0]
    return nodes


def pixels(server, nodes):
    result = server.run(nodes)
    assert result.error is None, result.error
    assert "sampler" in result.executed, "the image must be painted, not remembered"
    return Image.open(server.base / "output" / result.images()[0]).tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_disconnecting_restores_the_image(server, parts, kind):
    before = pixels(server, without_patch(kind))
    patched = pixels(server, with_patch(graph(), kind))
    assert patched != before
    assert pixels(server, without_patch(kind)) == before
    assert pixels(server, with_patch(graph(), kind, 0.0)) == before
    assert pixels(server, with_patch(graph(), kind)) == patched


def test_order_of_a_lora_node_does_not_matter(server, parts):
    lora = {"class_type": "LoraLoaderModelOnly", "inputs": {"lora_name": "other.safetensors", "strength_model": 0.75}}
    first, last = with_patch(graph(), "kv"), with_patch(graph(), "kv")
    first["lora"] = {**lora, "inputs": {**lora["inputs"], "model": ["ckpt", 0]}}
    first["patch"]["inputs"]["model"] = ["lora", 0]
    last["lora"] = {**lora, "inputs": {**lora["inputs"], "model": ["patch", 0]}}
    last["sampler"]["inputs"]["model"] = ["lora", 0]
    images = [pixels(server, nodes) for nodes in (first, last, with_patch(graph(), "kv"))]
    difference = max(abs(a - b) for a, b in zip(images[0], images[1], strict=True))
    assert difference <= 2
    assert images[2] != images[0], "the LoRA does something"


def test_patch_shows_a_summary(server, parts):
    result, said = server.run_and_listen(with_patch(graph(seed=7), "lora", 0.5))
    assert result.error is None, result.error
    assert said["patch"] == "UNet part (LoRA of 84 layers) at strength 0.5"
    assert said["adapter"].endswith("with a UNet part (LoRA of 84 layers): connect Patch Model too")
    result, said = server.run_and_listen(with_patch(graph(seed=7), "plain"))
    assert result.error is None, result.error
    assert said["patch"] == "no changes: the model is passed on unchanged"
    assert "Patch" not in said["adapter"]


def test_a_part_for_another_unet_is_refused_at_the_node(server, models, parts):
    layers = {
        f"down_blocks.1.attentions.1.transformer_blocks.{i}.attn2.to_{x}": (640, 2048) for i in (0, 1) for x in "kv"
    }
    host_models.save_own_adapter(
        models / "llm4gen" / "foreign.safetensors", 30, unet_part=host_models.kv_part(layers, 0)
    )
    error = server.run(with_patch(graph(), "foreign")).error
    assert error is not None and error.startswith("LLM4GENPatch: Adapter foreign.safetensors changes the UNet of sd15")
    assert "this model lacks 4" in error and "Connect a model of that family" in error
