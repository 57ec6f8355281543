"""`python -m llm4gen_diffusers generate`: the images of the ComfyUI workflow, without ComfyUI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch

from llm4gen_core import LLM4GENError

from .machine import choose_device, choose_dtype, dtype_name
from .options import GenerateSettings, SamplingSettings
from .sampling import Pipeline, check_output, save_png


def generate(settings: GenerateSettings) -> list[Path]:
    """Generate images of every prompt and print the name of each file as it is written.

    Returns:
        PNG files, `settings.batch` for each prompt in turn.

    Raises:
        LLM4GENError: the output cannot be used, the device does not exist or is out of memory; or see
            `Pipeline.from_files`.
    """
    check_output(settings.output)
    device = choose_device(settings.device)
    pipeline = Pipeline.from_files(settings, device)
    files = []
    for prompt in settings.prompts:
        record = sampling_record(settings, pipeline, prompt)
        try:
            images = pipeline.generate(prompt, settings, seed=settings.seed, batch=settings.batch)
        except torch.OutOfMemoryError as error:
            raise LLM4GENError(
                f"Device {device} ran out of memory at {record['width']} x {record['height']}, batch {settings.batch}, "
                f"{record['dtype']}; choose a smaller size or batch, dtype float16, or device cpu."
            ) from error
        for index, image in enumerate(images):
            file = save_png(image, settings.output, {**record, "batch": settings.batch, "index": index})
            print(file, flush=True)
            files.append(file)
    return files


def sampling_record(settings: SamplingSettings, pipeline: Pipeline, prompt: str) -> dict[str, Any]:
    """Everything needed to generate an image again, for its PNG; files by name only, since images are shared."""
    family = pipeline.family
    record: dict[str, Any] = {
        "prompt": prompt,
        "negative": settings.negative,
        "seed": settings.seed,
        "steps": settings.steps,
        "guidance": settings.guidance,
        "width": settings.width or family.native_size,
        "height": settings.height or family.native_size,
        "sampler": "ddim",
        "scheduler": "ddim_uniform",
        "dtype": dtype_name(choose_dtype(settings.dtype, pipeline.device)),
        "family": family.name,
        "diffusers": diffusers.__version__,
        "torch": torch.__version__,
    }
    for name in ("base", "unet", "clip", "adapter"):
        if (path := getattr(settings, name)) is not None:
            record[name] = Path(path).resolve().name
    if pipeline.llm is not None:
        record["llm"] = pipeline.llm.spec.label
        record["strength"] = pipeline.strength
        record["lambda_mode"] = pipeline.lambda_mode
    return record
