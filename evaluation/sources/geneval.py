"""GenEval (Ghosh et al. 2023, arXiv 2310.11513): 553 prompts of six tasks, with the objects that they ask for."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llm4gen_core import LLM4GENError
from llm4gen_core.files import JSONLines

from ..prompts import Prompt
from .source import Source, find_file

TASKS = {
    "single_object": 80,
    "two_object": 99,
    "counting": 80,
    "colors": 94,
    "position": 100,
    "color_attr": 100,
}
"""How many prompts each has."""
_WHAT = "GenEval"


def read_geneval(path: Path) -> list[Prompt]:
    """The rows of evaluation_metadata.jsonl. Ids are the numbers of the official folders of images, 00000 to 00552;
    the category is the row's tag, and about is the row without its prompt: tag, include and, if there, exclude.

    Args:
        path: the file, the folder that it is in, or the clone of the repository.

    Raises:
        LLM4GENError: it is missing, or a row is none of GenEval's.
    """
    file = find_file(path, ("evaluation_metadata.jsonl", "prompts/evaluation_metadata.jsonl"), _WHAT)
    prompts = [_prompt(place, row, file) for place, row in enumerate(JSONLines(file, _WHAT).lines())]
    found = Counter(prompt.category for prompt in prompts)
    if dict(found) != TASKS:
        warnings.warn(
            f"{_WHAT} {file} has other prompts than published scores are of ({dict(found)}; expected {TASKS}).",
            stacklevel=2,
        )
    return prompts


def _prompt(place: int, numbered: tuple[int, bytes], file: Path) -> Prompt:
    number, line = numbered
    try:
        row: dict[str, Any] = json.loads(line)
        text = row.pop("prompt")
        if not isinstance(row["include"], list) or row["tag"] not in TASKS:
            raise ValueError(f"tag {row['tag']!r}, include {row['include']!r}")
        return Prompt.model_validate({"id": f"{place:05}", "text": text, "category": row["tag"], "about": row})
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, ValidationError):
            reason = error.errors(include_url=False)[0]["msg"]
        raise LLM4GENError(
            f"{_WHAT} {file}, line {number}, is none of its prompts ({reason}); expected tag "
            f"(one of {', '.join(TASKS)}), include and prompt. Download the file again."
        ) from error


GENEVAL = Source(
    "geneval",
    "GenEval",
    "clone https://github.com/djghosh13/geneval and give the clone, or its prompts/evaluation_metadata.jsonl",
    "MIT",
    read_geneval,
    tuple(TASKS),
)
