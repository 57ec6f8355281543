"""Folder of a run: its recipe and metrics, its checkpoints, and the export of the adapter from any of them.

Checkpoints appear whole, are verified before they are used, and never cost the one before. Manifest, check and rename
are SimpleTuner's idea; the code is our own. A checkpoint is written under another name, brought to the disk, listed in
a manifest with the hash of each file, and only then renamed. If the run ends in between, the folder that remains is
not taken for a checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from llm4gen_core import LLM4GENError
from llm4gen_core.errors import is_disk_full
from llm4gen_core.files import read_json, write_json, write_text
from llm4gen_diffusers.machine import DTYPES, machine

from .models import exported_names, open_models
from .recipe import Recipe
from .recipe_file import load_recipe

MANIFEST = "manifest.json"
FORMAT = 1

_NAME = re.compile(r"step-(\d{8,})")
_PARTIAL = ".partial"
_BLOCK = 1 << 22
log = logging.getLogger("llm4gen")


class RunFolder:
    """Names and files of a run.

    Contents: `recipe.yaml` (complete, with defaults), `provenance.json`, `metrics.jsonl`, `data.json` (report on the
    data), `data_left_out.jsonl` and `data_unreadable.jsonl` (pairs that could not be used, and images that could not
    be read later), `checkpoints/`, `validation/`, `cache/`, `tensorboard/` and, at the end, `export/`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.validation = path / "validation"
        self.export = path / "export"
        self.metrics = path / "metrics.jsonl"
        self.recipe = path / "recipe.yaml"
        self.provenance = path / "provenance.json"

    def create(self, recipe: Recipe) -> None:
        """Make the folder of a new run, or take that of a run which ended before its first step.

        Raises:
            LLM4GENError: it holds a run already, or is a file.
        """
        if self.metrics.exists() or self.checkpoints.exists():
            raise LLM4GENError(
                f"Output {self.path} holds a run already; continue it with `python -m train resume {self.path}`, or "
                "give another folder (output=PATH)."
            )
        if self.path.is_file():
            raise LLM4GENError(f"Output {self.path} is a file; give a folder (output=PATH).")
        write_text(self.recipe, recipe.to_yaml())

    def load(self) -> Recipe:
        """Load the recipe of an existing run.

        Raises:
            LLM4GENError: there is no run.
        """
        if not self.recipe.is_file():
            raise LLM4GENError(f"{self.path} holds no run: there is no recipe.yaml. Expected the output of a recipe.")
        return load_recipe(str(self.recipe))

    def write_provenance(self, content: Mapping[str, Any]) -> None:
        """Write what the run was made from, and on which machine."""
        write_json(self.provenance, {**machine(), **content})

    def cut_metrics(self, step: int) -> None:
        """Remove metrics of later steps than the one that the run resumes from, and a torn last line."""
        if not self.metrics.is_file():
            return
        kept = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
        write_text(self.metrics, "".join(kept))

    def log(self, values: Mapping[str, Any]) -> None:
        """Append a line to `metrics.jsonl`; a ratio in it may be infinite."""
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")


class Checkpoints:
    """Checkpoints of one run, `step-00001000` and so on, in a folder that no other run writes to.

    Args:
        folder: made if it does not exist.
        keep: number of the newest to keep; None keeps all.
    """

    def __init__(self, folder: Path, keep: int | None) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, step: int, write: Callable[[Path], None], needed: int) -> Path:
        """Write the checkpoint of a step and remove older ones beyond `keep`.

        An intact checkpoint of that step is left as it is: a run is deterministic, so it holds the same.

        Args:
            step: number of optimizer steps done.
            write: receives an empty folder and writes files and folders into it.
            needed: approximate number of bytes that it writes.

        Raises:
            LLM4GENError: the disk has too little space, before or while writing. Nothing half-written stays.
        """
        target = self.path_of(step)
        if target.exists() and _problem(target) is None:
            return target
        partial = self.begin(step, needed)
        try:
            write(partial)
            return self.commit(partial)
        except BaseException as error:
            full = isinstance(error, Exception) and not isinstance(error, LLM4GENError)
            full = full and (is_disk_full(error) or shutil.disk_usage(self.folder).free < _BLOCK)
            shutil.rmtree(partial, ignore_errors=True)
            if not full:
                raise
            raise LLM4GENError(self._too_small(step, needed, f"became full while it was written ({error})")) from error

    def begin(self, step: int, needed: int) -> Path:
        """Make the empty folder to write into: the first part of `save`.

        If several processes write a checkpoint together (FSDP, DeepSpeed), one of them calls `begin` and, when all
        have written, `commit`.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(f".step-*{_PARTIAL}"):
            shutil.rmtree(leftover, ignore_errors=True)
        if shutil.disk_usage(self.folder).free < needed + _margin(needed):
            raise LLM4GENError(self._too_small(step, needed, "has too little free space"))
        partial = self.folder / f".{self.path_of(step).name}.{uuid.uuid4().hex}{_PARTIAL}"
        partial.mkdir()
        return partial

    def commit(self, partial: Path) -> Path:
        """Turn the folder of `begin` into the checkpoint: the last part of `save`."""
        step = self.step_of(partial)
        target = self.path_of(step)
        _seal(partial, step)
        problem = _problem(partial, hashes=False)
        if problem:
            raise LLM4GENError(
                f"Checkpoint {target} was not stored as it was written: {problem}. Check the disk; the checkpoints "
                "before it are untouched."
            )
        if target.exists():  # a broken one: `save` keeps an intact one
            _remove(target)
        os.rename(partial, target)
        _sync_folder(self.folder)
        self._prune(step)
        return target

    def newest(self) -> Path | None:
        """Newest checkpoint whose files are complete and unchanged by their hashes; None if there is none.

        A broken one is skipped for the one before it, with a warning that names the file and the problem.
        """
        for path in self._all():
            problem = _problem(path)
            if problem is None:
                return path
            log.warning("Checkpoint %s is skipped: %s.", path, problem)
        return None

    @staticmethod
    def verify(path: Path) -> None:
        """Check the files of one checkpoint by their hashes.

        Raises:
            LLM4GENError: it is broken.
        """
        problem = _problem(path)
        if problem is not None:
            raise LLM4GENError(f"Checkpoint {path} is broken: {problem}. Use another checkpoint of the run.")

    def path_of(self, step: int) -> Path:
        """Folder of the checkpoint of a step."""
        return self.folder / f"step-{step:08d}"

    @staticmethod
    def step_of(path: Path) -> int:
        """Number of optimizer steps done in a checkpoint, by its name."""
        found = _NAME.search(path.name)
        if found is None:
            raise LLM4GENError(f"Checkpoint {path} has no step in its name; expected a folder such as step-00001000.")
        return int(found[1])

    def _all(self) -> list[Path]:
        """Folders with the name of a checkpoint, newest first."""
        if not self.folder.is_dir():
            return []
        found = [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
        return sorted(found, key=self.step_of, reverse=True)

    def _prune(self, step: int) -> None:
        """Remove checkpoints older than the newest `keep`, counted from the one just written.

        Broken ones do not count. Later steps are left alone: the run was resumed from before them, so they were found
        broken, and must not push out intact ones.
        """
        if self.keep is None:
            return
        kept = 0
        for path in self._all():
            if self.step_of(path) > step:
                continue
            if kept == self.keep:
                _remove(path)
            elif _problem(path, hashes=False) is None:
                kept += 1

    def _too_small(self, step: int, needed: int, what: str) -> str:
        free = shutil.disk_usage(self.folder).free
        return (
            f"Checkpoint of step {step}: the disk of {self.folder} {what}. It needs {_size(needed + _margin(needed))} "
            f"and {_size(free)} are free. Make space or lower checkpoints.keep, then resume the run; the checkpoints "
            "before it are untouched"
        )


@dataclass(frozen=True)
class ExportSettings:
    """Settings of `export`.

    Attributes:
        source: folder of a run, for its newest checkpoint, or of one checkpoint inside a run.
        output: folder to write into; None is `export` inside the run.
        name: of the adapter file, without its extension.
        dtype: precision of the exported weights, a key of `DTYPES`; None keeps the float32 of the training.
        ema: whether to use the moving average if there is one.
        force: whether to replace existing files of these names.
    """

    source: str
    output: str | None = None
    name: str = "adapter"
    dtype: str | None = None
    ema: bool = True
    force: bool = False


def export(settings: ExportSettings) -> list[Path]:
    """Write the adapter if there is one, and the UNet or text encoders if they were trained whole; print the names.

    Raises:
        LLM4GENError: there is no run, no intact checkpoint, or the output exists already.
    """
    source = Path(settings.source)
    if (source / "state.json").is_file():
        run, checkpoint = RunFolder(source.resolve().parent.parent), source
        Checkpoints.verify(source)
        recipe = run.load()
    else:
        run = RunFolder(source)
        recipe = run.load()
        newest = Checkpoints(run.checkpoints, keep=None).newest()
        if newest is None:
            raise LLM4GENError(f"Run {source} has no intact checkpoint; train it first.")
        checkpoint = newest
    if settings.dtype is not None and settings.dtype not in DTYPES:
        raise LLM4GENError(f"Precision {settings.dtype!r} is not known; expected {', '.join(DTYPES)}.")
    output = Path(settings.output) if settings.output is not None else run.export
    names = exported_names(recipe.trainable.parts, settings.name)
    existing = [output / name for name in names if (output / name).exists()]
    if existing and not settings.force:
        raise LLM4GENError(f"Output {existing[0]} exists already; give another --output or --name, or --force.")
    state = read_json(checkpoint / "state.json", "State", "use another checkpoint of the run")
    provenance = read_json(run.provenance, "Provenance", "put back the file of the run")
    averaged = checkpoint / "ema.safetensors"
    weights = load_file(averaged if settings.ema and averaged.is_file() else checkpoint / "trained.safetensors")
    needs = {"cam": [], "text_encoder": ["text"]}.get(recipe.trainable.parts, ["unet"])
    models = open_models(recipe, needs)
    parts = models.trained_parts()
    parts.load(weights)
    metadata = models.metadata(int(state["step"]), state["data"], provenance.get("parser"))
    dtype = None if settings.dtype is None else DTYPES[settings.dtype]
    files = parts.export(output, settings.name, metadata, models.family.base.schedule, dtype)
    for file in files:
        print(file, flush=True)
    return files


def _seal(folder: Path, step: int) -> None:
    """Bring every file to the disk and write the manifest last."""
    files = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with open(path, "rb+") as file:
            digest = _hash(file)
            os.fsync(file.fileno())
        files.append({"name": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size, "sha256": digest})
    for path in folder.rglob("*"):
        if path.is_dir():
            _sync_folder(path)
    write_json(folder / MANIFEST, {"format": FORMAT, "step": step, "files": files})
    _sync_folder(folder)


def _problem(folder: Path, hashes: bool = True) -> str | None:
    """Describe what is wrong with a checkpoint, without a full stop; None if nothing is."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return f"{MANIFEST} has format {manifest['format']}, this version reads {FORMAT}"
        if manifest["step"] != Checkpoints.step_of(folder):
            return f"{MANIFEST} is of step {manifest['step']}"
        expected = {file["name"]: (file["bytes"], file["sha256"]) for file in manifest["files"]}
    except FileNotFoundError:
        return f"{MANIFEST} is missing, so it was not written to its end"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    for name, (size, digest) in expected.items():
        try:
            found = (folder / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes, {size} were written"
            if hashes:
                with open(folder / name, "rb") as file:
                    if _hash(file) != digest:
                        return f"{name} does not hold what was written (its SHA-256 differs)"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def _hash(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()


def _remove(folder: Path) -> None:
    """Remove a checkpoint; if that is interrupted, what remains does not look like one."""
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}{_PARTIAL}")
    os.rename(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """Bring the file names of a folder to the disk; Windows cannot, and does not need it."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse it for folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _margin(needed: int) -> int:
    """Space beyond the estimate, for the file system itself and for the logs."""
    return needed // 20 + (64 << 20)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
