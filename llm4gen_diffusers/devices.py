"""Devices and precisions by name."""

from __future__ import annotations

import torch

from llm4gen_core import LLM4GENError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def choose_device(name: str | None) -> torch.device:
    """The device of that name; for None the first GPU, or the CPU if there is none.

    Raises:
        LLM4GENError: there is no such device here.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError is how torch without CUDA refuses "cuda"
        raise LLM4GENError(
            f"Device {name!r} cannot be used by this torch ({str(error).splitlines()[0]}); "
            "expected cpu, or a GPU that it knows, such as cuda, cuda:1 or mps."
        ) from error
    return device
