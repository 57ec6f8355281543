"""What every source of image-text pairs can do, and what a pair looks like before it is checked."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

IMAGE_FIELDS = ("image", "file_name", "path")
CAPTION_FIELDS = ("caption", "text")
PAIRS_FIELD = "pairs"
"""Entity pairs that come with the data: [[attribute start, end, entity start, end], ...], characters of the caption."""


class Trouble(NamedTuple):
    """Why a pair is left out: a kind that reports count by, and a sentence."""

    kind: str
    sentence: str


NO_CAPTION = Trouble("no caption", "It has no caption, or an empty one; expected text.")


class Unit(NamedTuple):
    """What is looked at anew as a whole when it changed: one file, one line, one shard, a range of rows.

    Attributes:
        path: of the file inside the source.
        stamp: 16 bytes that change when the unit does.
        start, length: where in the file it stands, in the source's own measure.
    """

    path: str
    stamp: bytes
    start: int = 0
    length: int = 0


class Found(NamedTuple):
    """One pair as it stands in a source.

    Attributes:
        key: of the sample inside the source.
        path, offset, size: what `read` needs to find the image again.
        caption: None where there is none.
        pairs: entity pairs of the data, as in `PAIRS_FIELD`, not yet checked; None where there are none.
        data: bytes of the image file, empty with `trouble`.
        trouble: why it cannot be used, if that is known already.
    """

    key: str
    path: str
    offset: int = -1
    size: int = -1
    caption: Any = None
    pairs: Any = None
    data: bytes = b""
    trouble: Trouble | None = None


class SourceReader(Protocol):
    """A source. It is opened again in every process, so files are opened when first used."""

    units_per_block: int
    """How many units are one piece of work for a process that checks images."""

    unordered: bool
    """Whether units come in the order of the file system, to be sorted by path."""

    def units(self) -> Iterator[Unit]:
        """Everything there is, in an order that depends on the content alone unless `unordered`."""
        ...

    def pairs(self, unit: Unit) -> Iterator[Found]:
        """The pairs of a unit with their images' bytes; what cannot be read has a `trouble` and raises nothing."""
        ...

    def read(self, path: str, offset: int, size: int) -> bytes:
        """The bytes of an image file again; raises OSError, or LookupError where it is not there any more."""
        ...


def stamp(*parts: object) -> bytes:
    """16 bytes for a unit."""
    text = "\0".join(str(part) for part in parts)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def file_stamp(path: str | os.PathLike[str]) -> str:
    """Size and time of a file, or "missing"."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns}"


def field(row: Mapping[str, Any], given: str | None, usual: Sequence[str]) -> Any:
    """The value under the name that the recipe gives, or under the first usual one; None without any."""
    for name in (given,) if given else usual:
        if row.get(name) is not None:
            return row[name]
    return None


def reason(error: BaseException) -> str:
    """An exception in a few words."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()).rstrip(".") or type(error).__name__


def unreadable(error: BaseException, what: str = "The image") -> Trouble:
    if isinstance(error, FileNotFoundError):
        return Trouble("missing file", f"{what} does not exist.")
    return Trouble("unreadable", f"{what} cannot be read ({reason(error)}).")
