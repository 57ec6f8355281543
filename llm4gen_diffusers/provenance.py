"""Provenance of a number beside its settings: versions, devices, contents of files."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

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
