"""Where image-text pairs come from; one reader for each kind of source, opened by `open_source`."""

from __future__ import annotations

import os
from pathlib import Path

from llm4gen_core import LLM4GENError

from ...recipe import Source
from .base import Found, SourceReader, Trouble, Unit
from .dataset import MARKS, DatasetOnDisk
from .files import LISTS, Folder, JsonLines
from .shards import Shards

__all__ = ["Found", "SourceReader", "Trouble", "Unit", "open_source"]


def open_source(source: Source) -> SourceReader:
    """The reader of a source.

    Raises:
        LLM4GENError: there is nothing at its path, or nothing of its type.
    """
    path = Path(source.path)
    kind = _kind(path, source.path) if source.type == "auto" else source.type
    if kind == "webdataset":
        return Shards(source)
    if not path.exists():
        raise LLM4GENError(f"Source {source.path} does not exist; check the path.")
    if not os.access(path, os.R_OK):
        raise LLM4GENError(f"Source {source.path} cannot be read: no permission.")
    if kind == "jsonl":
        if not path.is_file():
            raise LLM4GENError(f"Source {source.path} is a folder; expected a .jsonl file (type: jsonl).")
        return JsonLines(source)
    if not path.is_dir():
        raise LLM4GENError(f"Source {source.path} is a file; expected a folder (type: {kind}).")
    if kind == "dataset":
        if not any((path / mark).is_file() for mark in MARKS):
            raise LLM4GENError(
                f"Source {source.path} has neither {' nor '.join(MARKS)}; expected a folder that Hugging Face's "
                "save_to_disk wrote (type: dataset)."
            )
        return DatasetOnDisk(source)
    for name in LISTS:
        if (path / name).is_file():
            return JsonLines(source, path / name)
    return Folder(source)


def _kind(path: Path, text: str) -> str:
    if path.is_dir():
        return "dataset" if any((path / mark).is_file() for mark in MARKS) else "folder"
    if path.suffix == ".jsonl":
        return "jsonl"
    if ".tar" in text or any(sign in text for sign in "{*"):
        return "webdataset"
    if not path.exists():
        raise LLM4GENError(f"Source {text} does not exist; check the path.")
    raise LLM4GENError(
        f"Source {text} is of no known kind; expected a folder, a .jsonl file, a data set that save_to_disk wrote, or "
        ".tar shards."
    )
