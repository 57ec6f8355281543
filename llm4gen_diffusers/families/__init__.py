"""Base models behind one interface: what the trainer, the painter and the caches know of SD1.5, SDXL and the rest."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from llm4gen_core import LLM4GENError

from .base import Family, TextFeatures
from .folder import pipeline_name
from .miniature import Miniature
from .sd15 import SD15
from .sdxl import SDXL
from .single_file import checkpoint_family

__all__ = [
    "FAMILIES",
    "SD15",
    "SDXL",
    "Family",
    "Miniature",
    "TextFeatures",
    "family_class",
    "family_of",
    "load_family",
]

FAMILIES: dict[str, type[Family]] = {family.name: family for family in (SD15, SDXL, Miniature)}
"""By name, a key of `llm4gen_core.adapter_file.FAMILIES`."""


def family_of(base: str | os.PathLike[str]) -> type[Family]:
    """The family that a base belongs to, told by its model_index.json or by the names in a checkpoint's header.

    Raises:
        LLM4GENError: it does not exist, or is of no family that is known here.
    """
    path = Path(base)
    if path.is_file():
        return FAMILIES[checkpoint_family(path)]
    pipeline = pipeline_name(path)
    for family in FAMILIES.values():
        if family.pipeline == pipeline:
            return family
    known = ", ".join(f"{family.pipeline} ({family.title})" for family in FAMILIES.values())
    raise LLM4GENError(f"Base {path} is a {pipeline}; expected one of {known}.")


def family_class(name: str | None, base: str | os.PathLike[str]) -> type[Family]:
    """The family of a name, or for None the one that `base` belongs to.

    Raises:
        LLM4GENError: the name is unknown; or see `family_of`.
    """
    if name is None:
        return family_of(base)
    if name not in FAMILIES:
        raise LLM4GENError(f"Family {name!r} is not known; expected {', '.join(FAMILIES)}.")
    return FAMILIES[name]


def load_family(name: str | None, base: str | os.PathLike[str], **options: Any) -> Family:
    """Load a base of the family that `family_class` says; see `Family.load` for `options`."""
    return family_class(name, base).load(base, **options)
