"""webdataset shards: .tar files in which members of the same name make a sample.

They are not streamed. A stream has no position: its order depends on the number of processes and workers, an epoch
is not exact, and going on after a stop means reading everything again up to it. The header of each member is read
once instead, and an image is found by (shard, offset, size) like any file, so that order and resume are as exact as
for the other sources.
"""

from __future__ import annotations

import glob
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm4gen_core import LLM4GENError

from ...recipe import Source
from ..images import SUFFIXES
from .base import CAPTION_FIELDS, PAIRS_FIELD, Found, Trouble, Unit, field, file_stamp, reason, stamp

Place = tuple[int, int]
"""Offset and size of a member's content."""


class Shards:
    """Members are grouped as webdataset does it: the name up to the first dot of its last part is the sample.

    Attributes of the recipe: `image` is a file extension; `caption` is one, or a field of the JSON member. Without
    them: any usual image format, `.txt`, and the fields caption and text.
    """

    units_per_block = 1
    unordered = False

    def __init__(self, source: Source) -> None:
        self._images = {source.image.lower().lstrip(".")} if source.image else {s.lstrip(".") for s in SUFFIXES}
        self._caption = source.caption.lstrip(".") if source.caption else None
        self._shards = expand(source.path)

    def units(self) -> Iterator[Unit]:
        for shard in self._shards:
            yield Unit(shard, stamp(shard, file_stamp(shard)))

    def pairs(self, unit: Unit) -> Iterator[Found]:
        # Two shards of the same name in different folders stay different.
        common = os.path.commonpath([os.path.dirname(shard) for shard in self._shards])
        name = os.path.relpath(unit.path, common).replace(os.sep, "/")
        try:
            with tarfile.open(unit.path, "r:") as tar:
                for sample, members in _samples(tar):
                    yield self._found(unit.path, f"{name}/{sample}", members)
        except (tarfile.TarError, OSError, ValueError) as error:
            trouble = Trouble("bad shard", f"The shard cannot be read any further ({reason(error)}); is it whole?")
            yield Found(name, unit.path, trouble=trouble)

    def read(self, path: str, offset: int, size: int) -> bytes:
        # Opened anew each time: a file that several processes share has one position for all of them.
        with open(path, "rb") as shard:
            shard.seek(offset)
            data = shard.read(size)
        if len(data) < size:
            raise OSError(f"{path} ends inside the image")
        return data

    def _found(self, shard: str, key: str, members: dict[str, Place]) -> Found:
        images = sorted(extension for extension in members if extension in self._images)
        if not images:
            return Found(key, shard, trouble=Trouble("no image", f"It has the members {', '.join(members)}: no image."))
        offset, size = members[images[0]]
        found = Found(f"{key}.{images[0]}", shard, offset, size)
        try:
            caption, pairs = self._text(shard, members)
            return found._replace(caption=caption, pairs=pairs, data=self.read(shard, offset, size))
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
            return found._replace(trouble=Trouble("bad caption", f"Its text is broken ({reason(error)})."))
        except OSError as error:
            return found._replace(trouble=Trouble("truncated", f"It is cut off ({reason(error)})."))

    def _text(self, shard: str, members: dict[str, Place]) -> tuple[Any, Any]:
        row: Any = {}
        if "json" in members:
            row = json.loads(self.read(shard, *members["json"]).decode("utf-8-sig"))
            if not isinstance(row, dict):
                raise ValueError("its .json holds no object")
        extension = self._caption or "txt"
        if extension in members and extension != "json":
            return self.read(shard, *members[extension]).decode("utf-8-sig"), row.get(PAIRS_FIELD)
        caption = field(row, self._caption, CAPTION_FIELDS)
        return (caption if isinstance(caption, str) else None), row.get(PAIRS_FIELD)


def expand(pattern: str) -> list[str]:
    """The shards that a path with braces (`{0000..0099}`) and stars stands for, in order."""
    from braceexpand import braceexpand

    if "://" in pattern or pattern.startswith("pipe:"):
        raise LLM4GENError(
            f"Source {pattern} is not on this machine; expected paths of .tar files. Download them first."
        )
    shards: list[str] = []
    for part in [pattern] if Path(pattern).exists() else braceexpand(pattern):
        files = [part] if Path(part).is_file() else sorted(glob.glob(part, recursive=True))
        if not files:
            raise LLM4GENError(f"Source {pattern}: {part} does not exist; check the path.")
        shards += [str(Path(file)) for file in files]
    if packed := [shard for shard in shards if not shard.endswith(".tar")]:
        raise LLM4GENError(
            f"Source {pattern}: {packed[0]} is no .tar file; expected plain ones, in which an image can be found "
            "without reading what is before it. Unpack compressed ones first."
        )
    return list(dict.fromkeys(shards))


def _samples(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, Place]]]:
    """Neighbouring members of the same name, as {extension: place}."""
    current: str | None = None
    members: dict[str, Place] = {}
    broken: Exception | None = None
    headers = iter(tar)
    while True:
        try:
            member = next(headers)
        except StopIteration:
            break
        except (tarfile.TarError, OSError) as error:
            broken = error  # what came before is there all the same
            break
        folder, _, file = member.name.rpartition("/")
        stem, dot, extension = file.partition(".")
        if not member.isreg() or not dot or not stem:
            continue
        sample = f"{folder}/{stem}" if folder else stem
        if sample != current or extension.lower() in members:
            if current is not None:
                yield current, members
            current, members = sample, {}
        members[extension.lower()] = (member.offset_data, member.size)
    if current is not None:
        yield current, members
    if broken:
        raise broken
