"""Generation of a prompt set into an image set: only missing images, shared by all processes."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import time
from collections.abc import Sequence

import torch
from tqdm import tqdm

from llm4gen_core import LLM4GENError
from llm4gen_core.files import write_bytes

from .image_set import ImageRow, ImageSet, ImageSettings, Prompt, image_id, is_own, noise_seed, process_state
from .models import Model


def generate(
    path: str | os.PathLike[str],
    name: str,
    model: Model,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    benchmark: str = "",
    notes: Sequence[str] = (),
) -> ImageSet:
    """Generate an image of every prompt with every seed into a folder, or continue there.

    Under `accelerate launch` the processes share the images.

    Args:
        path: folder of the image set.
        name: name of the model in tables.
        model: opened model, such as one of `open_model`.
        prompts, seeds: what to generate; further ones that the folder has are kept.
        benchmark, notes: see `ImageSettings`; the model's notes are added.

    Raises:
        LLM4GENError: see `ImageSet.create`, or the device is out of memory.
    """
    state = process_state()
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
    work = [prompt_and_seed for number, prompt_and_seed in images.missing() if is_own(number)]
    made = {**model.made(), "process": state.process_index}
    batches = model.generate([prompt for prompt, _ in work], [noise_seed(prompt, seed) for prompt, seed in work])
    try:
        with contextlib.closing(batches), tqdm(total=len(work), unit="image", desc=name, disable=None) as bar:
            done, start = 0, time.monotonic()
            for batch in batches:
                seconds = (time.monotonic() - start) / len(batch)
                rows = []
                for image, (prompt, seed) in zip(batch, work[done:], strict=False):
                    key = image_id(prompt.id, seed)
                    # No metadata in the file: a metric must see nothing but pixels.
                    file = io.BytesIO()
                    image.save(file, format="PNG")
                    write_bytes(images.images / f"{key}.png", file.getvalue(), "Image")
                    row = ImageRow(
                        id=key,
                        file=f"images/{key}.png",
                        prompt=prompt.id,
                        text=prompt.text,
                        category=prompt.category,
                        seed=seed,
                        width=image.width,
                        height=image.height,
                        settings=settings.fingerprint,
                        seconds=seconds,
                        made=made,
                        sha256=hashlib.sha256(file.getvalue()).hexdigest(),
                    )
                    rows.append(row.model_dump())
                # Rows follow their files, so that a row of a killed process never lacks its image.
                images.manifest.append(*rows)
                done += len(batch)
                bar.update(len(batch))
                start = time.monotonic()
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise LLM4GENError(
            "The device ran out of memory; choose a smaller batch, a smaller size, or dtype float16. Images generated "
            "so far are kept."
        ) from error
    state.wait_for_everyone()
    return images
