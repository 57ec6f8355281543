"""Bases in diffusers' folder layout, and transformers folders of text encoders."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from transformers import CLIPTokenizerFast, PreTrainedModel  # type: ignore[attr-defined]

from llm4gen_core import LLM4GENError
from llm4gen_core.weights import read_header

from ..schedule import NoiseSchedule
from .parts import Base, Part


def pipeline_name(folder: Path) -> Any:
    """Name of the pipeline that a diffusers folder is made for.

    Raises:
        LLM4GENError: there is no model_index.json.
    """
    return read_json(folder / "model_index.json", "Base").get("_class_name")


def open_folder(
    folder: Path,
    pipeline: str,
    vae_class: type[nn.Module],
    text_classes: tuple[type[nn.Module], ...],
    tokenizer: Path | None,
) -> Base:
    """A diffusers folder; what says what it is is read, its models are not.

    Args:
        folder: with model_index.json.
        pipeline: name of the pipeline class that it must be made for.
        vae_class: of `vae`.
        text_classes: of the text encoders `text_encoder`, `text_encoder_2`, ...
        tokenizer: folder in place of those of the base; None for its own.

    Raises:
        LLM4GENError: it is missing or broken, or a base of another kind.
    """
    found = pipeline_name(folder)
    if found != pipeline:
        raise LLM4GENError(f"Base {folder} is a {found}; expected a {pipeline}.")
    scheduler = folder / "scheduler" / "scheduler_config.json"
    names = ["tokenizer"] + [f"tokenizer_{number}" for number in range(2, len(text_classes) + 1)]
    return Base(
        path=folder,
        schedule=NoiseSchedule.from_config(read_json(scheduler, "Base"), f"Base {scheduler}"),
        unet=folder_part(UNet2DConditionModel, folder / "unet", "UNet"),
        vae=folder_part(vae_class, folder / "vae", "VAE"),
        text=text_parts(folder, text_classes),
        load_tokenizers=lambda: tuple(load_tokenizer(tokenizer or folder / name) for name in names),
    )


def text_parts(folder: Path, kinds: tuple[type[nn.Module], ...]) -> tuple[Part, ...]:
    """Text encoders in folders `text_encoder`, `text_encoder_2`, ..., or one that is the folder itself."""
    if len(kinds) == 1 and (folder / "config.json").is_file():
        return (folder_part(kinds[0], folder, "Text encoder"),)
    names = ["text_encoder"] + [f"text_encoder_{number}" for number in range(2, len(kinds) + 1)]
    return tuple(folder_part(kind, folder / name, "Text encoder") for kind, name in zip(kinds, names, strict=True))


def folder_part(kind: type[nn.Module], folder: Path, what: str) -> Part:
    """One model of diffusers or transformers in a folder of its own.

    Args:
        kind: its class.
        folder: with config.json.
        what: its role, for messages.
    """
    return Part(
        folder,
        read_config=partial(_read_config, kind, folder, what),
        check=partial(_check_weights, folder, what),
        load=partial(_load_model, kind, folder),
    )


def schedule_beside(unet: Path) -> NoiseSchedule | None:
    """What a UNet was trained with: the `scheduler` beside its folder `unet`; None where there is none.

    Raises:
        LLM4GENError: it is broken, or not a schedule that is known here.
    """
    path = unet.absolute()
    file = path.parent / "scheduler" / "scheduler_config.json"
    if path.name != "unet" or not file.is_file():
        return None
    return NoiseSchedule.from_config(read_json(file, "Scheduler"), f"Scheduler {file}")


def subfolder(folder: Path, name: str) -> Path:
    """`folder` itself, or the folder of that name within it if that is where a config.json is."""
    return folder / name if (folder / name / "config.json").is_file() else folder


def load_tokenizer(folder: Path) -> Any:
    """CLIP's tokenizer with offsets, which the slow one of transformers 4 does not give.

    Raises:
        LLM4GENError: its files are missing or broken.
    """
    try:
        return CLIPTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library raises many types for one situation: the folder is broken
        raise LLM4GENError(
            f"Tokenizer {folder} cannot be loaded ({first_sentence(error)}); expected CLIP's vocab.json and "
            "merges.txt. Download the folder again."
        ) from error


def read_json(path: Path, what: str) -> dict[str, Any]:
    """An object in a JSON file; LLM4GENError if it is missing or something else."""
    if not path.is_file():
        raise LLM4GENError(
            f"{what} {path} does not exist; expected a local diffusers folder. Nothing is downloaded: check the path, "
            "or download the model first."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LLM4GENError(f"{what} {path} is not valid JSON ({error}); download it again.") from error
    if not isinstance(content, dict):
        raise LLM4GENError(f"{what} {path} holds a {type(content).__name__}; expected a JSON object.")
    return content


def first_sentence(error: Exception) -> str:
    """What a library's error says first."""
    sentence = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return sentence.split(". ")[0].rstrip(".")


def _read_config(kind: type[nn.Module], folder: Path, what: str) -> dict[str, Any]:
    config = read_json(folder / "config.json", what)
    found = config.get("_class_name", kind.__name__)  # transformers' configurations have none
    if found != kind.__name__:
        raise LLM4GENError(f"{what} {folder} is a {found}; expected a {kind.__name__}.")
    return config


def _check_weights(folder: Path, what: str) -> None:
    """Whether the weights are there, whole, and safetensors: pickles of a base model have no reason to be."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        others = sorted(file.name for file in folder.glob("*.bin"))
        found = f"only {others[0]}, a pickle that could run code" if others else "none"
        raise LLM4GENError(
            f"{what} {folder} should hold its weights as .safetensors; found {found}. Download the folder again, in "
            "that form."
        )
    for file in files:
        read_header(file, what)


def _load_model(kind: type[nn.Module], folder: Path, dtype: torch.dtype) -> nn.Module:
    """One model of a diffusers folder, all of its weights present."""
    only_half = all(".fp16." in file.name for file in folder.glob("*.safetensors"))
    precision = "dtype" if issubclass(kind, PreTrainedModel) else "torch_dtype"
    loader: Any = kind
    try:
        model, report = loader.from_pretrained(
            folder,
            variant="fp16" if only_half else None,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **{precision: dtype},
        )
    except Exception as error:  # both libraries raise many types for one situation: the folder is broken
        raise LLM4GENError(
            f"{kind.__name__} {folder} cannot be loaded ({first_sentence(error)}); expected the weights that "
            "belong to its config.json. Download the folder again."
        ) from error
    missing = sorted(name for name in report["missing_keys"] if not name.endswith("position_ids"))
    if missing:
        raise LLM4GENError(
            f"{kind.__name__} {folder} lacks {len(missing)} of its weights ({missing[0]}, ...); expected the weights "
            "that belong to its config.json. Download the folder again."
        )
    return model.eval().requires_grad_(False)
