"""The models that judge: real ones from folders of this machine; nothing is downloaded."""

from __future__ import annotations

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
        lacking = ", ".join(missing).replace("|", " or ")
        raise LLM4GENError(
            f"Judge {folder} {f'lacks {lacking}' if folder.is_dir() else 'does not exist'}; download "
            f"{judge.repository} ({judge.size}, {judge.licence}) into it, or give another folder of judges (--judges)."
        )
    return folder
