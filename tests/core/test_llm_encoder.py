"""`LLMEncoder` against transformers' own models with the same weights, for several architectures.

A prompt that is encoded without padding, or in another batch, passes through kernels of another shape. Rounding then
differs by up to 2e-6 of the hidden states' norm, more or less with the CPU: `ROUNDING` is five times that.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llm4gen_core import LLM4GENError, LLMEncoder, LLMSpec
from llm4gen_core.encoder import folder_spec, select_layer

BuildFolder = Callable[..., tuple[Path, Any, Any]]
BuildModel = Callable[[str], tuple[Any, Any]]

PROMPTS = ["a red cat", "the big blue dog is on the mat", "a cat"]
DECODERS = ["llama", "gpt2", "qwen3", "gemma3"]
ENCODERS = ["t5", "bert", "roberta"]
ROUNDING = 1e-5


def relative_error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def encode_one(encoder: LLMEncoder, prompt: str) -> Tensor:
    """Hidden states [L, d] of a prompt, without those of padding."""
    features = encoder.encode([prompt])
    return features.hidden[0][features.mask[0].bool()]


@pytest.fixture
def load(build_folder: BuildFolder) -> Callable[..., tuple[LLMEncoder, Any]]:
    """(encoder, transformers' own model with the same weights), prepared as the keywords say."""

    def build(kind: str, **changes: Any) -> tuple[LLMEncoder, Any]:
        folder, model, _ = build_folder(kind)
        own = folder_spec(folder)
        encoder = LLMEncoder.from_folder(folder, replace(own, **{"max_length": 40, **changes}))
        return encoder, getattr(model, "model", model) if kind in DECODERS else model

    return build


@torch.no_grad()
def alone(model: Any, tokenizer: Any, prompt: str) -> Tensor:
    """Hidden states [L, d] of one prompt without any padding, straight from transformers."""
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]


# Equal to transformers


@torch.no_grad()
def test_t5_equals_transformers_on_the_padded_prompt(load: Callable[..., Any]) -> None:
    """Including padding, whose hidden states the CAM uses as in the release."""
    encoder, model = load("t5")
    tokens = encoder.tokenizer(PROMPTS, padding="max_length", max_length=40, return_tensors="pt")
    expected = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
    features = encoder.encode(PROMPTS)
    assert features.hidden.shape == (3, 40, 32)
    assert relative_error(features.hidden, expected) < ROUNDING
    assert torch.equal(features.mask, tokens.attention_mask)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
@torch.no_grad()
def test_rankgen_layout_equals_the_plain_encoder(file: str, rankgen_folder: Callable[..., Any]) -> None:
    folder, model, tokenizer = rankgen_folder(file)
    encoder = LLMEncoder.from_folder(folder)
    tokens = tokenizer(["pre a red cat", "pre "], padding="max_length", max_length=256, return_tensors="pt")
    expected = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
    assert (encoder.spec.prefix, encoder.spec.max_length, encoder.spec.padding_side) == ("pre ", 256, "right")
    assert relative_error(encoder.encode(["a red cat", ""]).hidden, expected) < ROUNDING


@torch.no_grad()
def test_rankgen_in_several_files(rankgen_folder: Callable[..., Any]) -> None:
    folder, model, tokenizer = rankgen_folder("model.safetensors")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, files = sorted(tensors), ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    places = {name: files[i % 2] for i, name in enumerate(names)}
    for file in files:
        save_file({n: tensors[n] for n in names if places[n] == file}, folder / file, {"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    encoder = LLMEncoder.from_folder(folder)
    assert relative_error(encode_one(encoder, "a cat"), alone(model, tokenizer, "pre a cat")) < ROUNDING


def test_weights_from_before_zip_archives(rankgen_folder: Callable[..., Any]) -> None:
    folder, model, tokenizer = rankgen_folder("pytorch_model.bin")
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    encoder = LLMEncoder.from_folder(folder)
    assert relative_error(encode_one(encoder, "a cat"), alone(model, tokenizer, "pre a cat")) < ROUNDING


@torch.no_grad()
def test_only_the_encoder_of_a_full_t5_is_used(build_model: BuildModel, t5_tokenizer: Any, tmp_path: Path) -> None:
    from transformers import T5ForConditionalGeneration

    plain, _ = build_model("t5")
    full = T5ForConditionalGeneration(plain.config).eval()
    full.save_pretrained(tmp_path)
    t5_tokenizer.save_pretrained(tmp_path)
    encoder = LLMEncoder.from_folder(tmp_path)
    assert not any("decoder" in name for name, _ in encoder.model.named_parameters())
    expected = alone(full.get_encoder(), t5_tokenizer, "a red cat")
    assert relative_error(encode_one(encoder, "a red cat"), expected) < ROUNDING


@pytest.mark.parametrize("kind", ["bart", "t5gemma"])
def test_only_the_encoder_of_other_encoder_decoders_is_used(kind: str, load: Callable[..., Any]) -> None:
    encoder, model = load(kind)
    assert (encoder.spec.architecture, encoder.spec.layers, encoder.spec.width) == (kind, 3, 32)
    expected = alone(model.get_encoder(), encoder.tokenizer, "a red cat")
    assert relative_error(encode_one(encoder, "a red cat"), expected) < ROUNDING


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", DECODERS + ENCODERS)
def test_padding_does_not_change_the_hidden_states_of_a_prompt(kind: str, side: str, load: Callable[..., Any]) -> None:
    """Requires correct position ids and attention mask."""
    encoder, model = load(kind, padding_side=side)
    features = encoder.encode(PROMPTS)
    assert bool(features.hidden.isfinite().all())
    for i, prompt in enumerate(PROMPTS):
        expected = alone(model, encoder.tokenizer, prompt)
        assert int(features.mask[i].sum()) == len(expected)
        assert relative_error(features.hidden[i][features.mask[i].bool()], expected) < ROUNDING


@pytest.mark.parametrize("kind", ["t5", "gpt2"])
def test_prompts_of_a_batch_are_independent(kind: str, load: Callable[..., Any]) -> None:
    encoder, _ = load(kind)
    batch = encoder.encode(PROMPTS)
    assert batch.hidden.shape[1] == 40
    assert batch.lengths == tuple(int(n) for n in batch.mask.sum(1))
    for i, prompt in enumerate(PROMPTS):
        single = encoder.encode([prompt])
        assert torch.equal(batch.mask[i], single.mask[0])
        assert relative_error(batch.hidden[i], single.hidden[0]) < ROUNDING


def test_each_prompt_is_tokenized_once(load: Callable[..., Any]) -> None:
    encoder, _ = load("t5")
    tokenizer, texts = encoder.tokenizer, []

    class Recorder:
        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __call__(self, text: str, **options: Any) -> Any:
            texts.append(text)
            return tokenizer(text, **options)

    encoder.tokenizer = Recorder()
    encoder.encode(PROMPTS)
    assert texts == PROMPTS


@pytest.mark.parametrize("kind", DECODERS + ENCODERS)
def test_the_empty_prompt_has_hidden_states(kind: str, load: Callable[..., Any]) -> None:
    encoder, _ = load(kind)
    features = encoder.encode([""])
    assert features.hidden.shape[1] >= 1
    assert int(features.mask.sum()) >= 1
    assert bool(features.hidden.isfinite().all())


# Layers


@torch.no_grad()
def states_by_hooks(kind: str, model: Any, ids: Tensor) -> list[Tensor]:
    """Embedding, every block's output, and the last after the final norm, recorded by hooks."""
    blocks = {"t5": "encoder.block", "gpt2": "h", "llama": "layers", "bert": "encoder.layer"}[kind]
    states: list[Tensor] = []

    def before(_: Any, args: Any, kwargs: Any) -> None:
        states.append(args[0] if args else kwargs["hidden_states"])

    def after(_: Any, __: Any, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    modules = list(model.get_submodule(blocks))
    handles = [modules[0].register_forward_pre_hook(before, with_kwargs=True)]
    handles += [block.register_forward_hook(after) for block in modules]
    last = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    for handle in handles:
        handle.remove()
    return [*states[:-1], last]


@pytest.mark.parametrize("kind", ["t5", "gpt2", "llama", "bert"])
@pytest.mark.parametrize("layer", ["last", 0, 1, 2, 3, -1, -2, -4])
def test_a_layer_is_the_state_of_that_index(kind: str, layer: Any, load: Callable[..., Any]) -> None:
    encoder, model = load(kind, layer=layer)
    states = states_by_hooks(kind, model, torch.tensor([encoder.tokenizer(PROMPTS[0])["input_ids"]]))
    assert len(states) == 4
    expected = states[-1 if layer == "last" else layer]
    assert relative_error(encode_one(encoder, PROMPTS[0])[None], expected) < ROUNDING


@pytest.mark.parametrize("kind", ["t5", "gpt2", "llama", "bert"])
def test_mean_is_that_of_the_normalised_blocks(kind: str, load: Callable[..., Any]) -> None:
    encoder, model = load(kind, layer="mean")
    states = states_by_hooks(kind, model, torch.tensor([encoder.tokenizer(PROMPTS[0])["input_ids"]]))
    expected = torch.zeros_like(states[0], dtype=torch.float64)
    for state in states[1:]:
        centred = state.double() - state.double().mean(-1, keepdim=True)
        expected += centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() / 3
    assert relative_error(encode_one(encoder, PROMPTS[0])[None], expected) < ROUNDING


def test_mean_leaves_the_embedding_out() -> None:
    states = [torch.randn(1, 2, 8) for _ in range(3)]
    assert torch.equal(select_layer(states, "mean"), select_layer([states[0] * 100, *states[1:]], "mean"))


# Weights


@pytest.mark.parametrize("kind", ["t5", "gpt2"])
def test_weights_scale_the_distance_from_the_empty_prompt(kind: str, load: Callable[..., Any]) -> None:
    encoder, _ = load(kind)
    weighted = encoder.encode([[("a", 1.0), (" red", 1.5), (" cat", 1.0)], [("a", 0.0), (" cat", 1.0)]]).hidden
    plain = encoder.encode(["a red cat", "a cat"]).hidden
    empty = encoder.encode([""]).hidden[0]
    changed = (weighted != plain).any(-1)
    red = encoder.tokenizer("a red cat", return_offsets_mapping=True)["offset_mapping"]
    places = [i for i, (begin, end) in enumerate(red) if begin < 5 and end > 2]
    assert changed[0].nonzero().flatten().tolist() == places
    expected = empty[places] + 1.5 * (plain[0][places] - empty[places])
    assert relative_error(weighted[0][places], expected) < ROUNDING
    assert relative_error(weighted[1][0], empty[0]) < ROUNDING
    assert torch.equal(weighted[1][1:], plain[1][1:])


def test_weights_of_one_change_nothing(load: Callable[..., Any]) -> None:
    encoder, _ = load("t5")
    assert torch.equal(encoder.encode([[("a ", 1.0), ("cat", 1.0)]]).hidden, encoder.encode(["a cat"]).hidden)


def test_a_weighted_prompt_does_not_change_others_of_its_batch(load: Callable[..., Any]) -> None:
    encoder, _ = load("t5")
    plain = encoder.encode(["a cat", "a red cat"]).hidden
    assert torch.equal(encoder.encode([[("a cat", 1.5)], "a red cat"]).hidden[1], plain[1])


# Specification of a folder


def test_specification_of_a_folder(build_folder: BuildFolder) -> None:
    spec = LLMEncoder.from_folder(build_folder("qwen3")[0], dtype=torch.float64).spec
    assert spec == LLMSpec(model="", architecture="qwen3", layers=3, width=32, dtype="float64")
    assert (spec.prefix, spec.max_length, spec.padding_side) == ("", 256, "right")


def test_specification_of_features(load: Callable[..., Any]) -> None:
    encoder, _ = load("t5", prefix="a ", layer=1)
    features = encoder.encode(["cat"])
    assert features.spec == encoder.spec
    assert features.spec.prefix == "a " and features.spec.layer == 1


def test_the_specification_of_an_adapter_is_followed(build_folder: BuildFolder) -> None:
    folder, model, tokenizer = build_folder("t5")
    spec = replace(folder_spec(folder), model="org/adapter-llm", prefix="pre ", max_length=5)
    features = LLMEncoder.from_folder(folder, spec).encode(["a red cat on the mat"])
    ids = torch.tensor([tokenizer("pre a red cat on the mat")["input_ids"][:5]])
    with torch.no_grad():
        assert relative_error(features.hidden, model(input_ids=ids).last_hidden_state) < ROUNDING


def test_the_model_is_frozen_and_without_dropout(load: Callable[..., Any]) -> None:
    encoder, _ = load("t5")
    assert not encoder.model.training
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())
    assert torch.equal(encoder.encode(PROMPTS).hidden, encoder.encode(PROMPTS).hidden)


# Refusals


def refuse(folder: Path, spec: LLMSpec | None = None) -> str:
    with pytest.raises(LLM4GENError) as caught:
        LLMEncoder.from_folder(folder, spec)
    sentence = str(caught.value)
    assert str(folder) in sentence
    assert "\n" not in sentence
    return sentence


def test_another_llm_than_the_adapters_is_refused(build_folder: BuildFolder) -> None:
    folder = build_folder("t5")[0]
    needed = LLMSpec(model="org/needed", architecture="llama", layers=16, width=2048)
    sentence = refuse(folder, needed)
    assert "t5, 3 layers, width 32" in sentence
    assert "org/needed (llama, 16 layers, width 2048) is needed" in sentence


def test_folder_that_does_not_exist(tmp_path: Path) -> None:
    assert "has no config.json" in refuse(tmp_path / "none")


def test_folder_without_config(build_folder: BuildFolder) -> None:
    folder = build_folder("t5")[0]
    (folder / "config.json").unlink()
    assert "has no config.json; expected a Hugging Face model folder" in refuse(folder)


@pytest.mark.parametrize("text", ["{broken", "[]", "{}", '{"model_type": "no-such-model"}'])
def test_config_that_cannot_be_read(text: str, build_folder: BuildFolder) -> None:
    folder = build_folder("t5")[0]
    (folder / "config.json").write_text(text)
    assert "cannot read its config.json" in refuse(folder)


@pytest.mark.parametrize("kind", ["t5", "gpt2", "qwen3", "bert", "llama"])
def test_folder_without_tokenizer(kind: str, build_folder: BuildFolder) -> None:
    """transformers would build a blank tokenizer, to which every word is unknown."""
    folder = build_folder(kind)[0]
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    sentence = refuse(folder)
    assert "has no tokenizer" in sentence and "Put tokenizer.json" in sentence


def test_folder_with_the_tokenizer_configuration_alone(build_folder: BuildFolder) -> None:
    folder = build_folder("t5")[0]
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    assert "has no tokenizer" in refuse(folder)


def test_tokenizer_of_another_model(build_folder: BuildFolder, gpt_tokenizer: Any) -> None:
    folder = build_folder("t5")[0]
    gpt_tokenizer.save_pretrained(folder)
    encoder = LLMEncoder.from_folder(folder)
    with pytest.raises(LLM4GENError, match=r"token id \d+, but its embedding has \d+ rows.*different models"):
        encoder.encode(["a red cat"])


def test_folder_without_weights(build_folder: BuildFolder) -> None:
    folder = build_folder("t5")[0]
    (folder / "model.safetensors").unlink()
    assert "has no weights; expected model.safetensors or" in refuse(folder)


def test_weights_of_another_architecture(build_folder: BuildFolder) -> None:
    folder, other = build_folder("t5")[0], build_folder("llama", "other")[0]
    (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    assert "are missing" in (sentence := refuse(folder)) and "another model than config.json" in sentence


def test_weights_of_another_size(build_folder: BuildFolder, edit_json: Callable[..., None]) -> None:
    folder = build_folder("t5")[0]
    edit_json(folder / "config.json", d_ff=64)
    assert "another model than config.json" in refuse(folder)


def test_weights_with_a_layer_missing(build_folder: BuildFolder, edit_json: Callable[..., None]) -> None:
    folder = build_folder("t5")[0]
    edit_json(folder / "config.json", num_layers=4)
    assert "encoder.block.3." in (sentence := refuse(folder)) and "another model than config.json" in sentence


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("kept", [0.001, 0.5, 0.99])
def test_truncated_weights(file: str, kept: float, rankgen_folder: Callable[..., Any]) -> None:
    folder = rankgen_folder(file)[0]
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: int(kept * len(content))])
    assert "truncated" in (sentence := refuse(folder)) and file in sentence


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{broken", "not valid JSON"),
        ("{}", "is not an index of weights"),
        ('{"weight_map": 3}', "is not an index of weights"),
        ("[]", "expected a JSON object"),
    ],
)
def test_broken_index_of_weights(text: str, problem: str, build_folder: BuildFolder) -> None:
    folder = build_folder("t5")[0]
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(text)
    assert problem in refuse(folder)


def test_a_model_that_is_not_a_language_model(build_folder: BuildFolder) -> None:
    from transformers import ResNetConfig

    folder = build_folder("t5")[0]
    ResNetConfig().save_pretrained(folder)
    assert "is a resnet, which is not a text encoder or language model" in refuse(folder)


@pytest.mark.parametrize(
    ("prompts", "words"), [([], "no prompts to encode"), ("a cat", "a single text; give a list of texts")]
)
def test_invalid_lists_of_prompts(prompts: Any, words: str, load: Callable[..., Any]) -> None:
    with pytest.raises(LLM4GENError, match=words):
        load("t5")[0].encode(prompts)


# No downloads, and no execution of code in a folder


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """List of attempts to connect to another machine, all of which fail."""
    attempts: list[Any] = []

    def refuse_connection(*args: Any, **_: Any) -> None:
        attempts.append(args)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse_connection)
    monkeypatch.setattr(socket, "getaddrinfo", refuse_connection)
    return attempts


@pytest.mark.parametrize("kind", ["t5", "llama", "gpt2"])
def test_loading_and_encoding_do_not_use_the_network(
    kind: str, no_network: list[Any], load: Callable[..., Any]
) -> None:
    load(kind)[0].encode(["a cat"])
    assert no_network == []


def test_a_broken_folder_is_not_completed_by_downloads(no_network: list[Any], build_folder: BuildFolder) -> None:
    folder = build_folder("t5")[0]
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    refuse(folder)
    (folder / "model.safetensors").unlink()
    refuse(folder)
    assert no_network == []


@pytest.fixture
def plant_code(edit_json: Callable[..., None], tmp_path: Path) -> Callable[..., Path]:
    """Add Python that `trust_remote_code` would run to a folder; returns the file that it would create."""

    def plant(folder: Path, **changes: Any) -> Path:
        marker = tmp_path / "executed"
        code = f"open({str(marker)!r}, 'w').close()\nEvilConfig = EvilModel = EvilTokenizer = object\n"
        (folder / "evil.py").write_text(code)
        auto_map = {"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel"}
        auto_map["AutoModelForTextEncoding"] = "evil.EvilModel"
        edit_json(folder / "config.json", auto_map=auto_map, **changes)
        tokenizer_map = {"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]}
        edit_json(folder / "tokenizer_config.json", auto_map=tokenizer_map)
        return marker

    return plant


def test_code_of_a_known_model_is_ignored(build_folder: BuildFolder, plant_code: Callable[..., Path]) -> None:
    folder, model, tokenizer = build_folder("t5")
    marker = plant_code(folder)
    encoder = LLMEncoder.from_folder(folder)
    assert relative_error(encode_one(encoder, "a cat"), alone(model, tokenizer, "a cat")) < ROUNDING
    assert not marker.exists()


def test_a_model_that_needs_its_own_code_is_refused(build_folder: BuildFolder, plant_code: Callable[..., Path]) -> None:
    folder = build_folder("t5")[0]
    marker = plant_code(folder, model_type="evil")
    assert "cannot read its config.json" in refuse(folder)
    assert not marker.exists()


def test_a_tokenizer_that_needs_its_own_code_is_refused(
    build_folder: BuildFolder, plant_code: Callable[..., Path], edit_json: Callable[..., None]
) -> None:
    folder = build_folder("t5")[0]
    marker = plant_code(folder)
    (folder / "tokenizer.json").unlink()
    edit_json(folder / "tokenizer_config.json", tokenizer_class="EvilTokenizer")
    refuse(folder)
    assert not marker.exists()


def test_weights_that_would_run_code_are_refused(rankgen_folder: Callable[..., Any], tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return exec, (f"open({str(tmp_path / 'executed')!r}, 'w').close()",)

    folder = rankgen_folder("pytorch_model.bin")[0]
    torch.save({"t5_encoder.shared.weight": Evil()}, folder / "pytorch_model.bin")
    assert "needs to run code (exec)" in refuse(folder)
    assert not (tmp_path / "executed").exists()
