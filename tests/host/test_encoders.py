"""The LLM inside the host against transformers with the same weights."""

from __future__ import annotations

import importlib

import pytest
import torch
from comfy_server import COMFYUI
from host_models import rankgen_state, t5_state
from safetensors.torch import save_file

PROMPTS = ["", "a red cube on a blue sphere", "  spaces   everywhere ", "naïve café, 猫 and 🙂", "word " * 400]


@pytest.fixture(scope="module")
def host_llm(pack, models):
    return importlib.import_module(f"{pack.__name__}.nodes.host_llm")


@pytest.fixture(scope="module")
def core(pack):
    return importlib.import_module(f"{pack.__name__}.llm4gen_core")


@pytest.fixture(scope="module")
def reference(models):
    """RankGen features by transformers alone: prefix, 256 ids, zeros for padding, masked inside T5 only."""
    from transformers import T5EncoderModel, T5TokenizerFast

    model = T5EncoderModel.from_pretrained(models / "llm" / "some" / "t5-folder", dtype=torch.float32).eval()
    tokenizer = T5TokenizerFast.from_pretrained(COMFYUI / "comfy" / "text_encoders" / "t5_tokenizer")

    def encode(prompt, **options):
        ids = tokenizer("pre " + prompt).input_ids[:256]
        mask = torch.tensor([[1] * len(ids) + [0] * (256 - len(ids))])
        ids = torch.tensor([ids + [0] * (256 - len(ids))])
        with torch.no_grad():
            return model(input_ids=ids, attention_mask=mask, **options)

    return encode


@pytest.fixture(scope="module")
def native(host_llm):
    return host_llm.load_llm("rankgen.safetensors", {"dtype": torch.float32})


@pytest.fixture(scope="module")
def folder(host_llm):
    return host_llm.load_llm("some/t5-folder/", {"dtype": torch.float32})


def relative_error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_native_route_equals_transformers(native, reference, prompt):
    features = native.encode(prompt, native.spec)
    expected = reference(prompt).last_hidden_state
    assert features.hidden.shape == (1, 256, 64)
    assert relative_error(features.hidden, expected) < 1e-5


@pytest.mark.parametrize("prompt", PROMPTS)
def test_folder_route_equals_native_route(native, folder, prompt):
    # The folder is a plain T5, which brings no prefix of its own.
    assert folder.spec.prefix == ""
    features = folder.encode(prompt, native.spec)
    assert relative_error(features.hidden, native.encode(prompt, native.spec).hidden) < 1e-5


@pytest.mark.parametrize("layer", [0, 1, -2, 3, "mean"])
def test_any_layer_equals_transformers(core, native, folder, reference, layer):
    from dataclasses import replace

    spec = replace(native.spec, layer=layer)
    states = reference("a red cube", output_hidden_states=True).hidden_states
    if layer == "mean":
        normalised = [
            (s - s.mean(-1, keepdim=True)) / (s.var(-1, keepdim=True, correction=0) + 1e-5).sqrt() for s in states
        ]
        expected = sum(normalised[1:]) / 3
    else:
        expected = states[layer]
    assert relative_error(native.encode("a red cube", spec).hidden, expected) < 1e-5
    assert relative_error(folder.encode("a red cube", spec).hidden, expected) < 1e-5


def test_layer_applies_to_one_call(native, reference):
    from dataclasses import replace

    native.encode("a red cube", replace(native.spec, layer=1))
    features = native.encode("a red cube", native.spec)
    assert relative_error(features.hidden, reference("a red cube").last_hidden_state) < 1e-5


@pytest.mark.parametrize("route", ["native", "folder"])
def test_weights_follow_the_hosts_rule(request, native, route):
    llm = request.getfixturevalue(route)
    plain = llm.encode("a red cube", native.spec).hidden
    weighted = llm.encode("a (red:1.3) cube", native.spec).hidden
    empty = llm.encode("", native.spec).hidden
    # pre, ▁, a, red, cube, end
    assert relative_error(weighted[:, :3], plain[:, :3]) < 1e-5
    assert relative_error(weighted[:, 4:], plain[:, 4:]) < 1e-5
    expected = empty[:, 3] + 1.3 * (plain[:, 3] - empty[:, 3])
    assert relative_error(weighted[:, 3], expected) < 1e-5
    assert relative_error(weighted[:, 3], plain[:, 3]) > 0.01


def test_escaped_parentheses_are_text(native):
    ids = native.tokenize(r"a \(red\) cube", native.spec)["prompt"]
    assert set(ids.weights) == {1.0}
    assert native.clip.tokenizer.tokenizer.decode(ids.ids, skip_special_tokens=True) == "pre a (red) cube"


def test_mask_marks_the_prompt(native):
    mask = native.encode("a red cat", native.spec).mask
    assert mask.shape == (1, 256)
    # pre, ▁, a, red, cat, end
    assert mask[0].tolist() == [1] * 6 + [0] * 250


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files(host_llm, native, models, dtype):
    name = f"half-{str(dtype).split('.')[1]}.safetensors"
    save_file({k: v.to(dtype) for k, v in rankgen_state(20).items()}, models / "text_encoders" / name)
    llm = host_llm.load_llm(name, {})
    assert llm.clip.cond_stage_model.text_encoder.transformer.shared.weight.dtype == dtype
    error = relative_error(llm.encode("a red cube", llm.spec).hidden, native.encode("a red cube", native.spec).hidden)
    assert error < 0.02


def features_of(host_llm, models, name, state):
    """Features of the dequantized values of a quantized file in float32."""
    save_file(state, models / "text_encoders" / name)
    llm = host_llm.load_llm(name, {"dtype": torch.float32})
    return llm.encode("a red cube", llm.spec).hidden


def test_scaled_fp8_file(host_llm, models):
    """Linear weights in fp8 with their scales, as in the host's own fp8 text encoders."""
    stored, meant = {}, {}
    for key, tensor in rankgen_state(20).items():
        if tensor.ndim == 2 and "block" in key and "relative" not in key:
            scale = tensor.abs().max() / 448
            stored[key] = (tensor / scale).to(torch.float8_e4m3fn)
            stored[key.replace(".weight", ".scale_weight")] = scale
            meant[key] = stored[key].float() * scale
        else:
            stored[key] = tensor.half()
            meant[key] = stored[key].float()
    stored["t5_encoder.scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    save_file(stored, models / "text_encoders" / "scaled-fp8.safetensors")
    llm = host_llm.load_llm("scaled-fp8.safetensors", {})
    query = llm.clip.cond_stage_model.text_encoder.transformer.encoder.block[0].layer[0].SelfAttention.q
    assert query.weight.nbytes == query.weight.nelement(), "the weights were unpacked in memory"
    expected = features_of(host_llm, models, "meant.safetensors", meant)
    assert relative_error(llm.encode("a red cube", llm.spec).hidden, expected) < 1e-3


def test_plain_fp8_file(host_llm, models):
    stored = {k: v.to(torch.float8_e4m3fn) if v.ndim == 2 else v.half() for k, v in rankgen_state(20).items()}
    save_file(stored, models / "text_encoders" / "plain-fp8.safetensors")
    llm = host_llm.load_llm("plain-fp8.safetensors", {})
    expected = features_of(host_llm, models, "meant.safetensors", {k: v.float() for k, v in stored.items()})
    assert relative_error(llm.encode("a red cube", llm.spec).hidden, expected) < 1e-3


def test_pickled_file(host_llm, native, models):
    """RankGen is published as a pickle."""
    torch.save(rankgen_state(20), models / "text_encoders" / "pytorch_model.bin")
    llm = host_llm.load_llm("pytorch_model.bin", {"dtype": torch.float32})
    assert llm.spec == native.spec
    assert torch.equal(llm.encode("a cube", llm.spec).hidden, native.encode("a cube", native.spec).hidden)


def test_rankgens_folder_as_published(host_llm, native, models):
    """config.json and a pickle, without a tokenizer: the host's T5 tokenizer is used."""
    folder = models / "llm" / "rankgen-as-published"
    folder.mkdir()
    torch.save(rankgen_state(20), folder / "pytorch_model.bin")
    (folder / "config.json").write_text((models / "llm" / "some" / "t5-folder" / "config.json").read_text())
    llm = host_llm.load_llm("rankgen-as-published/", {"dtype": torch.float32})
    assert llm.spec == native.spec
    assert torch.equal(llm.encode("a cube", llm.spec).hidden, native.encode("a cube", native.spec).hidden)


def test_plain_t5_file_uses_the_adapters_prefix(host_llm, native, models, reference):
    """A RankGen file without its key prefix still has RankGen's features with RankGen's adapter."""
    save_file(t5_state(20), models / "llm" / "stripped.safetensors")
    llm = host_llm.load_llm("stripped.safetensors", {"dtype": torch.float32})
    assert llm.spec.prefix == ""
    features = llm.encode("a red cube", llm.spec_for(native.spec, "adapter"))
    assert relative_error(features.hidden, reference("a red cube").last_hidden_state) < 1e-5


def test_decoder_only_folder(host_llm, core, models):
    """A folder of another architecture, against the encoder that training uses."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers import models as tokenizer_models
    from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    folder = models / "llm" / "tiny-llama"
    torch.manual_seed(0)
    LlamaModel(
        LlamaConfig(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    ).save_pretrained(folder)
    vocabulary = {chr(33 + i): i for i in range(94)} | {"<unk>": 94, "</s>": 95}
    tokenizer = Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>").save_pretrained(folder)

    llm = host_llm.load_llm("tiny-llama/", {"dtype": torch.float32})
    assert (llm.spec.architecture, llm.spec.width) == ("llama", 32)
    expected = core.LLMEncoder.from_folder(folder).encode(["a red cube"])
    features = llm.encode("a red cube", llm.spec)
    assert relative_error(features.hidden, expected.hidden) < 1e-5
    linear = llm.clip.cond_stage_model.transformer.layers[0].mlp.gate_proj
    assert linear.comfy_cast_weights, "the host cannot stream this layer"


def test_half_precision_folder_computes_in_float32(host_llm, native, folder):
    llm = host_llm.load_llm("some/t5-folder/", {"dtype": torch.float16})
    features = llm.encode("a red cube", native.spec)
    assert features.hidden.dtype == torch.float32
    assert relative_error(features.hidden, folder.encode("a red cube", native.spec).hidden) < 0.01


def test_nothing_stays_on_the_compute_device(pack, native, folder, monkeypatch):
    """With a separate compute device, `release` frees it of this model only."""
    import comfy.model_management as management

    host = importlib.import_module(f"{pack.__name__}.nodes.host")
    patcher, bystander = native.clip.patcher, folder.clip.patcher
    management.load_models_gpu([patcher, bystander])

    def holds(loaded, model):
        return any(entry.model is not None and entry.model.model is model for entry in loaded)

    assert holds(management.current_loaded_models, patcher.model)
    freed = []
    monkeypatch.setattr(patcher, "offload_device", torch.device("meta"))
    monkeypatch.setattr(management, "free_memory", lambda size, device, keep_loaded: freed.append((size, keep_loaded)))
    host.release(patcher)
    ((size, kept),) = freed
    assert size >= 1e20
    assert holds(kept, bystander.model) and not holds(kept, patcher.model)


def test_tokenizer_of_another_model(host_llm, models):
    """A tokenizer whose ids go beyond the embedding: a message instead of an index error."""
    from transformers import LlamaConfig, LlamaModel, T5TokenizerFast

    path = models / "llm" / "foreign-tokenizer"
    LlamaModel(
        LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    ).save_pretrained(path)
    T5TokenizerFast.from_pretrained(COMFYUI / "comfy" / "text_encoders" / "t5_tokenizer").save_pretrained(path)
    llm = host_llm.load_llm("foreign-tokenizer/", {"dtype": torch.float32})
    with pytest.raises(ValueError, match="its embedding has 9 rows: they belong to different models"):
        llm.encode("a red cube", llm.spec)


@pytest.mark.parametrize("route", ["native", "folder"])
def test_partial_loading_with_little_memory(request, native, reference, monkeypatch, route):
    """The host's low-VRAM loading: almost no memory, so that every layer is loaded when it computes."""
    import comfy.model_management as management

    llm = request.getfixturevalue(route)

    def load_in_parts(patchers, **options):
        for patcher in patchers:
            patcher.detach()
            patcher.load(device_to=torch.device("cpu"), lowvram_model_memory=1)
            assert patcher.model.model_lowvram

    monkeypatch.setattr(management, "load_models_gpu", load_in_parts)
    monkeypatch.setattr(management, "load_model_gpu", lambda patcher: load_in_parts([patcher]))
    features = llm.encode("a red cube", native.spec)
    assert relative_error(features.hidden, reference("a red cube").last_hidden_state) < 1e-5
    llm.clip.patcher.detach()
