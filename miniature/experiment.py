"""The work of `python -m miniature reproduce`: world, base, a run of the trainer for each variant and seed, image sets.

Everything is in one folder and made once. What is there is not made again, so that the experiments can be finished in
several sessions and by several processes at once, and an interrupted run continues from its checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from evaluation.generate import generate
from evaluation.image_set import Prompt
from evaluation.metrics.base import Context
from evaluation.models import LLM4GENModel, ModelFiles, PresetOptions, open_model
from evaluation.score import score
from llm4gen_core import GuidanceOptions, LLM4GENError, Span
from llm4gen_core.files import read_json, whole_file, write_json
from llm4gen_diffusers.attention import install_cross_attention
from llm4gen_diffusers.attention_maps import attention_maps, strip
from llm4gen_diffusers.machine import choose_device, machine
from train.loop import Trainer, resume, run
from train.recipe import Recipe
from train.recipe_file import load_recipe
from train.run import ExportSettings, RunFolder, export

from . import GUIDANCE, STEPS
from .base import train_autoencoder, train_clip, write_untrained_unet
from .benchmark import caption_prompt
from .captions import CATEGORIES
from .dataset import SETS, SINGLE
from .judge import accuracy, blurred, noisy
from .language import train_decoder, train_encoder
from .probe import probe_encoders
from .results import (
    ATTENTION_PROMPTS,
    FINAL,
    METRIC,
    SHORT_SETS,
    Results,
    Scores,
    attention_files,
    image_set,
    read_scale,
    read_set,
)
from .variants import STRENGTH_VARIANTS, STRENGTHS, Variant
from .world import first_pairs, write_pairs

CURVE_SETS = ("color", "dense")
CURVE_POINTS = 5
"""Measurements along a training, the last included."""
LLMS = {"t5": train_encoder, "llama": train_decoder}
DISTURBANCES = {
    "rendered": (noisy, 0.0),
    **{f"noise {deviation}": (noisy, deviation) for deviation in (0.05, 0.1, 0.2)},
    **{f"blur {deviation}": (blurred, deviation) for deviation in (0.4, 0.6, 1.0)},
}
"""Disturbances that the judge is tested on, with their standard deviations."""


@dataclass(frozen=True)
class Scale:
    """Sizes of everything.

    Attributes:
        pairs: images with captions.
        vae_steps, clip_steps, llm_steps, base_steps, variant_steps: optimizer steps.
        prompts: prompts of each set; curve_prompts: of the sets that follow a training; probe_prompts: training
            prompts of the probes.
        batch: images of a step, for base and variants.
        warmup: steps of learning rate warm-up, for base and variants.
        words: share of the requested words that the base must bring into its images on `SHORT_SETS`.
        judged: scenes that the judge is tested on.
    """

    pairs: int = 30_000
    vae_steps: int = 9_000
    clip_steps: int = 1_500
    llm_steps: int = 4_000
    base_steps: int = 6_000
    variant_steps: int = 2_000
    prompts: int = 128
    curve_prompts: int = 64
    probe_prompts: int = 2_000
    batch: int = 64
    warmup: int = 100
    words: float = 0.9
    judged: int = 2_000


QUICK = Scale(
    pairs=200,
    vae_steps=10,
    clip_steps=5,
    llm_steps=10,
    base_steps=20,
    variant_steps=5,
    prompts=2,
    curve_prompts=2,
    probe_prompts=32,
    batch=8,
    warmup=2,
    words=0.0,
    judged=50,
)
"""Enough to see that everything runs; nothing is learned well enough to be compared."""


class Reproduction:
    """Folder of a reproduction.

    Args:
        folder: made if it does not exist.
        scale: sizes of everything; None for those that the folder was begun with.

    Raises:
        LLM4GENError: the folder was begun with another scale, or with None is not a reproduction.
    """

    def __init__(self, folder: Path, scale: Scale | None = None) -> None:
        self.folder = folder
        self.device = choose_device(None)
        self.world = folder / "world"
        self.base = folder / "base"
        self.scale = self._begin(scale)

    def _begin(self, scale: Scale | None) -> Scale:
        file = self.folder / "reproduction.json"
        if not file.is_file():
            if scale is None:
                raise LLM4GENError(f"{self.folder} is not a reproduction: there is no reproduction.json.")
            write_json(file, {"scale": asdict(scale)})
            return scale
        found = read_scale(self.folder)
        wanted = found if scale is None else asdict(scale)
        if differing := [name for name in wanted if found.get(name) != wanted[name]]:
            raise LLM4GENError(
                f"{self.folder} holds a reproduction with {', '.join(f'{n} {found.get(n)}' for n in differing)}; this "
                f"one would have {', '.join(f'{n} {wanted[n]}' for n in differing)}. Choose another folder, or the "
                "options that it was begun with."
            )
        return Scale(**found)

    # ---- shared by all variants

    def measure_judge(self) -> None:
        """Measure the judge where the content of images is known."""
        with self._once("judge", self.folder / "judge.json") as file:
            if file is not None:
                write_json(file, {name: accuracy(self.scale.judged, *way) for name, way in DISTURBANCES.items()})

    def make_world(self) -> None:
        """Make images, encoders and the probes of what they know of binding; each part is kept once it is there."""
        if (self.world / "world.json").is_file():
            return
        scale, base, device = self.scale, self.world / "base", self.device
        self._part("images", partial(self._write_images, base))
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
        write_json(self.world / "world.json", {**parts, "seconds": seconds, "machine": machine()})

    def _write_images(self, base: Path) -> None:
        write_pairs(self.world, self.scale.pairs)
        write_untrained_unet(base)

    def _part(self, name: str, make: Callable[[], Any]) -> dict[str, Any]:
        """Return the record of one part of the world, {"found": …, "seconds": …}; the part is made if missing."""
        record = self.world / f"{name}.json"
        with self._once(name, record) as file:
            if file is not None:
                started = time.monotonic()
                found = make()
                write_json(file, {"found": found, "seconds": round(time.monotonic() - started)})
        return read_json(record, "Record", "delete it, and the same command makes it again")

    def train_base(self) -> None:
        """Train the base with the trainer, write it as a diffusers folder, and generate and score its images.

        Raises:
            LLM4GENError: its images lack the words of short prompts, so that there is nothing to compare.
        """
        scale = self.scale
        with self._once("base", self.base / "base.json") as file:
            if file is not None:
                started = time.monotonic()
                overrides = [f"model.base={self.world / 'base'}", f"data.sources={self.world / 'pairs.jsonl'}"]
                overrides += [f"train.steps={scale.base_steps}", f"checkpoints.every={max(1, scale.base_steps // 4)}"]
                run_folder = self._train("miniature-base", "base", overrides)
                shutil.copytree(self.world / "base", self.base, dirs_exist_ok=True)
                for part in ("unet", "scheduler"):
                    shutil.copytree(run_folder.export / part, self.base / part, dirs_exist_ok=True)
                write_json(file, {"seconds": round(time.monotonic() - started), "machine": machine()})
        maps = attention_files(self.folder, "base", 0)
        if not read_set(image_set(self.folder, "base", 0)) or not all(file.is_file() for file in maps):
            model = self._open({})
            self._images("base", 0, model, (*SETS, SINGLE.name), scale.prompts)
            self._attention_maps("base", 0, model)
        results = Results({("base", 0, FINAL): read_set(image_set(self.folder, "base", 0))})
        found = {kind: results.mean("words", (name,), "base") for kind, name in SHORT_SETS.items()}
        words = {kind: mean.mean for kind, mean in found.items() if mean}
        if min(words.values(), default=0.0) < scale.words:
            shares = ", ".join(f"{share:.3f} of the words of prompts of {kind}" for kind, share in words.items())
            raise LLM4GENError(
                f"The base's images have {shares}; expected at least {scale.words} of each, or there is nothing to "
                "compare. Train it longer (another folder, more steps)."
            )

    # ---- variants

    def fill_caches(self, variant: Variant) -> None:
        """Encode images and captions once, which training runs that start together would each do by themselves."""
        spec = [one for one in variant.overrides if one.startswith("llm.")]
        name = "-".join(["cache", variant.llm, *spec])
        with self._once(name, self.world / "cache" / f"{name}.json") as file:
            if file is not None:
                path = self.folder / "runs" / name
                path.mkdir(parents=True, exist_ok=True)
                workers = f"data.workers={min(8, os.cpu_count() or 1)}"
                recipe = self._recipe(variant.recipe, path, [*self._overrides(variant, 0), workers])
                Trainer(recipe, RunFolder(path))
                shutil.rmtree(path)
                write_json(file, spec)

    def run_variant(self, variant: Variant, seed: int) -> None:
        """Train a variant with one seed, and generate and score its images."""
        run_name = f"{variant.trained_as or variant.name}-{seed}"
        folder = self._train(variant.recipe, run_name, self._overrides(variant, seed))
        for step in () if variant.trained_as else self._curve_steps():
            checkpoint, exported = folder.checkpoints / f"step-{step:08d}", folder.path / f"export-{step}"
            if checkpoint.is_dir() and not self._scored(variant, seed, f"step-{step}"):
                with contextlib.redirect_stdout(None):
                    export(ExportSettings(source=str(checkpoint), output=str(exported), force=True))
                model = self._open_variant(variant, exported)
                self._images(variant.name, seed, model, CURVE_SETS, self.scale.curve_prompts, f"step-{step}")
                shutil.rmtree(exported)
        model = self._open_variant(variant, folder.export)
        self._images(variant.name, seed, model, self._final_sets(variant), self.scale.prompts)
        if variant.is_core:
            self._attention_maps(variant.name, seed, model)
        for name, strength in self._strengths(variant).items():
            model.pipeline.strength = strength
            self._images(variant.name, seed, model, CURVE_SETS, self.scale.prompts, name)
        for checkpoint in () if variant.trained_as else sorted(folder.checkpoints.glob("step-*"))[:-1]:
            shutil.rmtree(checkpoint)  # large, and measured

    def is_done(self, variant: Variant, seed: int) -> bool:
        """Whether all images of a variant are there and scored."""
        wanted = {prompt.id for prompt in _prompts(self._final_sets(variant), self.scale.prompts)}
        scored = [{key[0] for key in self._scored(variant, seed, name)} for name in (FINAL, *self._strengths(variant))]
        maps = attention_files(self.folder, variant.name, seed) if variant.is_core else []
        return wanted <= scored[0] and all(scored) and all(file.is_file() for file in maps)

    def _scored(self, variant: Variant, seed: int, name: str = FINAL) -> Scores:
        return read_set(image_set(self.folder, variant.name, seed, name))

    def _final_sets(self, variant: Variant) -> tuple[str, ...]:
        return tuple(SETS) if variant.is_core else CATEGORIES

    def _strengths(self, variant: Variant) -> dict[str, float]:
        """Other strengths than 1 by the names of their image sets."""
        strengths = STRENGTHS if variant.name in STRENGTH_VARIANTS else ()
        return {f"strength-{strength:g}": strength for strength in strengths if strength != 1}

    def _every(self) -> int:
        return max(1, self.scale.variant_steps // CURVE_POINTS)

    def _curve_steps(self) -> range:
        return range(self._every(), self.scale.variant_steps, self._every())

    def _overrides(self, variant: Variant, seed: int) -> list[str]:
        file = self.world / "pairs.jsonl"
        if variant.pairs is not None:
            file = first_pairs(file, min(variant.pairs, self.scale.pairs))
        overrides = [f"model.base={self.base}", f"data.sources={file}", f"seed={seed}"]
        overrides += [f"train.steps={self.scale.variant_steps}", f"checkpoints.every={self._every()}"]
        if variant.llm:
            overrides.append(f"model.llm={self.world / variant.llm}")
        return [*overrides, *variant.overrides]

    def _recipe(self, name: str, path: Path, overrides: Sequence[str]) -> Recipe:
        batch = self.scale.batch
        sizes = [f"train.batch_size={batch}", f"train.micro_batch={batch}", f"logging.every={min(50, self._every())}"]
        sizes += [f"optimizer.warmup_steps={self.scale.warmup}", f"data.cache.folder={self.world / 'cache'}"]
        return load_recipe(name, [*overrides, *sizes, f"output={path}"])

    def _train(self, recipe: str, name: str, overrides: Sequence[str]) -> RunFolder:
        """Train, resume, or do nothing if there is an export; variants that share a run wait for each other."""
        path = self.folder / "runs" / name
        folder = RunFolder(path)
        path.parent.mkdir(exist_ok=True)
        with FileLock(path.with_name(f"{name}.lock")):
            if folder.export.is_dir():
                return folder
            if folder.checkpoints.exists():
                resume(path)
            else:
                run(self._recipe(recipe, path, overrides))
        return folder

    # ---- measuring

    def _open_variant(self, variant: Variant, exported: Path) -> LLM4GENModel:
        files: dict[str, Any] = {"lambda_mode": variant.lambda_mode}
        if variant.llm:
            files |= {"adapter": exported / "adapter.safetensors", "llm": self.world / variant.llm}
        parts = {"unet": exported / "unet", "clip": exported / "text_encoder"}
        return self._open(files | {name: folder for name, folder in parts.items() if folder.is_dir()})

    def _open(self, files: Mapping[str, Any]) -> LLM4GENModel:
        """Load the base with other files in place of its own. CLIP reads one chunk, as in training."""
        given = ModelFiles(base=self.base, chunks=1, batch=128, **files)
        model = open_model(given, PresetOptions(steps=STEPS, guidance=GUIDANCE), str(self.device))
        assert isinstance(model, LLM4GENModel)
        install_cross_attention(model.pipeline.family.unet, GuidanceOptions(alpha=0))  # faster than diffusers' here
        return model

    def _images(
        self, variant: str, seed: int, model: LLM4GENModel, sets: Sequence[str], prompts: int, name: str = FINAL
    ) -> None:
        """Generate and score the image set of a variant; one that is there is only completed."""
        path = image_set(self.folder, variant, seed, name).path
        images = generate(path, f"{variant}, seed {seed}", model, _prompts(sets, prompts), [0], benchmark=METRIC)
        score(images, [METRIC], Context(judges=Path()), batch=128)

    def _attention_maps(self, variant: str, seed: int, model: LLM4GENModel) -> None:
        """Draw the attention to attributes and entities of short prompts, and to one pair of a dense one."""
        for file, (name, number) in zip(attention_files(self.folder, variant, seed), ATTENTION_PROMPTS, strict=True):
            if not file.is_file():
                caption = SETS[name].prompts(number + 1)[number]
                pairs = caption.pairs[:1] if name == "dense" else caption.pairs  # CLIP cuts the later ones off
                words = [Span(*end, caption.text[slice(*end)]) for pair in pairs for end in pair]
                found = attention_maps(model.pipeline, caption.text, words, model.settings, seed=number, progress=False)
                with whole_file(file) as temporary:
                    Image.fromarray(strip(found)).save(temporary, format="PNG")

    @contextlib.contextmanager
    def _once(self, what: str, file: Path) -> Iterator[Path | None]:
        """Yield the file that says that something was made, or None if it was; one process at a time makes it."""
        with FileLock(self.folder / f"{what}.lock"):
            if file.is_file():
                yield None
                return
            print(f"Making {what}", flush=True)
            yield file


def _prompts(sets: Sequence[str], number: int) -> list[Prompt]:
    """Return the first prompts of each set; the noise of the n-th has the seed n."""
    found = []
    for name in sets:
        for index, caption in enumerate((SINGLE if name == SINGLE.name else SETS[name]).prompts(number)):
            prompt = caption_prompt(name, index, caption)
            found.append(prompt.model_copy(update={"about": {**prompt.about, "seed": index}}))
    return found


# ---- shipping


def ship(reproduction: Reproduction, target: Path) -> Path:
    """Copy the base, the T5 and LLM4GEN of seed 0 in half precision, with their provenance.

    Args:
        reproduction: the variant `llm4gen` was trained with seed 0.
        target: folder, which must not exist: `base` (diffusers), `t5` (Hugging Face), `llm4gen` (adapter and UNet) and
            `provenance.json`.

    Returns:
        `target`.

    Raises:
        LLM4GENError: the variant was not trained, or the target exists.
    """
    variant, seed, llm = "llm4gen", 0, "t5"
    trained = reproduction.folder / "runs" / f"{variant}-{seed}"
    if not (trained / "export").is_dir():
        raise LLM4GENError(f"{trained / 'export'} does not exist; train {variant} with seed {seed} first.")
    if target.exists():
        raise LLM4GENError(f"{target} exists already; delete it first, or choose another folder.")
    partial_folder = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial_folder, ignore_errors=True)
    for name, source in (("base", reproduction.base), (llm, reproduction.world / llm)):
        shutil.copytree(source, partial_folder / name)
    (partial_folder / "base" / "base.json").unlink(missing_ok=True)
    for file in partial_folder.rglob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            metadata = weights.metadata()
            tensors = {name: weights.get_tensor(name) for name in weights.keys()}
        halves = {name: one.half() if one.dtype == torch.float32 else one for name, one in tensors.items()}
        save_file(halves, file, metadata=metadata)
    with contextlib.redirect_stdout(None):
        export(ExportSettings(source=str(trained), output=str(partial_folder / variant), dtype="float16"))
    for file in partial_folder.rglob("config.json"):
        config = json.loads(file.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:  # libraries write down the folder a model was read from
            write_json(file, config)
    files = sorted(partial_folder.rglob("*.safetensors"))
    recipe = (trained / "recipe.yaml").read_text(encoding="utf-8")
    world = read_json(reproduction.world / "world.json", "World")
    provenance = {
        "made by": "python -m miniature reproduce",
        "scale": asdict(reproduction.scale),
        "variant": variant,
        "seed": seed,
        "recipe": recipe.replace(str(reproduction.folder), "REPRODUCTION"),
        "world": {name: value for name, value in world.items() if name != "machine"},
        "machine": {name: value for name, value in machine().items() if name != "command"},
        "precision": "float16, trained and measured in float32",
        "sha256": {
            str(file.relative_to(partial_folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
        },
    }
    write_json(partial_folder / "provenance.json", provenance)
    partial_folder.replace(target)
    return target
