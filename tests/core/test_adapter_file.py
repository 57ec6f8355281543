"""Adapter files: reading of the three formats, writing of one, and refusal of invalid files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import stat
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llm4gen_core import (
    RANKGEN_T5_XL,
    AdapterMetadata,
    CrossAdapter,
    CrossAdapterConfig,
    LLM4GENError,
    LLMSpec,
    UNetPart,
    load_adapter,
    save_adapter,
)
from llm4gen_core.adapter import FUSIONS

MakeAdapter = Callable[..., CrossAdapter]
Refusal = Callable[[Path], str]

LLM = LLMSpec(model="org/tiny", architecture="t5", layers=2, width=24, prefix="pre ", max_length=64, layer=-2)
METADATA = AdapterMetadata(
    base_family="sdxl",
    llm=LLM,
    lambda_mode="value",
    default_strength=0.85,
    training={"steps": 1000, "data": "laïon", "loss": {"alpha": 0.01}},
    title="Été",
    author="Someone",
    description="A CAM.",
)


ATTENTION = "mid_block.attentions.0.transformer_blocks.0.attn2"
KV = UNetPart(
    "cross_attention_kv",
    {f"{ATTENTION}.to_k.diff": torch.full((4, 16), 0.5), f"{ATTENTION}.to_v.diff": torch.full((4, 16), -0.25)},
)
LORA = UNetPart(
    "lora",
    {
        f"{ATTENTION}.to_q.lora_A.weight": torch.full((2, 4), 0.5),
        f"{ATTENTION}.to_q.lora_B.weight": torch.full((4, 2), 0.125).half(),
        f"{ATTENTION}.to_q.alpha": torch.tensor(2.0),
    },
)


def read_raw(path: Path) -> tuple[dict[str, Any], dict[str, str], bytes]:
    """(tensor entries, metadata, tensor bytes) by the definition of safetensors, without its library."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    return header, header.pop("__metadata__", {}), content[8 + length :]


@pytest.fixture
def own_file(make_adapter: MakeAdapter, tmp_path: Path) -> Path:
    path = tmp_path / "own.safetensors"
    save_adapter(make_adapter(), path, METADATA)
    return path


@pytest.fixture
def with_header(own_file: Path, tmp_path: Path) -> Callable[..., Path]:
    """File in the project's format with metadata fields changed, or removed (None)."""

    def rewrite(**changes: str | None) -> Path:
        header = {**read_raw(own_file)[1], **changes}
        path = tmp_path / "changed.safetensors"
        save_file(load_file(own_file), path, {name: value for name, value in header.items() if value is not None})
        return path

    return rewrite


def same_tensors(a: CrossAdapter, b: Mapping[str, Tensor]) -> bool:
    state = a.state_dict()
    return state.keys() == b.keys() and all(
        torch.equal(state[name], b[name]) and state[name].dtype == b[name].dtype for name in state
    )


# Round trips


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_round_trip_is_bit_equal(dtype: torch.dtype, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    adapter = make_adapter(heads=2).to(dtype)
    save_adapter(adapter, tmp_path / "a.safetensors", METADATA)
    loaded = load_adapter(tmp_path / "a.safetensors")
    assert same_tensors(loaded.module, adapter.state_dict())
    assert loaded.config == adapter.config == CrossAdapterConfig(16, 24, 2)


def test_round_trip_keeps_the_metadata(own_file: Path) -> None:
    assert load_adapter(own_file).metadata == METADATA


def test_round_trip_of_minimal_metadata(make_adapter: MakeAdapter, tmp_path: Path) -> None:
    save_adapter(make_adapter(), tmp_path / "My CAM v2.safetensors", AdapterMetadata("sd15", None))
    metadata = load_adapter(tmp_path / "My CAM v2.safetensors").metadata
    assert metadata == AdapterMetadata("sd15", None, title="My CAM v2")


def test_header_fields(own_file: Path) -> None:
    _, header, _ = read_raw(own_file)
    date = header.pop("modelspec.date")
    assert len(date) == 10 and date[4] == date[7] == "-"
    assert header.pop("modelspec.hash_sha256").startswith("0x")
    assert json.loads(header.pop("cam")) == {"d_text": 16, "d_llm": 24, "heads": 4, "fusion": "cross_adapter"}
    assert LLMSpec.from_json(header.pop("llm")) == LLM
    assert json.loads(header.pop("training")) == METADATA.training
    assert header == {
        "format": "llm4gen-adapter",
        "format_version": "1",
        "base_family": "sdxl",
        "lambda_mode": "value",
        "default_strength": "0.85",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/llm4gen",
        "modelspec.implementation": "llm4gen",
        "modelspec.title": "Été",
        "modelspec.author": "Someone",
        "modelspec.description": "A CAM.",
    }


def test_the_modelspec_hash_is_that_of_the_tensor_bytes(own_file: Path) -> None:
    _, header, data = read_raw(own_file)
    assert header["modelspec.hash_sha256"] == "0x" + hashlib.sha256(data).hexdigest()


def test_tensor_names(own_file: Path, make_adapter: MakeAdapter) -> None:
    assert set(read_raw(own_file)[0]) == {"cam." + name for name in make_adapter().state_dict()}


def test_a_loaded_adapter_is_frozen_and_in_evaluation_mode(own_file: Path) -> None:
    adapter = load_adapter(own_file).module
    assert not adapter.training
    assert not any(parameter.requires_grad for parameter in adapter.parameters())


def test_loading_leaves_the_global_seed_alone(own_file: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    load_adapter(own_file)
    assert torch.equal(torch.rand(3), expected)


def test_saving_a_loaded_adapter_gives_the_same_content(own_file: Path, tmp_path: Path) -> None:
    adapter = load_adapter(own_file)
    save_adapter(adapter.module, tmp_path / "again.safetensors", adapter.metadata)
    first, again = read_raw(own_file), read_raw(tmp_path / "again.safetensors")
    first[1].pop("modelspec.date"), again[1].pop("modelspec.date")
    assert again == first


def test_a_trainable_adapter_with_transposed_memory_can_be_saved(make_adapter: MakeAdapter, tmp_path: Path) -> None:
    adapter = make_adapter()
    adapter.q_proj.weight = torch.nn.Parameter(adapter.q_proj.weight.detach().t())
    save_adapter(adapter, tmp_path / "a.safetensors", METADATA)
    assert same_tensors(load_adapter(tmp_path / "a.safetensors").module, adapter.state_dict())


# Other fusions, and UNet parts


@pytest.mark.parametrize("part", [None, KV, LORA], ids=["cam", "kv", "lora"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_round_trip_of_every_fusion_and_part(
    fusion: str, part: UNetPart | None, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    adapter = make_adapter(fusion=fusion)
    save_adapter(adapter, tmp_path / "a.safetensors", METADATA, part)
    loaded = load_adapter(tmp_path / "a.safetensors")
    assert same_tensors(loaded.module, adapter.state_dict())
    assert (loaded.config, loaded.metadata) == (adapter.config, METADATA)
    assert (loaded.unet_part is None) == (part is None)
    if part is not None:
        assert loaded.unet_part is not None and loaded.unet_part.kind == part.kind
        assert loaded.unet_part.tensors.keys() == part.tensors.keys()
        for name, tensor in loaded.unet_part.tensors.items():
            assert torch.equal(tensor, part.tensors[name]) and tensor.dtype == part.tensors[name].dtype


@pytest.mark.parametrize(
    ("fusion", "part", "version"),
    [("cross_adapter", None, "1"), ("cross_adapter", KV, "2"), ("mlp", None, "2"), ("clip_query", LORA, "2")],
)
def test_lowest_sufficient_version_is_written(
    fusion: str, part: UNetPart | None, version: str, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    save_adapter(make_adapter(fusion=fusion), tmp_path / "a.safetensors", METADATA, part)
    entries, header, data = read_raw(tmp_path / "a.safetensors")
    assert header["format_version"] == version
    assert header.get("unet_part") == (None if part is None else part.kind)
    assert header["modelspec.hash_sha256"] == "0x" + hashlib.sha256(data).hexdigest()
    stored = {name.removeprefix("unet.") for name in entries if not name.startswith("cam.")}
    assert stored == (set() if part is None else set(part.tensors))


def test_the_unet_part_is_separate_from_the_module(make_adapter: MakeAdapter, tmp_path: Path) -> None:
    save_adapter(make_adapter(), tmp_path / "a.safetensors", METADATA, KV)
    assert load_adapter(tmp_path / "a.safetensors").module.state_dict().keys() == make_adapter().state_dict().keys()


def test_a_loaded_unet_part_is_stored_again_only_when_it_is_passed(make_adapter: MakeAdapter, tmp_path: Path) -> None:
    first, again = tmp_path / "a.safetensors", tmp_path / "again.safetensors"
    save_adapter(make_adapter(), first, METADATA, LORA)
    adapter = load_adapter(first)
    save_adapter(adapter.module, again, METADATA, adapter.unet_part)
    assert read_raw(again)[2] == read_raw(first)[2]
    save_adapter(adapter.module, again, METADATA)
    assert load_adapter(again).unet_part is None and read_raw(again)[1]["format_version"] == "1"


def test_one_alpha_for_all_layers_can_be_saved(make_adapter: MakeAdapter, tmp_path: Path) -> None:
    alpha = torch.tensor(8.0)
    tensors = {f"{ATTENTION}.to_{x}.lora_A.weight": torch.ones(2, 4) for x in "qk"}
    tensors |= {f"{ATTENTION}.to_{x}.lora_B.weight": torch.ones(4, 2) for x in "qk"}
    tensors |= {f"{ATTENTION}.to_{x}.alpha": alpha for x in "qk"}
    save_adapter(make_adapter(), tmp_path / "a.safetensors", METADATA, UNetPart("lora", tensors))
    part = load_adapter(tmp_path / "a.safetensors").unet_part
    assert part is not None and all(float(part.tensors[f"{ATTENTION}.to_{x}.alpha"]) == 8 for x in "qk")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"unet_part": None}, "lacks the metadata field 'unet_part' with their kind"),
        ({"unet_part": "lora"}, "UNet part: 2 tensors do not belong to kind 'lora'"),
        ({"unet_part": "full"}, "UNet part: kind 'full' is unknown"),
    ],
)
def test_unet_part_that_does_not_match_its_header(
    changes: dict[str, str | None], words: str, make_adapter: MakeAdapter, refusal: Refusal, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    save_adapter(make_adapter(), path, METADATA, KV)
    header = {**read_raw(path)[1], **changes}
    save_file(load_file(path), path, {name: value for name, value in header.items() if value is not None})
    assert words in refusal(path)


def test_missing_unet_part(with_header: Callable[..., Path], refusal: Refusal) -> None:
    assert "UNet part: it holds no tensors" in refusal(with_header(unet_part="lora"))


# Official formats


@pytest.mark.parametrize("form", ["official_safetensors", "official_pickle"])
def test_official_formats(form: str, official_tensors: dict[str, Tensor], request: pytest.FixtureRequest) -> None:
    adapter = load_adapter(request.getfixturevalue(form))
    expected = {name.removeprefix("CrossFusionModule.0."): tensor for name, tensor in official_tensors.items()}
    assert same_tensors(adapter.module, expected)
    assert adapter.config == CrossAdapterConfig(d_text=64, d_llm=96, heads=8)


def test_official_file_of_another_size_names_neither_family_nor_llm(official_pickle: Path) -> None:
    assert load_adapter(official_pickle).metadata == AdapterMetadata(base_family=None, llm=None)


def test_official_sizes_are_recognised_as_the_sd15_release(make_adapter: MakeAdapter, tmp_path: Path) -> None:
    adapter = make_adapter(768, 2048, 8).to(torch.float16)
    tensors = {"CrossFusionModule.0." + name: tensor.detach() for name, tensor in adapter.state_dict().items()}
    save_file(tensors, tmp_path / "projector.safetensors")
    metadata = load_adapter(tmp_path / "projector.safetensors").metadata
    assert (metadata.base_family, metadata.llm, metadata.lambda_mode) == ("sd15", RANKGEN_T5_XL, "embedding")


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".PTH"])
def test_pickles_from_before_zip_archives_are_read(
    suffix: str, official_tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / ("old" + suffix)
    torch.save(official_tensors, path, _use_new_zipfile_serialization=False)
    assert load_adapter(path).config.d_llm == 96


# Atomic writing


@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("exists", [True, False])
def test_a_failed_save_leaves_the_folder_as_it_was(
    failure: BaseException,
    step: str,
    exists: bool,
    make_adapter: MakeAdapter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "a.safetensors"
    if exists:
        path.write_bytes(b"the old file")

    def fail(*_: Any) -> None:
        raise failure

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(failure)):
        save_adapter(make_adapter(), path, METADATA)
    assert [file.name for file in tmp_path.iterdir()] == (["a.safetensors"] if exists else [])
    assert not exists or path.read_bytes() == b"the old file"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("exists", [True, False])
def test_full_disk_is_reported_and_leaves_no_partial_file(
    code: int, exists: bool, make_adapter: MakeAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    save_adapter(make_adapter(), path, METADATA, KV)
    needed, old = path.stat().st_size, path.read_bytes()
    if not exists:
        path.unlink()

    def fail(*_: Any) -> None:
        raise OSError(code, "no room")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(LLM4GENError, match=f"{path} cannot be written: the disk is full, .* It needs {needed:,} bytes"):
        save_adapter(make_adapter(), path, METADATA, KV)
    assert [file.name for file in tmp_path.iterdir()] == (["a.safetensors"] if exists else [])
    assert not exists or path.read_bytes() == old


def test_saving_replaces_an_old_file_and_leaves_nothing_else(make_adapter: MakeAdapter, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"the old file")
    save_adapter(make_adapter(), path, METADATA)
    assert list(tmp_path.iterdir()) == [path]
    assert load_adapter(path).metadata == METADATA


@pytest.mark.skipif(os.name != "posix", reason="file modes of Unix")
def test_permissions_of_a_saved_file(own_file: Path, tmp_path: Path) -> None:
    (tmp_path / "any").touch()
    assert stat.S_IMODE(own_file.stat().st_mode) == stat.S_IMODE((tmp_path / "any").stat().st_mode)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.pth", "must end in .safetensors"),
        ("a", "must end in .safetensors"),
        ("missing/a.safetensors", "does not exist"),
        ("folder.safetensors", "is a folder"),
    ],
)
def test_saving_refuses_unusable_names(name: str, words: str, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(LLM4GENError, match=words):
        save_adapter(make_adapter(), tmp_path / name, METADATA)
    assert [file.name for file in tmp_path.iterdir()] == ["folder.safetensors"]


def test_saving_needs_a_base_family(make_adapter: MakeAdapter, tmp_path: Path) -> None:
    with pytest.raises(LLM4GENError, match="has no base family; set the one that it was trained for: sd15, sdxl"):
        save_adapter(make_adapter(), tmp_path / "a.safetensors", AdapterMetadata(None, LLM))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base_family": "sd2"}, "base family 'sd2' is not known; expected sd15, sdxl"),
        ({"lambda_mode": "sum"}, "λ mode 'sum' is not known; expected embedding, value, decoupled"),
        ({"default_strength": float("nan")}, "default strength is nan"),
        ({"default_strength": float("inf")}, "default strength is inf"),
        ({"training": [1, 2]}, "training summary is a list"),
    ],
)
def test_metadata_refuses_invalid_values(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(LLM4GENError, match=words):
        AdapterMetadata(**{"base_family": "sd15", "llm": None, **changes})


# Refused: missing and broken files


def test_missing_file(refusal: Refusal, tmp_path: Path) -> None:
    assert "does not exist; check the name" in refusal(tmp_path / "none.safetensors")
    assert "does not exist; check the name" in refusal(tmp_path / "none.pth")


def test_folder(refusal: Refusal, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").mkdir()
    assert "is a folder; expected a file" in refusal(tmp_path / "a.safetensors")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_empty_file(suffix: str, refusal: Refusal, tmp_path: Path) -> None:
    path = tmp_path / ("a" + suffix)
    path.touch()
    assert "is empty (0 bytes); download it again" in refusal(path)


@pytest.mark.parametrize("place", ["1", "7", "8", "9", "header/2", "header-1", "header", "data/2", "end-1"])
def test_truncated_safetensors(place: str, own_file: Path, refusal: Refusal) -> None:
    content = own_file.read_bytes()
    header = 8 + struct.unpack("<Q", content[:8])[0]
    places = {"header/2": header // 2, "header-1": header - 1, "header": header}
    places |= {"data/2": (header + len(content)) // 2, "end-1": len(content) - 1}
    cut = places[place] if place in places else int(place)
    own_file.write_bytes(content[:cut])
    sentence = refusal(own_file)
    assert f"({cut:,} bytes) cannot be read: it is truncated" in sentence
    assert "Download it again" in sentence


@pytest.mark.parametrize("kept", [0.001, 0.01, 0.5, 0.9, 0.999])
def test_truncated_pickle(kept: float, official_pickle: Path, refusal: Refusal, tmp_path: Path) -> None:
    content = official_pickle.read_bytes()
    path = tmp_path / "projector.pth"
    path.write_bytes(content[: int(kept * len(content))])
    assert "it is truncated, or its format is not that of its suffix" in refusal(path)


def test_damaged_pickles_are_refused_or_read_but_never_crash(
    official_tensors: dict[str, Tensor], refusal: Refusal, tmp_path: Path
) -> None:
    """Any byte of an old-style pickle may be damaged; torch's unpickler then raises nearly any type."""
    path = tmp_path / "projector.pth"
    torch.save(official_tensors, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    refused = 0
    for position in range(0, 2000, 13):
        damaged = bytearray(content)
        damaged[position] ^= 0x2B
        path.write_bytes(damaged)
        try:
            load_adapter(path)
        except LLM4GENError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    "content",
    [b"<!doctype html><html>Not found</html>", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"],
)
def test_web_page_or_pointer_instead_of_the_file(suffix: str, content: bytes, refusal: Refusal, tmp_path: Path) -> None:
    path = tmp_path / ("a" + suffix)
    path.write_bytes(content)
    sentence = refusal(path)
    assert "its format is not that of its suffix" in sentence
    assert "weights_only" not in sentence and "Weights only" not in sentence  # torch advises to switch this off


@pytest.mark.parametrize("name", ["a.gguf", "a.txt", "a"])
def test_unknown_suffix(name: str, refusal: Refusal, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"something")
    assert "expected one of .safetensors, .sft, .pth" in refusal(tmp_path / name)


# Refused: files that would execute code


class Malicious:
    """Object that is pickled as the call of a function."""

    def __init__(self, function: Callable[..., Any], argument: str) -> None:
        self.call = (function, (argument,))

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return self.call


def attack(kind: str, marker: Path) -> Malicious:
    if kind == "system":
        return Malicious(os.system, f'echo caught > "{marker}"')
    return Malicious({"exec": exec, "eval": eval}[kind], f"open({str(marker)!r}, 'w').close()")


@pytest.mark.parametrize("kind", ["system", "exec", "eval"])
def test_attacks_of_these_tests_work_without_protection(kind: str, tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(attack(kind, tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("kind", ["system", "exec", "eval"])
@pytest.mark.parametrize("form", ["zip", "old", "plain2", "plain4"])
@pytest.mark.parametrize("place", ["alone", "beside"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_malicious_pickle_is_refused_and_not_executed(
    kind: str, form: str, place: str, official_tensors: dict[str, Tensor], refusal: Refusal, tmp_path: Path
) -> None:
    marker, path = tmp_path / "marker", tmp_path / "projector.pth"
    evil = attack(kind, marker)
    content: Any = {**official_tensors, "CrossFusionModule.0.extra": evil} if place == "beside" else evil
    if form.startswith("plain"):
        if place == "beside":
            content = {"CrossFusionModule.0.extra": evil}
        path.write_bytes(pickle.dumps(content, protocol=int(form[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    sentence = refusal(path)
    assert not marker.exists()
    assert "weights_only" not in sentence
    if form != "plain4":  # where torch stops before it comes to the call
        assert "needs to run code (" in sentence and "nothing was executed" in sentence


def test_a_pickled_module_is_refused(refusal: Refusal, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    torch.save(make_adapter(), tmp_path / "module.pth")
    assert "needs to run code (llm4gen_core.adapter.CrossAdapter)" in refusal(tmp_path / "module.pth")


# Refused: other files, and incomplete adapters


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {"state_dict": {"a": 1}}, {3: torch.zeros(1)}])
def test_pickle_that_is_not_a_state_dict(content: Any, refusal: Refusal, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    assert f"holds a {type(content).__name__}; expected a state dict of named tensors" in refusal(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "key",
    [
        "text_model.encoder.layers.0.self_attn.q_proj.weight",
        "lora_unet_down_blocks_0_attentions_0.lora_down.weight",
        "model.diffusion_model.input_blocks.0.0.weight",
        "cam.llm_proj.weight",
    ],
)
def test_safetensors_of_another_kind(key: str, refusal: Refusal, tmp_path: Path) -> None:
    save_file({key: torch.zeros(4, 4)}, tmp_path / "a.safetensors", {"format": "pt"})
    sentence = refusal(tmp_path / "a.safetensors")
    assert f"is not an LLM4GEN adapter: its tensors are {key}. Expected cam.*" in sentence


def test_a_safetensors_without_tensors(refusal: Refusal, tmp_path: Path) -> None:
    save_file({}, tmp_path / "a.safetensors")
    assert "is not an LLM4GEN adapter: its tensors are no tensors" in refusal(tmp_path / "a.safetensors")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("name", ["FFN.2.bias", "kv_norm.weight", "llm_proj.weight"])
def test_official_file_with_a_missing_tensor(
    suffix: str, name: str, official_tensors: dict[str, Tensor], refusal: Refusal, tmp_path: Path
) -> None:
    tensors = dict(official_tensors)
    del tensors["CrossFusionModule.0." + name]
    path = tmp_path / ("a" + suffix)
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    sentence = refusal(path)
    assert name in sentence
    assert "1 tensors missing, 0 unknown" in sentence or "it is incomplete" in sentence


def test_own_file_with_a_missing_tensor(own_file: Path, refusal: Refusal) -> None:
    tensors, header = load_file(own_file), read_raw(own_file)[1]
    del tensors["cam.out_proj.bias"]
    save_file(tensors, own_file, header)
    assert "lacks out_proj.bias (1 tensors missing, 0 unknown)" in refusal(own_file)


def test_unknown_tensor(official_tensors: dict[str, Tensor], refusal: Refusal, tmp_path: Path) -> None:
    torch.save({**official_tensors, "CrossFusionModule.0.gate": torch.zeros(1)}, tmp_path / "a.pth")
    assert "has the unknown gate (0 tensors missing, 1 unknown)" in refusal(tmp_path / "a.pth")


def test_tensors_of_a_later_version(own_file: Path, refusal: Refusal) -> None:
    tensors, header = load_file(own_file), read_raw(own_file)[1]
    save_file({**tensors, "clip.to_k.weight": torch.zeros(2)}, own_file, header)
    sentence = refusal(own_file)
    assert "1 tensors that are unknown to this version of LLM4GEN (clip.to_k.weight, ...)" in sentence
    assert "update LLM4GEN" in sentence


@pytest.mark.parametrize("name", ["q_proj.weight", "norm.bias", "FFN.0.weight"])
def test_tensor_of_the_wrong_shape(
    name: str, official_tensors: dict[str, Tensor], refusal: Refusal, tmp_path: Path
) -> None:
    key = "CrossFusionModule.0." + name
    shape = list(official_tensors[key].shape)
    torch.save({**official_tensors, key: torch.zeros(*shape[:-1], shape[-1] + 1)}, tmp_path / "a.pth")
    sentence = refusal(tmp_path / "a.pth")
    assert f"{name} has shape {[*shape[:-1], shape[-1] + 1]}" in sentence and f"expected {shape}" in sentence


def test_integer_tensor(official_tensors: dict[str, Tensor], refusal: Refusal, tmp_path: Path) -> None:
    key = "CrossFusionModule.0.q_proj.weight"
    torch.save({**official_tensors, key: official_tensors[key].to(torch.int8)}, tmp_path / "a.pth")
    assert "q_proj.weight is torch.int8; expected floating-point numbers" in refusal(tmp_path / "a.pth")


def test_two_stacked_cams(official_tensors: dict[str, Tensor], refusal: Refusal, tmp_path: Path) -> None:
    second = {name.replace(".0.", ".1.", 1): tensor for name, tensor in official_tensors.items()}
    torch.save({**official_tensors, **second}, tmp_path / "a.pth")
    assert "contains the Cross-Adapters ['0', '1']; expected only 0" in refusal(tmp_path / "a.pth")


def test_official_width_that_eight_heads_do_not_divide(
    make_adapter: MakeAdapter, refusal: Refusal, tmp_path: Path
) -> None:
    tensors = make_adapter(d_text=12, heads=4).state_dict()
    torch.save({"CrossFusionModule.0." + name: tensor for name, tensor in tensors.items()}, tmp_path / "a.pth")
    assert "d_text 12 is not divisible by 8 heads" in refusal(tmp_path / "a.pth")


# Refused: metadata


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format_version": "3"}, "format version 3 is newer than 2, the newest known one; update LLM4GEN"),
        ({"format_version": "new"}, "has invalid metadata"),
        ({"cam": "{broken"}, "has invalid metadata"),
        ({"cam": "[16, 24]"}, "has invalid metadata"),
        ({"cam": '{"d_text": 16}'}, "has invalid metadata"),
        ({"cam": '{"d_text": 16, "d_llm": 24, "heads": 3}'}, "is not divisible by 3 heads"),
        ({"cam": '{"d_text": 32, "d_llm": 24, "heads": 4}'}, "for d_text 32 and d_llm 24"),
        ({"cam": '{"d_text": 16, "d_llm": 24, "heads": 4, "fusion": "mlp9"}'}, "fusion 'mlp9' is unknown"),
        ({"llm": "{broken"}, "LLM specification: not valid JSON"),
        ({"llm": '{"model": "x"}'}, "LLM specification"),
        ({"training": "{broken"}, "has invalid metadata"),
        ({"training": "[]"}, "training summary is a list"),
        ({"lambda_mode": "softmax"}, "λ mode 'softmax' is not known; expected embedding, value, decoupled"),
        ({"base_family": "sd9"}, "base family 'sd9' is not known"),
        ({"default_strength": "strong"}, "has invalid metadata"),
        ({"default_strength": "nan"}, "default strength is nan"),
        ({"format": "llm4gen-other"}, "is not an LLM4GEN adapter"),
        ({"cam": None}, "lacks the metadata field 'cam'"),
        ({"llm": None}, "lacks the metadata field 'llm'"),
        ({"lambda_mode": None}, "lacks the metadata field 'lambda_mode'"),
    ],
)
def test_invalid_metadata(
    changes: dict[str, str | None], words: str, with_header: Callable[..., Path], refusal: Refusal
) -> None:
    assert words in refusal(with_header(**changes))
