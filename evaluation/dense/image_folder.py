"""Folder of images to build prompts from, and the licences of the images."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from pydantic import BaseModel, Field, ValidationError

from llm4gen_core import LLM4GENError
from llm4gen_core.errors import first_problem
from llm4gen_core.files import JSONLines

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class SourceImage:
    """An image of the folder.

    Attributes:
        name: path below the folder, with forward slashes.
        path: the file.
        sha256: of the file, 64 hexadecimal digits.
        licence, source: from the list of licences; "" if it does not say.
    """

    name: str
    path: Path
    sha256: str
    licence: str = ""
    source: str = ""

    def open(self) -> Image.Image:
        """Read the image in RGB.

        Raises:
            LLM4GENError: the file cannot be read.
        """
        try:
            with Image.open(self.path) as image:
                return image.convert("RGB")
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise LLM4GENError(f"Image {self.path} cannot be read ({error}); repair or remove it.") from error


class _Licence(BaseModel):
    image: str = Field(min_length=1)
    licence: str = ""
    source: str = ""


def source_images(folder: Path, licences: Path | None = None) -> list[SourceImage]:
    """List the images of a folder and its subfolders by name; identical files count once.

    Args:
        licences: JSONL of {"image": name, "licence": text, "source": text}.

    Raises:
        LLM4GENError: there is no image, or the list of licences is damaged or names an image that is not there.
    """
    if not folder.is_dir():
        raise LLM4GENError(f"Image folder {folder} does not exist; check the path.")
    files = sorted(
        (path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() in ENDINGS),
        key=lambda path: path.relative_to(folder).as_posix(),
    )
    known = _licences(licences) if licences else {}
    images: dict[str, SourceImage] = {}
    for path in files:
        name = path.relative_to(folder).as_posix()
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        images.setdefault(digest, SourceImage(name, path, digest, *known.pop(name, ("", ""))))
    if not images:
        raise LLM4GENError(f"Image folder {folder} has no images; expected files that end in {', '.join(ENDINGS)}.")
    if known:
        raise LLM4GENError(
            f"List of licences {licences} names {next(iter(known))!r}, which is not in {folder}; correct "
            "the name, or remove the line."
        )
    return list(images.values())


def _licences(path: Path) -> dict[str, tuple[str, str]]:
    """Return licence and source by image name."""
    if not path.is_file():
        raise LLM4GENError(f"List of licences {path} does not exist; check the path.")
    found: dict[str, tuple[str, str]] = {}
    for number, line in JSONLines(path, "List of licences").lines():
        try:
            row = _Licence.model_validate_json(line)
        except ValidationError as error:
            raise LLM4GENError(
                f"List of licences {path}, line {number}, is not valid ({first_problem(error)}); expected "
                '{"image": NAME, "licence": TEXT, "source": TEXT}.'
            ) from error
        found[row.image] = (row.licence, row.source)
    return found
