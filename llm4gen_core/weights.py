"""Reading tensor files without executing any code in them."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import LLM4GENError, first_line

SAFETENSORS_SUFFIXES = (".safetensors", ".sft")
PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")

_WANTED_CODE = re.compile(r"GLOBAL (\S+)")
"""Function or class that a file asked for, in the messages of torch's unpickler."""


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of a stored tensor; the dtype in safetensors' notation ("F32", "BF16", "F8_E4M3")."""

    shape: tuple[int, ...]
    dtype: str


def require_file(path: Path, what: str) -> None:
    """Raise LLM4GENError unless `path` is a file that is not empty; `what` names its content in the message."""
    if path.is_dir():
        raise LLM4GENError(f"{what} {path} is a folder; expected a file.")
    if not path.is_file():
        raise LLM4GENError(f"{what} {path} does not exist; check the name and the folder.")
    if path.stat().st_size == 0:
        raise LLM4GENError(f"{what} {path} is empty (0 bytes); download it again.")


def read_header(path: Path, what: str = "File") -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Read names, shapes and metadata of a safetensors file, without its tensors.

    Returns:
        (tensors by name, metadata).

    Raises:
        LLM4GENError: the file is missing, empty, truncated or of another format.
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
    """Read all tensors of a safetensors file or of a pickled state dict, on the CPU.

    Pickles are read with torch's `weights_only` unpickler: one that needs anything but tensors and plain
    containers is refused, and none of it is executed.

    Raises:
        LLM4GENError: the file is missing, broken, not a state dict, or tries to execute code.
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
    """Read a pickled state dict as `load_tensors` does; on the "meta" device only its names and shapes."""
    require_file(path, what)
    try:
        # Files from before torch 1.6 are not zip archives and cannot be memory-mapped.
        mmap = device == "meta" and zipfile.is_zipfile(path)
        content = torch.load(path, map_location=device, weights_only=True, mmap=mmap)
    except Exception as error:  # a broken pickle can raise nearly any type, such as IndexError and struct.error
        if code := _WANTED_CODE.search(str(error)):
            raise LLM4GENError(
                f"{what} {path} needs to run code ({code[1]}) to be opened, which a file of weights never does. It was "
                "refused and nothing was executed. Delete it and download the weights from their official source."
            ) from error
        raise _broken(path, what, error) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]  # the layout of Lightning, in SD1.x's .ckpt files
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise LLM4GENError(
            f"{what} {path} holds a {type(content).__name__}; expected a state dict of named tensors. Choose another "
            "file."
        )
    return dict(content)


def _broken(path: Path, what: str, error: Exception) -> LLM4GENError:
    reason = first_line(error).split(". ")[0]
    if reason.startswith("Weights only load failed"):  # torch's text advises to disable its protection
        reason = "its pickle is damaged"
    return LLM4GENError(
        f"{what} {path} ({path.stat().st_size:,} bytes) cannot be read: it is truncated, or its format is not that of "
        f"its suffix ({reason}). Download it again and compare its size with the source's."
    )
