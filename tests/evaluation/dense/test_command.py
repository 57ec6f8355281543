"""The commands `generate` and `statistics`, and files of prompts."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from evaluation.__main__ import main
from evaluation.dense.generator import generate_prompts
from evaluation.dense.prompt_file import read_prompt_file, write_prompt_file
from evaluation.prompts import Prompt
from llm4gen_core import LLM4GENError


def test_generate_writes_what_the_generator_makes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "dense.jsonl.gz"
    assert main(["dense", "generate", "--output", str(output), "--count", "13", "--seed", "other"]) == 0
    assert read_prompt_file(output) == list(generate_prompts(13, "other"))
    assert main(["dense", "generate", "--output", str(output), "--count", "13"]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["dense", "generate", "--output", str(tmp_path / "dense.csv"), "--count", "13"]) == 2
    assert "ends in .jsonl or .jsonl.gz" in capsys.readouterr().err


def test_statistics_of_any_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "prompts.txt"
    source.write_text("a red cat\na blue dog on a chair\n", encoding="utf-8")
    assert main(["dense", "statistics", str(source), "--json", str(tmp_path / "found.json")]) == 0
    assert "4.50 (sd 2.12, 3 to 6)" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["measured"]["words"]["mean"] == 4.5 and found["measured"]["attributes"]["pairs"]["mean"] == 1


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_files_hold_what_was_written(tmp_path: Path, name: str) -> None:
    prompts = [Prompt(id="1", text="a cat", about={"pairs": []}), Prompt(id="2", text="ein Hündchen")]
    write_prompt_file(tmp_path / name, prompts)
    assert read_prompt_file(tmp_path / name) == prompts
    first = (tmp_path / name).read_bytes()
    write_prompt_file(tmp_path / name, prompts)
    assert (tmp_path / name).read_bytes() == first and [path.name for path in tmp_path.iterdir()] == [name]


def test_damaged_files_are_sentences(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    with pytest.raises(LLM4GENError, match="does not exist"):
        read_prompt_file(path)
    path.write_bytes(gzip.compress(b'{"id": "1", "text": "a"}\n')[:-9])
    with pytest.raises(LLM4GENError, match="cannot be decompressed"):
        read_prompt_file(path)
    path.write_bytes(gzip.compress(b'{"id": "1", "text": "a"}\n{"id": 2}\n'))
    with pytest.raises(LLM4GENError, match="line 2, is no prompt"):
        read_prompt_file(path)
    path.write_bytes(gzip.compress(b'{"id": "1", "text": "a"}\n{"id": "1", "text": "b"}\n'))
    with pytest.raises(LLM4GENError, match="more than once"):
        read_prompt_file(path)
