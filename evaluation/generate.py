"""Painting a set of prompts: what is there is not painted again, and several processes share what is missing."""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from llm4gen_core import LLM4GENError
from llm4gen_headless.provenance import machine

from .image_set import ImageRow, ImageSet, ImageSettings, image_id, noise_seed
from .models import Model, ModelFiles, Painting, open_model
from .processes import PartialState, process_state
from .prompts import Prompt


def generate(
    path: str | os.PathLike[str],
    name: str,
    files: ModelFiles,
    painting: Painting,
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
        benchmark, notes: see `ImageSettings`.
        device: of this process; None for its own GPU, or the CPU.

    Raises:
        LLM4GENError: see `open_model` and `ImageSet.create`.
    """
    state = process_state()
    model = open_model(files, painting, device or _own_device(state))
    images = ImageSet(path)
    settings = ImageSettings(
        name=name, benchmark=benchmark, seeds=list(seeds), painting=model.describe(), notes=list(notes)
    )
    with state.main_process_first():
        if state.is_main_process:
            images.create(settings, prompts)
    settings = images.settings
    missing = [work for number, work in images.missing() if number % state.num_processes == state.process_index]
    made = _made(device or str(state.device), state.process_index, files)
    with tqdm(total=len(missing), unit="image", desc=name, disable=None) as bar:
        for first in range(0, len(missing), files.batch):
            part = missing[first : first + files.batch]
            try:
                _paint(images, settings, model, part, made)
            except MemoryError as error:
                raise _too_large(files) from error
            except RuntimeError as error:
                if type(error).__name__ != "OutOfMemoryError":
                    raise
                raise _too_large(files) from error
            bar.update(len(part))
    state.wait_for_everyone()
    return images


def _paint(
    images: ImageSet, settings: ImageSettings, model: Model, part: Sequence[tuple[Prompt, int]], made: dict[str, Any]
) -> None:
    """Paint some images and enter them into the manifest, each after its file is there."""
    start = time.monotonic()
    painted = model.paint([prompt for prompt, _ in part], [noise_seed(prompt, seed) for prompt, seed in part])
    seconds = (time.monotonic() - start) / len(part)
    rows = []
    for (prompt, seed), image in zip(part, painted, strict=True):
        name = image_id(prompt.id, seed)
        file = f"images/{name}.png"
        rows.append(
            ImageRow(
                id=name,
                file=file,
                prompt=prompt.id,
                text=prompt.text,
                category=prompt.category,
                seed=seed,
                width=image.width,
                height=image.height,
                settings=settings.fingerprint,
                seconds=seconds,
                made=made,
                sha256=_write_png(image, images.path / file),
            )
        )
    images.manifest.append(*(row.model_dump() for row in rows))


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


def _made(device: str, process: int, files: ModelFiles) -> dict[str, Any]:
    import torch

    about = machine()
    kind = files.server if files.workflow else device
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") and not files.workflow else None
    return {
        "device": kind,
        "gpu": gpu,
        "process": process,
        "llm4gen": about["llm4gen"],
        "torch": about["packages"]["torch"],
        "diffusers": about["packages"]["diffusers"],
        "system": about["system"],
    }


def _too_large(files: ModelFiles) -> LLM4GENError:
    return LLM4GENError(
        f"The device ran out of memory with {files.batch} images at once; choose a smaller batch, a smaller size, or "
        "dtype float16. What has been painted is kept."
    )
