"""Reading tensor files without running anything that is inside them."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import LLM4GENError

SAFETENSORS_SUFFIXES = (".safetensors", ".sft")
PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")

_WANTED_CODE = re.compile(r"GLOBAL (\S+)")
"""In the messages of torch's unpickler: the function or class that a file asked for."""


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of a stored tensor; the dtype in safetensors' notation ("F32", "BF16", "F8_E4M3")."""

    shape: tuple[int, ...]
    dtype: str


def require_file(path: Path, what: str) -> None:
    """Raise LLM4GENError unless `path` is a file with something in it; `what` names its role in the message."""
    if path.is_dir():
        raise LLM4GENError(f"{what} {path} is a folder; expected a file.")
    if not path.is_file():
        raise LLM4GENError(f"{what} {path} does not exist; check the name and the folder.")
    if path.stat().st_size == 0:
        raise LLM4GENError(f"{what} {path} is empty (0 bytes); download it again.")


def read_header(path: Path, what: str = "File") -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Names, shapes and metadata of a safetensors file, without reading its tensors.

    Returns:
        (tensors by name, metadata).

    Raises:
        LLM4GENError: the file is missing, empty, truncated or something else.
    """
    require_file(path, what)
    try:
        with safe_open(str(path), framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            tensors = {name: TensorInfo(tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _broken(path, what, error) from error


def load_tensors(path: Path, what: str = "File") -> dict[str, Tensor]:
    """All tensors of a safetensors file or of a pickled state dict, on the CPU.

    Pickles are read with torch's `weights_only` unpickler: one that needs anything but tensors and plain
    containers is refused, and nothing of it is executed.

    Raises:
        LLM4GENError: the file is missing, broken, no state dict, or tries to run code.
    """
    require_file(path, what)
    suffix = path.suffix.lower()
    if suffix in SAFETENSORS_SUFFIXES:
        try:
            with safe_open(str(path), framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, OSError) as error:
            raise _broken(path, what, error) from error
    if suffix not in PICKLE_SUFFIXES:
        known = ", ".join(SAFETENSORS_SUFFIXES + PICKLE_SUFFIXES)
        raise LLM4GENError(f"{what} {path} ends in {suffix or 'nothing'!r}; expected one of {known}.")
    return load_pickle(path, what)


def load_pickle(path: Path, what: str = "File", device: str = "cpu") -> dict[str, Tensor]:
    """A pickled state dict, as `load_tensors` reads it; on the "meta" device names and shapes alone are read."""
    require_file(path, what)
    try:
        # Files from before torch 1.6 are no zip archives and cannot be mapped into memory.
        mmap = device == "meta" and zipfile.is_zipfile(path)
        content = torch.load(path, map_location=device, weights_only=True, mmap=mmap)
    except Exception as error:  # a broken pickle can raise nearly anything, IndexError and struct.error among them
        if code := _WANTED_CODE.search(str(error)):
            raise LLM4GENError(
                f"{what} {path} needs to run code ({code[1]}) to be opened, which a file of weights never does. It was "
                "refused and nothing was executed. Delete it and download the weights from their official source."
            ) from error
        raise _broken(path, what, error) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]  # as Lightning wraps the weights of SD1.x's .ckpt files
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise LLM4GENError(f"{what} {path} holds {type(content).__name__}; expected a state dict of named tensors.")
    return dict(content)


def _broken(path: Path, what: str, error: Exception) -> LLM4GENError:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if reason.startswith("Weights only load failed"):  # torch goes on to advise switching its protection off
        reason = "its pickle is damaged"
    reason = reason.split(". ")[0]
    return LLM4GENError(
        f"{what} {path} ({path.stat().st_size:,} bytes) cannot be read: it is truncated or not of the kind that its "
        f"name says ({reason}). Download it again and compare its size with the source's."
    )
