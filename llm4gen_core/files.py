"""Files, written whole or not at all; JSON and tensors, read with errors in words and nothing in them executed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import uuid
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import LLM4GENError, first_line, is_disk_full


class JSONLines:
    """File of JSON objects, one per line, which need not exist yet.

    A process that is killed while it appends leaves at most an incomplete last line, which is not read and which the
    next `append` removes. Since that truncates the file, writers hold a lock: without one, the line that another
    process is writing could be cut off.

    Args:
        path: the file. The lock file is NAME.lock beside it.
        what: name of the content for warnings, such as "Results".
    """

    def __init__(self, path: str | os.PathLike[str], what: str = "File") -> None:
        self.path = Path(path)
        self.what = what

    def append(self, *rows: Mapping[str, Any]) -> None:
        """Append lines and flush them to the disk. NaN and infinity, which JSON does not have, raise ValueError."""
        lines = "".join(json.dumps(dict(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows).encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(self.path.name + ".lock")), open(self.path, "a+b", buffering=0) as file:
            self._mend(file)
            written = file.write(lines)
            if written != len(lines):
                raise OSError(f"{self.path}: only {written} of {len(lines)} bytes could be written; is the disk full?")
            os.fsync(file.fileno())

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield number, from 1, and content of every line that is not blank; nothing if there is no file.

        Takes no lock, so that files on read-only disks can be read. A line that another process is writing looks
        incomplete and is skipped with a warning.
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
        """Make the file end with a complete line."""
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
        return f"{self.what} {self.path}, line {number}, is torn (its writer was killed) and is skipped."


@contextlib.contextmanager
def whole_file(path: Path, what: str = "File", advice: str = "") -> Iterator[Path]:
    """Yield a temporary name to write a file under, and then move it to `path` atomically.

    Readers see the complete new file or the previous one. Only a killed process leaves a ".partial" file behind. The
    folder is created if it does not exist.

    Args:
        path: the file; an existing one is replaced.
        what: name of the content for errors, such as "Adapter".
        advice: what to do if the disk is full, a complete sentence.

    Raises:
        LLM4GENError: the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Files of the tempfile module are readable by their owner only, and would stay so.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield temporary
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, Exception) and is_disk_full(error):
            raise LLM4GENError(
                f"{what} {path} cannot be written: the disk is full, {shutil.disk_usage(path.parent).free:,} bytes "
                f"free. Nothing was left behind. {advice or 'Make room, or choose a folder on another disk.'}"
            ) from error
        raise


def write_bytes(path: Path, content: bytes, what: str = "File", advice: str = "") -> None:
    """Write a file atomically; see `whole_file`."""
    with whole_file(path, what, advice) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically; see `whole_file`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically, with an indent of one; NaN and infinity raise ValueError."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSONL file atomically; NaN and infinity raise ValueError."""
    write_text(path, "".join(json.dumps(dict(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def read_json(path: Path, what: str, advice: str = "download it again") -> dict[str, Any]:
    """Read the object of a JSON file.

    Args:
        path: the file.
        what: name of the content for errors.
        advice: what to do if it is broken.

    Raises:
        LLM4GENError: the file is missing, unreadable, or not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise LLM4GENError(f"{what} {path} does not exist; check the path.") from error
    except OSError as error:
        raise LLM4GENError(f"{what} {path} cannot be read ({error.strerror}); check its permissions.") from error
    except (ValueError, RecursionError) as error:
        raise LLM4GENError(f"{what} {path} is not valid JSON ({first_line(error)}); {advice}.") from error
    if not isinstance(content, dict):
        raise LLM4GENError(f"{what} {path} holds a {type(content).__name__}; expected a JSON object.")
    return content


def _is_torn(line: bytes) -> bool:
    """Whether a line without a line end is incomplete: the beginning of a JSON object is never valid JSON."""
    try:
        json.loads(line)
    except ValueError:
        return True
    return False


SAFETENSORS_SUFFIXES = (".safetensors", ".sft")
PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")

_WANTED_CODE = re.compile(r"GLOBAL (\S+)")
"""Function or class that a file asked for, in the messages of torch's unpickler."""


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of a stored tensor; the dtype in safetensors' notation ("F32", "BF16", "F8_E4M3")."""

    shape: tuple[int, ...]
    dtype: str


def require_file(path: Path, what: str) -> None:
    """Raise LLM4GENError unless `path` is a file that is not empty; `what` names its content in the message."""
    if path.is_dir():
        raise LLM4GENError(f"{what} {path} is a folder; expected a file.")
    if not path.is_file():
        raise LLM4GENError(f"{what} {path} does not exist; check the name and the folder.")
    if path.stat().st_size == 0:
        raise LLM4GENError(f"{what} {path} is empty (0 bytes); download it again.")


def read_header(path: Path, what: str = "File") -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Read names, shapes and metadata of a safetensors file, without its tensors.

    Returns:
        (tensors by name, metadata).

    Raises:
        LLM4GENError: the file is missing, empty, truncated or of another format.
    """
    require_file(path, what)
    try:
        with safe_open(str(path), framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            tensors = {name: TensorInfo(tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _broken(path, what, error) from error


def load_tensors(path: Path, what: str = "File") -> dict[str, Tensor]:
    """Read all tensors of a safetensors file or of a pickled state dict, on the CPU.

    Pickles are read with torch's `weights_only` unpickler: one that needs anything but tensors and plain
    containers is refused, and none of it is executed.

    Raises:
        LLM4GENError: the file is missing, broken, not a state dict, or tries to execute code.
    """
    require_file(path, what)
    suffix = path.suffix.lower()
    if suffix in SAFETENSORS_SUFFIXES:
        try:
            with safe_open(str(path), framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, OSError) as error:
            raise _broken(path, what, error) from error
    if suffix not in PICKLE_SUFFIXES:
        known = ", ".join(SAFETENSORS_SUFFIXES + PICKLE_SUFFIXES)
        raise LLM4GENError(f"{what} {path} ends in {suffix or 'nothing'!r}; expected one of {known}.")
    return load_pickle(path, what)


def load_pickle(path: Path, what: str = "File", device: str = "cpu") -> dict[str, Tensor]:
    """Read a pickled state dict as `load_tensors` does; on the "meta" device only its names and shapes."""
    require_file(path, what)
    try:
        # Files from before torch 1.6 are not zip archives and cannot be memory-mapped.
        mmap = device == "meta" and zipfile.is_zipfile(path)
        content = torch.load(path, map_location=device, weights_only=True, mmap=mmap)
    except Exception as error:  # a broken pickle can raise nearly any type, such as IndexError and struct.error
        if code := _WANTED_CODE.search(str(error)):
            raise LLM4GENError(
                f"{what} {path} needs to run code ({code[1]}) to be opened, which a file of weights never does. It was "
                "refused and nothing was executed. Delete it and download the weights from their official source."
            ) from error
        raise _broken(path, what, error) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]  # the layout of Lightning, in SD1.x's .ckpt files
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise LLM4GENError(
            f"{what} {path} holds a {type(content).__name__}; expected a state dict of named tensors. Choose another "
            "file."
        )
    return dict(content)


def _broken(path: Path, what: str, error: Exception) -> LLM4GENError:
    reason = first_line(error).split(". ")[0]
    if reason.startswith("Weights only load failed"):  # torch's text advises to disable its protection
        reason = "its pickle is damaged"
    return LLM4GENError(
        f"{what} {path} ({path.stat().st_size:,} bytes) cannot be read: it is truncated, or its format is not that of "
        f"its suffix ({reason}). Download it again and compare its size with the source's."
    )
