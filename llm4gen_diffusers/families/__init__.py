"""Families of base models behind one interface: what training, sampling and caches know of SD1.5, SDXL and the rest."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from llm4gen_core import LLM4GENError

from ..options import PathLike
from .base import PARTS, Family, TextFeatures
from .miniature import Miniature, PatchAutoencoder
from .parts import pipeline_name
from .single_file import checkpoint_family
from .stable_diffusion import SD15, SDXL

__all__ = [
    "FAMILIES",
    "PARTS",
    "SD15",
    "SDXL",
    "Family",
    "Miniature",
    "PatchAutoencoder",
    "TextFeatures",
    "family_class",
    "load_family",
]

FAMILIES: dict[str, type[Family]] = {family.name: family for family in (SD15, SDXL, Miniature)}
"""Families by name, a key of `llm4gen_core.adapter_file.FAMILIES`."""


def family_class(name: str | None, base: PathLike) -> type[Family]:
    """Return the family of that name; for None read it from the base's model_index.json or checkpoint header.

    Raises:
        LLM4GENError: the name is unknown; or the base does not exist, or is of no known family.
    """
    if name is not None:
        if name not in FAMILIES:
            raise LLM4GENError(f"Family {name!r} is not known; expected {', '.join(FAMILIES)}.")
        return FAMILIES[name]
    path = Path(base)
    if path.is_file():
        return FAMILIES[checkpoint_family(path)]
    pipeline = pipeline_name(path)
    for family in FAMILIES.values():
        if family.pipeline == pipeline:
            return family
    known = ", ".join(f"{family.pipeline} ({family.title})" for family in FAMILIES.values())
    raise LLM4GENError(f"Base {path} is a {pipeline}; expected one of {known}.")


def load_family(name: str | None, base: PathLike, parts: Collection[str] = PARTS, **options: Any) -> Family:
    """Open a base of the family that `family_class` returns, and load parts of it.

    Args:
        options: files as of `Family.open`, and precisions as of `Family.load_parts`.
    """
    dtypes = {key: options.pop(key) for key in ("unet_dtype", "vae_dtype", "text_dtype") if key in options}
    return family_class(name, base).open(base, **options).load_parts(parts, **dtypes)
