"""Prompt sets: written, read, and refused where they are damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.image_set import Prompt, read_prompts, write_prompts
from llm4gen_core import LLM4GENError


def test_a_written_set_is_read_back(tmp_path: Path) -> None:
    prompts = [
        Prompt(id="a-1", text="a “red” cube, café", category="color", about={"seed": 3, "questions": [{"id": 1}]}),
        Prompt(id="a-2", text=""),
    ]
    write_prompts(tmp_path / "set.jsonl", prompts)
    assert read_prompts(tmp_path / "set.jsonl") == prompts


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"id": "a/b", "text": "x"}', "String should match pattern"),
        ('{"text": "x"}', "Field required"),
        ('{"id": "a", "text": "x", "colour": "red"}', "Extra inputs"),
        ("[1]", "valid dictionary"),
        ("{torn}", "Expecting property name"),
    ],
)
def test_a_line_that_is_not_a_prompt_is_named(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "set.jsonl").write_text('{"id": "first", "text": ""}\n' + line + "\n")
    with pytest.raises(LLM4GENError, match=f"line 2, is not a prompt .*{says}"):
        read_prompts(tmp_path / "set.jsonl")


def test_a_repeated_id_is_refused(tmp_path: Path) -> None:
    write_prompts(tmp_path / "set.jsonl", [Prompt(id="a", text="x"), Prompt(id="a", text="y")])
    with pytest.raises(LLM4GENError, match="'a' more than once"):
        read_prompts(tmp_path / "set.jsonl")


def test_an_empty_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set.jsonl").write_text("\n")
    with pytest.raises(LLM4GENError, match="contains no prompts"):
        read_prompts(tmp_path / "set.jsonl")
