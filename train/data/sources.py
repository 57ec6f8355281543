"""Sources of image-text pairs: a folder, a JSONL file, a data set saved by Hugging Face's datasets, webdataset shards.

`open_source` gives the reader of each. A reader lists units, the pieces that are checked again when they change, then
the pairs of a unit, and later reads the bytes of single images.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from llm4gen_core import LLM4GENError
from llm4gen_core.errors import first_line

from ..recipe import Source
from .images import SUFFIXES

IMAGE_FIELDS = ("image", "file_name", "path")
CAPTION_FIELDS = ("caption", "text")
PAIRS_FIELD = "pairs"
"""Entity pairs stored with the data: [[attribute start, end, entity start, end], ...], characters of the caption."""

LISTS = ("captions.jsonl", "metadata.jsonl")
"""In a folder, a file of one of these names lists the images; the second is Hugging Face's imagefolder."""

MARKS = ("state.json", "dataset_dict.json")
"""Files that mark a folder as a data set of `save_to_disk`, or as several splits of one."""


class Trouble(NamedTuple):
    """Reason why a pair is left out: a kind that reports count by, and a sentence."""

    kind: str
    sentence: str


NO_CAPTION = Trouble("no caption", "It has no caption, or an empty one; expected text.")


class Unit(NamedTuple):
    """Smallest piece that is checked again as a whole when it changes: a file, a line, a shard, a range of rows.

    Attributes:
        path: of the file inside the source.
        stamp: 16 bytes that change when the unit does.
        start, length: position in the file, in the source's own measure.
    """

    path: str
    stamp: bytes
    start: int = 0
    length: int = 0


class Found(NamedTuple):
    """One pair as a source stores it.

    Attributes:
        key: name of the sample inside the source.
        path, offset, size: arguments with which `read` finds the image again.
        caption: None where there is none.
        pairs: entity pairs of the data as in `PAIRS_FIELD`, not checked yet; None where there are none.
        data: bytes of the image file, empty with `trouble`.
        trouble: why the pair cannot be used, if that is known already.
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
    """Interface of a source. Every process opens it again, so files are opened when they are first used."""

    units_per_block: int
    """Number of units that a process checks at once."""

    unordered: bool
    """Whether units come in the order of the file system, and have to be sorted by path."""

    def units(self) -> Iterator[Unit]:
        """List all units, in an order that depends on the content alone unless `unordered`."""
        ...

    def pairs(self, unit: Unit) -> Iterator[Found]:
        """Read the pairs of a unit with the bytes of their images; a pair that cannot be read has a `trouble`."""
        ...

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Read the bytes of an image file again; raises OSError, or LookupError if it is no longer there."""
        ...


def open_source(source: Source) -> SourceReader:
    """Open the reader of a source.

    Raises:
        LLM4GENError: there is nothing at its path, or nothing of its type.
    """
    path = Path(source.path)
    kind = _kind(path, source.path) if source.type == "auto" else source.type
    if kind == "webdataset":
        return Shards(source)
    if not path.exists():
        raise LLM4GENError(f"Source {source.path} does not exist; check the path.")
    if not os.access(path, os.R_OK):
        raise LLM4GENError(f"Source {source.path} cannot be read: no permission.")
    if kind == "jsonl":
        if not path.is_file():
            raise LLM4GENError(f"Source {source.path} is a folder; expected a .jsonl file (type: jsonl).")
        return JsonLines(source)
    if not path.is_dir():
        raise LLM4GENError(f"Source {source.path} is a file; expected a folder (type: {kind}).")
    if kind == "dataset":
        if not any((path / mark).is_file() for mark in MARKS):
            raise LLM4GENError(
                f"Source {source.path} has neither {' nor '.join(MARKS)}; expected a folder written by Hugging Face's "
                "save_to_disk (type: dataset)."
            )
        return DatasetOnDisk(source)
    lists = [path / name for name in LISTS if (path / name).is_file()]
    return JsonLines(source, lists[0]) if lists else Folder(source)


def _kind(path: Path, text: str) -> str:
    if path.is_dir():
        return "dataset" if any((path / mark).is_file() for mark in MARKS) else "folder"
    if path.suffix == ".jsonl":
        return "jsonl"
    if ".tar" in text or any(sign in text for sign in "{*"):
        return "webdataset"
    if not path.exists():
        raise LLM4GENError(f"Source {text} does not exist; check the path.")
    raise LLM4GENError(
        f"Source {text} is of an unknown kind; expected a folder, a .jsonl file, a data set written by save_to_disk, "
        "or .tar shards."
    )


class Folder:
    """Images of a folder and its subfolders, each with a text file of the same name beside it.

    In the recipe, `image` and `caption` are file extensions; without them every usual image format is read, and
    `.txt` is preferred to `.caption`. Names that begin with a dot are skipped.
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
                continue  # a link to a parent folder would never end
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
            sentence = f"Its caption file is not UTF-8 text ({error.reason})."
            found = found._replace(trouble=Trouble("caption not UTF-8", sentence))
        except OSError as error:
            found = found._replace(trouble=_unreadable(error))
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

    The same image may be listed several times, with different captions.
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
                    _, path = self._row(line)
                    # A line without a usable path is identified by its number.
                    image = file_stamp(self._root / path) if isinstance(path, str) else number
                    name = path if isinstance(path, str) else f"{self._file.name}:{number}"
                    yield Unit(name, stamp(line, image), start, len(line))
                start += len(line)

    def pairs(self, unit: Unit) -> Iterator[Found]:
        with self._file.open("rb") as file:
            file.seek(unit.start)
            row, path = self._row(file.read(unit.length))
        found = Found(_posix(unit.path), unit.path)
        if isinstance(path, Trouble):
            found = found._replace(trouble=path)
        else:
            caption = _field(row, self._caption, CAPTION_FIELDS)
            found = found._replace(caption=caption, pairs=row.get(PAIRS_FIELD))
            try:
                found = found._replace(data=self.read(unit.path, -1, -1))
            except (OSError, ValueError) as error:
                found = found._replace(trouble=_unreadable(error))
            if caption is not None and not isinstance(caption, str):
                found = found._replace(trouble=NO_CAPTION)
        yield found

    def read(self, path: str, offset: int, size: int) -> bytes:
        return (self._root / path).read_bytes()

    def _row(self, line: bytes) -> tuple[dict[str, Any], str | Trouble]:
        """Object of a line, and the path of its image or what is wrong with the line."""
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            return {}, Trouble("bad line", f"The line is not JSON in UTF-8 ({first_line(error)}).")
        if not isinstance(row, dict):
            return {}, Trouble("bad line", "The line is not a JSON object.")
        path = _field(row, self._image, IMAGE_FIELDS)
        if isinstance(path, str) and path:
            return row, path
        names = self._image or " or ".join(IMAGE_FIELDS)
        return row, Trouble("bad line", f"The line names no image; expected a field {names}.")


class DatasetOnDisk:
    """Data set written by `save_to_disk`: columns of images (bytes, or paths of files) and of captions.

    The key of a row is its number. A data set of several splits gives its "train".
    """

    units_per_block = 1
    unordered = False
    rows_per_unit = 256

    def __init__(self, source: Source) -> None:
        self._folder = Path(source.path)
        self._given = source
        if (self._folder / "dataset_dict.json").is_file():
            if not (self._folder / "train" / "state.json").is_file():
                splits = sorted(entry.name for entry in self._folder.iterdir() if entry.is_dir())
                raise LLM4GENError(
                    f"Data set {self._folder} has the splits {', '.join(splits)}, but no split train; add the name of "
                    "one to its path."
                )
            self._folder /= "train"

    @cached_property
    def _rows(self) -> Any:
        import datasets

        try:
            rows = datasets.load_from_disk(str(self._folder))
        except Exception as error:  # the library raises many types if the folder is broken
            raise LLM4GENError(
                f"Data set {self._folder} cannot be opened ({first_line(error)}); expected a folder written by "
                "save_to_disk. Save it again."
            ) from error
        image, caption = self._column(rows, "image"), self._column(rows, "caption")
        if isinstance(rows.features[image], datasets.Image):
            rows = rows.cast_column(image, datasets.Image(decode=False))
        return rows.select_columns([image, caption] + [PAIRS_FIELD] * (PAIRS_FIELD in rows.column_names))

    @cached_property
    def _columns(self) -> tuple[str, str]:
        return self._column(self._rows, "image"), self._column(self._rows, "caption")

    def _column(self, rows: Any, which: str) -> str:
        given = getattr(self._given, which)
        for name in (given,) if given else (IMAGE_FIELDS if which == "image" else CAPTION_FIELDS):
            if name in rows.column_names:
                return name
        raise LLM4GENError(
            f"Data set {self._folder} has the columns {', '.join(rows.column_names)}; none of them is known as the "
            f"{which}. Name it in the recipe: {which}: COLUMN under the source."
        )

    def units(self) -> Iterator[Unit]:
        files = sorted(entry.name for entry in self._folder.iterdir() if entry.suffix in (".arrow", ".json"))
        state = stamp(*(part for name in files for part in (name, file_stamp(self._folder / name))))
        for start in range(0, len(self._rows), self.rows_per_unit):
            length = min(self.rows_per_unit, len(self._rows) - start)
            yield Unit("", stamp(state.hex(), start, length), start, length)

    def pairs(self, unit: Unit) -> Iterator[Found]:
        image, caption = self._columns
        for number in range(unit.start, unit.start + unit.length):
            found = Found(f"{number:09}", "", number)
            try:
                row = self._rows[number]
                found = found._replace(caption=row[caption], pairs=row.get(PAIRS_FIELD), data=self._bytes(row[image]))
            except LookupError:
                found = found._replace(trouble=Trouble("missing file", "The row holds no image."))
            except OSError as error:
                found = found._replace(trouble=_unreadable(error))
            except Exception as error:  # a damaged Arrow file raises its own types
                found = found._replace(trouble=Trouble("bad row", f"The row cannot be read ({first_line(error)})."))
            if found.caption is not None and not isinstance(found.caption, str):
                found = found._replace(caption=None, trouble=NO_CAPTION)
            yield found

    def read(self, path: str, offset: int, size: int) -> bytes:
        return self._bytes(self._rows[offset][self._columns[0]])

    def _bytes(self, value: Any) -> bytes:
        if isinstance(value, dict):
            value = value.get("path") if value.get("bytes") is None else value["bytes"]
        if isinstance(value, bytes):
            return value
        if isinstance(value, str) and value:
            return Path(os.path.join(self._folder, value)).read_bytes()
        raise LookupError("no image")


Place = tuple[int, int]
"""Offset and size of the content of a shard's member."""


class Shards:
    """webdataset shards: .tar files in which members of the same name make a sample.

    Members are grouped as webdataset does it: the name up to the first dot of its last part is the sample. In the
    recipe, `image` is a file extension; `caption` is one, or a field of the JSON member. Without them: any usual image
    format, `.txt`, and the fields caption and text.

    Shards are not streamed. A stream has no position: its order depends on the number of processes and workers, an
    epoch is not exact, and resuming means reading everything again up to that point. The header of each member is
    read once instead, and an image is found by (shard, offset, size) like any file, so that order and resume are as
    exact as for the other sources.
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
            trouble = Trouble("bad shard", f"The shard cannot be read any further ({first_line(error)}); is it whole?")
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
            return found._replace(trouble=Trouble("bad caption", f"Its text is broken ({first_line(error)})."))
        except OSError as error:
            return found._replace(trouble=Trouble("truncated", f"It is cut off ({first_line(error)})."))

    def _text(self, shard: str, members: dict[str, Place]) -> tuple[Any, Any]:
        row: Any = {}
        if "json" in members:
            row = json.loads(self.read(shard, *members["json"]).decode("utf-8-sig"))
            if not isinstance(row, dict):
                raise ValueError("its .json is not a JSON object")
        extension = self._caption or "txt"
        if extension in members and extension != "json":
            return self.read(shard, *members[extension]).decode("utf-8-sig"), row.get(PAIRS_FIELD)
        caption = _field(row, self._caption, CAPTION_FIELDS)
        return (caption if isinstance(caption, str) else None), row.get(PAIRS_FIELD)


def expand(pattern: str) -> list[str]:
    """Shards that a path with braces (`{0000..0099}`) and stars stands for, in order."""
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
            f"Source {pattern}: {packed[0]} is not a .tar file; expected uncompressed ones, in which an image can be "
            "found without reading what comes before it. Unpack compressed ones first."
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
            broken = error  # the members before it can be used
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


def stamp(*parts: object) -> bytes:
    """Hash of 16 bytes, for a unit or a name."""
    text = "\0".join(str(part) for part in parts)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def file_stamp(path: str | os.PathLike[str]) -> str:
    """Size and modification time of a file, or "missing"."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns}"


def _field(row: Mapping[str, Any], given: str | None, usual: Sequence[str]) -> Any:
    """Value under the name that the recipe gives, else under the first usual one; None without any."""
    for name in (given,) if given else usual:
        if row.get(name) is not None:
            return row[name]
    return None


def _unreadable(error: Exception) -> Trouble:
    if isinstance(error, FileNotFoundError):
        return Trouble("missing file", "The image does not exist.")
    return Trouble("unreadable", f"The image cannot be read ({first_line(error)}).")


def _suffix(extension: str) -> str:
    return "." + extension.lower().lstrip(".")


def _posix(path: str) -> str:
    """Key of a sample: the same on every system, and text that UTF-8 can hold."""
    text = path.replace(os.sep, "/")
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
