"""Images as files: with captions beside them, or listed in a JSONL file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...recipe import Source
from ..images import SUFFIXES
from .base import (
    CAPTION_FIELDS,
    IMAGE_FIELDS,
    NO_CAPTION,
    PAIRS_FIELD,
    Found,
    Trouble,
    Unit,
    field,
    file_stamp,
    reason,
    stamp,
    unreadable,
)

LISTS = ("captions.jsonl", "metadata.jsonl")
"""Inside a folder, a file of one of these names lists the images; the second is Hugging Face's imagefolder."""


class Folder:
    """Images of a folder and its subfolders, each with a text file of the same name beside it.

    Attributes of the recipe: `image` and `caption` are file extensions; without them every usual image format is
    taken, and `.txt` before `.caption`. Names that begin with a dot are passed over.
    """

    units_per_block = 128
    unordered = True

    def __init__(self, source: Source) -> None:
        self._root = source.path
        self._images = {_suffix(source.image)} if source.image else set(SUFFIXES)
        self._captions = (_suffix(source.caption),) if source.caption else (".txt", ".caption")

    def units(self) -> Iterator[Unit]:
        # Names come in the order of the file system; `scan` sorts them without holding 10 million Python strings.
        folders, seen = [""], set()
        while folders:
            folder = folders.pop()
            status = os.stat(os.path.join(self._root, folder))
            if (status.st_dev, status.st_ino) in seen:
                continue  # a link to a folder above would never end
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(os.path.join(self._root, folder)) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    path = os.path.join(folder, entry.name)
                    if entry.is_dir():
                        folders.append(path)
                    elif os.path.splitext(entry.name)[1].lower() in self._images:
                        image = file_stamp(entry.path)
                        beside = [file_stamp(self._beside(path, suffix)) for suffix in self._captions]
                        yield Unit(path, stamp(path, image, *beside))

    def pairs(self, unit: Unit) -> Iterator[Found]:
        found = Found(_posix(unit.path), unit.path)
        try:
            caption = self._caption(unit.path)
            found = found._replace(caption=caption, data=self.read(unit.path, -1, -1))
        except UnicodeDecodeError as error:
            found = found._replace(
                trouble=Trouble("caption not UTF-8", f"Its caption file is not UTF-8 text ({error.reason}).")
            )
        except OSError as error:
            found = found._replace(trouble=unreadable(error))
        yield found

    def read(self, path: str, offset: int, size: int) -> bytes:
        return Path(self._root, path).read_bytes()

    def _beside(self, path: str, suffix: str) -> str:
        return os.path.join(self._root, os.path.splitext(path)[0] + suffix)

    def _caption(self, path: str) -> str | None:
        for suffix in self._captions:
            try:
                return Path(self._beside(path, suffix)).read_text(encoding="utf-8-sig")
            except FileNotFoundError:
                continue
        return None


class JsonLines:
    """One pair a line: {"image": "a.jpg", "caption": "..."}; paths are relative to the file.

    An image may stand there several times, with another caption each time.
    """

    units_per_block = 128
    unordered = False

    def __init__(self, source: Source, file: Path | None = None) -> None:
        self._file = file or Path(source.path)
        self._root = self._file.parent
        self._image, self._caption = source.image, source.caption

    def units(self) -> Iterator[Unit]:
        with self._file.open("rb") as lines:
            start = 0
            for number, line in enumerate(lines, 1):
                if line.strip():
                    row = self._row(line)
                    path = row if isinstance(row, Trouble) else self._path(row)
                    # A line that says nothing usable is known by its number.
                    image = file_stamp(self._root / path) if isinstance(path, str) else number
                    name = path if isinstance(path, str) else f"{self._file.name}:{number}"
                    yield Unit(name, stamp(line, image), start, len(line))
                start += len(line)

    def pairs(self, unit: Unit) -> Iterator[Found]:
        with self._file.open("rb") as file:
            file.seek(unit.start)
            row = self._row(file.read(unit.length))
        found = Found(_posix(unit.path), unit.path)
        path = row if isinstance(row, Trouble) else self._path(row)
        if isinstance(row, Trouble):
            found = found._replace(trouble=row)
        elif isinstance(path, Trouble):
            found = found._replace(trouble=path)
        else:
            caption = field(row, self._caption, CAPTION_FIELDS)
            found = found._replace(caption=caption, pairs=row.get(PAIRS_FIELD))
            try:
                found = found._replace(data=self.read(unit.path, -1, -1))
            except (OSError, ValueError) as error:
                found = found._replace(trouble=unreadable(error))
            if caption is not None and not isinstance(caption, str):
                found = found._replace(trouble=NO_CAPTION)
        yield found

    def read(self, path: str, offset: int, size: int) -> bytes:
        return (self._root / path).read_bytes()

    def _row(self, line: bytes) -> dict[str, Any] | Trouble:
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            return Trouble("bad line", f"The line is not JSON in UTF-8 ({reason(error)}).")
        return row if isinstance(row, dict) else Trouble("bad line", "The line is no JSON object.")

    def _path(self, row: dict[str, Any]) -> str | Trouble:
        path = field(row, self._image, IMAGE_FIELDS)
        if isinstance(path, str) and path:
            return path
        return Trouble("bad line", f"The line names no image; expected {self._image or ' or '.join(IMAGE_FIELDS)}.")


def _suffix(extension: str) -> str:
    return "." + extension.lower().lstrip(".")


def _posix(path: str) -> str:
    """A key: the same on every system, and text that UTF-8 can hold."""
    text = path.replace(os.sep, "/")
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
