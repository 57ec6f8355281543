"""Models that are measured: a base with or without LLM4GEN, any diffusers pipeline, or a ComfyUI with any workflow."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
import yaml
from PIL import Image
from pydantic import Field

from llm4gen_core import LLM4GENError
from llm4gen_core.files import read_json
from llm4gen_diffusers import options
from llm4gen_diffusers.machine import choose_device, choose_dtype, content_hash, dtype_name, machine
from llm4gen_diffusers.options import DType, Options, PathLike, option, options_from
from llm4gen_diffusers.sampling import to_image

from .image_set import Prompt

if TYPE_CHECKING:
    from llm4gen_diffusers.sampling import Pipeline

PATHS = ("base", "unet", "adapter", "llm", "clip", "tokenizer", "pipeline", "workflow")
"""Fields of model files that name files and folders."""

_Batches = Generator[list[Image.Image], None, None]


class Model(Protocol):
    """A model that generates images of prompts."""

    @property
    def notes(self) -> Sequence[str]:
        """Sentences about the settings that a reader of the scores should know."""

    def describe(self) -> dict[str, Any]:
        """Return everything that changes pixels, beside prompt and seed; JSON values."""

    def made(self) -> dict[str, Any]:
        """Return device and versions, which may change the last bits of a float; JSON values."""

    def generate(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> _Batches:
        """Generate an image of each prompt with the noise of its seed.

        Yields:
            RGB images in the order of the prompts, as many at a time as are generated together.
        """


class PresetOptions(options.GenerationOptions):
    """Generation options of a preset; the excluded ones change no pixel by themselves.

    Attributes:
        sampler: "ddim", or "" for a diffusers pipeline's own; the project's families are always sampled with DDIM.
        notes: sentences on how this differs from a protocol.
    """

    sampler: Literal["ddim", ""] = Field(default="ddim", exclude=True)
    notes: tuple[str, ...] = Field(default=(), exclude=True)


class ModelFiles(options.ModelFiles):
    """A base of one of the project's families, alone or with LLM4GEN."""

    chunks: int | None = option(
        1,
        "chunks of 77 CLIP tokens that a prompt may have: 1 truncates longer ones, as in the paper and in diffusers; 0 "
        "takes as many as a prompt needs, as ComfyUI does",
        ge=0,
    )
    batch: int = option(1, "images generated at once, which may change the last bits of a float", ge=1)


class PipelineFiles(Options):
    """A text-to-image pipeline of diffusers."""

    pipeline: PathLike = option(..., "folder of any text-to-image pipeline of diffusers", "DIR")
    sampler: Literal["ddim", "own"] | None = option(
        None, "sampler of a pipeline (default: the preset's if the pipeline supports it)"
    )
    dtype: DType | None = option(None, "precision (default: float16 on a GPU, float32 on the CPU)")
    batch: int = option(1, "images generated at once", ge=1)


class WorkflowFiles(Options):
    """A workflow on a running ComfyUI; see `ComfyUIPipeline.connect`.

    The workflow has its own settings; of `GenerationOptions` only a negative prompt is used.
    """

    workflow: PathLike = option(..., "ComfyUI workflow, saved by Workflow > Export (API)", "FILE")
    server: str = option("http://127.0.0.1:8188", "address of ComfyUI", "URL")
    prompt_inputs: tuple[str, ...] = option(
        (), "input of the workflow for the prompt, such as 6.text; repeatable", "NODE.INPUT", name="--prompt-input"
    )
    negative_inputs: tuple[str, ...] = option(
        (), "input for the negative prompt; repeatable", "NODE.INPUT", name="--negative-input"
    )
    seed_inputs: tuple[str, ...] = option(
        (), "input for the seed, such as 3.seed; repeatable", "NODE.INPUT", name="--seed-input"
    )
    output_node: str | None = option(None, "node whose image is used, if there are several", "NODE")
    weights: bool = option(False, "parentheses in prompts are weights, as in (word:1.3), not literal text")


AnyFiles = ModelFiles | PipelineFiles | WorkflowFiles
_KINDS: dict[str, type[ModelFiles] | type[PipelineFiles] | type[WorkflowFiles]] = {
    "base": ModelFiles,
    "pipeline": PipelineFiles,
    "workflow": WorkflowFiles,
}


def read_models(path: Path) -> dict[str, AnyFiles]:
    """Read the models of a YAML file.

    Args:
        path: file of NAME: {base: ...}, {pipeline: ...} or {workflow: ...}, with fields of `ModelFiles`,
            `PipelineFiles` or `WorkflowFiles`. Relative paths start at the file's folder.

    Raises:
        LLM4GENError: the file cannot be read, or fields of a model are wrong.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise LLM4GENError(f"Models {path} cannot be read ({' '.join(str(error).split())}).") from error
    if not isinstance(content, dict) or not content:
        raise LLM4GENError(
            f"Models {path} contains {type(content).__name__}; expected NAME: {{base: ..., adapter: ...}}."
        )
    return {
        str(name): model_files(f"Model {name!r} of {path}", fields, path.parent) for name, fields in content.items()
    }


def model_files(what: str, fields: Any, folder: Path | None = None) -> AnyFiles:
    """Files of a model from plain values.

    Args:
        what: beginning of errors.
        fields: values by name; exactly one of base, pipeline and workflow is given.
        folder: folder at which relative paths start; None for the current folder.

    Raises:
        LLM4GENError: a value is wrong.
    """
    if not isinstance(fields, Mapping):
        raise LLM4GENError(f"{what} is {fields!r:.80}; expected fields such as base: models/sd15.")
    given = [name for name in _KINDS if fields.get(name) is not None]
    if len(given) != 1:
        raise LLM4GENError(
            f"{what} has {' and '.join(given) or 'neither base nor pipeline nor workflow'}; expected exactly one of "
            f"{', '.join(_KINDS)}."
        )
    if folder is not None:
        fields = {
            name: str(folder / value) if name in PATHS and isinstance(value, str) else value
            for name, value in fields.items()
        }
    found: AnyFiles = options_from(_KINDS[given[0]], fields, what)
    return found


def open_model(files: AnyFiles, settings: PresetOptions, device: str | None = None) -> Model:
    """Load a model.

    Args:
        device: such as "cuda:1"; None takes a GPU if there is one.

    Raises:
        LLM4GENError: something is missing or does not fit together.
    """
    if isinstance(files, WorkflowFiles):
        return ComfyUIModel(files, settings)
    if isinstance(files, PipelineFiles):
        return DiffusersModel(files, settings, device)

    from llm4gen_diffusers.sampling import Pipeline

    pipeline = Pipeline.from_files(files, choose_device(device), chunks=files.chunks or None)
    return LLM4GENModel(pipeline, settings, files.batch, _hashes(files), settings.notes)


class LLM4GENModel:
    """A pipeline of one of the project's families, alone or with LLM4GEN.

    Args:
        pipeline: opened pipeline; λ and chunks are its own.
        settings: steps, guidance, size and negative prompt.
        batch: number of images generated at once.
        files: what identifies the weights, for `describe`; JSON values.
        notes: see `Model`.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        settings: options.GenerationOptions,
        batch: int = 1,
        files: Mapping[str, Any] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.pipeline = pipeline
        self.settings = settings
        self.batch = batch
        self.files = dict(files or {})
        self.notes = notes

    def describe(self) -> dict[str, Any]:
        pipeline, size = self.pipeline, self.pipeline.family.native_size
        # These values are fingerprinted: images of older sets go on only while they stay the same.
        record: dict[str, Any] = {
            "kind": "base" if pipeline.llm is None else "llm4gen",
            "family": pipeline.family.name,
            "sampler": "ddim",
            "scheduler": "ddim_uniform",
            "noise": "of the CPU, one generator for each image, as ComfyUI draws it",
            "dtype": dtype_name(next(pipeline.family.unet.parameters()).dtype),
            **self.settings.model_dump(),
            "width": self.settings.width or size,
            "height": self.settings.height or size,
            "chunks": pipeline.chunks,
        }
        if pipeline.llm is not None:
            record["strength"] = pipeline.strength
            record["lambda_mode"] = pipeline.lambda_mode
            record["llm_spec"] = pipeline.llm.spec.label
        return {**record, **self.files}

    def made(self) -> dict[str, Any]:
        return _made(self.pipeline.device)

    def generate(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> _Batches:
        for part in _parts(len(prompts), self.batch):
            texts = [prompt.text for prompt in prompts[part]]
            images = self.pipeline.generate_prompts(
                texts, self.settings, seeds=seeds[part], batch=self.batch, progress=False
            )
            yield [to_image(image) for image in images]


class DiffusersModel:
    """Any text-to-image pipeline of diffusers, with its own settings where the preset leaves them open."""

    def __init__(self, files: PipelineFiles, settings: PresetOptions, device: str | None = None) -> None:
        from diffusers.pipelines.pipeline_utils import DiffusionPipeline

        self.files, self.settings, self.device = files, settings, choose_device(device)
        folder = Path(files.pipeline)
        _check_pipeline(folder)
        dtype = choose_dtype(files.dtype, self.device)
        self.dtype = dtype_name(dtype)
        try:
            with warnings.catch_warnings():
                # diffusers 0.42 prefers "dtype", which 0.35 does not know.
                warnings.filterwarnings("ignore", ".*torch_dtype.*", FutureWarning)
                self.pipeline: Any = DiffusionPipeline.from_pretrained(
                    folder, torch_dtype=dtype, local_files_only=True
                ).to(self.device)
        except (OSError, ValueError, TypeError, AttributeError, ImportError) as error:
            raise LLM4GENError(
                f"Pipeline {folder} cannot be loaded by diffusers ({' '.join(str(error).split()):.300})."
            ) from error
        self.accepts = inspect.signature(self.pipeline.__call__).parameters if callable(self.pipeline) else {}
        if "prompt" not in self.accepts:
            raise LLM4GENError(
                f"Pipeline {folder} is a {type(self.pipeline).__name__}, which has no prompt; expected a text-to-image "
                "pipeline."
            )
        self.notes = (*settings.notes, *self._choose_sampler(files.sampler))
        self.pipeline.set_progress_bar_config(disable=True)
        if getattr(self.pipeline, "safety_checker", None) is not None:
            # It blackens what it takes for unsafe, and the score of a black image says nothing about the model.
            self.pipeline.safety_checker = None

    def _choose_sampler(self, wanted: str | None) -> tuple[str, ...]:
        """Replace the sampler if it is wanted and possible; return notes about it."""
        from diffusers import DDIMScheduler

        own = getattr(self.pipeline, "scheduler", None)
        name = type(own).__name__
        if wanted == "own" or (wanted is None and not self.settings.sampler) or name == "DDIMScheduler":
            return ()
        if own is None or DDIMScheduler not in own.compatibles:
            if wanted is not None:
                raise LLM4GENError(
                    f"Pipeline {self.files.pipeline} uses {name}, which DDIM cannot replace; leave the sampler out."
                )
            return (f"Sampled with the pipeline's own {name}, which DDIM cannot replace.",)
        # Latents must not be clipped, but a config written for another sampler may leave that out.
        clip = own.config.get("clip_sample", False)
        self.pipeline.scheduler = DDIMScheduler.from_config(own.config, clip_sample=clip)
        return ()

    def describe(self) -> dict[str, Any]:
        scheduler = getattr(self.pipeline, "scheduler", None)
        # These values are fingerprinted: images of older sets go on only while they stay the same.
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
            **self.settings.model_dump(),
            **_hashes(self.files),
        }

    def made(self) -> dict[str, Any]:
        return _made(self.device)

    def generate(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> _Batches:
        known = {
            "num_inference_steps": self.settings.steps,
            "guidance_scale": self.settings.guidance,
            "width": self.settings.width,
            "height": self.settings.height,
            "output_type": "pil",
        }
        arguments: dict[str, Any] = {
            name: value for name, value in known.items() if name in self.accepts and value is not None
        }
        for part in _parts(len(prompts), self.files.batch):
            texts = [prompt.text for prompt in prompts[part]]
            generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds[part]]
            if self.settings.negative and "negative_prompt" in self.accepts:
                arguments["negative_prompt"] = [self.settings.negative] * len(texts)
            images = self.pipeline(prompt=texts, generator=generators, **arguments).images
            yield [image.convert("RGB") for image in images]


class ComfyUIModel:
    """A ComfyUI workflow, which has its own settings."""

    notes = ("Generated with the settings of the workflow, not with those of the benchmark or the paper.",)

    def __init__(self, files: WorkflowFiles, settings: PresetOptions) -> None:
        from .comfyui import ComfyUIPipeline

        inputs = files.model_dump(exclude={"server", "workflow"})
        self.pipeline = ComfyUIPipeline.connect(
            files.server, Path(files.workflow), negative=settings.negative or None, **inputs
        )

    def describe(self) -> dict[str, Any]:
        return {"kind": "comfyui workflow", **self.pipeline.describe()}

    def made(self) -> dict[str, Any]:
        return self.pipeline.made()

    def generate(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> _Batches:
        with contextlib.closing(self.pipeline.generate(prompts, seeds)) as images:
            for image in images:
                yield [image]


def _parts(count: int, size: int) -> Iterator[slice]:
    for first in range(0, count, size):
        yield slice(first, first + size)


def _made(device: torch.device) -> dict[str, Any]:
    """Device and versions of a torch model."""
    about = machine()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "llm4gen": about["llm4gen"],
        "torch": about["packages"]["torch"],
        "diffusers": about["packages"]["diffusers"],
        "system": about["system"],
    }


def _check_pipeline(folder: Path) -> None:
    """Raise LLM4GENError unless the folder is a pipeline of diffusers' and transformers' own classes."""
    advice = "expected a folder that diffusers saved or that Hugging Face shows as a diffusers model"
    index = read_json(folder / "model_index.json", "Pipeline index", advice)
    name = index.get("_class_name")
    parts = {part: value[0] for part, value in index.items() if isinstance(value, list) and len(value) == 2}
    own = [part for part, library in parts.items() if any((folder / part).glob(f"{library}.py"))]
    if isinstance(name, list):
        own.append(str(name[0]))
    if own:
        raise LLM4GENError(
            f"Pipeline {folder} contains its own code ({', '.join(own)}), which is not executed; "
            "expected a pipeline of diffusers' own classes."
        )
    if not isinstance(name, str):
        raise LLM4GENError(f"Pipeline {folder}: model_index.json has no _class_name; {advice}.")


def _hashes(files: AnyFiles) -> dict[str, Any]:
    """Name and hash of every file and folder; no paths, since settings are shared."""
    record: dict[str, Any] = {}
    for name in PATHS:
        if (value := getattr(files, name, None)) is not None:
            path = Path(value).resolve()
            record[name] = {"name": path.name, "hash": content_hash(path)}
    return record
