"""The project's own file from the release's."""

import dataclasses
import hashlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from small_models import make_projector

from llm4gen_core import RANKGEN_T5_XL, LLM4GENError, LLMSpec, load_adapter
from llm4gen_diffusers.convert import convert
from llm4gen_diffusers.options import ConvertSettings

SPEC = LLMSpec(model="tiny/t5", architecture="t5", layers=2, width=96, prefix="pre ", max_length=128)


@pytest.fixture
def run(models, tmp_path):
    """Convert the miniature projector.pth; returns the new file."""

    def run(source=models.adapter, **changes):
        target = tmp_path / "out.safetensors"
        convert(ConvertSettings(source=source, target=target, **changes))
        return target

    return run


def header(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_values_are_equal_to_the_bit(run, models):
    source = torch.load(models.adapter, weights_only=True)
    written = load_file(run(family="sd15"))
    assert {n.replace("CrossFusionModule.0.", "cam.") for n in source} == set(written)
    for name, tensor in source.items():
        assert torch.equal(tensor, written[name.replace("CrossFusionModule.0.", "cam.")])


def test_the_written_file_is_the_same_adapter(run, models):
    before, after = load_adapter(models.adapter), load_adapter(run(family="sd15"))
    text, llm = torch.randn(2, 77, 64), torch.randn(2, 256, 96)
    assert after.config == before.config
    assert torch.equal(before(text, llm), after(text, llm))


def test_metadata_is_complete(run, models, tmp_path):
    (tmp_path / "llm.json").write_text(SPEC.to_json())
    target = run(
        family="sd15", llm=str(tmp_path / "llm.json"), title="Tiny", author="me", description="A small adapter."
    )
    found = header(target)
    assert (
        found.items()
        >= {
            "base_family": "sd15",
            "lambda_mode": "embedding",
            "modelspec.architecture": "stable-diffusion-v1/llm4gen",
            "modelspec.title": "Tiny",
            "modelspec.author": "me",
            "modelspec.description": "A small adapter.",
        }.items()
    )
    assert {"modelspec.sai_model_spec", "modelspec.implementation", "modelspec.date", "modelspec.hash_sha256"} <= set(
        found
    )
    assert json.loads(found["training"]) == {
        "converted_from": "projector.pth",
        "sha256": hashlib.sha256(models.adapter.read_bytes()).hexdigest(),
    }
    assert load_adapter(target).metadata.llm == SPEC


def test_the_release_needs_no_options(tmp_path):
    """Its sizes identify it: family, LLM and title are known."""
    target = tmp_path / "out.safetensors"
    convert(ConvertSettings(source=make_projector(tmp_path / "projector.pth", 768, 2048), target=target))
    metadata = load_adapter(target).metadata
    assert (metadata.base_family, metadata.llm) == ("sd15", RANKGEN_T5_XL)
    assert "official" in metadata.title


def test_llm_from_its_folder(run, models):
    spec = load_adapter(run(family="sd15", llm=str(models.llm), llm_model="me/tiny")).metadata.llm
    assert (spec.model, spec.layers, spec.width, spec.prefix) == ("me/tiny", 2, 96, "pre ")


def test_a_file_of_the_project_keeps_what_is_not_given(run, tmp_path):
    first = run(family="sd15", title="One", author="me").rename(tmp_path / "first.safetensors")
    before, after = load_adapter(first).metadata, load_adapter(run(first, title="Two")).metadata
    assert after == dataclasses.replace(before, title="Two")


def test_the_summary_says_what_was_found_and_written(run, capsys):
    run(family="sd15")
    out = capsys.readouterr().out
    assert "d_text 64, d_llm 96, 8 heads" in out and "float32" in out and "out.safetensors" in out


def test_unknown_family(run):
    with pytest.raises(LLM4GENError, match="give --family with one of sd15"):
        run()


def test_family_that_does_not_exist(run):
    with pytest.raises(LLM4GENError, match="'sd99' is not known; expected sd15"):
        run(family="sd99")


def test_llm_of_another_width(run, tmp_path):
    (tmp_path / "llm.json").write_text(dataclasses.replace(SPEC, width=128).to_json())
    with pytest.raises(LLM4GENError, match="width 128.* expects hidden states of width 96"):
        run(family="sd15", llm=str(tmp_path / "llm.json"))


def test_llm_by_name_only(run):
    with pytest.raises(LLM4GENError, match="'google/t5' is a name only"):
        run(family="sd15", llm_model="google/t5")


@pytest.mark.parametrize("content", ["{", '{"model": "x"}', '{"layers": 1, "unknown": 2}'])
def test_llm_file_that_is_not_a_specification(run, tmp_path, content):
    (tmp_path / "llm.json").write_text(content)
    with pytest.raises(LLM4GENError, match="llm.json: LLM specification"):
        run(family="sd15", llm=str(tmp_path / "llm.json"))


def test_an_existing_file_is_replaced_only_by_force(run, tmp_path):
    (tmp_path / "out.safetensors").write_bytes(b"mine")
    with pytest.raises(LLM4GENError, match="--force"):
        run(family="sd15")
    assert (tmp_path / "out.safetensors").read_bytes() == b"mine"
    assert load_adapter(run(family="sd15", force=True)).config.d_text == 64
