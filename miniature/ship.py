"""Weights to be shipped: the base, the encoder and one LLM4GEN of a reproduction, in half precision."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from llm4gen_core import LLM4GENError
from llm4gen_diffusers.provenance import machine
from train.run import ExportSettings, export

from .experiment import Reproduction

ARM, SEED, LLM = "llm4gen", 0, "t5"


def ship(reproduction: Reproduction, target: Path) -> Path:
    """Copy what paints with and without LLM4GEN, and write down where it comes from.

    Args:
        reproduction: in which the arm `ARM` has been trained with `SEED`.
        target: folder, which must not exist: `base` (diffusers), `t5` (Hugging Face), `llm4gen` (adapter and UNet) and
            `provenance.json`.

    Returns:
        `target`.

    Raises:
        LLM4GENError: the arm has not been trained, or the target exists.
    """
    run = reproduction.folder / "runs" / f"{ARM}-{SEED}"
    if not (run / "export").is_dir():
        raise LLM4GENError(f"{run / 'export'} does not exist; train {ARM} with seed {SEED} first.")
    if target.exists():
        raise LLM4GENError(f"{target} exists already; delete it first, or give another folder.")
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name, source in (("base", reproduction.base), (LLM, reproduction.world / LLM)):
        shutil.copytree(source, partial / name)
    (partial / "base" / "base.json").unlink(missing_ok=True)
    for file in partial.rglob("*.safetensors"):
        _halve(file)
    with contextlib.redirect_stdout(None):
        export(ExportSettings(source=str(run), output=str(partial / ARM), dtype="float16"))
    for file in partial.rglob("config.json"):
        _forget_path(file)
    files = sorted(partial.rglob("*.safetensors"))
    world = json.loads((reproduction.world / "world.json").read_text(encoding="utf-8"))
    recipe = (run / "recipe.yaml").read_text(encoding="utf-8")
    provenance = {
        "made by": "python -m miniature reproduce",
        "scale": asdict(reproduction.scale),
        "arm": ARM,
        "seed": SEED,
        "recipe": recipe.replace(str(reproduction.folder), "REPRODUCTION"),
        "world": {name: value for name, value in world.items() if name != "machine"},
        "machine": {name: value for name, value in machine().items() if name != "command"},
        "precision": "float16, trained and measured in float32",
        "sha256": {str(file.relative_to(partial)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
    }
    (partial / "provenance.json").write_text(json.dumps(provenance, indent=1) + "\n", encoding="utf-8")
    partial.replace(target)
    return target


def _forget_path(path: Path) -> None:
    """Libraries write down which folder of this machine a model was read from."""
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.pop("_name_or_path", None) is not None:
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _halve(path: Path) -> None:
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    halves = {name: tensor.half() if tensor.dtype == torch.float32 else tensor for name, tensor in tensors.items()}
    save_file(halves, path, metadata=metadata)
