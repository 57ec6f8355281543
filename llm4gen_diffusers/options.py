"""Options of models and of image generation, each declared once.

A group of options is a pydantic model. Functions take the model as an argument, and `add_arguments` makes its fields
the arguments of a command, with their descriptions as help. This module loads neither torch nor diffusers.

pydantic-settings does the same with `CliSettingsSource`. Its help shows types where a person needs to know what to
give (`--lambda-mode {{embedding,value},null}`), it does not refuse a missing required option while parsing, and its
errors are pydantic's, several lines for each; hence the two short functions here.
"""

from __future__ import annotations

import argparse
import types
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

PathLike = str | Path
DType = Literal["float32", "float16", "bfloat16"]
Pixels = Annotated[int, Field(ge=16, le=16384, multiple_of=8)]
OptionsType = TypeVar("OptionsType", bound="Options")


class Options(BaseModel):
    """A group of options; immutable."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def option(default: Any, help: str, metavar: str | None = None, name: str | None = None, **checks: Any) -> Any:
    """Field of a group of options.

    Args:
        default: default value; `...` for a required option.
        help: description, shown by `--help` together with the default.
        metavar: what stands for the value in the help.
        name: argument in place of `--field-name`, such as "--word"; the field's name for a positional argument.
        checks: checks of pydantic's `Field`, such as ge=0.
    """
    extra: dict[str, Any] = {"metavar": metavar, "name": name}
    return Field(default, description=help, json_schema_extra=extra, **checks)


class ModelFiles(Options):
    """A base model, alone or with an adapter and its LLM."""

    base: PathLike = option(..., "SD1.5, SDXL or miniature: a diffusers folder, or a checkpoint as in ComfyUI", "PATH")
    family: str | None = option(None, "sd15, sdxl or miniature (default: read from the base)", "NAME")
    unet: PathLike | None = option(
        None,
        "UNet in place of the base's, such as the release's fine-tuned one: a diffusers folder or a file. A folder "
        "`scheduler` beside a folder `unet` says what it was trained with, such as v-prediction",
        "PATH",
    )
    clip: PathLike | None = option(None, "fine-tuned text encoder in place of the base's: a transformers folder", "DIR")
    tokenizer: PathLike | None = option(
        None,
        "folder with CLIP's vocab.json and merges.txt, which a checkpoint does not hold (default: that of the ComfyUI "
        "in whose custom_nodes this is)",
        "DIR",
    )
    adapter: PathLike | None = option(None, "adapter: projector.pth or .safetensors", "FILE")
    llm: PathLike | None = option(None, "Hugging Face folder of the adapter's LLM", "DIR")
    strength: float | None = option(
        None,
        "strength of the LLM's tokens, λ in the paper; 0 is plain CLIP (default: the adapter's)",
        ge=0,
        allow_inf_nan=False,
    )
    lambda_mode: Literal["embedding", "value", "decoupled"] | None = option(
        None,
        "what the strength scales: the LLM's tokens, their values, or an attention of their own (default: the "
        "adapter's)",
    )
    dtype: DType | None = option(None, "precision of UNet, VAE and LLM (default: float16 on a GPU, float32 on the CPU)")

    @model_validator(mode="after")
    def _adapter_options(self) -> ModelFiles:
        require_adapter_and_llm(self.adapter, self.llm)
        for name in ("strength", "lambda_mode"):
            value = getattr(self, name)
            if value is not None and self.adapter is None:
                raise ValueError(
                    f"{_title(name)} is {value!r}, but there is no adapter; give an adapter and its LLM, or leave it "
                    "out."
                )
        return self


class GenerationOptions(Options):
    """Options of image generation, the same for every model."""

    negative: str = option("", "negative prompt (default: none)", "TEXT")
    steps: int = option(
        50,
        "sampler steps; where the number does not divide 1000, ddim_uniform takes more, such as 31 for 30",
        ge=1,
        le=1000,
    )
    guidance: float = option(7.5, "scale of classifier-free guidance; 1 is off", ge=1, allow_inf_nan=False)
    width: Pixels | None = option(None, "pixels, a multiple of 8 (default: the base's own size)")
    height: Pixels | None = option(None, "pixels, a multiple of 8 (default: the base's own size)")


class RunOptions(Options):
    """Seed, device and output of one command."""

    seed: int = option(0, "seed of the noise, the same for every prompt", ge=0, lt=2**64)
    device: str | None = option(None, "cpu, cuda, cuda:1, mps, ... (default: a GPU if there is one)")
    output: PathLike = option(
        "outputs", "folder, or a name ending in .png; nothing is overwritten, files are numbered", "PATH"
    )


class SamplingSettings(ModelFiles, GenerationOptions, RunOptions):
    """Options of the commands that generate images."""


class GenerateSettings(SamplingSettings):
    """Arguments of `generate`: every prompt is generated with the same seed, as a workflow with a fixed seed would."""

    prompts: tuple[str, ...] = option(..., "prompt; repeatable", "TEXT", name="--prompt", min_length=1)
    batch: int = option(1, "images of each prompt", ge=1)


class AttentionSettings(SamplingSettings):
    """Arguments of `attention`."""

    prompt: str = option(..., "prompt of the image", "TEXT")
    words: tuple[str, ...] = option(
        ...,
        "word of the prompt; may be given several times, the same word for its next occurrence",
        "TEXT",
        name="--word",
        min_length=1,
    )
    tokens: Literal["both", "clip", "llm"] = option(
        "both", "tokens of the word to look at: CLIP's, the LLM's, or their sum"
    )


class ConvertSettings(Options):
    """Arguments of `convert`. None keeps a value as the source has it."""

    source: PathLike = option(..., "file to read", name="source")
    target: PathLike = option(..., "file to write, ending in .safetensors", name="target")
    family: str | None = option(None, "base family: sd15, sdxl, sd3 or miniature (default: read from the file)")
    llm: PathLike | None = option(
        None,
        "the adapter's LLM: its Hugging Face folder, or a JSON file with the fields of LLMSpec (default: read from "
        "the file; RankGen T5-XL for the official release)",
        "PATH",
    )
    llm_model: str | None = option(None, "name of the LLM's weights, such as a Hugging Face id", "NAME")
    title: str | None = option(None, "title that model managers show")
    author: str | None = option(None, "author that model managers show")
    description: str | None = option(None, "description that model managers show")
    force: bool = option(False, "replace TARGET if it exists")


def require_adapter_and_llm(adapter: object, llm: object) -> None:
    """Raise LLM4GENError unless both are given, or neither."""
    if (adapter is None) != (llm is None):
        from llm4gen_core.errors import LLM4GENError  # not above: the core loads torch

        given, missing = ("an LLM", "adapter") if adapter is None else ("an adapter", "LLM")
        raise LLM4GENError(
            f"There is {given} but no {missing}; LLM4GEN needs both. Give the {missing} as well, or leave out both "
            "for the plain base."
        )


def add_arguments(
    parser: argparse._ActionsContainer,
    options: type[Options],
    leave_out: Collection[str] = (),
    require: bool = True,
    defaults: bool = True,
) -> None:
    """Add an argument for each field of a group of options.

    An argument that is not given is None in the parsed namespace, so that `options_from` keeps the field's default.

    Args:
        parser: parser, or a group of its arguments.
        options: the group.
        leave_out: names of fields that get no argument.
        require: whether the parser refuses a command without a required field. False for groups of which a command
            needs one.
        defaults: whether the help names the defaults. False where something else gives them, such as a preset.
    """
    for name, field in options.model_fields.items():
        if name in leave_out:
            continue
        extra: Any = field.json_schema_extra or {}
        kind = _value_type(field.annotation)
        settings: dict[str, Any] = {"help": field.description}
        default = field.get_default()
        shown = defaults and not field.is_required() and default is not None and default is not False
        if shown and default not in ("", ()):
            settings["help"] += f" (default: {default})"
        if extra.get("metavar"):
            settings["metavar"] = extra["metavar"]
        if kind is bool:
            settings["action"] = "store_true"
        elif get_origin(kind) is Literal:
            settings["choices"] = get_args(kind)
        elif get_origin(kind) is tuple:
            settings["action"] = "append"
        elif kind in (int, float):
            settings["type"] = kind
        flag = extra.get("name") or f"--{name.replace('_', '-')}"
        if flag.startswith("--"):
            settings |= {"dest": name, "default": None, "required": require and field.is_required()}
        parser.add_argument(flag, **settings)


def options_from(
    options: type[OptionsType], values: argparse.Namespace | Mapping[str, Any], what: str = ""
) -> OptionsType:
    """Make a group of options from parsed arguments or from the values of a file.

    Args:
        options: the group.
        values: parsed arguments, of which those that are not fields of the group and those that are None are left out;
            or a mapping, of which nothing is.
        what: beginning of the error, such as "Model 'SDXL' of models.yaml".

    Raises:
        LLM4GENError: a value is impossible; one sentence about the first one.
    """
    if isinstance(values, argparse.Namespace):
        values = {
            name: value for name, value in vars(values).items() if name in options.model_fields and value is not None
        }
    try:
        return options.model_validate(values)
    except ValidationError as error:
        from llm4gen_core.errors import LLM4GENError  # not above: the core loads torch

        sentence = _sentence(error, options)
        raise LLM4GENError(f"{what}: {sentence}" if what else sentence) from error


def _sentence(error: ValidationError, options: type[Options]) -> str:
    """Found and expected value of the first problem."""
    problem = error.errors(include_url=False)[0]
    name, found = ".".join(map(str, problem["loc"])), problem["input"]
    if problem["type"] == "value_error":
        return problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        return f"{_title(name)} is missing."
    if problem["type"] == "extra_forbidden":
        return f"{name} is not an option; expected one of {', '.join(options.model_fields)}."
    expected = problem["msg"].replace("Input should", "it should")
    return f"{_title(name) or 'The value'} is {found!r:.80}; {expected}."


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _value_type(annotation: Any) -> Any:
    """Type of a field's value without `Annotated`; the first that is not None of an optional one."""
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(kind for kind in get_args(annotation) if kind is not types.NoneType)
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
