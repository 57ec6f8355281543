"""Where prompts come from: the public benchmarks' own files, which the user downloads, and the user's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from llm4gen_core import LLM4GENError

from ..prompts import Prompt, check_prompts
from .coco import COCO
from .dpg_bench import DPG_BENCH
from .geneval import GENEVAL
from .source import Source
from .t2i_compbench import T2I_COMPBENCH, T2I_COMPBENCH_PLUS
from .texts import JSONL, PARTI, TEXT

SOURCES: dict[str, Source] = {
    source.name: source for source in (T2I_COMPBENCH, T2I_COMPBENCH_PLUS, DPG_BENCH, GENEVAL, COCO, PARTI, TEXT, JSONL)
}
"""By the names that commands take."""


def find_source(name: str) -> Source:
    """
    Raises:
        LLM4GENError: there is none of that name.
    """
    if name not in SOURCES:
        raise LLM4GENError(f"Source of prompts {name!r} is not known; expected one of {', '.join(SOURCES)}.")
    return SOURCES[name]


def load_prompts(
    source: str, path: str | os.PathLike[str], categories: Sequence[str] = (), count: int | None = None
) -> list[Prompt]:
    """The prompts of a source.

    Args:
        source: a key of `SOURCES`.
        path: the file or folder that the user downloaded; `Source.get` says which.
        categories: only these; () is all.
        count: only the first so many of each category, None for all. What is not the whole compares with no published
            number, except for MS-COCO, where 30,000 are usual.

    Raises:
        LLM4GENError: something is missing (what to download and where from) or is not what was expected.
    """
    known = find_source(source)
    what = f"{known.title} ({path})"
    try:
        prompts = check_prompts(known.read(Path(path)), what)
    except LLM4GENError as error:
        raise LLM4GENError(f"{error} For the source {source}, {known.get}.") from error
    return choose(prompts, what, categories, count, known.categories)


def choose(
    prompts: list[Prompt],
    what: str,
    categories: Sequence[str] = (),
    count: int | None = None,
    known: Sequence[str] = (),
) -> list[Prompt]:
    """Some of a set's prompts.

    Args:
        what: the set, for errors.
        categories, count: as of `load_prompts`.
        known: all categories; () for those that the prompts have.

    Raises:
        LLM4GENError: there is no such category, or there are fewer prompts than asked for.
    """
    have = known or tuple(dict.fromkeys(prompt.category for prompt in prompts))
    if unknown := [name for name in categories if name not in have]:
        raise LLM4GENError(
            f"{what} has no category {unknown[0]!r}; expected some of {', '.join(filter(None, have)) or 'none'}."
        )
    if categories:
        prompts = [prompt for prompt in prompts if prompt.category in categories]
    return prompts if count is None else _first(prompts, count, what)


def _first(prompts: list[Prompt], count: int, what: str) -> list[Prompt]:
    if count < 1:
        raise LLM4GENError(f"{what}: {count} prompts are asked for; expected 1 or more.")
    taken: dict[str, int] = {}
    chosen = []
    for prompt in prompts:
        taken[prompt.category] = taken.get(prompt.category, 0) + 1
        if taken[prompt.category] <= count:
            chosen.append(prompt)
    if few := [name for name, number in taken.items() if number < count]:
        of = f" of the category {few[0]!r}" if few[0] else ""
        raise LLM4GENError(
            f"{what} has {taken[few[0]]:,} prompts{of}; {count:,} are asked for. Ask for fewer, or for all."
        )
    return chosen
