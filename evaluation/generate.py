"""Painting a set of prompts: what is there is not painted again, and several processes share what is missing."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from PIL import Image
from tqdm import tqdm

from llm4gen_core import LLM4GENError

from .image_set import ImageRow, ImageSet, ImageSettings, image_id, noise_seed
from .model_files import GenerationOptions, ModelFiles
from .models import Model, open_model
from .processes import process_state
from .prompts import Prompt


def generate(
    path: str | os.PathLike[str],
    name: str,
    files: ModelFiles,
    painting: GenerationOptions,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    benchmark: str = "",
    notes: Sequence[str] = (),
    device: str | None = None,
) -> ImageSet:
    """Paint every prompt with every seed into a folder, or go on with it.

    Under `accelerate launch` the processes share the images: each takes every n-th, so that two never paint the same.

    Args:
        path: the folder.
        name: of the model, for tables.
        files, painting: see `open_model`.
        prompts, seeds: what is asked for; a folder that has more keeps it.
        benchmark, notes: see `ImageSettings`; those of the model and of the painting are added.
        device: of this process; None for its own GPU, or the CPU.

    Raises:
        LLM4GENError: see `open_model` and `ImageSet.create`.
    """
    state = process_state()
    model = open_model(files, painting, device or _own_device(state))
    images = ImageSet(path)
    settings = ImageSettings(
        name=name,
        benchmark=benchmark,
        seeds=list(seeds),
        generation=model.describe(),
        notes=[*notes, *model.notes],
    )
    with state.main_process_first():
        if state.is_main_process:
            images.create(settings, prompts)
    missing = [work for number, work in images.missing() if number % state.num_processes == state.process_index]
    made = {**model.made(), "process": state.process_index}
    try:
        _paint(images, settings.fingerprint, model, missing, made, name)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise LLM4GENError(
            f"The device ran out of memory with {files.batch} images at once; choose a smaller batch, a smaller size, "
            "or dtype float16. What has been painted is kept."
        ) from error
    state.wait_for_everyone()
    return images


def _paint(
    images: ImageSet,
    fingerprint: str,
    model: Model,
    missing: Sequence[tuple[Prompt, int]],
    made: Mapping[str, Any],
    name: str,
) -> None:
    """Paint images and enter each into the manifest after its file is there."""
    painted = model.generate([prompt for prompt, _ in missing], [noise_seed(prompt, seed) for prompt, seed in missing])
    work = iter(missing)
    with contextlib.closing(painted), tqdm(total=len(missing), unit="image", desc=name, disable=None) as bar:
        for batch, seconds in _timed(painted):
            rows = []
            for image in batch:
                prompt, seed = next(work)
                found = image_id(prompt.id, seed)
                row = ImageRow(
                    id=found,
                    file=f"images/{found}.png",
                    prompt=prompt.id,
                    text=prompt.text,
                    category=prompt.category,
                    seed=seed,
                    width=image.width,
                    height=image.height,
                    settings=fingerprint,
                    seconds=seconds / len(batch),
                    made=dict(made),
                    sha256=_write_png(image, images.images / f"{found}.png"),
                )
                rows.append(row.model_dump())
            images.manifest.append(*rows)
            bar.update(len(batch))


def _timed(batches: Iterator[list[Image.Image]]) -> Iterator[tuple[list[Image.Image], float]]:
    """Each with the seconds that were waited for it."""
    start = time.monotonic()
    for batch in batches:
        yield batch, time.monotonic() - start
        start = time.monotonic()


def _write_png(image: Image.Image, path: Path) -> str:
    """Write a PNG whole or not at all; its SHA-256. What made it stands in the manifest: a judge must not see it."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    temporary.write_bytes(buffer.getvalue())
    os.replace(temporary, path)
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def _own_device(state: PartialState) -> str | None:
    """The GPU that accelerate gave to this process; None lets the model choose."""
    return str(state.device) if state.num_processes > 1 else None
