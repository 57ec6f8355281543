"""Bad input: the node's error says what was found, what was expected and what to do."""

from __future__ import annotations

import importlib
import json
import pickle

import pytest
import torch
from graphs import graph, separate
from host_models import adapter_state, rankgen_state, t5_state
from safetensors.torch import save_file


@pytest.fixture(scope="module")
def bad(models):
    """One file of every bad kind, in the folders where the host finds them."""
    llms, adapters = models / "text_encoders", models / "llm4gen"
    save_file(adapter_state(0, d_llm=48), adapters / "other_llm_width.safetensors")
    save_file(adapter_state(0, d_text=2048), adapters / "sdxl.safetensors")
    save_file({"lora_unet_down.alpha": torch.zeros(1)}, adapters / "lora.safetensors")
    whole = (adapters / "sdxl.safetensors").read_bytes()
    (adapters / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    (adapters / "empty.safetensors").write_bytes(b"")
    save_file({"text_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(2, 2)}, llms / "clip_l.safetensors")
    save_file({"model.layers.0.self_attn.q_proj.weight": torch.zeros(2, 2)}, llms / "llama.safetensors")
    save_file({"model.diffusion_model.x": torch.zeros(2)}, llms / "checkpoint.safetensors")
    umt5 = t5_state(0)
    bias = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
    save_file({**umt5, bias.format(1): umt5[bias.format(0)].clone()}, llms / "umt5.safetensors")
    partial = rankgen_state(0)
    del partial["t5_encoder.encoder.block.1.layer.1.DenseReluDense.wo.weight"]
    save_file(partial, llms / "partial.safetensors")
    whole = (llms / "rankgen.safetensors").read_bytes()
    (llms / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    folder = models / "llm" / "no-tokenizer"
    folder.mkdir()
    config = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 8, "vocab_size": 9}))
    save_file({"model.norm.weight": torch.ones(8)}, folder / "model.safetensors")
    return models


def message(server, nodes) -> str:
    result = server.run(nodes)
    assert result.error is not None
    assert not result.images()
    return result.error


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("missing.safetensors", ["'missing.safetensors' was not found in", "models/llm4gen", "press R"]),
        ("lora.safetensors", ["is not an LLM4GEN adapter", "lora_unet_down.alpha"]),
        ("truncated.safetensors", ["truncated", "bytes", "ownload"]),
        ("empty.safetensors", ["empty (0 bytes)"]),
        ("../../secret.safetensors", ["was not found"]),
    ],
)
def test_adapter_refused(server, bad, name, parts):
    nodes = graph()
    nodes["adapter"]["inputs"]["adapter_name"] = name
    error = message(server, nodes)
    assert error.startswith("LLM4GENLoadAdapter:")
    for part in parts:
        assert part in error


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("missing.safetensors", ["'missing.safetensors' was not found in", "models/text_encoders", "models/llm"]),
        ("clip_l.safetensors", ["is a CLIP text encoder", "expected a T5 text encoder"]),
        ("llama.safetensors", ["decoder-only language model", "Hugging Face folder"]),
        ("checkpoint.safetensors", ["is a Stable Diffusion checkpoint"]),
        ("umt5.safetensors", ["umT5 or Pile-T5", "Hugging Face folder"]),
        ("partial.safetensors", ["lacks 1 of its tensors", "wo.weight"]),
        ("truncated.safetensors", ["truncated"]),
        ("no-tokenizer/", ["has no tokenizer", "tokenizer.json"]),
        ("no-such-folder/", ["was not found"]),
    ],
)
def test_llm_refused(server, bad, name, parts):
    nodes = graph()
    nodes["llm"]["inputs"]["llm_name"] = name
    error = message(server, nodes)
    assert error.startswith("LLM4GENLoadLLM:")
    for part in parts:
        assert part in error


def test_code_in_an_adapter_is_not_run(server, bad, tmp_path):
    marker = tmp_path / "executed"

    class Attack:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    for protocol, name in ((None, "attack.pth"), (0, "attack_plain.pth")):
        path = bad / "llm4gen" / name
        if protocol is None:
            torch.save({"CrossFusionModule.0.q_proj.weight": Attack()}, path)
        else:
            path.write_bytes(pickle.dumps(Attack(), protocol))
        nodes = graph()
        nodes["adapter"]["inputs"]["adapter_name"] = name
        assert "needs to run code" in message(server, nodes)
        assert not marker.exists()


def test_code_in_an_llm_is_not_run(server, bad, tmp_path):
    marker = tmp_path / "executed"

    class Attack:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    torch.save({"shared.weight": Attack()}, bad / "text_encoders" / "attack.bin")
    nodes = graph()
    nodes["llm"]["inputs"]["llm_name"] = "attack.bin"
    assert "needs to run code" in message(server, nodes)
    assert not marker.exists()


def test_adapter_for_another_text_width(server, bad):
    nodes = graph()
    nodes["adapter"]["inputs"]["adapter_name"] = "sdxl.safetensors"
    error = message(server, nodes)
    assert "width 768 (SD1.5)" in error and "2048 (SDXL)" in error and "sdxl.safetensors" in error


def test_sdxl_conditioning_into_an_sd15_adapter(server, bad):
    nodes = separate(graph())
    nodes["wide"] = {"class_type": "ProbeWideConditioning", "inputs": {}}
    nodes["fuse_positive"]["inputs"]["conditioning"] = ["wide", 0]
    error = message(server, nodes)
    assert error.startswith("LLM4GENFuse:")
    assert "width 2048 (SDXL)" in error and "trained for 768 (SD1.5)" in error


def test_adapter_for_another_llm_width(server, bad):
    nodes = graph()
    nodes["adapter"]["inputs"]["adapter_name"] = "other_llm_width.safetensors"
    error = message(server, nodes)
    assert "t5, 3 layers, width 64" in error and "width 48" in error


def test_adapter_names_its_llm(server, bad, pack):
    """An adapter whose file tells its LLM: the refusal has both names."""
    core = importlib.import_module(f"{pack.__name__}.llm4gen_core")
    adapter = core.load_adapter(bad / "llm4gen" / "projector.pth")
    spec = core.LLMSpec(model="google/flan-t5-small", architecture="t5", layers=8, width=64)
    core.save_adapter(adapter.module, bad / "llm4gen" / "flan.safetensors", core.AdapterMetadata("sd15", spec))
    nodes = graph()
    nodes["adapter"]["inputs"]["adapter_name"] = "flan.safetensors"
    error = message(server, nodes)
    assert "google/flan-t5-small" in error and "rankgen.safetensors is t5, 3 layers, width 64" in error


def test_features_made_for_another_adapter(server, bad, pack):
    core = importlib.import_module(f"{pack.__name__}.llm4gen_core")
    adapter = core.load_adapter(bad / "llm4gen" / "projector.pth")
    spec = core.LLMSpec(model="", architecture="t5", layers=3, width=64, prefix="caption: ")
    core.save_adapter(adapter.module, bad / "llm4gen" / "prefixed.safetensors", core.AdapterMetadata("sd15", spec))
    nodes = separate(graph())
    nodes["adapter2"] = {"class_type": "LLM4GENLoadAdapter", "inputs": {"adapter_name": "prefixed.safetensors"}}
    nodes["fuse_positive"]["inputs"]["adapter"] = ["adapter2", 0]
    assert "Connect the adapter to the LLM Encode node too" in message(server, nodes)


def test_features_of_another_llm(server, bad, pack):
    """Without the adapter at LLM Encode, Fuse reports the mismatch; connecting the adapter would not help."""
    core = importlib.import_module(f"{pack.__name__}.llm4gen_core")
    adapter = core.load_adapter(bad / "llm4gen" / "projector.pth")
    spec = core.LLMSpec(model="google/flan-t5-small", architecture="t5", layers=8, width=64)
    core.save_adapter(adapter.module, bad / "llm4gen" / "flan2.safetensors", core.AdapterMetadata("sd15", spec))
    nodes = separate(graph())
    nodes["adapter2"] = {"class_type": "LLM4GENLoadAdapter", "inputs": {"adapter_name": "flan2.safetensors"}}
    nodes["fuse_positive"]["inputs"]["adapter"] = ["adapter2", 0]
    del nodes["llm_positive"]["inputs"]["adapter"]
    error = message(server, nodes)
    assert error.startswith("LLM4GENFuse:")
    assert "google/flan-t5-small" in error and "it is another model. Load that LLM" in error


def test_fused_twice(server):
    nodes = separate(graph())
    nodes["again"] = {
        "class_type": "LLM4GENFuse",
        "inputs": {
            "adapter": ["adapter", 0],
            "conditioning": ["fuse_positive", 0],
            "llm_features": ["llm_positive", 0],
            "strength": 1.0,
        },
    }
    nodes["sampler"]["inputs"]["positive"] = ["again", 0]
    assert "is already fused" in message(server, nodes)


def test_checkpoint_without_clip(server):
    nodes = graph()
    nodes["unet"] = {
        "class_type": "UNETLoader",
        "inputs": {"unet_name": "llm4gen_unet.safetensors", "weight_dtype": "default"},
    }
    nodes["none"] = {"class_type": "ProbeNothing", "inputs": {}}
    nodes["text"]["inputs"]["clip"] = ["none", 0]
    assert "holds no text encoder" in message(server, nodes)


def test_the_server_still_works_after_errors(server):
    assert server.run(graph(seed=77)).error is None
