"""JSONL files to which several processes, and several sittings, add."""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock


class JSONLines:
    """A file of JSON objects, one a line; need not exist yet.

    A process that is killed while it appends leaves at most a torn last line, which is not read and which the next
    `append` takes away. That it shortens the file is why writers take turns: without a lock it might cut what another
    has just begun to write.

    Args:
        path: the file. A lock file stands beside it, NAME.lock.
        what: it is, for warnings, such as "Results".
    """

    def __init__(self, path: str | os.PathLike[str], what: str = "File") -> None:
        self.path = Path(path)
        self.what = what

    def append(self, *rows: Mapping[str, Any]) -> None:
        """Add lines, and have them on the disk. NaN and infinity are refused (ValueError), for they are not JSON."""
        lines = "".join(json.dumps(dict(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows).encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(self.path.name + ".lock")), open(self.path, "a+b", buffering=0) as file:
            self._mend(file)
            written = file.write(lines)
            if written != len(lines):
                raise OSError(f"{self.path}: only {written} of {len(lines)} bytes could be written; is the disk full?")
            os.fsync(file.fileno())

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Number, from 1, and content of every line that is not blank; none if there is no file.

        Needs no lock, so that a file can be read where nothing can be written. A line that another process is just
        writing looks torn, and is left out with a warning.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return
        *lines, rest = content.split(b"\n")
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, line
        if rest.strip():
            if _is_torn(rest):
                warnings.warn(self._torn(len(lines) + 1), stacklevel=4)
            else:
                yield len(lines) + 1, rest

    def _mend(self, file: io.FileIO) -> None:
        """Let the file end after a whole line."""
        size = file.seek(0, os.SEEK_END)
        if not size:
            return
        file.seek(size - 1)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        content = file.readall()
        rest = content.rpartition(b"\n")[2]
        if _is_torn(rest):
            warnings.warn(self._torn(content.count(b"\n") + 1), stacklevel=3)
            file.truncate(len(content) - len(rest))
        else:
            file.write(b"\n")

    def _torn(self, number: int) -> str:
        return f"{self.what} {self.path}, line {number}, is torn (a process ended while it wrote it) and is left out."


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a whole file at once: it is there complete or as it was before."""
    write_text(path, "".join(json.dumps(dict(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file at once: it is there complete or as it was before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _is_torn(line: bytes) -> bool:
    """Whether a line without an end was cut; the beginning of a JSON object is never JSON itself."""
    try:
        json.loads(line)
    except ValueError:
        return True
    return False
