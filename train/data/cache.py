"""Tensors that are computed once: shards on a disk, found by key, written by several processes at once.

A shard is a safetensors file with the stacked tensors of many entries, all of one shape, and their keys. It is
written aside and renamed, so that a process that is killed costs what it had not yet written, and nothing else. There
is no index to be lost: it is made from the shards' keys when the cache is opened.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
import uuid
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from llm4gen_core import LLM4GENError

KEYS = "keys"
"""Tensor of a shard: [n, 16] uint8, the hashes of its entries' keys."""

SHARD_BYTES = 2**28
FLUSH_SECONDS = 60.0
"""What has been computed is on the disk after so many bytes or seconds: no more than that is lost to a kill."""

_OPEN_SHARDS = 256
_STALE_SECONDS = 3600.0


class TensorCache:
    """Named tensors by key.

    Args:
        folder: of the cache; each fingerprint has its own folder inside.
        fingerprint: everything that changes the values, and nothing else; JSON values.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any]) -> None:
        text = json.dumps(dict(fingerprint), sort_keys=True, indent=2)
        self.folder = folder / hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            about = self.folder / "fingerprint.json"
            if not about.exists():
                about.write_text(text + "\n", encoding="utf-8")  # for people; nothing reads it
        except OSError as error:
            raise LLM4GENError(
                f"Cache {self.folder} cannot be written ({error.strerror}); choose another folder."
            ) from error
        self._opened: OrderedDict[int, Any] = OrderedDict()
        self.refresh()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": OrderedDict()}

    def refresh(self) -> None:
        """See what other processes have written. A damaged shard is passed over, as if its entries were missing."""
        self._opened.clear()
        self._shards: list[Path] = []
        keys, places = [], []
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(str(path), framework="pt") as file:
                    own = file.get_tensor(KEYS).numpy()
                    whole = all(file.get_slice(name).get_shape()[0] == len(own) for name in file.keys())
            except (SafetensorError, OSError) as error:
                warnings.warn(f"Cache shard {path} is damaged ({error}); its entries are computed again.", stacklevel=2)
                continue
            if whole and own.shape[1:] == (16,):
                keys.append(np.ascontiguousarray(own).view("S16").ravel())
                places.append(
                    np.stack([np.full(len(own), len(self._shards)), np.arange(len(own))], 1).astype(np.uint32)
                )
                self._shards.append(path)
        found = np.concatenate([*keys, np.zeros(0, "S16")])
        order = np.argsort(found, kind="stable")
        self._keys = found[order]
        self._places = np.concatenate([*places, np.zeros((0, 2), np.uint32)])[order]

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: str) -> bool:
        return self._find(key) is not None

    def get(self, key: str) -> dict[str, Tensor]:
        """The tensors of a key, with the dtypes and shapes that they were written with.

        Raises:
            KeyError: the cache does not have it.
        """
        place = self._find(key)
        if place is None:
            raise KeyError(key)
        shard, row = place
        file = self._open(shard)
        return {name: file.get_slice(name)[row : row + 1][0] for name in file.keys() if name != KEYS}

    def writer(self, rank: int = 0) -> CacheWriter:
        """For adding entries; a context manager. They are found after the next `refresh`."""
        return CacheWriter(self.folder, rank)

    def require_space(self, needed: int) -> None:
        """Raise LLM4GENError unless the disk has room for so many bytes."""
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise _disk_full(self.folder, needed, free)

    def _find(self, key: str) -> tuple[int, int] | None:
        wanted = np.frombuffer(_hash(key), "S16")
        place = int(np.searchsorted(self._keys, wanted)[0])
        if place == len(self._keys) or self._keys[place] != wanted[0]:
            return None
        return int(self._places[place, 0]), int(self._places[place, 1])

    def _open(self, shard: int) -> Any:
        if shard not in self._opened:
            if len(self._opened) >= _OPEN_SHARDS:
                self._opened.popitem(last=False)
            self._opened[shard] = safe_open(str(self._shards[shard]), framework="pt")
        self._opened.move_to_end(shard)
        return self._opened[shard]


class CacheWriter:
    """Collects entries and writes them in shards.

    Args:
        folder: of the cache.
        rank: of the process, part of the shards' names.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder, self._rank = folder, rank
        self._entries: dict[tuple[Any, ...], list[tuple[bytes, dict[str, Tensor]]]] = {}
        self._bytes, self._since = 0, time.monotonic()
        for leftover in folder.glob(".*.partial"):
            # Of a process that was killed; one that is younger could belong to another run.
            with contextlib.suppress(OSError):
                if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                    leftover.unlink()

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        # An interrupted run keeps what it has; after a full disk there is nothing to be kept.
        if kind is None or not issubclass(kind, LLM4GENError):
            self.flush()

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Add an entry. Its tensors are copied to the CPU.

        Raises:
            LLM4GENError: the disk is full.
        """
        own = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        shape = tuple((name, own[name].dtype, tuple(own[name].shape)) for name in sorted(own))
        self._entries.setdefault(shape, []).append((_hash(key), own))
        self._bytes += entry_bytes(own)
        if self._bytes >= SHARD_BYTES or time.monotonic() - self._since > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write everything that was put."""
        while self._entries:
            self._write(self._entries.popitem()[1])
        self._bytes, self._since = 0, time.monotonic()

    def _write(self, entries: list[tuple[bytes, dict[str, Tensor]]]) -> None:
        stacked = {name: torch.stack([tensors[name] for _, tensors in entries]) for name in entries[0][1]}
        digests = np.frombuffer(b"".join(digest for digest, _ in entries), np.uint8).reshape(-1, 16)
        content = save({KEYS: torch.from_numpy(digests.copy()), **stacked})
        target = self._folder / f"{self._rank:04}-{uuid.uuid4().hex}.safetensors"
        partial = target.with_name(f".{target.name}.partial")
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
            sync_folder(self._folder)
        except OSError as error:
            partial.unlink(missing_ok=True)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise _disk_full(self._folder, len(content), shutil.disk_usage(self._folder).free) from error


def entry_bytes(tensors: Mapping[str, Tensor]) -> int:
    """What an entry takes on the disk, without its shard's header."""
    return 16 + sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def sync_folder(folder: Path) -> None:
    """Bring renames to the disk, where the system can do that."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _hash(key: str) -> bytes:
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _disk_full(folder: Path, needed: int, free: int) -> LLM4GENError:
    return LLM4GENError(
        f"Cache {folder} needs {needed / 1e9:.2f} GB, but its disk has {free / 1e9:.2f} GB free; make room, choose "
        "another data.cache.folder, or switch data.cache.latents or data.cache.text off."
    )
