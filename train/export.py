"""`python -m train export`: what can be painted with, from any checkpoint of a run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from llm4gen_core import LLM4GENError
from llm4gen_diffusers.devices import DTYPES

from .checkpoints import Checkpoints
from .parts import exported_names
from .run_folder import RunFolder
from .setup import adapter_metadata, open_models


@dataclass(frozen=True)
class ExportSettings:
    """What `export` writes.

    Attributes:
        source: folder of a run, for its newest checkpoint, or of one checkpoint inside a run.
        output: folder to write into; None is `export` inside the run.
        name: of the adapter file, without its ending.
        dtype: precision of the exported weights, a key of `DTYPES`; None keeps the float32 they were trained in.
        ema: whether to take the moving average where there is one.
        force: replace what `output` holds under these names.
    """

    source: str
    output: str | None = None
    name: str = "adapter"
    dtype: str | None = None
    ema: bool = True
    force: bool = False


def export(settings: ExportSettings) -> list[Path]:
    """Write the adapter if there is one, and the UNet or text encoders where they were trained whole; print the names.

    Raises:
        LLM4GENError: there is no run, no checkpoint that is whole, or the output exists already.
    """
    run, checkpoint = _find(Path(settings.source))
    if settings.dtype is not None and settings.dtype not in DTYPES:
        raise LLM4GENError(f"Precision {settings.dtype!r} is not known; expected {', '.join(DTYPES)}.")
    output = Path(settings.output) if settings.output is not None else run.export
    recipe = run.load()
    names = exported_names(recipe.trainable.parts, settings.name)
    existing = [output / name for name in names if (output / name).exists()]
    if existing and not settings.force:
        raise LLM4GENError(f"Output {existing[0]} exists already; give another --output or --name, or --force.")
    state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    provenance = json.loads(run.provenance.read_text(encoding="utf-8"))
    averaged = checkpoint / "ema.safetensors"
    weights = load_file(averaged if settings.ema and averaged.is_file() else checkpoint / "trained.safetensors")
    needs = {"cam": [], "text_encoder": ["text"]}.get(recipe.trainable.parts, ["unet"])
    models = open_models(recipe, needs)
    parts = models.trained_parts()
    parts.load(weights)
    metadata = adapter_metadata(models, int(state["step"]), state["data"], provenance.get("parser"))
    dtype = None if settings.dtype is None else DTYPES[settings.dtype]
    files = parts.export(output, settings.name, metadata, models.family.base.schedule, dtype)
    for file in files:
        print(file, flush=True)
    return files


def _find(source: Path) -> tuple[RunFolder, Path]:
    """The run and the checkpoint that a path stands for."""
    if (source / "state.json").is_file():
        run = RunFolder(source.resolve().parent.parent)
        Checkpoints.verify(source)
        return run, source
    run = RunFolder(source)
    run.load()
    newest = Checkpoints(run.checkpoints, keep=None).newest()
    if newest is None:
        raise LLM4GENError(f"Run {source} has no checkpoint that is whole; train it first.")
    return run, newest
