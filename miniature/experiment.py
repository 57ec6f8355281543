"""What `python -m miniature reproduce` makes: world, base, a run of the trainer for each variant and seed, results.

Everything is in one folder and made once. What is there is not made again, so that the set can be finished over
several sittings and by several processes at once, and a run that was interrupted goes on from its checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from pydantic import JsonValue

from llm4gen_core import GuidanceOptions, LLM4GENError
from llm4gen_core.files import write_text
from llm4gen_diffusers.attention import install_cross_attention
from llm4gen_diffusers.devices import choose_device
from llm4gen_diffusers.options import ModelFiles
from llm4gen_diffusers.provenance import fingerprint, machine
from llm4gen_diffusers.sampling import Pipeline
from miniature.captions import Caption
from miniature.dataset import SETS, SINGLE
from miniature.judge import accuracy, blurred, noisy
from train.export import ExportSettings, export
from train.loop import Trainer, resume, run
from train.recipe_file import load_recipe
from train.run_folder import RunFolder

from .base import train_autoencoder, train_clip, write_untrained_unet
from .language import train_decoder, train_encoder
from .probe import probe_encoders
from .results import Result, Results
from .scoring import generate, prompt_set, sample_maps, scores, to_bytes
from .variants import STRENGTH_VARIANTS, STRENGTHS, Variant
from .world import first_pairs, write_pairs

MAIN_SETS = ("color", "shape", "texture", "spatial", "count", "complex", "dense")
HELD_OUT_SETS = ("combinations", "wordings", "four", "dense_wordings")
CURVE_SETS = ("color", "dense")
CURVE_POINTS = 5
"""Measurements along a training, the last included."""
SHORT = {"one object": SINGLE, "two objects": SETS["color"]}
"""What a base must be able to paint before anything is compared."""
SAMPLES = 8
"""Images of a set that are kept to be looked at."""
LLMS = {"t5": train_encoder, "llama": train_decoder}
DISTURBANCES = {
    "rendered": noisy(0),
    "noise 0.05": noisy(0.05),
    "noise 0.1": noisy(0.1),
    "noise 0.2": noisy(0.2),
    "blur 0.4": blurred(0.4),
    "blur 0.6": blurred(0.6),
    "blur 1.0": blurred(1.0),
}
"""What the judge is tried on: standard deviations of noise, of pixels from 0 to 1, and of blur, in pixels."""


@dataclass(frozen=True)
class Scale:
    """How much of everything.

    Attributes:
        pairs: images with captions.
        vae_steps, clip_steps, llm_steps, base_steps, arm_steps: optimizer steps.
        prompts: of each set; curve_prompts: of those that follow a training; probe_prompts: that probes learn from.
        batch: images a step of base and arms.
        warmup: steps in which the learning rate of base and arms rises.
        words: share of words that the base must get right on each kind of `SHORT` before anything is compared.
        judged: scenes that the judge is tried on.
    """

    pairs: int = 30_000
    vae_steps: int = 9_000
    clip_steps: int = 1_500
    llm_steps: int = 4_000
    base_steps: int = 6_000
    arm_steps: int = 2_000
    prompts: int = 128
    curve_prompts: int = 64
    probe_prompts: int = 2_000
    batch: int = 64
    warmup: int = 100
    words: float = 0.9
    judged: int = 2_000


QUICK = Scale(
    pairs=400,
    vae_steps=20,
    clip_steps=20,
    llm_steps=20,
    base_steps=24,
    arm_steps=10,
    prompts=4,
    curve_prompts=4,
    probe_prompts=64,
    batch=16,
    warmup=2,
    words=0.0,
    judged=50,
)
"""Shows that everything runs; nothing is learned well enough to be compared."""


class Reproduction:
    """One folder.

    Args:
        folder: made if it does not exist.
        scale: how much of everything; None for what the folder was begun with.

    Raises:
        LLM4GENError: the folder was begun with another scale, or with None is no reproduction.
    """

    def __init__(self, folder: Path, scale: Scale | None = None) -> None:
        self.folder = folder
        self.device = choose_device(None)
        self.world = folder / "world"
        self.base = folder / "base"
        self.results = Results(folder / "results.jsonl")
        self.scale = self._begin(scale)

    def _begin(self, scale: Scale | None) -> Scale:
        file = self.folder / "reproduction.json"
        if not file.is_file():
            if scale is None:
                raise LLM4GENError(f"{self.folder} holds no reproduction: there is no reproduction.json.")
            _write_json(file, {"scale": asdict(scale)})
            return scale
        found = json.loads(file.read_text(encoding="utf-8"))["scale"]
        if scale is not None and found != asdict(scale):
            wanted = asdict(scale)
            differing = [name for name in wanted if found.get(name) != wanted[name]]
            raise LLM4GENError(
                f"{self.folder} holds a reproduction with {', '.join(f'{n} {found.get(n)}' for n in differing)}; this "
                f"one would have {', '.join(f'{n} {wanted[n]}' for n in differing)}. Give another folder, or go on "
                "with the options that it was begun with."
            )
        return Scale(**found)

    # ---- what all arms share

    def make_world(self) -> None:
        """Images, CLIP and LLMs, and what these know of binding; each is kept as soon as it is made."""
        if (self.world / "world.json").is_file():
            return
        scale, base, device = self.scale, self.world / "base", self.device
        self._part("images", lambda: _write_untrained(self.world, base, scale.pairs))
        found = {
            "vae": self._part("vae", lambda: train_autoencoder(base / "vae", scale.vae_steps, device=device)),
            "clip": self._part(
                "clip", lambda: train_clip(base / "text_encoder", base / "tokenizer", scale.clip_steps, device=device)
            ),
        }
        for name, train in LLMS.items():
            found[name] = self._part(name, partial(train, self.world / name, scale.llm_steps, device=device))
        llms = {name: self.world / name for name in LLMS}
        found["probe"] = self._part("probe", lambda: probe_encoders(base, llms, scale.probe_prompts))
        parts = {name: part["found"] for name, part in found.items()}
        seconds = sum(part["seconds"] for part in found.values())
        _write_json(self.world / "world.json", {**parts, "seconds": seconds, "machine": machine()})

    def _part(self, name: str, make: Callable[[], Any]) -> dict[str, Any]:
        """What making one part of the world has found, in how many seconds; made if it is not there."""
        record = self.world / f"{name}.json"
        with self._once(name, record) as file:
            if file is not None:
                started = time.monotonic()
                found = make()
                _write_json(file, {"found": found, "seconds": round(time.monotonic() - started)})
        return dict(json.loads(record.read_text(encoding="utf-8")))

    def try_judge(self) -> None:
        """How often the judge is right where the truth is known."""
        with self._once("judge", self.folder / "judge.json") as file:
            if file is not None:
                tried = {name: accuracy(self.scale.judged, disturb) for name, disturb in DISTURBANCES.items()}
                _write_json(file, tried)

    def train_base(self) -> None:
        """The base, by the project's own trainer; then a diffusers folder of it.

        Raises:
            LLM4GENError: it does not paint what short prompts name, so that there is nothing to compare.
        """
        with self._once("base", self.base / "base.json") as file:
            if file is None:
                return
            started = time.monotonic()
            overrides = [f"model.base={self.world / 'base'}", f"data.sources={self.world / 'pairs.jsonl'}"]
            steps = self.scale.base_steps
            overrides += [f"train.steps={steps}", f"checkpoints.every={max(1, steps // 4)}"]
            run_folder = self._train("miniature-base", "base", overrides)
            shutil.copytree(self.world / "base", self.base, dirs_exist_ok=True)
            for part in ("unet", "scheduler"):
                shutil.copytree(run_folder.export / part, self.base / part, dirs_exist_ok=True)
            pipeline = Pipeline.from_files(ModelFiles(base=self.base), self.device)
            for name in (*MAIN_SETS, *HELD_OUT_SETS):
                self._score(pipeline, "base", 0, name, steps, self.scale.prompts)
            self._keep_pictures(pipeline, "base-0")
            words = {name: _words(pipeline, prompts.prompts(self.scale.prompts)) for name, prompts in SHORT.items()}
            if min(words.values()) < self.scale.words:
                found = ", ".join(f"{share:.3f} of the words of prompts of {name}" for name, share in words.items())
                raise LLM4GENError(
                    f"The base paints {found}; expected at least {self.scale.words} of each, or there is nothing to "
                    "compare. Train it longer (another folder, more steps)."
                )
            seconds = round(time.monotonic() - started)
            _write_json(file, {"words": words, "seconds": seconds, "machine": machine()})

    # ---- arms

    def fill_caches(self, arm: Variant) -> None:
        """Encode images and captions once, which trainings that start together would do each for itself."""
        spec = [one for one in arm.overrides if one.startswith("llm.")]
        name = "-".join(["cache", arm.llm, *spec])
        with self._once(name, self.world / "cache" / f"{name}.json") as file:
            if file is not None:
                path = self.folder / "runs" / name
                folder = RunFolder(path)
                workers = f"data.workers={min(8, os.cpu_count() or 1)}"
                overrides = [*self._overrides(arm, 0), *self._sizes(), workers, f"output={path}"]
                recipe = load_recipe(arm.recipe, overrides)
                path.mkdir(parents=True, exist_ok=True)
                Trainer(recipe, folder)
                shutil.rmtree(path)
                _write_json(file, spec)

    def run_variant(self, arm: Variant, seed: int) -> None:
        """Train one arm with one seed, and paint and judge what comes out."""
        steps, name = self.scale.arm_steps, f"{arm.name}-{seed}"
        folder = self._train(arm.recipe, f"{arm.trained_as or arm.name}-{seed}", self._overrides(arm, seed))
        for step in () if arm.trained_as else self._curve_steps():
            with self._checkpoint(folder, step, arm, seed) as pipeline:
                if pipeline is not None:
                    for prompts in CURVE_SETS:
                        self._score(pipeline, arm.name, seed, prompts, step, self.scale.curve_prompts)
        pipeline = self._painter(arm, folder.export)
        for prompts in self._final_sets(arm):
            self._score(pipeline, arm.name, seed, prompts, steps, self.scale.prompts)
        for strength in self._strengths(arm):
            for prompts in CURVE_SETS:
                self._score(pipeline, arm.name, seed, prompts, steps, self.scale.prompts, strength)
        self._keep_pictures(pipeline, name, maps=arm.experiment == "core")
        for checkpoint in () if arm.trained_as else sorted(folder.checkpoints.glob("step-*"))[:-1]:
            shutil.rmtree(checkpoint)  # large, and measured

    def is_done(self, arm: Variant, seed: int) -> bool:
        """Whether all results and the pictures of an arm are there."""
        steps = self.scale.arm_steps
        wanted = [(name, steps, 1.0) for name in self._final_sets(arm)]
        wanted += [(name, steps, strength) for name in CURVE_SETS for strength in self._strengths(arm)]
        return self._samples(f"{arm.name}-{seed}").is_file() and all(
            self.results.find(arm=arm.name, seed=seed, set=name, step=step, strength=strength)
            for name, step, strength in wanted
        )

    def _final_sets(self, arm: Variant) -> tuple[str, ...]:
        return (*MAIN_SETS, *(HELD_OUT_SETS if arm.experiment == "core" else ()))

    def _strengths(self, arm: Variant) -> tuple[float, ...]:
        return STRENGTHS if arm.name in STRENGTH_VARIANTS else ()

    def _every(self) -> int:
        return max(1, self.scale.arm_steps // CURVE_POINTS)

    def _curve_steps(self) -> range:
        return range(self._every(), self.scale.arm_steps, self._every())

    def _overrides(self, arm: Variant, seed: int) -> list[str]:
        file = self.world / "pairs.jsonl"
        if arm.pairs is not None:
            file = first_pairs(file, min(arm.pairs, self.scale.pairs))
        overrides = [f"model.base={self.base}", f"data.sources={file}", f"seed={seed}"]
        overrides += [f"train.steps={self.scale.arm_steps}", f"checkpoints.every={self._every()}"]
        if arm.llm:
            overrides.append(f"model.llm={self.world / arm.llm}")
        return [*overrides, *arm.overrides]

    def _train(self, recipe: str, name: str, overrides: Sequence[str]) -> RunFolder:
        """Train, or go on, or do nothing where there is an export; arms that share a training wait for each other."""
        path = self.folder / "runs" / name
        folder = RunFolder(path)
        path.parent.mkdir(exist_ok=True)
        with FileLock(path.with_name(f"{name}.lock")):
            if folder.export.is_dir():
                return folder
            if folder.checkpoints.exists():
                resume(path)
            else:
                run(load_recipe(recipe, [*overrides, *self._sizes(), f"output={path}"]))
        return folder

    def _sizes(self) -> list[str]:
        batch = self.scale.batch
        sizes = [f"train.batch_size={batch}", f"train.micro_batch={batch}"]
        sizes += [f"optimizer.warmup_steps={self.scale.warmup}", f"logging.every={min(50, self._every())}"]
        return [*sizes, f"data.cache.folder={self.world / 'cache'}"]

    def _painter(self, arm: Variant, export: Path) -> Pipeline:
        files: dict[str, Any] = {"lambda_mode": arm.lambda_mode}
        if arm.llm:
            files |= {"adapter": export / "adapter.safetensors", "llm": self.world / arm.llm}
        if (export / "unet").is_dir():
            files["unet"] = export / "unet"
        if (export / "text_encoder").is_dir():
            files["clip"] = export / "text_encoder"
        pipeline = Pipeline.from_files(ModelFiles(base=self.base, **files), self.device)
        install_cross_attention(pipeline.family.unet, GuidanceOptions(alpha=0))  # as in training, and faster here
        return pipeline

    @contextlib.contextmanager
    def _checkpoint(self, folder: RunFolder, step: int, arm: Variant, seed: int) -> Iterator[Pipeline | None]:
        """What a checkpoint paints with; None where it has painted already, or is gone."""
        done = all(self.results.find(arm=arm.name, seed=seed, set=name, step=step) for name in CURVE_SETS)
        checkpoint = folder.checkpoints / f"step-{step:08d}"
        if done or not checkpoint.is_dir():
            yield None
            return
        output = folder.path / f"export-{step}"
        with contextlib.redirect_stdout(None):
            export(ExportSettings(source=str(checkpoint), output=str(output), force=True))
        yield self._painter(arm, output)
        shutil.rmtree(output)

    # ---- measuring

    def _score(
        self, pipeline: Pipeline, arm: str, seed: int, name: str, step: int, number: int, strength: float = 1.0
    ) -> None:
        captions, prompts = prompt_set(name, number)
        if self.results.has(arm, seed, name, step, strength, prompts):
            return
        started = time.monotonic()
        found = scores(generate(pipeline, captions, None if pipeline.adapter is None else strength), captions)
        made: dict[str, JsonValue] = {
            "scale": fingerprint(asdict(self.scale)),
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else self.device.type,
            "seconds": round(time.monotonic() - started, 1),
            "torch": torch.__version__,
        }
        self.results.append(Result(arm=arm, seed=seed, set=name, step=step, strength=strength, scores=found,
                                   prompts=prompts, made=made))  # fmt: skip

    def _samples(self, name: str) -> Path:
        return self.folder / "samples" / f"{name}.npz"

    def _keep_pictures(self, pipeline: Pipeline, name: str, maps: bool = True) -> None:
        """Images, and where they looked at words, for the report."""
        images = {prompts: generate(pipeline, SETS[prompts].prompts(SAMPLES)) for prompts in CURVE_SETS}
        if maps:
            _write_arrays(self.folder / "maps" / f"{name}.npz", sample_maps(pipeline))
        # Last of all: that the samples are there says that the arm is done.
        _write_arrays(self._samples(name), {k: to_bytes(v) for k, v in images.items()})

    @contextlib.contextmanager
    def _once(self, what: str, file: Path) -> Iterator[Path | None]:
        """The file that says that something has been made, or None if it has; one process at a time makes it."""
        with FileLock(self.folder / f"{what}.lock"):
            if file.is_file():
                yield None
                return
            print(f"Making {what}", flush=True)
            yield file


def _write_untrained(world: Path, base: Path, pairs: int) -> None:
    write_pairs(world, pairs)
    write_untrained_unet(base)


def _words(pipeline: Pipeline, captions: Sequence[Caption]) -> float:
    """Share of the words that the pipeline brings into its images."""
    return float(np.mean(np.array(scores(generate(pipeline, captions), captions)["words"], float)))


def _write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        np.savez_compressed(file, **arrays)
    partial.replace(path)


def _write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")
