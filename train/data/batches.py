"""Micro-batches: the tensors of one process, step by step, from any step on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from llm4gen_core import LLM4GENError
from llm4gen_core.entities import EntityPair

from ..recipe import Data
from .buckets import Size, assign, bucket_sizes
from .cache import TensorCache
from .images import BadImage, Cut, to_model
from .manifest import Manifest, Problem
from .order import GlobalOrder
from .samples import cut_of, ignore_signals, latent_key, load_pixels, variations
from .sources.base import reason


@dataclass
class Batch:
    """What one process computes at once. All samples have the same size.

    Attributes:
        keys, epochs: of the B samples; every random draw of a sample depends on them.
        captions: texts, before dropout.
        pairs: entity pairs of each caption.
        valid: [B] bool, False where an image could not be read; zeros stand in its place.
        problems: why.
        pixels: [B, 3, H, W] from -1 to 1, or None when latents are cached.
        latents: mean and standard deviation, [B, C, h, w] each, or None.
        text: cached features of the captions, [B, ...] each, or None.
        sizes: [B, 6] int64: original height and width, crop top and left, target height and width.
    """

    keys: list[str]
    epochs: list[int]
    captions: list[str]
    pairs: list[list[EntityPair]]
    valid: Tensor
    problems: list[Problem]
    pixels: Tensor | None
    latents: tuple[Tensor, Tensor] | None
    text: dict[str, Tensor] | None
    sizes: Tensor

    def pin_memory(self) -> Batch:
        """For DataLoader: the large tensors in memory from which a GPU copies faster."""
        latents = (self.latents[0].pin_memory(), self.latents[1].pin_memory()) if self.latents else None
        text = {name: tensor.pin_memory() for name, tensor in self.text.items()} if self.text else self.text
        return replace(
            self, pixels=None if self.pixels is None else self.pixels.pin_memory(), latents=latents, text=text
        )


def micro_batches(
    manifest: Manifest,
    order: GlobalOrder,
    *,
    recipe_data: Data,
    seed: int,
    first_step: int,
    steps: int,
    micro_batch: int,
    accumulation: int,
    rank: int = 0,
    world_size: int = 1,
    latent_cache: TensorCache | None = None,
    text_cache: TensorCache | None = None,
) -> Iterator[list[Batch]]:
    """The micro-batches of each optimizer step, `accumulation` at a time.

    What is in a batch depends on the step alone, not on where the iterator began. An image that cannot be read
    makes its sample invalid and stops nothing. Closing the iterator ends its worker processes.

    Args:
        manifest, order: the pairs, and `manifest.order(batch_size, seed)`.
        recipe_data: the recipe's section.
        seed: of the run.
        first_step, steps: of the first step, from 0, and how many follow.
        micro_batch, accumulation, world_size: their product is the order's batch size.
        rank: of this process.
        latent_cache, text_cache: filled; without them, pixels and plain captions are given.

    Raises:
        LLM4GENError: the batch sizes do not fit together, or the text cache lacks a caption.
    """
    if micro_batch * accumulation * world_size != order.batch_size:
        raise LLM4GENError(
            f"Batch size {order.batch_size} is not micro_batch {micro_batch} x accumulation {accumulation} x "
            f"{world_size} processes; change train.batch_size or train.micro_batch."
        )
    samples = _Samples(manifest, order, recipe_data, seed, latent_cache, text_cache)
    parts = [order.part(step, micro_batch, rank, world_size) for step in range(accumulation)]
    workers = min(recipe_data.workers, steps * accumulation)
    loader = DataLoader(
        _MicroBatches(samples, first_step, steps, parts),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=2 if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=ignore_signals,
        generator=torch.Generator(),  # it would take a number from the run's otherwise
    )
    return _in_steps(loader, accumulation)


def _in_steps(loader: DataLoader[Batch], accumulation: int) -> Iterator[list[Batch]]:
    step: list[Batch] = []
    # No name for the loader's own iterator: when this one is closed, it goes too, and its workers with it.
    for batch in loader:
        step.append(batch)
        if len(step) == accumulation:
            yield step
            step = []


class _MicroBatches(Dataset[Batch]):
    """Micro-batch number i is part i % accumulation of step first + i // accumulation."""

    def __init__(self, samples: _Samples, first: int, steps: int, parts: list[slice]) -> None:
        self._samples, self._first, self._steps, self._parts = samples, first, steps, parts

    def __len__(self) -> int:
        return self._steps * len(self._parts)

    def __getitem__(self, number: int) -> Batch:
        step, part = divmod(number, len(self._parts))
        return self._samples.load(self._first + step, self._parts[part])


class _Samples:
    """From (step, part of its batch) to a Batch."""

    def __init__(
        self,
        manifest: Manifest,
        order: GlobalOrder,
        data: Data,
        seed: int,
        latents: TensorCache | None,
        text: TensorCache | None,
    ) -> None:
        self._manifest, self._order, self._seed = manifest, order, seed
        self._sizes, self._variations = bucket_sizes(data), variations(data)
        self._latents, self._text = latents, text
        self._channels, self._scale = self._latent_form() if latents is not None else (3, 1)

    def load(self, step: int, part: slice) -> Batch:
        size = self._sizes[self._order.bucket(step)]
        members = self._order.batch(step, part)
        cuts = [self._cut(index, epoch, size) for index, epoch in members]
        read = self._pixels if self._latents is None else self._latent
        images = [read(index, cut) for (index, _), cut in zip(members, cuts, strict=True)]
        blank = torch.zeros(self._channels, size[0] // self._scale, size[1] // self._scale)
        found = next((image for image in images if not isinstance(image, Problem)), (blank, blank))
        # Zeros of the same kind stand in for what cannot be read.
        nothing = tuple(torch.zeros_like(tensor) for tensor in found)
        first, *second = (
            torch.stack(column)
            for column in zip(*(nothing if isinstance(image, Problem) else image for image in images), strict=True)
        )
        captions = [self._manifest.caption(index) for index, _ in members]
        return Batch(
            keys=[self._manifest.key(index) for index, _ in members],
            epochs=[epoch for _, epoch in members],
            captions=captions,
            pairs=[self._manifest.pairs(index) for index, _ in members],
            valid=torch.tensor([not isinstance(image, Problem) for image in images]),
            problems=[image for image in images if isinstance(image, Problem)],
            pixels=first if self._latents is None else None,
            latents=None if self._latents is None else (first, second[0]),
            text=None if self._text is None else self._features(captions),
            sizes=torch.tensor([cut.sizes() for cut in cuts]),
        )

    def _cut(self, index: int, epoch: int, size: Size) -> Cut:
        which = epoch if self._latents is None else epoch % self._variations
        return cut_of(self._manifest, index, size, self._seed, which)

    def _pixels(self, index: int, cut: Cut) -> tuple[Tensor, ...] | Problem:
        try:
            return (to_model(load_pixels(self._manifest, index, cut)),)
        except BadImage as error:
            return self._manifest.problem(index, error.kind, str(error))

    def _latent(self, index: int, cut: Cut) -> tuple[Tensor, ...] | Problem:
        assert self._latents is not None
        try:
            found = self._latents.get(latent_key(self._manifest.digest(index), cut))
        except KeyError:
            sentence = "Its latents are not in the cache: it could not be used when the cache was filled."
            return self._manifest.problem(index, "not cached", sentence)
        except (OSError, SafetensorError) as error:
            return self._manifest.problem(index, "cache damaged", f"Its latents cannot be read ({reason(error)}).")
        return found["mean"], found["std"]

    def _features(self, captions: list[str]) -> dict[str, Tensor]:
        assert self._text is not None
        try:
            features = [self._text.get(caption) for caption in captions]
        except KeyError as error:
            raise LLM4GENError(
                f"Text cache {self._text.folder} lacks the caption {str(error.args[0])[:80]!r}; it has to be "
                "filled with the captions of the manifest first."
            ) from error
        return {name: torch.stack([own[name] for own in features]) for name in features[0]}

    def _latent_form(self) -> tuple[int, int]:
        """Channels of the latents, and pixels to one of theirs."""
        assert self._latents is not None
        buckets = assign(*self._manifest.sizes(), self._sizes)
        for index in range(len(self._manifest)):
            size = self._sizes[int(buckets[index])]
            found = self._latent(index, self._cut(index, 0, size))
            if not isinstance(found, Problem):
                return found[0].shape[0], size[0] // found[0].shape[1]
        raise LLM4GENError(
            f"Latent cache {self._latents.folder} holds none of the {len(self._manifest)} images; it has to be filled "
            "first."
        )
