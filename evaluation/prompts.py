"""Sets of prompts: JSONL files with an id, a text and whatever a metric needs to know beside them."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from llm4gen_core import LLM4GENError
from llm4gen_core.files import JSONLines, write_json_lines


class Prompt(BaseModel):
    """One prompt of a benchmark.

    Attributes:
        id: unique in its set; part of file names.
        text: what is painted.
        category: of the benchmark, such as "color"; "" where it has none.
        about: what a metric needs beside the text, such as the questions of DPG-Bench, the objects that GenEval asks
            for, or gold pairs. JSON values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    text: str
    category: str = ""
    about: dict[str, JsonValue] = Field(default_factory=dict)


def write_prompts(path: str | os.PathLike[str], prompts: Iterable[Prompt]) -> None:
    """Write a set as JSONL, whole or not at all."""
    write_json_lines(Path(path), (prompt.model_dump(exclude_defaults=True) for prompt in prompts))


def read_prompts(path: str | os.PathLike[str]) -> list[Prompt]:
    """A set of prompts.

    Args:
        path: JSONL as `write_prompts` makes it.

    Raises:
        LLM4GENError: it cannot be read, a line is no prompt, an id occurs twice, or there is none.
    """
    path = Path(path)
    if not path.is_file():
        raise LLM4GENError(f"Prompt set {path} does not exist; expected a JSONL file with id and text in each line.")
    prompts = [_prompt(line, f"Prompt set {path}, line {number},") for number, line in JSONLines(path).lines()]
    return check_prompts(prompts, f"Prompt set {path}")


def check_prompts(prompts: list[Prompt], what: str) -> list[Prompt]:
    """The prompts, if there are any and no id occurs twice; else LLM4GENError that begins with `what`."""
    if not prompts:
        raise LLM4GENError(f"{what} holds no prompt.")
    if twice := [name for name, number in Counter(prompt.id for prompt in prompts).items() if number > 1]:
        raise LLM4GENError(f"{what} has the id {twice[0]!r} more than once; expected ids that are unique.")
    return prompts


def _prompt(line: bytes, what: str) -> Prompt:
    try:
        content: Any = json.loads(line)
        return Prompt.model_validate(content)
    except (ValueError, ValidationError) as error:
        reason = error.errors(include_url=False)[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise LLM4GENError(
            f"{what} is no prompt ({reason}); expected a JSON object with id, text and, if wanted, category and about."
        ) from error
