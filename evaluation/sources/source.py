"""What a source of prompts is, and reading the files that benchmarks come as."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llm4gen_core import LLM4GENError

from ..prompts import Prompt


@dataclass(frozen=True)
class Source:
    """Prompts that others publish, or that a user wrote.

    Attributes:
        name: in commands; that of the benchmark in a set of images.
        title: for people.
        get: what to download and what to give, a sentence's second half.
        licence: of the prompts.
        read: the prompts of a file or folder; raises LLM4GENError that names what is missing or wrong.
        categories: that prompts can have; () where they have none, or any.
    """

    name: str
    title: str
    get: str
    licence: str
    read: Callable[[Path], list[Prompt]]
    categories: tuple[str, ...] = ()


def find_file(path: Path, names: Sequence[str], what: str) -> Path:
    """The file itself, or the first of `names` below a folder.

    Raises:
        LLM4GENError: there is none.
    """
    candidates = [path] if path.is_file() else [path / name for name in names]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    state = "does not hold" if path.is_dir() else "does not exist; expected"
    raise LLM4GENError(f"{what} {path} {state} {' or '.join(names)}.")


def find_folder(path: Path, places: Sequence[str], has: str, what: str) -> Path:
    """The first of the folder itself and `places` below it in which `has` is.

    Raises:
        LLM4GENError: there is none.
    """
    for candidate in (path, *(path / place for place in places)):
        if (candidate / has).exists():
            return candidate
    state = "does not hold" if path.is_dir() else "is no folder; expected one with"
    raise LLM4GENError(f"{what} {path} {state} {has} or {places[-1]}/{has}.")


def read_text(path: Path, what: str) -> str:
    """A text in UTF-8, with or without a byte order mark, line ends as \\n.

    Raises:
        LLM4GENError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise LLM4GENError(f"{what} {path} cannot be read as text in UTF-8 ({error}); download it again.") from error
