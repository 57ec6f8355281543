"""DPG-Bench (Hu et al. 2024, arXiv 2403.05135): dense prompts, each with a graph of questions."""

from __future__ import annotations

import csv
import io
import warnings
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llm4gen_core import LLM4GENError

from ..prompts import Prompt
from .source import Source, find_folder, read_text

PROMPTS = 1065
_COLUMNS = ("item_id", "proposition_id", "dependency", "tuple", "question_natural_language")
_WHAT = "DPG-Bench"


def read_dpg(path: Path) -> list[Prompt]:
    """The prompts of prompts/*.txt, in the order of their names, with the questions of dpg_bench.csv.

    about = {"questions": [{"id": 1, "category": "entity - whole", "text": "Is there a cat?", "parents": []}]}: the
    category is that of the proposition ("tuple"), as the official script counts it, broad and detailed; parents are
    the questions that have to be answered by yes first. What the official script loses is kept: it takes the first
    question of the file for a header.

    Args:
        path: dpg_bench of the ELLA repository, or its clone.

    Raises:
        LLM4GENError: a file is missing or no such table, or a question belongs to no prompt.
    """
    folder = find_folder(path, ("dpg_bench",), "dpg_bench.csv", _WHAT)
    texts = {file.stem: read_text(file, _WHAT).strip() for file in (folder / "prompts").glob("*.txt")}
    if not texts:
        raise LLM4GENError(f"{_WHAT} {folder} holds no prompts/*.txt; download the folder dpg_bench again, whole.")
    questions = _questions(folder / "dpg_bench.csv")
    if lost := [name for name in questions if name not in texts]:
        raise LLM4GENError(
            f"{_WHAT}: {folder / 'dpg_bench.csv'} asks about {lost[0]!r}, and prompts/{lost[0]}.txt is missing (so for "
            f"{len(lost)} prompts); download the folder dpg_bench again, whole."
        )
    if silent := [name for name in texts if name not in questions]:
        warnings.warn(
            f"{_WHAT}: {len(silent)} prompts have no question and are left out ({silent[0]}.txt is one).", stacklevel=2
        )
    if len(questions) != PROMPTS:
        warnings.warn(
            f"{_WHAT} {folder} has {len(questions)} prompts; published scores are of {PROMPTS:,}.", stacklevel=2
        )
    try:
        return [
            Prompt.model_validate({"id": name, "text": texts[name], "about": {"questions": questions[name]}})
            for name in sorted(questions)
        ]
    except ValidationError as error:
        name = error.errors(include_url=False)[0]["input"]
        raise LLM4GENError(
            f"{_WHAT} {folder / 'prompts'}: the file {name!r}.txt has a name that cannot be an id; expected letters, "
            "digits, '.', '_' and '-'."
        ) from error


def _questions(path: Path) -> dict[str, list[dict[str, Any]]]:
    """By prompt; of two questions with one id the later counts, as in the official script."""
    reader = csv.DictReader(io.StringIO(read_text(path, _WHAT), newline=""))
    if missing := [name for name in _COLUMNS if name not in (reader.fieldnames or ())]:
        raise LLM4GENError(
            f"{_WHAT}: {path} has no column {', '.join(missing)}; expected a table with {', '.join(_COLUMNS)}."
        )
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for row in reader:
        try:
            number = int(row["proposition_id"])
            parents = [int(one) for one in row["dependency"].split(",") if one.strip()]
            category, text = row["tuple"].split("(")[0].strip(), row["question_natural_language"].strip()
        except (ValueError, AttributeError, TypeError) as error:
            raise LLM4GENError(
                f"{_WHAT}: {path}, line {reader.line_num}, is no question ({error}); download the file again."
            ) from error
        if not text or not category:
            raise LLM4GENError(
                f"{_WHAT}: {path}, line {reader.line_num}, has no question or no category; download it again."
            )
        question = {"id": number, "category": category, "text": text, "parents": parents}
        found.setdefault(row["item_id"].strip(), {})[number] = question
    return {name: _with_known_parents(name, list(own.values())) for name, own in found.items()}


def _with_known_parents(name: str, questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """0 stands for no parent. A parent that is not there decides nothing; the official script drops the whole image."""
    ids = {question["id"] for question in questions}
    for question in questions:
        parents = [parent for parent in question["parents"] if parent != 0]
        question["parents"] = [parent for parent in parents if parent in ids and parent != question["id"]]
        if len(question["parents"]) < len(parents):
            warnings.warn(
                f"{_WHAT}: question {question['id']} of {name} depends on a question that is not there, or on itself; "
                "that is left out.",
                stacklevel=4,
            )
    return questions


DPG_BENCH = Source(
    "dpg-bench",
    "DPG-Bench",
    "clone https://github.com/TencentQQGYLab/ELLA and give its dpg_bench, with dpg_bench.csv and prompts/*.txt",
    "Apache-2.0",
    read_dpg,
)
