"""PNG files: names that are free, and what made the image inside the file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from llm4gen_core import LLM4GENError

METADATA_KEY = "llm4gen"
"""PNG text with all settings as JSON. Not "prompt" or "parameters", which ComfyUI would read as a workflow."""


def check_output(output: str | os.PathLike[str]) -> None:
    """Raise LLM4GENError unless `output` can be used as `save_png` does."""
    path = Path(output)
    if path.suffix.lower() in (".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"):
        raise LLM4GENError(f"Output {path} ends in {path.suffix}; expected a name ending in .png, or a folder.")
    folder = _folder(path)
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise LLM4GENError(f"Output {path} is inside {existing}, which is a file; choose another folder.")
    if not os.access(existing, os.W_OK):
        raise LLM4GENError(f"Output {path} cannot be written: no permission for {existing}; choose another folder.")


def save_png(image: Tensor, output: str | os.PathLike[str], settings: Mapping[str, Any]) -> Path:
    """Write an image under the next free name; an existing file is never touched.

    Args:
        image: [3, H, W] from 0 to 1.
        output: a name ending in .png, numbered from the second file on, or a folder for `llm4gen_00001.png`, ...
        settings: what made the image (JSON values), with "prompt"; stored as PNG text.

    Returns:
        The file.
    """
    text = PngInfo()
    text.add_itxt("Description", str(settings["prompt"]))
    text.add_itxt("Software", "LLM4GEN")
    text.add_itxt(METADATA_KEY, json.dumps(dict(settings), ensure_ascii=False))
    path = Path(output)
    _folder(path).mkdir(parents=True, exist_ok=True)
    for name in _names(path):
        try:
            file = name.open("xb")
        except FileExistsError:
            continue
        with file:
            to_image(image).save(file, format="PNG", pnginfo=text)
        return name
    raise AssertionError("the numbers never end")


def to_image(image: Tensor) -> Image.Image:
    """An image [3, H, W] from 0 to 1 in RGB; cut, not rounded, as ComfyUI's SaveImage does, so that both are equal."""
    return Image.fromarray((image.permute(1, 2, 0).numpy() * 255.0).clip(0, 255).astype(np.uint8))


def _is_png(path: Path) -> bool:
    return path.suffix.lower() == ".png"


def _folder(path: Path) -> Path:
    return path.parent if _is_png(path) else path


def _names(path: Path) -> Iterator[Path]:
    if not _is_png(path):
        yield from (path / f"llm4gen_{number:05}.png" for number in count(1))
    yield path
    yield from (path.with_stem(f"{path.stem}_{number:05}") for number in count(2))
