"""`LLMSpec`, the specification of an adapter's LLM."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from llm4gen_core import RANKGEN_T5_XL, LLM4GENError, LLMSpec

SPEC = LLMSpec(
    model="org/model",
    architecture="llama",
    layers=16,
    width=2048,
    prefix="Décris : ",
    max_length=128,
    padding_side="left",
    layer=-3,
    dtype="bfloat16",
)


@pytest.mark.parametrize("spec", [SPEC, RANKGEN_T5_XL, replace(SPEC, layer="mean"), replace(SPEC, layer=0)])
def test_json_round_trip(spec: LLMSpec) -> None:
    assert LLMSpec.from_json(spec.to_json()) == spec


def test_released_llm() -> None:
    assert asdict(RANKGEN_T5_XL) == {
        "model": "kalpeshk2011/rankgen-t5-xl-all",
        "architecture": "t5",
        "layers": 24,
        "width": 2048,
        "prefix": "pre ",
        "max_length": 256,
        "padding_side": "right",
        "layer": "last",
        "dtype": "float32",
        "suffix": "",
        "pad_id": None,
    }


@pytest.mark.parametrize("text", ["", "{", "not json", '{"model": }'])
def test_text_that_is_not_json(text: str) -> None:
    with pytest.raises(LLM4GENError, match="not valid JSON"):
        LLMSpec.from_json(text)


@pytest.mark.parametrize("text", ["[]", "3", '"t5"', "null"])
def test_json_that_is_not_an_object(text: str) -> None:
    with pytest.raises(LLM4GENError, match="is not a JSON object"):
        LLMSpec.from_json(text)


def test_stored_padding() -> None:
    """Earlier versions stored it and could pad to the longest prompt of a batch; no released adapter does."""
    stored = json.loads(SPEC.to_json())
    assert stored["padding"] == "max_length"
    del stored["padding"]
    assert LLMSpec.from_json(json.dumps(stored)) == SPEC
    with pytest.raises(LLM4GENError, match="padding is 'longest'; expected \"max_length\".*Remove the field, or train"):
        LLMSpec.from_json(json.dumps({**stored, "padding": "longest"}))


def test_unknown_field() -> None:
    with pytest.raises(LLM4GENError, match=r"fields \['pooling'\] are unknown; update LLM4GEN"):
        LLMSpec.from_json(json.dumps({**asdict(SPEC), "pooling": "max"}))


@pytest.mark.parametrize("name", ["model", "architecture", "layers", "width"])
def test_missing_field(name: str) -> None:
    values = asdict(SPEC)
    del values[name]
    with pytest.raises(LLM4GENError, match=f"LLM specification: .*{name}"):
        LLMSpec.from_json(json.dumps(values))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("model", None, "text"),
        ("architecture", 5, "text"),
        ("prefix", None, "text"),
        ("dtype", 16, "text"),
        ("layers", 0, "an integer of at least 1"),
        ("layers", "16", "an integer of at least 1"),
        ("width", 20.48, "an integer of at least 1"),
        ("max_length", 0, "an integer of at least 1"),
        ("max_length", True, "an integer of at least 1"),
        ("padding_side", "both", '"right" or "left"'),
        ("layer", "first", '"last", "mean" or an integer from -17 to 16'),
        ("layer", 17, '"last", "mean" or an integer from -17 to 16'),
        ("layer", -18, '"last", "mean" or an integer from -17 to 16'),
        ("layer", 1.5, '"last", "mean" or an integer from -17 to 16'),
        ("layer", True, '"last", "mean" or an integer from -17 to 16'),
        ("layer", ["last"], '"last", "mean" or an integer from -17 to 16'),
    ],
)
def test_invalid_values(name: str, value: Any, expected: str) -> None:
    with pytest.raises(LLM4GENError) as caught:
        LLMSpec.from_json(json.dumps({**asdict(SPEC), name: value}))
    assert f"{name} is {value!r}; expected {expected}." in str(caught.value)


@pytest.mark.parametrize("layer", [-17, 16, 0, "last", "mean"])
def test_valid_layers(layer: Any) -> None:
    assert replace(SPEC, layer=layer).layer == layer


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"architecture": "t5"}, "it is another model"),
        ({"layers": 15}, "it is another model"),
        ({"width": 1024}, "it is another model"),
        ({"model": "org/other"}, "it has other weights"),
        ({"model": ""}, None),
        ({"prefix": "", "max_length": 8, "layer": "last", "dtype": "float32", "padding_side": "right"}, None),
    ],
)
def test_mismatch(changes: dict[str, Any], reason: str | None) -> None:
    other = replace(SPEC, **changes)
    assert SPEC.mismatch(other) == reason
    assert other.mismatch(SPEC) == reason


def test_label() -> None:
    assert SPEC.label == "org/model (llama, 16 layers, width 2048)"
    assert replace(SPEC, model="").label == "llama, 16 layers, width 2048"
