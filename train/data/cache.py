"""Caches of latents and text features: tensors by key in shards on the disk, written by several processes at once.

A shard is a safetensors file with the stacked tensors of many entries, all of one shape, and their keys. It is written
whole or not at all, so that killing a process loses only the entries that it had not written yet. There is no index
that could be lost: it is made from the keys in the shards when the cache is opened.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import signal
import time
import uuid
import warnings
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from llm4gen_core import LLM4GENError
from llm4gen_core.files import write_bytes, write_text

from .images import BadImage, Cut, assign, bucket_sizes, to_model, variations
from .manifest import Manifest, Problem
from .scan import Progress

KEYS = "keys"
"""Name of a shard's tensor [n, 16] uint8 with the hashes of its entries' keys."""

SHARD_BYTES = 2**28
FLUSH_SECONDS = 60.0
"""Entries are written to the disk after so many bytes or seconds: a kill loses no more than that."""

EMPTY = ""
"""Prompt of a sample whose caption is dropped; always in the text cache."""

_ADVICE = "Make room, choose another data.cache.folder, or switch data.cache.latents or data.cache.text off."

_OPEN_SHARDS = 256
_STALE_SECONDS = 3600.0


class TensorCache:
    """Cache of named tensors by key.

    Args:
        folder: of the cache; each fingerprint has a subfolder of its own.
        fingerprint: all that changes the values, and nothing else; JSON values.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any]) -> None:
        text = json.dumps(dict(fingerprint), sort_keys=True, indent=2)
        self.folder = folder / hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            about = self.folder / "fingerprint.json"
            if not about.exists():
                write_text(about, text + "\n")  # for people; nothing reads it
        except OSError as error:
            raise LLM4GENError(
                f"Cache {self.folder} cannot be written ({error.strerror}); choose another folder."
            ) from error
        self._opened: OrderedDict[int, Any] = OrderedDict()
        self.refresh()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": OrderedDict()}

    def refresh(self) -> None:
        """Read the keys of all shards again. The entries of a damaged shard count as missing."""
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
        """Return the tensors of a key, with their dtypes and shapes.

        Raises:
            KeyError: the cache does not hold it.
        """
        place = self._find(key)
        if place is None:
            raise KeyError(key)
        shard, row = place
        file = self._open(shard)
        return {name: file.get_slice(name)[row : row + 1][0] for name in file.keys() if name != KEYS}

    def writer(self, rank: int = 0) -> CacheWriter:
        """Return a context manager that adds entries, which are found after the next `refresh`."""
        return CacheWriter(self.folder, rank)

    def require_space(self, needed: int) -> None:
        """Raise LLM4GENError unless the disk has that many bytes free."""
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise LLM4GENError(
                f"Cache {self.folder} needs {needed / 1e9:.2f} GB, but its disk has {free / 1e9:.2f} GB free. {_ADVICE}"
            )

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
    """Collects entries and writes them as shards.

    Args:
        folder: of the cache.
        rank: number of the process, part of the names of the shards.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder, self._rank = folder, rank
        self._entries: dict[tuple[Any, ...], list[tuple[bytes, dict[str, Tensor]]]] = {}
        self._bytes, self._since = 0, time.monotonic()
        for leftover in folder.glob(".*.partial"):
            # Left by a process that was killed; a younger one may belong to another run.
            with contextlib.suppress(OSError):
                if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                    leftover.unlink()

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        # An interrupted run keeps its entries; on a full disk they cannot be kept.
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
        """Write all entries that were added."""
        while self._entries:
            self._write(self._entries.popitem()[1])
        self._bytes, self._since = 0, time.monotonic()

    def _write(self, entries: list[tuple[bytes, dict[str, Tensor]]]) -> None:
        stacked = {name: torch.stack([tensors[name] for _, tensors in entries]) for name in entries[0][1]}
        digests = np.frombuffer(b"".join(digest for digest, _ in entries), np.uint8).reshape(-1, 16)
        content = save({KEYS: torch.from_numpy(digests.copy()), **stacked})
        path = self._folder / f"{self._rank:04}-{uuid.uuid4().hex}.safetensors"
        write_bytes(path, content, "Cache shard", _ADVICE)


def entry_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of an entry on the disk, without the header of its shard."""
    return 16 + sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _hash(key: str) -> bytes:
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()


# Filling


def fill_latents(
    manifest: Manifest,
    cache: TensorCache,
    encode: Callable[[Tensor], tuple[Tensor, Tensor]],
    *,
    seed: int,
    batch: int = 8,
    rank: int = 0,
    world_size: int = 1,
    progress: Progress | None = None,
) -> list[Problem]:
    """Cache mean and standard deviation of the VAE's distribution for every image, in each of its cached cuts.

    Every image is decoded completely here. Images that fail stay missing in the cache.

    Args:
        manifest: the pairs.
        cache: of latents.
        encode: maps pixels [B, 3, H, W] from -1 to 1, on the CPU, to mean and std [B, C, h, w].
        seed: of the run; cuts and mirroring are drawn from it.
        batch: number of images that are encoded at once.
        rank, world_size: this process encodes its share. All must be done before one refreshes the cache.
        progress: callback.

    Returns:
        The images that could not be used.

    Raises:
        LLM4GENError: the disk is full, or the VAE gives nothing but NaN.
    """
    progress = progress or (lambda what, done, total: None)
    todo = _Missing(manifest, cache, seed, batch, rank, world_size)
    workers = min(manifest.data.workers, len(todo))
    loader = DataLoader(
        todo,
        batch_size=None,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=ignore_signals,
        generator=torch.Generator(),  # otherwise it draws a number from the global generator
    )
    problems: list[Problem] = []
    done = written = 0
    with cache.writer(rank) as writer:
        for keys, pixels, failed in loader:
            problems += failed
            done += len(keys) + len(failed)
            if keys:
                mean, std = encode(pixels)
                finite = (mean.isfinite() & std.isfinite()).flatten(1).all(1).tolist()
                if not any(finite) and not written:
                    raise LLM4GENError(
                        "Latent cache: the VAE's output is not finite for any image of the first batch; expected "
                        "finite numbers. Choose float32 or bfloat16 for model.vae_dtype, because SDXL's VAE overflows "
                        "in float16."
                    )
                if not written:
                    cache.require_space(entry_bytes({"mean": mean[0], "std": std[0]}) * len(todo.work) * world_size)
                for place, (index, key) in enumerate(keys):
                    if finite[place]:
                        writer.put(key, {"mean": mean[place], "std": std[place]})
                        written += 1
                    else:
                        sentence = "The VAE's output for it is not finite."
                        problems.append(manifest.problem(index, "not finite", sentence))
            progress("caching latents", done, len(todo.work))
    cache.refresh()
    return problems


def fill_text(
    captions: Iterable[str],
    cache: TensorCache,
    encode: Callable[[list[str]], Sequence[Mapping[str, Tensor]]],
    *,
    batch: int = 32,
    rank: int = 0,
    world_size: int = 1,
    progress: Progress | None = None,
) -> None:
    """Cache the features of each caption and of the empty prompt, exactly as they are computed.

    Args:
        captions: distinct ones, in the same order in every process, such as `Manifest.captions()`.
        cache: of text features.
        encode: maps captions to their named tensors, one mapping each.
        batch: number of captions that are encoded at once.
        rank, world_size, progress: as for `fill_latents`.

    Raises:
        LLM4GENError: the disk is full, or a feature is not finite.
    """
    progress = progress or (lambda what, done, total: None)
    own = islice(captions, rank, None, world_size)
    work = [caption for caption in own if caption != EMPTY and caption not in cache]
    if rank == 0 and EMPTY not in cache:
        work.insert(0, EMPTY)
    with cache.writer(rank) as writer:
        for start in range(0, len(work), batch):
            group = work[start : start + batch]
            features = encode(group)
            if start == 0:
                cache.require_space(entry_bytes(features[0]) * len(work) * world_size)
            for caption, tensors in zip(group, features, strict=True):
                if bad := next((name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())), None):
                    raise LLM4GENError(
                        f"Text cache: the {bad} features of {caption[:80]!r} are not finite; expected finite "
                        "numbers. Choose float32 or bfloat16 for model.text_dtype and model.llm_dtype."
                    )
                writer.put(caption, tensors)
            progress("caching text", start + len(group), len(work))
    cache.refresh()


class _Missing(Dataset[Any]):
    """Images that this process has to encode, in batches of one size.

    Attributes:
        work: [M, 3] bucket, image and variation, sorted by bucket.
    """

    def __init__(
        self, manifest: Manifest, cache: TensorCache, seed: int, batch: int, rank: int, world_size: int
    ) -> None:
        self._manifest, self._seed, self._sizes = manifest, seed, bucket_sizes(manifest.data)
        buckets = assign(*manifest.sizes(), self._sizes)
        numbers = array("q")
        for index in range(rank, len(manifest), world_size):
            bucket = int(buckets[index])
            for number in range(variations(manifest.data)):
                cut = manifest.cut(index, self._sizes[bucket], seed, number)
                if latent_key(manifest.digest(index), cut) not in cache:
                    numbers.extend((bucket, index, number))
        work = np.frombuffer(numbers, np.int64).reshape(-1, 3) if numbers else np.zeros((0, 3), np.int64)
        self.work = work[np.argsort(work[:, 0], kind="stable")]
        starts = np.flatnonzero(np.diff(self.work[:, 0], prepend=-1))
        ends = np.append(starts[1:], len(self.work))[: len(starts)]
        self._bounds = [
            (first, min(first + batch, end))
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
            for first in range(start, end, batch)
        ]

    def __len__(self) -> int:
        return len(self._bounds)

    def __getitem__(self, number: int) -> tuple[list[tuple[int, str]], Tensor, list[Problem]]:
        """((image, key) of each, pixels [B, 3, H, W], problems of unusable images)."""
        keys, pixels, failed = [], [], []
        first, end = self._bounds[number]
        for bucket, index, which in self.work[first:end].tolist():
            cut = self._manifest.cut(index, self._sizes[bucket], self._seed, which)
            try:
                pixels.append(to_model(self._manifest.pixels(index, cut)))
                keys.append((index, latent_key(self._manifest.digest(index), cut)))
            except BadImage as error:
                failed.append(self._manifest.problem(index, error.kind, str(error)))
        return keys, torch.stack(pixels) if pixels else torch.empty(0), failed


def latent_key(digest: bytes, cut: Cut) -> str:
    """Key of an image and its cut: all that changes its latents beside the VAE."""
    numbers = (*cut.resized, cut.top, cut.left, *cut.target, int(cut.flip))
    return f"{digest.hex()} {' '.join(map(str, numbers))}"


def ignore_signals(worker: int) -> None:
    """Ignore Ctrl-C and SIGTERM in a data worker: they reach it too, and the run needs it until it stops."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


# Fingerprints

_SAID_BY_FILES = ("transformers_version", "torch_dtype", "dtype", "architectures", "model_type")
"""Keys of a configuration that describe its file; the dtype of the weights is hashed with the weights."""

_known: WeakKeyDictionary[nn.Module, tuple[tuple[int, ...], str]] = WeakKeyDictionary()


def model_fingerprint(module: nn.Module) -> str:
    """Hash of the configuration and weights of a frozen model whose outputs are cached.

    It does not depend on the names of files. It takes about a second a gigabyte, once for the same module with the same
    weights.
    """
    state = {name: tensor for name, tensor in module.state_dict().items() if torch.is_tensor(tensor)}
    versions = tuple(part for tensor in state.values() for part in (tensor.data_ptr(), tensor._version))
    if module in _known and _known[module][0] == versions:
        return _known[module][1]
    total = hashlib.blake2b(digest_size=16)
    total.update(json.dumps(_config(module), sort_keys=True, default=str).encode())
    for name in sorted(state):
        tensor = state[name].detach()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.to("cpu").contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    _known[module] = (versions, total.hexdigest())
    return total.hexdigest()


def _config(module: nn.Module) -> dict[str, Any]:
    """Configuration as diffusers (a mapping) or transformers (an object) keep it."""
    config = getattr(module, "config", None)
    if config is None:
        return {}
    entries = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return {name: value for name, value in entries.items() if not name.startswith("_") and name not in _SAID_BY_FILES}


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Hash of a tokenizer: its vocabulary and, for a fast one, all of its rules."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
