"""PartiPrompts, plain texts, and sets of prompts in this program's own format."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from llm4gen_core import LLM4GENError

from ..prompts import Prompt, read_prompts
from .source import Source, find_file, read_text

_PARTI = "PartiPrompts"
_PARTI_COLUMNS = ("Prompt", "Category", "Challenge", "Note")


def read_parti(path: Path) -> list[Prompt]:
    """The 1,632 prompts of PartiPrompts.tsv (P2; Yu et al. 2022, arXiv 2206.10789).

    Ids are p2-NUMBER, from 0; about = {"challenge": ..., "note": ...}. Quotation marks are part of a prompt, though a
    reader of CSV would take the first one for its own.

    Args:
        path: the file, or the folder that it is in.

    Raises:
        LLM4GENError: it is missing, or another table.
    """
    file = find_file(path, ("PartiPrompts.tsv",), _PARTI)
    text = io.StringIO(read_text(file, _PARTI), newline="")
    reader = csv.DictReader(text, delimiter="\t", quoting=csv.QUOTE_NONE)
    if missing := [name for name in _PARTI_COLUMNS if name not in (reader.fieldnames or ())]:
        raise LLM4GENError(
            f"{_PARTI} {file} has no column {', '.join(missing)}; expected {', '.join(_PARTI_COLUMNS)}, with tabs "
            "between them."
        )
    prompts = []
    for number, row in enumerate(reader):
        if None in row.values() or None in row or not row["Prompt"].strip():
            raise LLM4GENError(
                f"{_PARTI} {file}, line {reader.line_num}, has not {len(_PARTI_COLUMNS)} columns or no prompt; "
                "download the file again."
            )
        about = {"challenge": row["Challenge"], "note": row["Note"]}
        content = {"id": f"p2-{number:04}", "text": row["Prompt"].strip(), "category": row["Category"], "about": about}
        prompts.append(Prompt.model_validate(content))
    return prompts


def read_lines(path: Path) -> list[Prompt]:
    """A prompt in each line that is not blank; ids are text-NUMBER, the line's, from 1."""
    if not path.is_file():
        raise LLM4GENError(f"Text {path} does not exist; expected a file with one prompt in each line.")
    lines = enumerate(read_text(path, "Text").splitlines(), 1)
    return [Prompt(id=f"text-{number:05}", text=line.strip()) for number, line in lines if line.strip()]


PARTI = Source(
    "parti",
    _PARTI,
    "download https://github.com/google-research/parti/blob/main/PartiPrompts.tsv (the raw file) and give it",
    "Apache-2.0",
    read_parti,
)
TEXT = Source("text", "Prompts", "give a text file with one prompt in each line", "yours", read_lines)
JSONL = Source(
    "jsonl",
    "Prompts",
    "give a JSONL file with id, text and, if wanted, category and about in each line",
    "yours",
    read_prompts,
)
