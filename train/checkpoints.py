"""Checkpoints: folders that appear whole, are verified before they are used, and never cost the one before.

The idea of a manifest, a guard and a rename is SimpleTuner's; this is our own code. A checkpoint is written aside,
brought to the disk, listed in a manifest with the hash of each file, and only then renamed. Whatever ends the run in
between leaves a folder that no one takes for a checkpoint.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llm4gen_core import LLM4GENError

MANIFEST = "manifest.json"
FORMAT = 1

_NAME = re.compile(r"step-(\d{8,})")
_PARTIAL = ".partial"
_BLOCK = 1 << 22
log = logging.getLogger("llm4gen")


class Checkpoints:
    """The checkpoints of one run, `step-00001000` and so on, in a folder that no other run writes to.

    Args:
        folder: is made if it does not exist.
        keep: how many of the newest stay; None keeps all.
    """

    def __init__(self, folder: Path, keep: int | None) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, step: int, write: Callable[[Path], None], needed: int) -> Path:
        """Write the checkpoint of a step and remove older ones beyond `keep`.

        One that exists for that step and verifies is left as it is: a run is deterministic, so it holds the same.

        Args:
            step: optimizer steps done.
            write: gets an empty folder and writes files and folders into it.
            needed: bytes it is going to write, roughly.

        Raises:
            LLM4GENError: the disk has not enough space, before or while writing. Nothing half-written stays.
        """
        target = self.path_of(step)
        if target.exists() and _problem(target) is None:
            return target
        partial = self.begin(step, needed)
        try:
            write(partial)
            return self.commit(partial)
        except BaseException as error:
            full = _is_full(error, self.folder)
            self.discard(partial)
            if not full:
                raise
            raise LLM4GENError(self._too_small(step, needed, f"became full while it was written ({error})")) from error

    def begin(self, step: int, needed: int) -> Path:
        """The first part of `save`: the empty folder to write into.

        For checkpoints that several processes write together (FSDP, DeepSpeed): one of them calls `begin` and, when
        all have written, `commit`.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(f".step-*{_PARTIAL}"):
            self.discard(leftover)
        if shutil.disk_usage(self.folder).free < needed + _margin(needed):
            raise LLM4GENError(self._too_small(step, needed, "has too little free space"))
        partial = self.folder / f".{self.path_of(step).name}.{uuid.uuid4().hex}{_PARTIAL}"
        partial.mkdir()
        return partial

    def commit(self, partial: Path) -> Path:
        """The last part of `save`: what stands in the folder becomes the checkpoint."""
        step = self.step_of(partial)
        target = self.path_of(step)
        _seal(partial, step)
        problem = _problem(partial, hashes=False)
        if problem:
            raise LLM4GENError(
                f"Checkpoint {target} was not stored as it was written: {problem}. Check the disk; the checkpoints "
                "before it are untouched."
            )
        if target.exists():  # a broken one: `save` keeps a sound one
            _remove(target)
        os.rename(partial, target)
        _sync_folder(self.folder)
        self._prune(step)
        return target

    def discard(self, partial: Path) -> None:
        """Remove a folder of `begin`."""
        shutil.rmtree(partial, ignore_errors=True)

    def newest(self) -> Path | None:
        """The newest checkpoint whose files are all there and unchanged, hash by hash; None if there is none.

        A broken one is skipped for the one before it, with a warning that names the file and what is wrong with it.
        """
        for path in self._all():
            problem = _problem(path)
            if problem is None:
                return path
            log.warning("Checkpoint %s is skipped: %s.", path, problem)
        return None

    @staticmethod
    def verify(path: Path) -> None:
        """Check one checkpoint, hash by hash.

        Raises:
            LLM4GENError: it is broken.
        """
        problem = _problem(path)
        if problem is not None:
            raise LLM4GENError(f"Checkpoint {path} is broken: {problem}. Take another one of the run.")

    def path_of(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    @staticmethod
    def step_of(path: Path) -> int:
        """Optimizer steps done in a checkpoint, by its name."""
        found = _NAME.search(path.name)
        if found is None:
            raise LLM4GENError(f"Checkpoint {path} has no step in its name; expected a folder such as step-00001000.")
        return int(found[1])

    def _all(self) -> list[Path]:
        """Folders with the name of a checkpoint, newest first."""
        if not self.folder.is_dir():
            return []
        found = [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
        return sorted(found, key=self.step_of, reverse=True)

    def _prune(self, step: int) -> None:
        """Remove what is older than the newest `keep`, counted from the one just written.

        Broken ones do not count. Steps after it are left alone: the run was resumed from before them, so they
        were found broken, and must not push out the sound ones.
        """
        if self.keep is None:
            return
        kept = 0
        for path in self._all():
            if self.step_of(path) > step:
                continue
            if kept == self.keep:
                _remove(path)
            elif _problem(path, hashes=False) is None:
                kept += 1

    def _too_small(self, step: int, needed: int, what: str) -> str:
        free = shutil.disk_usage(self.folder).free
        return (
            f"Checkpoint of step {step}: the disk of {self.folder} {what}. It needs {_size(needed + _margin(needed))} "
            f"and {_size(free)} are free. Make space or lower checkpoints.keep, then resume the run; the checkpoints "
            "before it are untouched"
        )


def _seal(folder: Path, step: int) -> None:
    """Bring every file to the disk and write the manifest, last."""
    files = []
    for path in _files(folder):
        with open(path, "rb+") as file:
            digest, size = _hash(file)
            os.fsync(file.fileno())
        files.append({"name": path.relative_to(folder).as_posix(), "bytes": size, "sha256": digest})
    for path in folder.rglob("*"):
        if path.is_dir():
            _sync_folder(path)
    with open(folder / MANIFEST, "x", encoding="utf-8") as file:
        json.dump({"format": FORMAT, "step": step, "files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(folder)


def _problem(folder: Path, hashes: bool = True) -> str | None:
    """What is wrong with a checkpoint, as a sentence without its full stop; None if nothing is."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return f"{MANIFEST} has format {manifest['format']}, this version reads {FORMAT}"
        if manifest["step"] != Checkpoints.step_of(folder):
            return f"{MANIFEST} is of step {manifest['step']}"
        expected = {file["name"]: (file["bytes"], file["sha256"]) for file in manifest["files"]}
    except FileNotFoundError:
        return f"{MANIFEST} is missing, so it was not written to its end"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    for name, (size, digest) in expected.items():
        try:
            found = (folder / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes, {size} were written"
            if hashes:
                with open(folder / name, "rb") as file:
                    if _hash(file)[0] != digest:
                        return f"{name} does not hold what was written (its SHA-256 differs)"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def _files(folder: Path) -> Iterator[Path]:
    yield from sorted(path for path in folder.rglob("*") if path.is_file())


def _hash(file: Any) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    while block := file.read(_BLOCK):
        digest.update(block)
        size += len(block)
    return digest.hexdigest(), size


def _remove(folder: Path) -> None:
    """Remove a checkpoint; if that is cut short, what remains does not look like one."""
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}{_PARTIAL}")
    os.rename(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """Bring a folder's list of names to the disk; Windows cannot, and does not need it."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse it for folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_full(error: BaseException | None, folder: Path) -> bool:
    """Whether the disk is the cause; libraries hide the system's error number behind errors of their own."""
    if not isinstance(error, Exception) or isinstance(error, LLM4GENError):
        return False
    cause: BaseException | None = error
    while cause is not None:
        numbered = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        if numbered or "No space left" in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return shutil.disk_usage(folder).free < _BLOCK


def _margin(needed: int) -> int:
    """Space beyond the estimate: file systems need some for themselves, and logs go on being written."""
    return needed // 20 + (64 << 20)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
