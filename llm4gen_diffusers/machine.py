"""The machine: devices and precisions by name, and the versions and file contents that a number depends on."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

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


_PACKAGES = (
    "torch",
    "accelerate",
    "diffusers",
    "transformers",
    "peft",
    "safetensors",
    "spacy",
    "bitsandbytes",
    "torch-fidelity",
)
_MEBIBYTE = 1 << 20


def machine() -> dict[str, Any]:
    """Command line, versions and devices, as JSON values."""
    import torch

    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "llm4gen": _revision(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _revision() -> str | None:
    """Commit of the clone, with "+changes" if the files differ from it; None outside of a clone."""
    try:
        changed = _git("status", "--porcelain", "--untracked-files=no")
        return _git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).resolve().parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def fingerprint(content: Any) -> str:
    """Hash JSON values to sixteen hexadecimal digits; the order of keys does not matter."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def content_hash(path: Path) -> str:
    """Hash names and contents of a file, or of all files of a folder but hidden ones, to sixteen hexadecimal digits.

    Files count by their size and their first and last mebibyte: reading gigabytes at every start would cost more than
    it could show.
    """
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        name = file.relative_to(path).as_posix() if path.is_dir() else ""
        if any(part.startswith(".") for part in name.split("/")):
            continue
        size = file.stat().st_size
        digest.update(json.dumps([name, size]).encode())
        with open(file, "rb") as content:
            digest.update(content.read(_MEBIBYTE))
            content.seek(max(_MEBIBYTE, size - _MEBIBYTE))
            digest.update(content.read())
    return digest.hexdigest()[:16]
