"""PNG files: free names, and settings stored in the file."""

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
    """Raise LLM4GENError unless `save_png` can write to `output`."""
    path = Path(output)
    if path.suffix.lower() in (".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"):
        raise LLM4GENError(f"Output {path} ends in {path.suffix}; expected a name ending in .png, or a folder.")
    folder = path.parent if _is_png(path) else path
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise LLM4GENError(f"Output {path} is inside {existing}, which is a file; choose another folder.")
    if not os.access(existing, os.W_OK):
        raise LLM4GENError(f"Output {path} cannot be written: no permission for {existing}; choose another folder.")


def save_png(image: Tensor, output: str | os.PathLike[str], settings: Mapping[str, Any]) -> Path:
    """Write an image under the next free name; an existing file is never touched.

    Args:
        image: [3, H, W] from 0 to 1.
        output: name ending in .png, numbered from the second file on, or a folder for `llm4gen_00001.png`, ...
        settings: how the image was generated (JSON values), with "prompt"; stored as PNG text.

    Returns:
        The file.
    """
    text = PngInfo()
    text.add_itxt("Description", str(settings["prompt"]))
    text.add_itxt("Software", "LLM4GEN")
    text.add_itxt(METADATA_KEY, json.dumps(dict(settings), ensure_ascii=False))
    for name in _names(Path(output)):
        name.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = name.open("xb")
        except FileExistsError:
            continue
        with file:
            to_image(image).save(file, format="PNG", pnginfo=text)
        return name
    raise AssertionError("the numbers never end")


def to_image(image: Tensor) -> Image.Image:
    """Convert [3, H, W] from 0 to 1 to RGB; truncated, not rounded, as in ComfyUI's SaveImage, so both are equal."""
    return Image.fromarray((image.permute(1, 2, 0).numpy() * 255.0).clip(0, 255).astype(np.uint8))


def _is_png(path: Path) -> bool:
    return path.suffix.lower() == ".png"


def _names(path: Path) -> Iterator[Path]:
    if _is_png(path):
        yield path
        yield from (path.with_stem(f"{path.stem}_{number:05}") for number in count(2))
    yield from (path / f"llm4gen_{number:05}.png" for number in count(1))
