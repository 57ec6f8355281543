"""GGUF: the CLIP output of another pack's loader as an LLM, with its quantized layers."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import replace

import pytest
import torch
import transformers
from comfy_server import pack_folder
from host_models import random_state

PACK = pack_folder("ComfyUI-GGUF")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PACK.is_dir(), reason=f"there is no ComfyUI-GGUF at {PACK}"),
]

HEADS, KEYS, WIDTH, LAYERS = 32, 8, 64, 2
"""Configuration of Llama 3 except width and layers: the pack's loader supports no other numbers of heads."""
NAMES = {
    "embed_tokens": "token_embd",
    "layers.": "blk.",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""transformers' names and llama.cpp's."""


@pytest.fixture(scope="module")
def gguf():
    site = str(PACK.parent / "site")
    sys.path.append(site)
    yield pytest.importorskip("gguf", reason=f"ComfyUI-GGUF needs the package gguf, installed or in {site}")
    sys.path.remove(site)


@pytest.fixture(scope="module")
def twin(gguf, models):
    """transformers' Llama with the weights that a quantized file of it holds, which is written here."""
    config = transformers.LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEYS,
        head_dim=128,
        vocab_size=128256,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    )
    with torch.device("meta"):
        model = transformers.LlamaModel(config)
    state = random_state(model, 3)
    kind = gguf.GGMLQuantizationType.Q8_0
    writer = gguf.GGUFWriter(models / "text_encoders" / "llama-3-Q8_0.gguf", "llama")
    for name, tensor in state.items():
        short = "output_norm.weight" if name == "norm.weight" else name
        for theirs, ours in NAMES.items():
            short = short.replace(theirs, ours)
        if tensor.ndim == 1:
            writer.add_tensor(short, tensor.numpy())
            continue
        quantized = gguf.quants.quantize(tensor.numpy(), kind)
        state[name] = torch.from_numpy(gguf.quants.dequantize(quantized, kind).copy())
        if "attn_q" in short or "attn_k" in short:  # llama.cpp keeps the two rows of a rotation together
            heads = HEADS if "attn_q" in short else KEYS
            quantized = quantized.reshape(heads, 2, -1, quantized.shape[1]).swapaxes(1, 2).reshape(quantized.shape)
        writer.add_tensor(short, quantized, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = transformers.LlamaModel(config)
    model.load_state_dict(state)
    return model.eval()


@pytest.fixture(scope="module")
def loader(gguf, comfy):
    """The pack, imported as the host imports it."""
    spec = importlib.util.spec_from_file_location("/custom_nodes/gguf", PACK / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.NODE_CLASS_MAPPINGS["CLIPLoaderGGUF"]()


@pytest.mark.parametrize("layer", ["last", -2])
def test_a_quantized_llama_equals_transformers(loader, twin, models, pack, monkeypatch, small_llama_tokenizer, layer):
    import comfy.sd

    load = comfy.sd.load_text_encoder_state_dicts

    def load_small(model_options, **rest):  # the host takes any Llama for one of 8 billion parameters
        small = {"hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": LAYERS}
        return load(model_options={**model_options, "llama_model_config": small}, **rest)

    monkeypatch.setattr(comfy.sd, "load_text_encoder_state_dicts", load_small)
    path = str(models / "text_encoders" / "llama-3-Q8_0.gguf")
    clip = loader.load_patcher([path], comfy.sd.CLIPType.HIDREAM, loader.load_data([path]))
    llm = importlib.import_module(f"{pack.__name__}.nodes.host_llm").wired_llm(clip)
    spec = replace(llm.spec, max_length=40, layer=layer)
    assert (spec.architecture, spec.layers, spec.width) == ("llama", LAYERS, WIDTH)
    tokens = llm.tokenize("a red cube on a blue sphere", spec)["prompt"]
    with torch.no_grad():
        states = twin(
            input_ids=torch.tensor([tokens.ids]),
            attention_mask=torch.tensor([tokens.mask]),
            output_hidden_states=True,
        ).hidden_states
    expected = states[-1 if layer == "last" else layer]
    found = llm.encode("a red cube on a blue sphere", spec).hidden
    assert ((found - expected).norm() / expected.norm()).item() < 1e-3  # the pack multiplies in half precision
    quantized = [p for p in clip.patcher.model.parameters() if p.dtype == torch.uint8]
    assert len(quantized) >= 7 * LAYERS  # the weights were not unpacked for it
