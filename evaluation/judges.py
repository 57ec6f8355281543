"""The models that judge: real ones from folders of this machine; nothing is downloaded."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from llm4gen_core import LLM4GENError


@dataclass(frozen=True)
class Judge:
    """A model that a metric needs.

    Attributes:
        folder: name below the folder of judges.
        repository: on Hugging Face, or an address.
        files: that have to be there, such as "config.json" and the weights' possible names ("a|b" is one of them).
        licence: of the weights.
        size: of the download, for people.
    """

    folder: str
    repository: str
    files: tuple[str, ...]
    licence: str
    size: str


def judge_folder(judges: Path, judge: Judge) -> Path:
    """The folder of a judge.

    Args:
        judges: folder of all judges.

    Raises:
        LLM4GENError: it is not there, or a file of it is missing: what to download and where to put it.
    """
    folder = judges / judge.folder
    missing = [name for name in judge.files if not any((folder / one).is_file() for one in name.split("|"))]
    if missing:
        raise LLM4GENError(
            f"Judge {folder} {'lacks ' + ', '.join(missing) if folder.is_dir() else 'does not exist'}; download "
            f"{judge.repository} ({judge.size}, {judge.licence}) into it, or give another folder of judges (--judges)."
        )
    return folder


def folder_hash(folder: Path) -> str:
    """Sixteen hexadecimal digits of names and contents of the files that decide what a model says.

    Large weights count by their size and their first and last mebibyte: a whole read of some gigabytes a start would
    cost more than it could show.
    """
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
        digest.update(json.dumps([file.relative_to(folder).as_posix(), file.stat().st_size]).encode())
        with open(file, "rb") as content:
            digest.update(content.read(1 << 20))
            if file.stat().st_size > 1 << 20:
                content.seek(-min(1 << 20, file.stat().st_size - (1 << 20)), 2)
                digest.update(content.read())
    return digest.hexdigest()[:16]
