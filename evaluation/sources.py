"""Readers of public prompt sets in their original files, which the user downloads.

Each returns the prompts of one benchmark and raises LLM4GENError if a file is missing or is not in the official format.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llm4gen_core import LLM4GENError
from llm4gen_core.errors import first_problem
from llm4gen_core.files import JSONLines, read_json

from .image_set import Prompt

COMPBENCH_CATEGORIES = ("color", "shape", "texture", "spatial", "non-spatial", "complex")
COMPBENCH_PLUS_CATEGORIES = (*COMPBENCH_CATEGORIES, "3d-spatial", "numeracy")
_COMPLEX_KINDS = {"spatial": "complex_val_spatial.txt", "action": "complex_val_action.txt"}
"""Kind of complex prompts -> file that lists them, in the order in which the official 3-in-1 looks them up. Prompts in
neither file are of the kind "spatialaction"."""

_DPG_PROMPTS = 1065
_DPG_COLUMNS = ("item_id", "proposition_id", "dependency", "tuple", "question_natural_language")

GENEVAL_TASKS = {
    "single_object": 80,
    "two_object": 99,
    "counting": 80,
    "colors": 94,
    "position": 100,
    "color_attr": 100,
}
"""Task of GenEval -> number of prompts."""

_PARTI_COLUMNS = ("Prompt", "Category", "Challenge", "Note")


def read_compbench(path: Path, categories: Sequence[str] = COMPBENCH_CATEGORIES) -> list[Prompt]:
    """T2I-CompBench (Huang et al. 2023, arXiv 2307.06350) and T2I-CompBench++: validation prompts of each category.

    The official examples/dataset/CATEGORY_val.txt have 300 prompts each. CATEGORY.txt beside them has all of about
    1,000, including training prompts, which score some points higher (issue #7 there). Published numbers are for the
    300, so nothing else is accepted.

    The prompts come in the order of the categories and of the lines; ids are CATEGORY-NUMBER, from 0. A complex prompt
    has about = {"kind": "spatial", "action" or "spatialaction"}: which relations it has, and so which scores the
    official 3-in-1 averages for it.

    Args:
        path: clone of the repository, or its examples/dataset.
        categories: categories to read.
    """
    names = [f"{folder}color_val.txt" for folder in ("", "dataset/", "examples/dataset/")]
    folder = _find_file(path, names, "T2I-CompBench").parent
    kinds: dict[str, str] = {}
    for kind, name in _COMPLEX_KINDS.items():
        for text in _compbench_lines(folder / name):
            kinds.setdefault(_compbench_key(text), kind)
    prompts = []
    for category in categories:
        file = folder / f"{category.replace('-', '_')}_val.txt"
        texts = _compbench_lines(file)
        if len(texts) != 300:
            raise LLM4GENError(
                f"T2I-CompBench: {file} has {len(texts)} prompts; expected the 300 of "
                "validation, which published scores are for (the files of about 1,000 contain training prompts and "
                "score higher). Download it again; to generate other prompts, pass them as a text file."
            )
        for number, text in enumerate(texts):
            about = {"kind": kinds.get(_compbench_key(text), "spatialaction")} if category == "complex" else {}
            content = {"id": f"{category}-{number:03}", "text": text, "category": category, "about": about}
            prompts.append(Prompt.model_validate(content))
    return prompts


def _compbench_lines(path: Path) -> list[str]:
    if not path.is_file():
        raise LLM4GENError(f"T2I-CompBench: {path} is missing; download examples/dataset of the repository again.")
    # Like the official script, use only the text before a tab.
    lines = [line.split("\t")[0].strip() for line in _read_text(path, "T2I-CompBench").splitlines()]
    return [line for line in lines if line]


def _compbench_key(text: str) -> str:
    """Key by which the official 3-in-1 compares prompts of different files."""
    return text.split(".")[0].lower()


def read_dpg(path: Path) -> list[Prompt]:
    """DPG-Bench (Hu et al. 2024, arXiv 2403.05135): dense prompts, each with a graph of questions.

    Prompts are those of prompts/*.txt that dpg_bench.csv has questions for, ordered by name. about = {"questions":
    [{"id": 1, "category": "entity - whole", "text": "Is there a cat?", "parents": []}]}: the category is that of the
    proposition ("tuple"), as the official script counts it, broad and detailed; parents are the questions that have to
    be answered with yes first. The first question of the file is kept; the official script takes it for a header.

    Args:
        path: dpg_bench of the ELLA repository, or its clone.
    """
    folder = _find_file(path, ("dpg_bench.csv", "dpg_bench/dpg_bench.csv"), "DPG-Bench").parent
    texts = {file.stem: _read_text(file, "DPG-Bench").strip() for file in (folder / "prompts").glob("*.txt")}
    if not texts:
        raise LLM4GENError(f"DPG-Bench {folder} contains no prompts/*.txt; download the folder dpg_bench again.")
    questions = _dpg_questions(folder / "dpg_bench.csv")
    if lost := [name for name in questions if name not in texts]:
        raise LLM4GENError(
            f"DPG-Bench: {folder / 'dpg_bench.csv'} has questions for {lost[0]!r}, but prompts/{lost[0]}.txt is "
            f"missing (and {len(lost) - 1} more); download the folder dpg_bench again."
        )
    if without := [name for name in texts if name not in questions]:
        warnings.warn(
            f"DPG-Bench: {len(without)} prompts have no question and are left out, such as {without[0]}.txt.",
            stacklevel=2,
        )
    if len(questions) != _DPG_PROMPTS:
        warnings.warn(
            f"DPG-Bench {folder} has {len(questions)} prompts; published scores are for {_DPG_PROMPTS:,}.", stacklevel=2
        )
    try:
        return [
            Prompt.model_validate({"id": name, "text": texts[name], "about": {"questions": questions[name]}})
            for name in sorted(questions)
        ]
    except ValidationError as error:
        name = error.errors()[0]["input"]
        raise LLM4GENError(
            f"DPG-Bench {folder / 'prompts'}: the name of file {name!r}.txt cannot be used as an id; expected letters, "
            "digits, '.', '_' and '-'."
        ) from error


def _dpg_questions(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Questions of each prompt; of two questions with the same id the later counts, as in the official script."""
    reader = csv.DictReader(io.StringIO(_read_text(path, "DPG-Bench"), newline=""))
    if missing := [name for name in _DPG_COLUMNS if name not in (reader.fieldnames or ())]:
        raise LLM4GENError(
            f"DPG-Bench: {path} has no column {', '.join(missing)}; expected a table with {', '.join(_DPG_COLUMNS)}."
        )
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for row in reader:
        where = f"DPG-Bench: {path}, line {reader.line_num},"
        try:
            number = int(row["proposition_id"])
            parents = [int(one) for one in row["dependency"].split(",") if one.strip()]
            category, text = row["tuple"].split("(")[0].strip(), row["question_natural_language"].strip()
        except (ValueError, AttributeError, TypeError) as error:
            raise LLM4GENError(f"{where} is not a question ({error}); download the file again.") from error
        if not text or not category:
            raise LLM4GENError(f"{where} has no question or no category; download the file again.")
        question = {"id": number, "category": category, "text": text, "parents": parents}
        found.setdefault(row["item_id"].strip(), {})[number] = question
    for name, own in found.items():
        for question in own.values():
            parents = [parent for parent in question["parents"] if parent != 0]  # 0 means no parent
            question["parents"] = [parent for parent in parents if parent in own and parent != question["id"]]
            if len(question["parents"]) < len(parents):
                # The official script drops the whole image.
                warnings.warn(
                    f"DPG-Bench: question {question['id']} of {name} depends on itself or on a question that does not "
                    "exist; that dependency is ignored.",
                    stacklevel=3,
                )
    return {name: list(own.values()) for name, own in found.items()}


def read_geneval(path: Path) -> list[Prompt]:
    """GenEval (Ghosh et al. 2023, arXiv 2310.11513): 553 prompts of six tasks, with the objects that they ask for.

    Ids are the numbers of the official image folders, 00000 to 00552; the category is the row's tag, and about is the
    row without its prompt: tag, include and, if present, exclude.

    Args:
        path: evaluation_metadata.jsonl, its folder, or the clone of the repository.
    """
    names = ("evaluation_metadata.jsonl", "prompts/evaluation_metadata.jsonl")
    file = _find_file(path, names, "GenEval")
    prompts: list[Prompt] = []
    for number, line in JSONLines(file, "GenEval").lines():
        try:
            row: dict[str, Any] = json.loads(line)
            text = row.pop("prompt")
            if not isinstance(row["include"], list) or row["tag"] not in GENEVAL_TASKS:
                raise ValueError(f"tag {row['tag']!r}, include {row['include']!r}")
            content = {"id": f"{len(prompts):05}", "text": text, "category": row["tag"], "about": row}
            prompts.append(Prompt.model_validate(content))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = first_problem(error) if isinstance(error, ValidationError) else f"{type(error).__name__}: {error}"
            raise LLM4GENError(
                f"GenEval {file}, line {number}, is not a GenEval row ({reason}); expected tag (one of "
                f"{', '.join(GENEVAL_TASKS)}), include and prompt. Download the file again."
            ) from error
    found = dict(Counter(prompt.category for prompt in prompts))
    if found != GENEVAL_TASKS:
        warnings.warn(
            f"GenEval {file} has other prompts than published scores are for ({found}; expected {GENEVAL_TASKS}).",
            stacklevel=2,
        )
    return prompts


def read_coco(path: Path) -> list[Prompt]:
    """MS-COCO captions (Chen et al. 2015, arXiv 1504.00325): one caption of each image.

    The first 30,000 of val2014 are the usual size of an "FID-30k"; no paper says which 30,000 it used.

    Images are ordered by the SHA-256 of their id in decimal: as good as random, and the first N are the same on every
    machine and part of the first N + 1. Of an image's captions, the one with the lowest id is taken, with every run of
    white space replaced by one space.

    The id of a prompt is the caption's, and so is about["seed"], which `image_set.noise_seed` adds to the seed of the
    image set: with seed 0, each image is generated with the caption's id as its seed. about["image"] and about["file"]
    name the real image.

    Args:
        path: captions_val2014.json or captions_val2017.json, or its folder.
    """
    names = [f"{folder}captions_val{year}.json" for year in (2014, 2017) for folder in ("", "annotations/")]
    file = _find_file(path, names, "MS-COCO captions")
    content = read_json(file, "MS-COCO captions")
    try:
        files = {image["id"]: image["file_name"] for image in content["images"]}
        captions: dict[int, tuple[int, str]] = {}
        for annotation in content["annotations"]:
            image, number, text = annotation["image_id"], annotation["id"], " ".join(annotation["caption"].split())
            if text and (image not in captions or number < captions[image][0]):
                captions[image] = number, text
        order = sorted(captions, key=lambda image: hashlib.sha256(str(image).encode()).digest())
        return [
            Prompt.model_validate(
                {
                    "id": str(captions[image][0]),
                    "text": captions[image][1],
                    "about": {"seed": captions[image][0], "image": image, "file": files[image]},
                }
            )
            for image in order
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise LLM4GENError(
            f"{file} does not contain MS-COCO captions ({reason:.200}); expected the official file with images and "
            "annotations, each annotation with id, image_id and caption."
        ) from error


def read_parti(path: Path) -> list[Prompt]:
    """PartiPrompts (P2; Yu et al. 2022, arXiv 2206.10789): 1,632 prompts.

    Ids are p2-NUMBER, from 0; about = {"challenge": ..., "note": ...}. Quotation marks belong to the prompt, though a
    CSV reader would remove them.

    Args:
        path: PartiPrompts.tsv, or its folder.
    """
    file = _find_file(path, ("PartiPrompts.tsv",), "PartiPrompts")
    text = io.StringIO(_read_text(file, "PartiPrompts"), newline="")
    reader = csv.DictReader(text, delimiter="\t", quoting=csv.QUOTE_NONE)
    if missing := [name for name in _PARTI_COLUMNS if name not in (reader.fieldnames or ())]:
        raise LLM4GENError(
            f"PartiPrompts {file} has no column {', '.join(missing)}; expected {', '.join(_PARTI_COLUMNS)}, separated "
            "by tabs."
        )
    prompts = []
    for number, row in enumerate(reader):
        if None in row.values() or None in row or not row["Prompt"].strip():
            raise LLM4GENError(
                f"PartiPrompts {file}, line {reader.line_num}, does not have {len(_PARTI_COLUMNS)} columns or has no "
                "prompt; download the file again."
            )
        about = {"challenge": row["Challenge"], "note": row["Note"]}
        content = {"id": f"p2-{number:04}", "text": row["Prompt"].strip(), "category": row["Category"], "about": about}
        prompts.append(Prompt.model_validate(content))
    return prompts


def read_lines(path: Path) -> list[Prompt]:
    """A text file with one prompt per line; ids are text-NUMBER, the number of the line from 1."""
    if not path.is_file():
        raise LLM4GENError(f"Text {path} does not exist; expected a file with one prompt per line.")
    lines = enumerate(_read_text(path, "Text").splitlines(), 1)
    return [Prompt(id=f"text-{number:05}", text=line.strip()) for number, line in lines if line.strip()]


def _find_file(path: Path, names: Sequence[str], what: str) -> Path:
    """Return the file itself, or the first of `names` that a folder contains."""
    candidates = [path] if path.is_file() else [path / name for name in names]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    state = "does not contain" if path.is_dir() else "does not exist; expected"
    raise LLM4GENError(f"{what} {path} {state} {' or '.join(names)}.")


def _read_text(path: Path, what: str) -> str:
    """Read UTF-8 text, with or without a byte order mark; lines end in "\\n"."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise LLM4GENError(f"{what} {path} cannot be read as UTF-8 text ({error}); download it again.") from error
