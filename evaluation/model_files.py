"""Which models are measured and how they paint: what command lines and YAML files say of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from llm4gen_core import LLM4GENError
from llm4gen_core.errors import first_problem
from llm4gen_core.lambda_modes import LAMBDA_MODES

from .benchmarks import Preset

PATHS = ("base", "unet", "adapter", "llm", "clip", "tokenizer", "pipeline", "workflow")
"""Fields of `ModelFiles` that name files and folders."""


class GenerationOptions(BaseModel):
    """How a model paints; what a preset says.

    Attributes:
        steps: of the sampler.
        sampler: "ddim", or "" for a pipeline's own. The project's families paint with DDIM in either case.
        guidance: scale of classifier-free guidance; 1 is off.
        negative: prompt.
        width, height: pixels; None for the model's own size.
        notes: sentences about how this differs from a protocol; they change no pixel.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(default=50, ge=1, le=1000)
    guidance: float = Field(default=7.5, ge=1, allow_inf_nan=False)
    negative: str = ""
    width: int | None = Field(default=None, ge=16, multiple_of=8)
    height: int | None = Field(default=None, ge=16, multiple_of=8)
    sampler: Literal["ddim", ""] = Field(default="ddim", exclude=True)
    notes: tuple[str, ...] = Field(default=(), exclude=True)


class ModelFiles(BaseModel):
    """A model by its files; exactly one of `base`, `pipeline` and `workflow` says which kind it is.

    Attributes:
        base, unet, adapter, llm, clip, tokenizer, family, lambda_mode: see `Pipeline.from_files`.
        strength: λ; None for the adapter's default.
        chunks: of 77 CLIP tokens that a prompt may have. 1, as in the paper and in diffusers' pipelines, cuts it; None
            takes as many as it needs, as ComfyUI does.
        pipeline: folder of any text-to-image pipeline of diffusers.
        sampler: of a pipeline: "own" or "ddim"; None is what the preset says, if the pipeline's own can be exchanged.
        workflow: file of ComfyUI's; it holds its own settings, of `GenerationOptions` it takes the negative
            prompt alone, if
            that is not empty.
        server: address of the ComfyUI that runs it.
        prompt_inputs, negative_inputs, seed_inputs, output_node: where the workflow does not say itself what they are;
            see `ComfyUIPipeline.connect`.
        weights: parentheses in prompts are weights for the workflow.
        dtype: of the models; None is float16 on a GPU and float32 elsewhere.
        batch: images that are painted at once. What shares a batch may change the last bits of a float.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str | None = None
    unet: str | None = None
    adapter: str | None = None
    llm: str | None = None
    clip: str | None = None
    tokenizer: str | None = None
    family: str | None = None
    strength: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    lambda_mode: Literal[LAMBDA_MODES] | None = None  # type: ignore[valid-type]
    chunks: int | None = Field(default=1, ge=1)
    pipeline: str | None = None
    sampler: Literal["ddim", "own"] | None = None
    workflow: str | None = None
    server: str = "http://127.0.0.1:8188"
    prompt_inputs: tuple[str, ...] = ()
    negative_inputs: tuple[str, ...] = ()
    seed_inputs: tuple[str, ...] = ()
    output_node: str | None = None
    weights: bool = False
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    batch: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _one_kind(self) -> ModelFiles:
        given = [name for name in ("base", "pipeline", "workflow") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"{' and '.join(given) or 'none'} of base, pipeline and workflow given; expected one")
        if (self.adapter is None) != (self.llm is None):
            raise ValueError("adapter and llm belong together; give both or neither")
        if self.strength is not None and self.adapter is None:
            raise ValueError("strength is that of an adapter; give one, or leave it out")
        return self


def read_models(path: Path) -> dict[str, ModelFiles]:
    """The models of a YAML file: name -> fields of `ModelFiles`; relative paths are taken from the file's folder.

    Raises:
        LLM4GENError: it cannot be read, or a model of it is none.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise LLM4GENError(f"Models {path} cannot be read ({' '.join(str(error).split())}).") from error
    if not isinstance(content, dict) or not content:
        raise LLM4GENError(f"Models {path} holds {type(content).__name__}; expected NAME: {{base: ..., adapter: ...}}.")
    return {
        str(name): model_files(f"Model {name!r} of {path}", fields, path.parent) for name, fields in content.items()
    }


def model_files(what: str, fields: Any, folder: Path | None = None) -> ModelFiles:
    """`ModelFiles` of plain values.

    Args:
        what: begins the error message.
        fields: by name.
        folder: that relative paths are taken from; None for the working directory.
    """
    if isinstance(fields, dict) and folder is not None:
        fields = {
            name: str(folder / value) if name in PATHS and isinstance(value, str) else value
            for name, value in fields.items()
        }
    try:
        return ModelFiles.model_validate(fields)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise LLM4GENError(
            f"{what}: {where + ': ' if where else ''}{problem['msg'].removeprefix('Value error, ')}."
        ) from error


def preset_options(preset: Preset, **changes: object) -> GenerationOptions:
    """`GenerationOptions` of a preset, with what is not None of the changes in its place.

    Raises:
        LLM4GENError: a value is impossible.
    """
    wanted = {"steps": preset.steps, "guidance": preset.guidance, "sampler": preset.sampler}
    try:
        return GenerationOptions.model_validate(
            {**wanted, **{key: value for key, value in changes.items() if value is not None}}
        )
    except ValidationError as error:
        raise LLM4GENError(f"{first_problem(error).capitalize()}.") from error
