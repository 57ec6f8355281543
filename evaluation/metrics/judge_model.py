"""Loading judges: from which folder, how precisely they compute, and what is said of a model that is another one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from safetensors import SafetensorError

from llm4gen_core import LLM4GENError
from llm4gen_diffusers.devices import DTYPES
from llm4gen_diffusers.provenance import content_hash

from ..judges import Judge, judge_folder
from .base import Context

Loaded = TypeVar("Loaded")

_UNREADABLE = (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ImportError, SafetensorError)


def chosen_folder(context: Context, judge: Judge) -> Path:
    """The folder of a judge, or of the one that takes its place: option FOLDER=OTHER, both below the folder of judges.

    Raises:
        LLM4GENError: see `judge_folder`.
    """
    return judge_folder(context.judges, replace(judge, folder=context.options.get(judge.folder, judge.folder)))


def chosen_dtype(context: Context, on_gpu: torch.dtype) -> torch.dtype:
    """The precision: float32 on a CPU; else what the option "dtype" says, or `on_gpu`.

    Raises:
        LLM4GENError: the option is no precision, or half precision is asked of a CPU.
    """
    on_cpu = torch.device(context.device).type == "cpu"
    name = context.options.get("dtype")
    if name is None:
        return torch.float32 if on_cpu else on_gpu
    if name not in DTYPES or (on_cpu and name != "float32"):
        expected = "float32, as the judge runs on a CPU" if on_cpu else f"one of {', '.join(DTYPES)}"
        raise LLM4GENError(f"Option dtype={name} cannot be used; expected {expected}.")
    return DTYPES[name]


def read_part(folder: Path, what: str, load: Callable[[], Loaded]) -> Loaded:
    """What `load` reads from a judge's folder.

    Raises:
        LLM4GENError: it cannot be read.
    """
    try:
        return load()
    except _UNREADABLE as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise LLM4GENError(
            f"Judge {folder}: its {what} cannot be read ({reason}); download the folder again."
        ) from error


def load_model(loader: Any, folder: Path, dtype: torch.dtype, device: str, kind: str | None = None) -> Any:
    """A model with all of its weights, for inference.

    transformers fills what a checkpoint lacks with random numbers and says so in a warning. A judge that does this
    judges at random, so it is refused.

    Args:
        loader: class of transformers that has `from_pretrained`.
        kind: `model_type` that its configuration has to have; None for any that `loader` takes.

    Raises:
        LLM4GENError: the folder holds another kind of model, or weights are missing or cannot be read.
    """
    config = read_part(
        folder, "config.json", lambda: transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    )
    if kind is not None and config.model_type != kind:
        raise LLM4GENError(
            f"Judge {folder} is a model of type {config.model_type!r}; expected one of type {kind!r}. Put the right "
            "one there, or name its folder by the metric's options."
        )
    model, info = read_part(
        folder,
        "weights",
        lambda: loader.from_pretrained(folder, dtype=dtype, local_files_only=True, output_loading_info=True),
    )
    if missing := sorted(info["missing_keys"]):
        raise LLM4GENError(
            f"Judge {folder} lacks {len(missing)} of its weights, {missing[0]} among them, and would judge at random; "
            f"expected a whole {type(model).__name__}. Download the folder again."
        )
    return model.to(device).eval().requires_grad_(False)


def description(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """What `describe` says of every judge that is a model of transformers."""
    return {
        "judge": folder.name,
        "hash": content_hash(folder),
        "dtype": str(dtype).removeprefix("torch."),
        "transformers": transformers.__version__,
    }
