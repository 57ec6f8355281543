"""Micro-batches of a run: its data, scanned, cached and ordered, and the tensors of one process, step by step."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from llm4gen_core import LLM4GENError
from llm4gen_core.entities import EntityPair, entity_backend
from llm4gen_core.errors import first_line

from ..models import Models
from ..recipe import Recipe
from .cache import (
    TensorCache,
    fill_latents,
    fill_text,
    ignore_signals,
    latent_key,
    model_fingerprint,
    tokenizer_fingerprint,
)
from .images import PIXELS_VERSION, BadImage, Cut, Size, assign, bucket_sizes, to_model, variations
from .manifest import Manifest, Problem, ProblemLog, describe, write_report
from .order import GlobalOrder
from .scan import scan


class TrainingData:
    """Image-text pairs of a run in one process.

    Args:
        models: of the recipe; they encode images and captions for the caches.
        folder: of the run, for reports.
        accelerator: of the run.
        pairs: number of pairs to use; None for all.

    Attributes:
        manifest: usable pairs.
        parser: name and version of the entity parser; None where no pairs are needed.
        fingerprint: hash of all that the samples consist of; a run can only be resumed with the same.
    """

    def __init__(self, models: Models, folder: Path, accelerator: Accelerator, pairs: int | None = None) -> None:
        recipe = self.recipe = models.recipe
        self.accelerator = accelerator
        self.cache_folder = cache_folder(recipe, folder)
        self.parser = entity_backend(recipe.data.entities) if recipe.guidance.is_on else None
        # The main process scans; the others open the table that it wrote.
        with accelerator.main_process_first(), Bars(accelerator.is_main_process) as bars:
            self.manifest = scan(recipe.data, self.cache_folder, bars, recipe.guidance.is_on)
        if pairs is not None:
            self.manifest.shorten(pairs)
        self.order = self.manifest.order(recipe.train.batch_size, recipe.seed)
        self.fingerprint = self.manifest.fingerprint
        self.log = ProblemLog(folder) if accelerator.is_main_process else None
        later: list[Problem] = []
        self.latents = self._fill_latents(models, later) if recipe.data.cache.latents else None
        self.text = self._fill_text(models) if recipe.data.cache.text else None
        if accelerator.is_main_process:
            summary = write_report(self.manifest, folder, later)
            for line in describe(summary, chain(self.manifest.problems(), later)):
                tqdm.write(line)
            if self.parser is not None and self.parser.startswith("rules/"):
                tqdm.write(
                    f"Attribute-entity pairs come from the fallback parser ({self.parser}), which knows words and "
                    "patterns but no grammar. Install a trained spaCy pipeline such as en_core_web_trf for better ones."
                )

    @property
    def samples(self) -> int:
        """Number of samples of an epoch."""
        return len(self.order)

    def steps(self, first: int, last: int, accumulation: int) -> Generator[list[Batch], None, None]:
        """Micro-batches of this process, `accumulation` a step, for the steps from `first` up to `last`."""
        yield from micro_batches(
            self.manifest,
            self.order,
            first_step=first,
            steps=last - first,
            micro_batch=self.recipe.train.micro_batch,
            accumulation=accumulation,
            latent_cache=self.latents,
            text_cache=self.text,
            **self._share,
        )

    def report(self, problems: list[Problem]) -> None:
        """Write down samples that could not be read, and print each the first time."""
        if self.log is None or not problems:
            return
        for problem in self.log.add(problems):
            tqdm.write(f"left out: {problem}")

    def _fill_latents(self, models: Models, problems: list[Problem]) -> TensorCache:
        family, device = models.family, self.accelerator.device
        vae = {
            "vae": model_fingerprint(family.vae),
            "dtype": self.recipe.model.vae_dtype,
            "pixels_per_latent": family.pixels_per_latent,
        }
        cache = TensorCache(self.cache_folder / "latents", {"vae": vae, "pixels": PIXELS_VERSION})

        def encode(pixels: Tensor) -> tuple[Tensor, Tensor]:
            mean, std = family.encode_images(pixels.to(device))
            return mean.cpu(), std.cpu()

        with Bars(self.accelerator.is_main_process) as bars:
            problems += fill_latents(self.manifest, cache, encode, seed=self.recipe.seed, progress=bars, **self._share)
        problems[:] = gather_object(problems)
        cache.refresh()
        return cache

    def _fill_text(self, models: Models) -> TensorCache:
        family, llm = models.family, models.llm
        encoders: dict[str, Any] = {
            "clip": [model_fingerprint(encoder) for encoder in family.text_encoders],
            "clip_dtype": self.recipe.model.text_dtype,
            "chunks": self.recipe.data.clip_chunks,
            "tokens": [tokenizer_fingerprint(tokenizer) for tokenizer in family.tokenizers],
        }
        if llm is not None:
            encoders |= {
                "llm": model_fingerprint(llm.model),
                "llm_spec": llm.spec.to_json(),
                "llm_tokens": tokenizer_fingerprint(llm.tokenizer),
            }
        cache = TensorCache(self.cache_folder / "text", {"encoders": encoders})

        def encode(captions: list[str]) -> list[Mapping[str, Tensor]]:
            features = {name: tensor.cpu() for name, tensor in models.features(captions).items()}
            return [{name: tensor[i].clone() for name, tensor in features.items()} for i in range(len(captions))]

        with Bars(self.accelerator.is_main_process) as bars:
            fill_text(self.manifest.captions(), cache, encode, progress=bars, **self._share)
        self.accelerator.wait_for_everyone()
        cache.refresh()
        return cache

    @property
    def _share(self) -> dict[str, int]:
        """Number of this process and of all."""
        return {"rank": self.accelerator.process_index, "world_size": self.accelerator.num_processes}


def cache_folder(recipe: Recipe, run: Path) -> Path:
    """Folder of the cache of a run."""
    return Path(recipe.data.cache.folder) if recipe.data.cache.folder else run / "cache"


class Bars:
    """Progress bars with the time left, one after the other; a `Progress` callback.

    Args:
        shown: whether this process shows them.
    """

    def __init__(self, shown: bool) -> None:
        self.shown = shown
        self._bar: tqdm[Any] | None = None
        self._what = ""
        self._updated = 0.0

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, what: str, done: int, total: int) -> None:
        if not self.shown:
            return
        if self._bar is None or what != self._what:
            self.__exit__()
            self._what, self._bar = what, tqdm(desc=what, total=total or None, dynamic_ncols=True)
        self._bar.total = total or None
        now = time.monotonic()
        if now - self._updated > 0.2 or done == total:
            self._bar.update(done - self._bar.n)
            self._updated = now


@dataclass
class Batch:
    """Samples that one process computes at once, all of the same size.

    Attributes:
        keys, epochs: of the B samples; every random number of a sample depends on them.
        captions: texts, before dropout.
        pairs: entity pairs of each caption.
        valid: [B] bool, False where an image could not be read; zeros take its place.
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
        """Copy the large tensors to pinned memory; DataLoader calls it."""
        latents = (self.latents[0].pin_memory(), self.latents[1].pin_memory()) if self.latents else None
        text = {name: tensor.pin_memory() for name, tensor in self.text.items()} if self.text else self.text
        return replace(
            self, pixels=None if self.pixels is None else self.pixels.pin_memory(), latents=latents, text=text
        )


def micro_batches(
    manifest: Manifest,
    order: GlobalOrder,
    *,
    first_step: int,
    steps: int,
    micro_batch: int,
    accumulation: int,
    rank: int = 0,
    world_size: int = 1,
    latent_cache: TensorCache | None = None,
    text_cache: TensorCache | None = None,
) -> Iterator[list[Batch]]:
    """Micro-batches of each optimizer step, `accumulation` at a time.

    The content of a batch depends on the step alone, not on where the iterator began. An image that cannot be read
    makes its sample invalid and stops nothing. Closing the iterator ends its worker processes.

    Args:
        manifest, order: the pairs, and `manifest.order(batch_size, seed)`.
        first_step, steps: number of the first step, from 0, and the number of steps.
        micro_batch, accumulation, world_size: their product is the order's batch size.
        rank: of this process.
        latent_cache, text_cache: filled; without them, batches hold pixels and plain captions.

    Raises:
        LLM4GENError: the batch sizes do not fit together, or the text cache lacks a caption.
    """
    if micro_batch * accumulation * world_size != order.batch_size:
        raise LLM4GENError(
            f"Batch size {order.batch_size} is not micro_batch {micro_batch} x accumulation {accumulation} x "
            f"{world_size} processes; change train.batch_size or train.micro_batch."
        )
    parts = [order.part(step, micro_batch, rank, world_size) for step in range(accumulation)]
    workers = min(manifest.data.workers, steps * accumulation)
    loader = DataLoader(
        _MicroBatches(manifest, order, first_step, steps, parts, latent_cache, text_cache),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=2 if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=ignore_signals,
        generator=torch.Generator(),  # otherwise it draws a number from the global generator
    )
    return _in_steps(loader, accumulation)


def _in_steps(loader: DataLoader[Batch], accumulation: int) -> Iterator[list[Batch]]:
    step: list[Batch] = []
    # The loader's own iterator has no name here: closing this one closes it too, and ends its workers.
    for batch in loader:
        step.append(batch)
        if len(step) == accumulation:
            yield step
            step = []


class _MicroBatches(Dataset[Batch]):
    """Micro-batches by number: number i is part i % accumulation of step first + i // accumulation."""

    def __init__(
        self,
        manifest: Manifest,
        order: GlobalOrder,
        first: int,
        steps: int,
        parts: list[slice],
        latents: TensorCache | None,
        text: TensorCache | None,
    ) -> None:
        self._manifest, self._order = manifest, order
        self._first, self._steps, self._parts = first, steps, parts
        self._sizes, self._variations = bucket_sizes(manifest.data), variations(manifest.data)
        self._latents, self._text = latents, text
        self._channels, self._scale = self._latent_form() if latents is not None else (3, 1)

    def __len__(self) -> int:
        return self._steps * len(self._parts)

    def __getitem__(self, number: int) -> Batch:
        accumulated, part = divmod(number, len(self._parts))
        step = self._first + accumulated
        size = self._sizes[self._order.bucket(step)]
        members = self._order.batch(step, self._parts[part])
        cuts = [self._cut(index, epoch, size) for index, epoch in members]
        read = self._pixels if self._latents is None else self._latent
        images = [read(index, cut) for (index, _), cut in zip(members, cuts, strict=True)]
        blank = torch.zeros(self._channels, size[0] // self._scale, size[1] // self._scale)
        found = next((image for image in images if not isinstance(image, Problem)), (blank, blank))
        # Zeros of the same kind take the place of what cannot be read.
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
        return self._manifest.cut(index, size, self._order.seed, which)

    def _pixels(self, index: int, cut: Cut) -> tuple[Tensor, ...] | Problem:
        try:
            return (to_model(self._manifest.pixels(index, cut)),)
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
            return self._manifest.problem(index, "cache damaged", f"Its latents cannot be read ({first_line(error)}).")
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
        """Channels of the latents, and pixels of the image to one of theirs."""
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
