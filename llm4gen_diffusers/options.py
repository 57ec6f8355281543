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
_Extra = dict[str, Any]

_PATH, _FILE, _DIR, _TEXT, _NAME = (_Extra({"metavar": name}) for name in ("PATH", "FILE", "DIR", "TEXT", "NAME"))
_POSITIONAL: _Extra = {"positional": True}


class Options(BaseModel):
    """A group of options; immutable.

    A field's description is the help of its argument. In `json_schema_extra` it may name its `metavar`, and its
    `option` where that is not the field's name; `"positional": True` makes it an argument without dashes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelFiles(Options):
    """A base model, alone or with an adapter and its LLM."""

    base: PathLike = Field(
        json_schema_extra=_PATH,
        description="SD1.5, SDXL or miniature: a diffusers folder, or a checkpoint as in ComfyUI",
    )
    family: str | None = Field(
        default=None, json_schema_extra=_NAME, description="sd15, sdxl or miniature (default: read from the base)"
    )
    unet: PathLike | None = Field(
        default=None,
        json_schema_extra=_PATH,
        description="UNet in place of the base's, such as the release's fine-tuned one: a diffusers folder or a file. "
        "A folder `scheduler` beside a folder `unet` says what it was trained with, such as v-prediction",
    )
    clip: PathLike | None = Field(
        default=None,
        json_schema_extra=_DIR,
        description="fine-tuned text encoder in place of the base's: a transformers folder",
    )
    tokenizer: PathLike | None = Field(
        default=None,
        json_schema_extra=_DIR,
        description="folder with CLIP's vocab.json and merges.txt, which a checkpoint does not hold (default: that of "
        "the ComfyUI in whose custom_nodes this is)",
    )
    adapter: PathLike | None = Field(
        default=None, json_schema_extra=_FILE, description="adapter: projector.pth or .safetensors"
    )
    llm: PathLike | None = Field(
        default=None, json_schema_extra=_DIR, description="Hugging Face folder of the adapter's LLM"
    )
    strength: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="strength of the LLM's tokens, λ in the paper; 0 is plain CLIP (default: the adapter's)",
    )
    lambda_mode: Literal["embedding", "value", "decoupled"] | None = Field(
        default=None,
        description="what the strength scales: the LLM's tokens, their values, or an attention of their own "
        "(default: the adapter's)",
    )
    dtype: DType | None = Field(
        default=None, description="precision of UNet, VAE and LLM (default: float16 on a GPU, float32 on the CPU)"
    )

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
    """How images are generated, by whatever model."""

    negative: str = Field(default="", json_schema_extra=_TEXT, description="negative prompt (default: none)")
    steps: int = Field(
        default=50,
        ge=1,
        le=1000,
        description="sampler steps; where the number does not divide 1000, ddim_uniform takes more, such as 31 for 30",
    )
    guidance: float = Field(
        default=7.5, ge=1, allow_inf_nan=False, description="scale of classifier-free guidance; 1 is off"
    )
    width: int | None = Field(
        default=None,
        ge=16,
        le=16384,
        multiple_of=8,
        description="pixels, a multiple of 8 (default: the base's own size)",
    )
    height: int | None = Field(
        default=None,
        ge=16,
        le=16384,
        multiple_of=8,
        description="pixels, a multiple of 8 (default: the base's own size)",
    )


class RunOptions(Options):
    """Seed, device and output of one command."""

    seed: int = Field(default=0, ge=0, lt=2**64, description="seed of the noise, the same for every prompt")
    device: str | None = Field(default=None, description="cpu, cuda, cuda:1, mps, ... (default: a GPU if there is one)")
    output: PathLike = Field(
        default="outputs",
        json_schema_extra=_PATH,
        description="folder, or a name ending in .png; nothing is overwritten, files are numbered",
    )


class GenerateSettings(ModelFiles, GenerationOptions, RunOptions):
    """Arguments of `generate`: every prompt is generated with the same seed, as a workflow with a fixed seed would."""

    prompts: tuple[str, ...] = Field(json_schema_extra=_TEXT | {"option": "prompt"}, description="prompt; repeatable")
    batch: int = Field(default=1, ge=1, description="images of each prompt")


class AttentionSettings(ModelFiles, GenerationOptions, RunOptions):
    """Arguments of `attention`."""

    prompt: str = Field(json_schema_extra=_TEXT, description="prompt of the image")
    words: tuple[str, ...] = Field(
        min_length=1,
        json_schema_extra=_TEXT | {"option": "word"},
        description="word of the prompt; may be given several times, the same word for its next occurrence",
    )
    tokens: Literal["both", "clip", "llm"] = Field(
        default="both", description="tokens of the word to look at: CLIP's, the LLM's, or their sum"
    )


class ConvertSettings(Options):
    """Arguments of `convert`. None keeps a value as the source has it."""

    source: PathLike = Field(json_schema_extra=_POSITIONAL, description="file to read")
    target: PathLike = Field(json_schema_extra=_POSITIONAL, description="file to write, ending in .safetensors")
    family: str | None = Field(
        default=None, description="base family: sd15, sdxl, sd3 or miniature (default: read from the file)"
    )
    llm: PathLike | None = Field(
        default=None,
        json_schema_extra=_PATH,
        description="the adapter's LLM: its Hugging Face folder, or a JSON file with the fields of LLMSpec (default: "
        "read from the file; RankGen T5-XL for the official release)",
    )
    llm_model: str | None = Field(
        default=None, json_schema_extra=_NAME, description="name of the LLM's weights, such as a Hugging Face id"
    )
    title: str | None = Field(default=None, description="title that model managers show")
    author: str | None = Field(default=None, description="author that model managers show")
    description: str | None = Field(default=None, description="description that model managers show")
    force: bool = Field(default=False, description="replace TARGET if it exists")


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

    An argument that is not given is None in the parsed namespace, so that `options_from` leaves the field's default.

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
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        kind = _value_type(field.annotation)
        settings: dict[str, Any] = {"help": field.description}
        default = field.get_default()
        if (
            defaults
            and default is not None
            and default is not False
            and default not in ("", ())
            and not field.is_required()
        ):
            settings["help"] += f" (default: {default})"
        if "metavar" in extra:
            settings["metavar"] = extra["metavar"]
        if kind is bool:
            settings["action"] = "store_true"
        elif get_origin(kind) is Literal:
            settings["choices"] = get_args(kind)
        elif get_origin(kind) is tuple:
            settings["action"] = "append"
        elif kind in (int, float):
            settings["type"] = kind
        if extra.get("positional"):
            parser.add_argument(name, **settings)
        else:
            option = str(extra.get("option", name)).replace("_", "-")
            parser.add_argument(
                f"--{option}", dest=name, default=None, required=require and field.is_required(), **settings
            )


OptionsType = TypeVar("OptionsType", bound=Options)


def options_from(
    options: type[OptionsType], values: argparse.Namespace | Mapping[str, Any], what: str = ""
) -> OptionsType:
    """Group of options from parsed arguments or from the values of a file.

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
    """What was found and what was expected, of the first problem."""
    problem = error.errors(include_url=False)[0]
    if problem["type"] == "value_error":
        return problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return f"{problem['input']!r:.80} is not a group of options; expected {', '.join(options.model_fields)}."
    name = ".".join(map(str, problem["loc"]))
    if problem["type"] == "missing":
        return f"{_title(name)} is missing."
    if problem["type"] == "extra_forbidden":
        return f"{name} is not an option; expected one of {', '.join(options.model_fields)}."
    expected = problem["msg"].replace("Input should", "it should")
    return f"{_title(name)} is {problem['input']!r}; {expected}."


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _value_type(annotation: Any) -> Any:
    """Type of a field's value without `Annotated`; the first that is not None of an optional one."""
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(kind for kind in get_args(annotation) if kind is not types.NoneType)
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
