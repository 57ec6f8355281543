"""`python -m llm4gen_diffusers generate`: the image of the ComfyUI workflow, without ComfyUI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

from llm4gen_core import LLM4GENError

from .devices import choose_device, choose_dtype, dtype_name
from .images import check_output, save_png
from .options import GenerateSettings
from .sampling import Pipeline


def generate(settings: GenerateSettings) -> list[Path]:
    """Generate images of every prompt and print the name of each file as it is written.

    Returns:
        The PNG files, `settings.batch` for each prompt in turn.

    Raises:
        LLM4GENError: see `Pipeline.from_files`; or the device does not exist or is out of memory, or the output cannot
            be used.
    """
    check_output(settings.output)
    device = choose_device(settings.device)
    dtype = dtype_name(choose_dtype(settings.dtype, device))
    pipeline = Pipeline.from_files(settings, device)
    files = []
    for prompt in settings.prompts:
        try:
            images = pipeline.generate(prompt, settings, seed=settings.seed, batch=settings.batch)
        except torch.OutOfMemoryError as error:
            width, height = (side or pipeline.family.native_size for side in (settings.width, settings.height))
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
    """Everything needed to generate image `index` of `prompt` again; files by name only, since images are shared."""
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
        record["strength"] = pipeline.strength
        record["lambda_mode"] = pipeline.lambda_mode
    return record
