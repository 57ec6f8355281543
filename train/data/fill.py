"""Filling the caches: latents of every image, features of every caption. What is there already is not computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from llm4gen_core import LLM4GENError

from .batches import ignore_signals, load_pixels, variation
from .buckets import assign, bucket_sizes
from .cache import CacheWriter, TensorCache, entry_bytes
from .images import PIXELS_VERSION, BadImage, Cut, to_model
from .manifest import Manifest, Problem
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


def latent_key(digest: bytes, cut: Cut) -> str:
    """An image and how it is cut: all that changes its latents beside the VAE."""
    numbers = (*cut.resized, cut.top, cut.left, *cut.target, int(cut.flip))
    return f"{digest.hex()} {' '.join(map(str, numbers))}"


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
    work = _missing_latents(manifest, cache, seed, rank, world_size)
    batches = _same_shape(work, batch)
    problems: list[Problem] = []
    workers = min(manifest.data.workers, len(batches))
    loader = DataLoader(
        _Encodable(manifest, seed, batches),
        batch_size=None,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=ignore_signals,
        generator=torch.Generator(),
    )
    done = 0
    with cache.writer(rank) as writer:
        for keys, pixels, failed in loader:
            problems += [_problem(manifest, index, *why) for index, *why in failed]
            if len(keys):
                mean, std = encode(pixels)
                problems += _put_latents(manifest, writer, keys, mean, std, cache, len(work) * world_size, done == 0)
            done += len(keys) + len(failed)
            progress("caching latents", done, len(work))
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


def _missing_latents(
    manifest: Manifest, cache: TensorCache, seed: int, rank: int, world_size: int
) -> list[tuple[int, int, int]]:
    """(bucket, image, variation) of this process's share that the cache does not have."""
    from .batches import cut_of

    sizes = bucket_sizes(manifest.data)
    buckets = assign(*manifest.sizes(), sizes)
    variations = variation(manifest.data)
    work = []
    for index in range(rank, len(manifest), world_size):
        bucket = int(buckets[index])
        for number in range(variations):
            cut = cut_of(manifest, index, sizes[bucket], seed, number)
            if latent_key(manifest.digest(index), cut) not in cache:
                work.append((bucket, index, number))
    return work
