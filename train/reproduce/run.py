"""`python -m train reproduce`: the paper's claims on the miniature world, from nothing to the report.

Everything is in one folder and made once: the world, its base, one run of the trainer for each arm and seed, and
`results.jsonl`. What is there is not made again, so that the set can be finished over several sittings, and a run
that was interrupted goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from llm4gen_core import LLM4GENError

from ..export import ExportSettings, export
from ..generate import choose_device
from ..loop import resume, run
from ..painter import Painter
from ..recipe_file import load_recipe
from ..run_folder import RunFolder, machine
from .arms import ARMS, CORE, EXPERIMENTS, STRENGTHS, Arm
from .clip import train_clip
from .language import train_decoder, train_encoder
from .results import Result, Results, fingerprint
from .scoring import MEASURES, paint, prompt_set, scores
from .world import first_pairs, write_pairs, write_untrained_base

MAIN_SETS = ("color", "shape", "texture", "spatial", "count", "complex", "dense")
HELD_OUT_SETS = ("combinations", "wordings", "five", "dense_wordings")
CURVE_SETS = ("color", "dense")
LLMS = {"t5": train_encoder, "llama": train_decoder}


@dataclass(frozen=True)
class Scale:
    """How much of everything.

    Attributes:
        pairs: images with captions.
        clip_steps, llm_steps, base_steps, arm_steps: optimizer steps.
        prompts: of each set; curve_prompts: of those that follow a training.
        batch: images a step of base and arms.
        words: share of words that the base must get right on short prompts before anything is compared.
    """

    pairs: int = 30_000
    clip_steps: int = 1_500
    llm_steps: int = 4_000
    base_steps: int = 5_000
    arm_steps: int = 2_000
    prompts: int = 128
    curve_prompts: int = 64
    batch: int = 64
    words: float = 0.9


QUICK = Scale(500, 20, 20, 30, 10, 8, 8, 16, 0.0)
"""Shows that everything runs; nothing is learned well enough to be compared."""


class Reproduction:
    """One folder.

    Args:
        folder: made if it does not exist.
        scale: how much of everything; the same in every sitting.
        device: for painting; training takes what accelerate finds.
    """

    def __init__(self, folder: Path, scale: Scale, device: str | None = None) -> None:
        self.folder = folder
        self.scale = scale
        self.device = choose_device(device)
        self.world = folder / "world"
        self.base = folder / "base"
        self.results = Results(folder / "results.jsonl")

    # ---- what all arms share

    def make_world(self) -> None:
        """Images, CLIP and LLMs."""
        with self._once("world", self.world / "world.json") as file:
            if file is None:
                return
            started = time.monotonic()
            write_pairs(self.world, self.scale.pairs)
            write_untrained_base(self.world / "base")
            clip = train_clip(self.world / "base" / "text_encoder", self.world / "base" / "tokenizer", self.scale.clip_steps)
            found: dict[str, Any] = {"clip": clip}
            for name, train in LLMS.items():
                found[name] = train(self.world / name, self.scale.llm_steps)
            found["seconds"] = round(time.monotonic() - started)
            _write_json(file, {**found, "machine": machine()})

    def train_base(self) -> None:
        """The base, by the project's own trainer; then a diffusers folder of it."""
        with self._once("base", self.base / "base.json") as file:
            if file is None:
                return
            overrides = [f"model.base={self.world / 'base'}", f"data.sources={self.world / 'pairs.jsonl'}"]
            overrides.append(f"train.steps={self.scale.base_steps}")
            run_folder = self._train("miniature-base", "base", overrides)
            shutil.copytree(self.world / "base", self.base, dirs_exist_ok=True)
            for part in ("unet", "scheduler"):
                shutil.copytree(run_folder.export / part, self.base / part, dirs_exist_ok=True)
            painter = Painter.from_files(self.base, device=self.device)
            for name in (*MAIN_SETS, *HELD_OUT_SETS):
                self._score(painter, "base", 0, name, self.scale.base_steps)
            short = self.results.find(arm="base", set="color", step="last")[0].scores["words"]
            words = sum(value for value in short if value is not None) / len(short)
            if words < self.scale.words:
                raise LLM4GENError(
                    f"The base paints {words:.3f} of the words of short prompts; expected at least {self.scale.words}, "
                    "or there is nothing to compare. Train it longer (another folder, more steps)."
                )
            _write_json(file, {"words": words})

    # ---- arms

    def run_arm(self, arm: Arm, seed: int) -> None:
        """Train one arm with one seed, and paint and judge what comes out."""
        self._train(arm.recipe, f"{arm.name}-{seed}", self._overrides(arm, seed))
        path = self._run_path(f"{arm.name}-{seed}")
        steps = self.scale.arm_steps
        for step in range(steps // 4, steps, steps // 4):
            with self._checkpoint(path, step, CURVE_SETS, arm, seed) as painter:
                for name in CURVE_SETS if painter else ():
                    self._score(painter, arm.name, seed, name, step)
        painter = self._painter(arm, path / "export")
        for name in (*MAIN_SETS, *(HELD_OUT_SETS if arm.experiment == "core" else ())):
            self._score(painter, arm.name, seed, name, steps)
        if arm.name == "llm4gen":
            for strength in STRENGTHS:
                for name in CURVE_SETS:
                    self._score(painter, arm.name, seed, name, steps, strength)

    def _overrides(self, arm: Arm, seed: int) -> list[str]:
        file = self.world / "pairs.jsonl"
        if arm.pairs is not None:
            file = first_pairs(file, min(arm.pairs, self.scale.pairs))
        overrides = [f"model.base={self.base}", f"data.sources={file}", f"seed={seed}"]
        overrides += [f"train.steps={self.scale.arm_steps}", f"checkpoints.every={self.scale.arm_steps // 4}"]
        if arm.llm:
            overrides.append(f"model.llm={self.world / arm.llm}")
        return [*overrides, *arm.overrides]

    def _run_path(self, name: str) -> Path:
        return self.folder / "runs" / name

    def _train(self, recipe: str, name: str, overrides: Sequence[str]) -> RunFolder:
        """Train, or go on, or do nothing where there is an export."""
        path = self._run_path(name)
        folder = RunFolder(path)
        if folder.export.is_dir():
            return folder
        if folder.checkpoints.exists():
            resume(path)
        else:
            batch = self.scale.batch
            sizes = [f"train.batch_size={batch}", f"train.micro_batch={batch}"]
            run(load_recipe(recipe, [*overrides, *sizes, f"output={path}"]))
        return folder

    def _painter(self, arm: Arm, export: Path) -> Painter:
        files: dict[str, Path] = {}
        if arm.llm:
            files = {"adapter": export / "adapter.safetensors", "llm": self.world / arm.llm}
        if (export / "unet").is_dir():
            files["unet"] = export / "unet"
        if (export / "text_encoder").is_dir():
            files["clip"] = export / "text_encoder"
        return Painter.from_files(self.base, **files, device=self.device)

    @contextlib.contextmanager
    def _checkpoint(
        self, path: Path, step: int, sets: Sequence[str], arm: Arm, seed: int
    ) -> Iterator[Painter | None]:
        """What a checkpoint paints with; None where it has painted already."""
        done = all(self.results.find(arm=arm.name, seed=seed, set=name, step=step) for name in sets)
        checkpoint = RunFolder(path).checkpoints / f"step-{step:08d}"
        if done or not checkpoint.is_dir():
            yield None
            return
        output = path / f"export-{step}"
        with contextlib.redirect_stdout(None):
            export(ExportSettings(source=str(checkpoint), output=str(output), force=True))
        yield self._painter(arm, output)
        shutil.rmtree(output)

    def _score(
        self, painter: Painter, arm: str, seed: int, name: str, step: int, strength: float | None = None
    ) -> None:
        final = step in (self.scale.arm_steps, self.scale.base_steps)
        captions, prompts = prompt_set(name, self.scale.prompts if final else self.scale.curve_prompts)
        strength = 1.0 if strength is None else strength
        if self.results.has(arm, seed, name, step, strength, prompts):
            return
        started = time.monotonic()
        has_adapter = painter.adapter is not None
        found = scores(paint(painter, captions, strength if has_adapter else None), captions)
        made = {
            "scale": fingerprint(vars(self.scale)),
            "device": str(self.device),
            "seconds": round(time.monotonic() - started, 1),
            "torch": torch.__version__,
        }
        self.results.append(Result(arm=arm, seed=seed, set=name, step=step, strength=strength, scores=found,
                                   prompts=prompts, made=made))  # fmt: skip

    @contextlib.contextmanager
    def _once(self, what: str, file: Path) -> Iterator[Path | None]:
        """The file that says that something has been made, or None if it has; one process at a time makes it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f"{what}.lock"):
            if file.is_file():
                yield None
                return
            print(f"Making {what}", flush=True)
            yield file


def tasks(experiments: Sequence[str], seeds: int, everywhere: bool) -> list[tuple[str, int]]:
    """Arms and seeds in the order in which they are worth having: the core first, and its seeds first."""
    chosen = [arm for arm in ARMS.values() if arm.experiment in experiments]
    several = [arm for arm in chosen if arm.name in CORE or everywhere]
    found = [(arm.name, seed) for seed in range(seeds) for arm in several]
    return found + [(arm.name, 0) for arm in chosen if arm not in several]


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
