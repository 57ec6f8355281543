"""What paints: a base with or without LLM4GEN, any other pipeline of diffusers, or a ComfyUI with any workflow."""

from __future__ import annotations

import contextlib
import inspect
import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from llm4gen_core import LLM4GENError
from llm4gen_diffusers import options
from llm4gen_diffusers.devices import DTYPES, choose_device
from llm4gen_diffusers.images import to_image
from llm4gen_diffusers.provenance import content_hash, machine
from llm4gen_diffusers.sampling import Pipeline

from .model_files import PATHS, GenerationOptions, ModelFiles
from .prompts import Prompt

WORKFLOW_NOTE = "Painted with the settings of the workflow, whatever the benchmark or the paper says."


class Model(ABC):
    """Paints prompts.

    Attributes:
        notes: sentences about how it paints that a reader of its scores should know.
    """

    notes: tuple[str, ...] = ()

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Everything that changes pixels, beside prompt and seed; JSON values."""

    @abstractmethod
    def made(self) -> dict[str, Any]:
        """What paints: device and program; JSON values. Another one may change the last bits of a float."""

    @abstractmethod
    def generate(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Generator[list[Image.Image], None, None]:
        """Paint each prompt with the noise of its seed.

        Yields:
            Images in RGB in the order of the prompts, as many at a time as are painted together.
        """


def open_model(files: ModelFiles, painting: GenerationOptions, device: str | None = None) -> Model:
    """Load a model.

    Args:
        device: such as "cuda:1"; None takes a GPU if there is one.

    Raises:
        LLM4GENError: something is missing or does not fit together.
    """
    if files.workflow is not None:
        return _Workflow(files, painting)
    return (_Base if files.base is not None else _Pipeline)(files, painting, choose_device(device))


class _Base(Model):
    """A base of one of the project's families, alone or with LLM4GEN."""

    def __init__(self, files: ModelFiles, painting: GenerationOptions, device: torch.device) -> None:
        assert files.base is not None
        self.files, self.painting, self.notes = files, painting, painting.notes
        self.dtype = _dtype(files, device)
        shared = options.ModelFiles.model_fields.keys() & ModelFiles.model_fields.keys()
        self.painter = Pipeline.from_files(
            options.ModelFiles(**files.model_dump(include={*shared})), device, chunks=files.chunks
        )

    def describe(self) -> dict[str, Any]:
        size = self.painter.family.native_size
        record: dict[str, Any] = {
            "kind": "llm4gen" if self.files.adapter else "base",
            "family": self.painter.family.name,
            "sampler": "ddim",
            "scheduler": "ddim_uniform",
            "noise": "of the CPU, one generator for each image, as ComfyUI draws it",
            "dtype": self.dtype,
            **self.painting.model_dump(),
            "width": self.painting.width or size,
            "height": self.painting.height or size,
            "chunks": self.files.chunks,
        }
        if self.painter.llm is not None:
            record["strength"] = self.painter.strength
            record["lambda_mode"] = self.painter.lambda_mode
            record["llm_spec"] = self.painter.llm.spec.label
        return {**record, **_hashes(self.files)}

    def made(self) -> dict[str, Any]:
        return _made(self.painter.device)

    def generate(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Generator[list[Image.Image], None, None]:
        for part in _batches(len(prompts), self.files.batch):
            images = self.painter.generate_prompts(
                [prompt.text for prompt in prompts[part]],
                options.GenerationOptions(**self.painting.model_dump()),
                seeds=seeds[part],
                batch=self.files.batch,
                progress=False,
            )
            yield [to_image(image) for image in images]


class _Pipeline(Model):
    """Any text-to-image pipeline of diffusers, with its own settings where the preset says nothing."""

    def __init__(self, files: ModelFiles, painting: GenerationOptions, device: torch.device) -> None:
        from diffusers.pipelines.pipeline_utils import DiffusionPipeline

        assert files.pipeline is not None
        self.files, self.painting, self.device = files, painting, device
        self.dtype = _dtype(files, device)
        _check_pipeline(Path(files.pipeline))
        try:
            with warnings.catch_warnings():
                # diffusers 0.42 would rather have "dtype", which 0.35 does not know.
                warnings.filterwarnings("ignore", ".*torch_dtype.*", FutureWarning)
                self.pipeline: Any = DiffusionPipeline.from_pretrained(
                    files.pipeline, torch_dtype=DTYPES[self.dtype], local_files_only=True
                ).to(device)
        except (OSError, ValueError, TypeError, AttributeError, ImportError) as error:
            raise LLM4GENError(
                f"Pipeline {files.pipeline} cannot be loaded by diffusers ({' '.join(str(error).split()):.300})."
            ) from error
        if not callable(self.pipeline) or "prompt" not in inspect.signature(self.pipeline.__call__).parameters:
            raise LLM4GENError(
                f"Pipeline {files.pipeline} is a {type(self.pipeline).__name__}, which paints no prompts; expected a "
                "text-to-image pipeline."
            )
        self.notes = (*painting.notes, *self._choose_sampler(files.sampler))
        self.pipeline.set_progress_bar_config(disable=True)
        if getattr(self.pipeline, "safety_checker", None) is not None:
            # It would paint black what it takes for unsafe, and a score of that says nothing about the model.
            self.pipeline.safety_checker = None
        self.takes = inspect.signature(self.pipeline.__call__).parameters

    def _choose_sampler(self, wanted: str | None) -> tuple[str, ...]:
        """Exchange the sampler if it is wanted and possible; what a reader should know of it."""
        from diffusers import DDIMScheduler

        own = getattr(self.pipeline, "scheduler", None)
        name = type(own).__name__
        if wanted == "own" or (wanted is None and not self.painting.sampler) or name == "DDIMScheduler":
            return ()
        if own is None or DDIMScheduler not in own.compatibles:
            if wanted is not None:
                raise LLM4GENError(
                    f"Pipeline {self.files.pipeline} paints with {name}, in whose place DDIM cannot stand; leave the "
                    "sampler out."
                )
            return (f"Painted with the pipeline's own sampler, {name}, in whose place DDIM cannot stand.",)
        # A latent must not be clipped; a configuration that was written for another sampler may not say so.
        clip = own.config.get("clip_sample", False)
        self.pipeline.scheduler = DDIMScheduler.from_config(own.config, clip_sample=clip)
        return ()

    def describe(self) -> dict[str, Any]:
        scheduler = getattr(self.pipeline, "scheduler", None)
        return {
            "kind": "diffusers pipeline",
            "family": type(self.pipeline).__name__,
            "sampler": type(scheduler).__name__,
            "scheduler": {
                key: value
                for key, value in sorted(dict(getattr(scheduler, "config", {})).items())
                if isinstance(value, (str, int, float, bool)) and not key.startswith("_")
            },
            "noise": "of the CPU, one torch.Generator for each image",
            "dtype": self.dtype,
            **self.painting.model_dump(),
            **_hashes(self.files),
        }

    def made(self) -> dict[str, Any]:
        return _made(self.device)

    def generate(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Generator[list[Image.Image], None, None]:
        settings = {
            "num_inference_steps": self.painting.steps,
            "guidance_scale": self.painting.guidance,
            "width": self.painting.width,
            "height": self.painting.height,
            "output_type": "pil",
        }
        known: dict[str, Any] = {
            name: value for name, value in settings.items() if name in self.takes and value is not None
        }
        for part in _batches(len(prompts), self.files.batch):
            texts = [prompt.text for prompt in prompts[part]]
            generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds[part]]
            if self.painting.negative and "negative_prompt" in self.takes:
                known["negative_prompt"] = [self.painting.negative] * len(texts)
            images = self.pipeline(prompt=texts, generator=generators, **known).images
            yield [image.convert("RGB") for image in images]


class _Workflow(Model):
    """A workflow of ComfyUI, which holds its own settings."""

    notes = (WORKFLOW_NOTE,)

    def __init__(self, files: ModelFiles, painting: GenerationOptions) -> None:
        from .comfyui import ComfyUIPipeline

        assert files.workflow is not None
        self.painter = ComfyUIPipeline.connect(
            files.server,
            Path(files.workflow),
            prompt_inputs=files.prompt_inputs,
            seed_inputs=files.seed_inputs,
            output_node=files.output_node,
            negative=painting.negative or None,
            negative_inputs=files.negative_inputs,
            weights=files.weights,
        )

    def describe(self) -> dict[str, Any]:
        return {"kind": "comfyui workflow", **self.painter.describe()}

    def made(self) -> dict[str, Any]:
        return self.painter.made()

    def generate(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Generator[list[Image.Image], None, None]:
        with contextlib.closing(self.painter.generate(prompts, seeds)) as images:
            for image in images:
                yield [image]


def _batches(count: int, size: int) -> Iterator[slice]:
    for first in range(0, count, size):
        yield slice(first, first + size)


def _made(device: torch.device) -> dict[str, Any]:
    about = machine()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "llm4gen": about["llm4gen"],
        "torch": about["packages"]["torch"],
        "diffusers": about["packages"]["diffusers"],
        "system": about["system"],
    }


def _check_pipeline(folder: Path) -> None:
    """Raise LLM4GENError unless the folder is a pipeline that consists of diffusers' and transformers' own classes."""
    try:
        index = json.loads((folder / "model_index.json").read_bytes())
        name = index["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LLM4GENError(
            f"Pipeline {folder} has no model_index.json that names a pipeline; expected a folder that diffusers saved "
            "or that Hugging Face shows as a diffusers model."
        ) from error
    parts = {part: value[0] for part, value in index.items() if isinstance(value, list) and len(value) == 2}
    own = [part for part, library in parts.items() if any((folder / part).glob(f"{library}.py"))]
    if not isinstance(name, str) or own:
        raise LLM4GENError(
            f"Pipeline {folder} brings code of its own ({', '.join(own) or name[0]}), which is not executed; expected "
            "one of diffusers' own classes."
        )


def _dtype(files: ModelFiles, device: torch.device) -> str:
    return files.dtype or ("float32" if device.type == "cpu" else "float16")


def _hashes(files: ModelFiles) -> dict[str, Any]:
    """Name and hash of every file and folder; no paths, since settings are shared."""
    record: dict[str, Any] = {}
    for name in PATHS:
        if (value := getattr(files, name)) is not None:
            path = Path(value).resolve()
            record[name] = {"name": path.name, "hash": content_hash(path)}
    return record
