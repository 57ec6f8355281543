"""Parts of a base model, and how they are read from diffusers' and transformers' folders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from transformers import CLIPTokenizerFast, PreTrainedModel  # type: ignore[attr-defined]

from llm4gen_core.errors import LLM4GENError, first_line
from llm4gen_core.files import read_header, read_json

from ..schedule import NoiseSchedule


class Part(ABC):
    """One model of a base. Nothing is read before it is asked for.

    Args:
        path: folder or file of the model.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    @abstractmethod
    def config(self) -> Mapping[str, Any]:
        """diffusers' or transformers' configuration of the model."""

    @abstractmethod
    def check(self) -> None:
        """Raise LLM4GENError unless the weights are there and complete, as far as headers tell."""

    @abstractmethod
    def load(self, dtype: torch.dtype) -> nn.Module:
        """Load the model on the CPU, in evaluation mode and frozen."""


@dataclass(frozen=True)
class Base:
    """A base model in a diffusers folder or in a checkpoint file.

    Attributes:
        path: the folder or file.
        schedule: noise schedule and what the UNet predicts.
        unet, vae: models.
        text: one part for each text encoder, in the order in which their hidden states are concatenated.
        load_tokenizers: loads CLIP's tokenizers, one for each text encoder.
    """

    path: Path
    schedule: NoiseSchedule
    unet: Part
    vae: Part
    text: tuple[Part, ...]
    load_tokenizers: Callable[[], tuple[Any, ...]]


class FolderPart(Part):
    """A model of diffusers or transformers in a folder of its own, with config.json and safetensors.

    Args:
        kind: class of the model.
        folder: folder with config.json.
        what: role of the model, for errors.
    """

    def __init__(self, kind: type[nn.Module], folder: Path, what: str) -> None:
        super().__init__(folder)
        self.kind, self.what = kind, what

    @cached_property
    def config(self) -> Mapping[str, Any]:
        config = read_json(self.path / "config.json", self.what)
        found = config.get("_class_name", self.kind.__name__)  # configurations of transformers have none
        if found != self.kind.__name__:
            raise LLM4GENError(f"{self.what} {self.path} is a {found}; expected a {self.kind.__name__}.")
        return config

    def check(self) -> None:
        files = sorted(self.path.glob("*.safetensors"))
        if not files:
            others = sorted(file.name for file in self.path.glob("*.bin"))
            found = f"only {others[0]}, a pickle that could run code" if others else "none"
            raise LLM4GENError(
                f"{self.what} {self.path} should hold its weights as .safetensors; found {found}. Download the folder "
                "again, in that form."
            )
        for file in files:
            read_header(file, self.what)

    def load(self, dtype: torch.dtype) -> nn.Module:
        only_half = all(".fp16." in file.name for file in self.path.glob("*.safetensors"))
        precision = "dtype" if issubclass(self.kind, PreTrainedModel) else "torch_dtype"
        what, loader = f"{self.kind.__name__} {self.path}", self.kind
        try:
            model, report = loader.from_pretrained(  # type: ignore[attr-defined]
                self.path,
                variant="fp16" if only_half else None,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **{precision: dtype},
            )
        except Exception as error:  # both libraries raise many types for one situation: the folder is broken
            raise LLM4GENError(
                f"{what} cannot be loaded ({first_line(error).rstrip('.')}); expected the weights that belong to its "
                "config.json. Download the folder again."
            ) from error
        missing = sorted(name for name in report["missing_keys"] if not name.endswith("position_ids"))
        if missing:
            raise LLM4GENError(
                f"{what} lacks {len(missing)} of its weights ({missing[0]}, ...); expected the weights that belong to "
                "its config.json. Download the folder again."
            )
        return model.eval().requires_grad_(False)


def pipeline_name(folder: Path) -> Any:
    """Return the name of the pipeline class that a diffusers folder is made for.

    Raises:
        LLM4GENError: there is no model_index.json.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        raise LLM4GENError(
            f"Base {index} does not exist; expected a local diffusers folder or a checkpoint file. Nothing is "
            "downloaded: check the path, or download the model first."
        )
    return read_json(index, "Base").get("_class_name")


def open_folder(
    folder: Path,
    pipeline: str,
    vae_class: type[nn.Module],
    text_classes: tuple[type[nn.Module], ...],
    tokenizer: Path | None,
) -> Base:
    """Open a diffusers folder: its configuration files are read, its weights are not.

    Args:
        folder: folder with model_index.json.
        pipeline: pipeline class that the folder must be made for.
        vae_class: class of `vae`.
        text_classes: classes of the text encoders `text_encoder`, `text_encoder_2`, ...
        tokenizer: folder in place of the base's tokenizers; None for the base's.

    Raises:
        LLM4GENError: a file is missing or broken, or the base is of another kind.
    """
    found = pipeline_name(folder)
    if found != pipeline:
        raise LLM4GENError(f"Base {folder} is a {found}; expected a {pipeline}.")
    scheduler = folder / "scheduler" / "scheduler_config.json"
    names = ["tokenizer"] + [f"tokenizer_{number}" for number in range(2, len(text_classes) + 1)]
    return Base(
        path=folder,
        schedule=NoiseSchedule.from_config(read_json(scheduler, "Base"), f"Base {scheduler}"),
        unet=FolderPart(UNet2DConditionModel, folder / "unet", "UNet"),
        vae=FolderPart(vae_class, folder / "vae", "VAE"),
        text=text_parts(folder, text_classes),
        load_tokenizers=lambda: tuple(load_tokenizer(tokenizer or folder / name) for name in names),
    )


def text_parts(folder: Path, kinds: tuple[type[nn.Module], ...]) -> tuple[Part, ...]:
    """Find text encoders in `text_encoder`, `text_encoder_2`, ..., or a single one in the folder itself."""
    if len(kinds) == 1 and (folder / "config.json").is_file():
        return (FolderPart(kinds[0], folder, "Text encoder"),)
    names = ["text_encoder"] + [f"text_encoder_{number}" for number in range(2, len(kinds) + 1)]
    return tuple(FolderPart(kind, folder / name, "Text encoder") for kind, name in zip(kinds, names, strict=True))


def schedule_beside(unet: Path) -> NoiseSchedule | None:
    """Read what a UNet was trained with: the `scheduler` beside its folder `unet`; None if there is none.

    Raises:
        LLM4GENError: the schedule is broken or not supported.
    """
    path = unet.absolute()
    file = path.parent / "scheduler" / "scheduler_config.json"
    if path.name != "unet" or not file.is_file():
        return None
    return NoiseSchedule.from_config(read_json(file, "Scheduler"), f"Scheduler {file}")


def subfolder(folder: Path, name: str) -> Path:
    """Return the folder `name` inside `folder` if it holds a config.json, else `folder` itself."""
    return folder / name if (folder / name / "config.json").is_file() else folder


def load_tokenizer(folder: Path) -> Any:
    """Load CLIP's tokenizer with offsets, which the slow one of transformers 4 does not give.

    Raises:
        LLM4GENError: its files are missing or broken.
    """
    try:
        return CLIPTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library raises many types for one situation: the folder is broken
        raise LLM4GENError(
            f"Tokenizer {folder} cannot be loaded ({first_line(error).rstrip('.')}); expected CLIP's vocab.json and "
            "merges.txt. Download the folder again."
        ) from error
