"""Devices and precisions by name."""

from __future__ import annotations

import torch

from llm4gen_core.errors import LLM4GENError, first_line

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def choose_device(name: str | None) -> torch.device:
    """Return the device of that name; for None the first GPU, or the CPU if there is none.

    Raises:
        LLM4GENError: this machine has no such device.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError is how torch without CUDA refuses "cuda"
        raise LLM4GENError(
            f"Device {name!r} cannot be used by this torch ({first_line(error)}); expected cpu, or a GPU that it "
            "knows, such as cuda, cuda:1 or mps."
        ) from error
    return device


def choose_dtype(name: str | None, device: torch.device | str) -> torch.dtype:
    """Return the precision of that name; for None float16 on a GPU and float32 on the CPU."""
    return DTYPES[name or ("float32" if torch.device(device).type == "cpu" else "float16")]


def dtype_name(dtype: torch.dtype) -> str:
    """Return the key of `DTYPES`."""
    return str(dtype).removeprefix("torch.")
