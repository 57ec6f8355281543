"""`python -m llm4gen_diffusers generate`: the image of the ComfyUI workflow, without ComfyUI."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

from llm4gen_core import LLM4GENError

from .devices import DTYPES, choose_device
from .families import FAMILIES
from .images import check_output, save_png
from .sampling import Pipeline
from .schedule import TRAIN_STEPS


@dataclass(frozen=True)
class GenerateSettings:
    """What `generate` paints; checked when made, before any model is loaded.

    Attributes:
        base, unet, adapter, llm, clip, tokenizer, family, lambda_mode: see `Pipeline.from_files`.
        prompts: one or more; each is painted with the same seed, as a workflow with a fixed seed would.
        negative, seed, steps, guidance, width, height, batch, strength: see `Pipeline.paint`.
        dtype: a key of `DTYPES`; None is float16 on a GPU and float32 elsewhere.
        device: such as "cpu", "cuda:1" or "mps"; None takes a GPU if there is one.
        output: see `save_png`.

    Raises:
        LLM4GENError: a value is impossible.
    """

    base: str
    prompts: Sequence[str]
    output: str
    unet: str | None = None
    adapter: str | None = None
    llm: str | None = None
    clip: str | None = None
    tokenizer: str | None = None
    family: str | None = None
    negative: str = ""
    seed: int = 0
    steps: int = 50
    guidance: float = 7.5
    width: int | None = None
    height: int | None = None
    batch: int = 1
    strength: float | None = None
    lambda_mode: str | None = None
    dtype: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        def require(name: str, ok: bool, expected: str) -> None:
            if not ok:
                raise LLM4GENError(f"{name.capitalize()} is {getattr(self, name)!r}; expected {expected}.")

        if not self.prompts:
            raise LLM4GENError("There is no prompt; give at least one, an empty text if need be.")
        require("seed", 0 <= self.seed < 2**64, "a whole number from 0 to 2**64 - 1")
        require("steps", 1 <= self.steps <= TRAIN_STEPS, f"a whole number from 1 to {TRAIN_STEPS}")
        require("guidance", math.isfinite(self.guidance) and self.guidance >= 1, "a number of at least 1 (1 is off)")
        for name in ("width", "height"):
            size = getattr(self, name)
            possible = size is None or (size % 8 == 0 and 16 <= size <= 16384)
            require(name, possible, "a multiple of 8 from 16 to 16384 pixels")
        require("family", self.family is None or self.family in FAMILIES, ", ".join(FAMILIES))
        require("batch", self.batch >= 1, "a whole number of at least 1")
        if self.strength is not None:
            require("strength", math.isfinite(self.strength) and self.strength >= 0, "a number of at least 0")
            if self.adapter is None:
                raise LLM4GENError(
                    f"Strength is {self.strength}, but there is no adapter whose strength it could be; "
                    "give an adapter and its LLM, or leave the strength out."
                )
        if self.lambda_mode is not None and self.adapter is None:
            raise LLM4GENError(
                f"Lambda mode is {self.lambda_mode!r}, but there is no adapter; give an adapter and its LLM, or leave "
                "it out."
            )
        require("dtype", self.dtype is None or self.dtype in DTYPES, ", ".join(DTYPES))
        check_output(self.output)


def generate(settings: GenerateSettings) -> list[Path]:
    """Paint every prompt and print the name of each file as it is written.

    Args:
        settings: all of it.

    Returns:
        The PNG files, `settings.batch` for each prompt in turn.

    Raises:
        LLM4GENError: see `Pipeline.from_files`; or the device does not exist or is out of memory.
    """
    device = choose_device(settings.device)
    dtype = settings.dtype or ("float32" if device.type == "cpu" else "float16")
    pipeline = Pipeline.from_files(
        settings.base,
        family=settings.family,
        unet=settings.unet,
        adapter=settings.adapter,
        llm=settings.llm,
        clip=settings.clip,
        tokenizer=settings.tokenizer,
        lambda_mode=settings.lambda_mode,
        dtype=DTYPES[dtype],
        device=device,
    )
    width, height = (side or pipeline.family.native_size for side in (settings.width, settings.height))
    files = []
    for prompt in settings.prompts:
        try:
            images = pipeline.generate(
                prompt,
                settings.negative,
                seed=settings.seed,
                steps=settings.steps,
                guidance=settings.guidance,
                width=width,
                height=height,
                batch=settings.batch,
                strength=settings.strength,
            )
        except torch.OutOfMemoryError as error:
            raise LLM4GENError(
                f"Device {device} ran out of memory at {width} x {height}, batch {settings.batch}, "
                f"{dtype}; choose a smaller size or batch, dtype float16, or device cpu."
            ) from error
        for index, image in enumerate(images):
            file = save_png(image, settings.output, _record(settings, pipeline, prompt, index, dtype, image))
            print(file, flush=True)
            files.append(file)
    return files


def _record(
    settings: GenerateSettings, pipeline: Pipeline, prompt: str, index: int, dtype: str, image: Tensor
) -> dict[str, Any]:
    """Everything needed to paint image `index` of `prompt` again; files by name only, since images are shared."""
    record: dict[str, Any] = {
        "prompt": prompt,
        "negative": settings.negative,
        "seed": settings.seed,
        "batch": settings.batch,
        "index": index,
        "steps": settings.steps,
        "guidance": settings.guidance,
        "width": image.shape[2],
        "height": image.shape[1],
        "sampler": "ddim",
        "scheduler": "ddim_uniform",
        "dtype": dtype,
        "family": pipeline.family.name,
        "base": Path(settings.base).resolve().name,
        "diffusers": diffusers.__version__,
        "torch": torch.__version__,
    }
    for name in ("unet", "clip"):
        if (path := getattr(settings, name)) is not None:
            record[name] = Path(path).resolve().name
    if settings.adapter is not None and pipeline.llm is not None:
        record["adapter"] = Path(settings.adapter).name
        record["llm"] = pipeline.llm.spec.label
        record["strength"] = pipeline.default_strength() if settings.strength is None else settings.strength
        record["lambda_mode"] = pipeline.lambda_mode
    return record
