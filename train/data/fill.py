"""Filling the caches: latents of every image, features of every caption. What is there already is not computed."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from llm4gen_core import LLM4GENError

from .buckets import Size, assign, bucket_sizes
from .cache import TensorCache, entry_bytes
from .images import PIXELS_VERSION, BadImage, to_model
from .manifest import Manifest, Problem
from .samples import cut_of, ignore_signals, latent_key, load_pixels, variations
from .scan import Progress

EMPTY = ""
"""The prompt of a sample whose caption is dropped; always in the text cache."""


def latent_cache(folder: Path, vae: Mapping[str, Any]) -> TensorCache:
    """The cache of latents below a folder; `vae` says what encodes: `model_fingerprint`, precision."""
    return TensorCache(folder / "latents", {"vae": dict(vae), "pixels": PIXELS_VERSION})


def text_cache(folder: Path, encoders: Mapping[str, Any]) -> TensorCache:
    """The cache of captions' features below a folder.

    `encoders` says what encodes: fingerprints of the text encoders and their tokenizers, the `LLMSpec`, chunks of
    CLIP, precision.
    """
    return TensorCache(folder / "text", {"encoders": dict(encoders)})


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
    """Mean and standard deviation of the VAE's distribution for every image, in each of its cached cuts.

    Every image is decoded completely here. What fails is passed over and stays missing in the cache.

    Args:
        manifest: the pairs.
        cache: see `latent_cache`.
        encode: pixels [B, 3, H, W] from -1 to 1, on the CPU, to mean and std [B, C, h, w].
        seed: of the run; cuts and mirroring are drawn from it.
        batch: images that are encoded at once.
        rank, world_size: this process does its share. All must be done before one opens the cache anew.
        progress: is told how far this process is.

    Returns:
        The images that could not be used.

    Raises:
        LLM4GENError: the disk has no room, or the VAE gives nothing but NaN.
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
        generator=torch.Generator(),  # it would take a number from the run's otherwise
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
                        "Latent cache: the VAE gives values that are not finite for every image of the first batch. "
                        "Choose float32 or bfloat16 for model.vae_dtype; SDXL's VAE overflows in float16."
                    )
                if not written:
                    cache.require_space(entry_bytes({"mean": mean[0], "std": std[0]}) * len(todo.work) * world_size)
                for place, (index, key) in enumerate(keys):
                    if finite[place]:
                        writer.put(key, {"mean": mean[place], "std": std[place]})
                        written += 1
                    else:
                        sentence = "The VAE gives values that are not finite for it."
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
    """Features of each caption, and of the empty prompt, exactly as they are computed.

    Args:
        captions: different ones, in the same order in every process, such as `Manifest.captions()`.
        cache: see `text_cache`.
        encode: captions to their named tensors, one mapping each.
        batch: captions that are encoded at once.
        rank, world_size, progress: as for `fill_latents`.

    Raises:
        LLM4GENError: the disk has no room, or a feature is not finite.
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
                        f"Text cache: the {bad} features of {caption[:80]!r} hold values that are not finite; expected "
                        "numbers. Choose float32 or bfloat16 for model.text_dtype and model.llm_dtype."
                    )
                writer.put(caption, tensors)
            progress("caching text", start + len(group), len(work))
    cache.refresh()


class _Missing(Dataset[Any]):
    """What this process has to encode: batches of images of one size.

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
                cut = cut_of(manifest, index, self._sizes[bucket], seed, number)
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
        """((image, key) of each, pixels [B, 3, H, W], what cannot be used)."""
        keys, pixels, failed = [], [], []
        first, end = self._bounds[number]
        for bucket, index, which in self.work[first:end].tolist():
            size: Size = self._sizes[bucket]
            cut = cut_of(self._manifest, index, size, self._seed, which)
            try:
                pixels.append(to_model(load_pixels(self._manifest, index, cut)))
                keys.append((index, latent_key(self._manifest.digest(index), cut)))
            except BadImage as error:
                failed.append(self._manifest.problem(index, error.kind, str(error)))
        return keys, torch.stack(pixels) if pixels else torch.empty(0), failed
