"""Prompt sets: JSONL files with an id and a text in each line, and what a metric needs beside the text."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from llm4gen_core import LLM4GENError
from llm4gen_core.errors import first_line, first_problem
from llm4gen_core.files import JSONLines, write_json_lines


class Prompt(BaseModel):
    """One prompt of a benchmark.

    Attributes:
        id: unique in its set; part of file names.
        text: the prompt itself.
        category: category of the benchmark, such as "color"; "" where it has none.
        about: what a metric needs beside the text, such as the questions of DPG-Bench, the objects that GenEval asks
            for, or gold attribute-entity pairs. JSON values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    text: str
    category: str = ""
    about: dict[str, JsonValue] = Field(default_factory=dict)


def write_prompts(path: str | os.PathLike[str], prompts: Iterable[Prompt]) -> None:
    """Write a prompt set as JSONL, complete or not at all."""
    write_json_lines(Path(path), (prompt.model_dump(exclude_defaults=True) for prompt in prompts))


def read_prompts(path: str | os.PathLike[str]) -> list[Prompt]:
    """Read a prompt set.

    Args:
        path: JSONL file in the format of `write_prompts`, or the same compressed (.gz).

    Raises:
        LLM4GENError: the file cannot be read, a line is not a prompt, an id occurs twice, or there is no prompt.
    """
    path = Path(path)
    if not path.is_file():
        raise LLM4GENError(f"Prompt set {path} does not exist; expected a JSONL file with id and text in each line.")
    prompts = [_prompt(line, f"Prompt set {path}, line {number},") for number, line in _lines(path)]
    return check_prompts(prompts, f"Prompt set {path}")


def check_prompts(prompts: list[Prompt], what: str) -> list[Prompt]:
    """Return the prompts; raise LLM4GENError, which begins with `what`, if there are none or an id occurs twice."""
    if not prompts:
        raise LLM4GENError(f"{what} contains no prompts.")
    if twice := [name for name, number in Counter(prompt.id for prompt in prompts).items() if number > 1]:
        raise LLM4GENError(f"{what} contains the id {twice[0]!r} more than once; expected unique ids.")
    return prompts


def _lines(path: Path) -> Iterable[tuple[int, bytes]]:
    if path.suffix != ".gz":
        return JSONLines(path).lines()
    try:
        return enumerate(gzip.decompress(path.read_bytes()).splitlines(), 1)
    except (OSError, EOFError, zlib.error) as error:
        raise LLM4GENError(f"Prompt set {path} cannot be decompressed ({error}); expected gzip of JSONL.") from error


def _prompt(line: bytes, what: str) -> Prompt:
    try:
        return Prompt.model_validate(json.loads(line))
    except ValueError as error:
        reason = first_problem(error) if isinstance(error, ValidationError) else first_line(error)
        raise LLM4GENError(
            f"{what} is not a prompt ({reason}); expected a JSON object with id, text and optionally category and "
            "about."
        ) from error
