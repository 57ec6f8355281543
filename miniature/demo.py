"""`python -m miniature demo`: base and LLM4GEN side by side, then the whole trainer, on miniature models."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shlex
import signal
import textwrap
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from llm4gen_core import Span
from llm4gen_diffusers.attention_maps import attention_maps, strip
from llm4gen_diffusers.generate import generate
from llm4gen_diffusers.options import GenerateSettings, GenerationOptions, ModelFiles
from llm4gen_diffusers.sampling import Pipeline, check_output, save_png, to_image
from train.loop import Stopped, resume, run
from train.recipe_file import load_recipe
from train.run import ExportSettings, RunFolder, export

from . import GUIDANCE, MODELS, STEPS
from .captions import Caption
from .dataset import draw_pair
from .judge import Score, read, score
from .scenes import CELL, COLORS, GRID, Scene, render
from .world import make_world

SEED = 2025
"""Seed of the demo's prompts; the prompt sets of the reproduction's report have others."""
PROMPTS = 4
SHORT_PROMPT = "a red square and a blue circle"
SAMPLING = GenerationOptions(steps=STEPS, guidance=GUIDANCE)

TRAINING = "llm4gen_demo_training"
WORLD_IMAGES = 64
TRAIN_STEPS = 20
STOP_AT = 8
"""Step after which the demo interrupts its own run. Enough of them follow for the signal to arrive in time."""

SIDE, TEXT, GAP, LINE = 192, 470, 16, 20
"""Pixels of the comparison: side of an image, width of the column of prompts, gap, and height of a line of text."""


def demo(output: str | os.PathLike[str]) -> list[Path]:
    """Generate images with the shipped models, then train; print what happens and what it means.

    First dense prompts without and with LLM4GEN, and attention maps of an attribute and its entity. Then a training run
    that is interrupted once, resumed, exported, and used.

    Args:
        output: folder; models and runs go into folders of their own inside it, images beside them.

    Returns:
        The PNG files: comparison, attention maps, an image as `generate` makes it, and images before and after the
        training.

    Raises:
        LLM4GENError: the folder cannot be used.
    """
    folder = Path(output)
    check_output(folder)
    print("1. Generate")
    files = _generate(folder)
    print("\n2. Train")
    return files + _train(folder)


@dataclass(frozen=True)
class Comparison:
    """Images of one prompt by the base and by LLM4GEN, from the same noise, [3, H, W] from 0 to 1."""

    scene: Scene
    caption: Caption
    images: tuple[Tensor, ...]

    def scores(self) -> list[Score]:
        """Scores of base and LLM4GEN."""
        readings = read(torch.stack(self.images).permute(0, 2, 3, 1).numpy())
        return [score(reading, self.caption) for reading in readings]


def _generate(folder: Path) -> list[Path]:
    print(
        f"The models are miniatures, trained from scratch on images of {GRID * CELL} pixels by `python -m miniature "
        "reproduce`; what they show of LLM4GEN is measured in its report, and says nothing about SD1.5.\n"
    )
    base_files = ModelFiles(base=str(MODELS / "base"))
    files = ModelFiles(
        base=base_files.base,
        unet=str(MODELS / "llm4gen" / "unet"),
        adapter=str(MODELS / "llm4gen" / "adapter.safetensors"),
        llm=str(MODELS / "t5"),
    )
    base, llm4gen = (Pipeline.from_files(given, chunks=1) for given in (base_files, files))
    rng = random.Random(f"demo {SEED}")
    drawn = [draw_pair(rng, dense=True) for _ in range(PROMPTS)]
    images = [
        pipeline.generate_prompts(
            [caption.text for _, caption in drawn], SAMPLING, seeds=range(PROMPTS), batch=PROMPTS, progress=False
        )
        for pipeline in (base, llm4gen)
    ]
    shown = [Comparison(*pair, both) for pair, both in zip(drawn, zip(*images, strict=True), strict=True)]
    for number, one in enumerate(shown, 1):
        print(f"{number}. {one.caption.text}")
        for name, found in zip(("base", "with LLM4GEN"), one.scores(), strict=True):
            print(f"   {name}: {'; '.join(_described(found))}")
    print("\nSide by side, and attention maps of the first prompt's first attribute and its entity:", flush=True)
    saved = []
    first = shown[0].caption
    for name, pixels in (("base_and_llm4gen", sheet(shown)), ("attention", _attention(base, llm4gen, first))):
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).add(0.5) / 255
        saved.append(save_png(image, folder / f"{name}.png", {"prompt": first.text}))
        print(saved[-1], flush=True)
    print("\nA single image, by the command that works with the real models too:")
    given = {**files.model_dump(exclude_none=True), "steps": STEPS, "guidance": GUIDANCE}
    options = " ".join(f"--{name} {shlex.quote(str(value))}" for name, value in given.items())
    print(f'$ python -m llm4gen_diffusers generate {options} --prompt "{SHORT_PROMPT}"', flush=True)
    return saved + generate(GenerateSettings(**given, prompts=(SHORT_PROMPT,), output=str(folder / "llm4gen.png")))


def _described(found: Score) -> list[str]:
    """Describe a score in words."""
    bound = [] if found.binding is None else [f"{found.binding:.0%} bound, among objects whose words are all present"]
    return [f"{found.words:.0%} of the requested words present", *bound]


def sheet(shown: Sequence[Comparison]) -> NDArray[np.uint8]:
    """Draw a row for each prompt: its text, the scene, the base's image and LLM4GEN's; RGB [H, W, 3]."""
    font = ImageFont.load_default(14)
    titles = ("scene of the prompt", "base", "base with LLM4GEN")
    row_height = SIDE + 3 * LINE + GAP
    canvas = Image.new("RGB", (TEXT + 3 * (SIDE + GAP) + GAP, 2 * LINE + len(shown) * row_height), "white")
    draw = ImageDraw.Draw(canvas)
    lefts = [TEXT + GAP + n * (SIDE + GAP) for n in range(3)]
    for left, title in zip(lefts, titles, strict=True):
        draw.text((left + SIDE / 2, LINE), title, "black", font, anchor="mm")
    for row, one in enumerate(shown):
        top = 2 * LINE + row * row_height
        draw.multiline_text((GAP, top), textwrap.fill(one.caption.text, 62), "black", font, spacing=5)
        for left, image in zip(lefts, (Image.fromarray(render(one.scene)), *map(to_image, one.images)), strict=True):
            canvas.paste(image.resize((SIDE, SIDE), Image.Resampling.NEAREST), (left, top))
        for left, found in zip(lefts[1:], one.scores(), strict=True):
            text = "\n".join(textwrap.fill(line, 28) for line in _described(found))
            draw.multiline_text((left, top + SIDE + 3), text, "black", font, spacing=3)
    return np.asarray(canvas)


def _attention(base: Pipeline, llm4gen: Pipeline, caption: Caption) -> NDArray[np.uint8]:
    """Draw attention maps of a colour and its entity, of the base and of LLM4GEN; RGB [H, W, 3]."""
    read_until = max(end for _, end in base.family.text_offsets(caption.text, 1))
    pairs = [pair for pair in caption.pairs if max(end for _, end in pair) <= read_until] or list(caption.pairs)
    chosen = next((pair for pair in pairs if caption.text[slice(*pair[0])] in COLORS), pairs[0])
    words = [Span(start, end, caption.text[start:end]) for start, end in chosen]
    found = [attention_maps(one, caption.text, words, SAMPLING, seed=0, progress=False) for one in (base, llm4gen)]
    return np.concatenate([strip(maps) for maps in found])


def _train(folder: Path) -> list[Path]:
    names = (TRAINING if number == 1 else f"{TRAINING}_{number}" for number in count(1))
    training = next(path for name in names if not (path := folder / name).exists())  # the first demo's run stays
    world, path, exported = training / "world", training / "run", training / "adapter"
    _command("miniature world", str(world), "--images", str(WORLD_IMAGES))
    make_world(world, WORLD_IMAGES)
    print(f"{WORLD_IMAGES} images of coloured shapes with captions, the base and its T5 are in {world}.\n")

    overrides = [
        f"output={_yaml(path)}",
        f"model.base={_yaml(world / 'base')}",
        f"model.llm={_yaml(world / 'llm')}",
        f"data.sources={_yaml(world / 'images')}",
        f"train.steps={TRAIN_STEPS}",
        "logging.every=1",
    ]
    _command("train run miniature", *overrides)
    recipe = load_recipe("miniature", overrides)
    with _interruption(path, STOP_AT), contextlib.suppress(Stopped):
        run(recipe)
    stopped = _losses(path)
    if len(stopped) < TRAIN_STEPS:
        print(f"\nThe demo interrupted its run as Ctrl-C does; the run left a checkpoint after step {len(stopped)}.\n")
        _command("train resume", str(path))
        resume(path)
    losses = _losses(path)
    print(f"\nTrained {len(losses)} steps: the loss went from {losses[0]:.3f} to {losses[-1]:.3f}.")
    print("The resumed run has the same weights, bit for bit, as one without interruption; the tests check that.\n")

    _command("train export", str(path), "--output", str(exported))
    adapter, unet, _ = export(ExportSettings(source=str(path), output=str(exported)))
    print(f"\n{SHORT_PROMPT!r} by the base, and after so short a training:", flush=True)
    settings = {"base": str(world / "base"), "prompts": (SHORT_PROMPT,), "steps": STEPS, "guidance": GUIDANCE}
    trained = {"unet": str(unet), "adapter": str(adapter), "llm": str(world / "llm")}
    files = []
    for name, given in (("before_training.png", settings), ("after_training.png", {**settings, **trained})):
        files += generate(GenerateSettings.model_validate({**given, "output": str(folder / name)}))
    return files


@contextlib.contextmanager
def _interruption(folder: Path, step: int) -> Iterator[None]:
    """Raise SIGINT once, as Ctrl-C does, when the run in `folder` has logged so many steps."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            if len(_losses(folder)) >= step:
                signal.raise_signal(signal.SIGINT)
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _losses(run_folder: Path) -> list[float]:
    """Losses of the steps logged so far; a line that is being written does not count."""
    metrics = RunFolder(run_folder).metrics
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True) if metrics.is_file() else []
    return [json.loads(line)["loss"] for line in lines if line.endswith("\n")]


def _yaml(path: Path) -> str:
    """Write a path as the value of an override, in quotes where YAML might read something else."""
    return str(path) if re.fullmatch(r"[\w./-]*/[\w./-]*", str(path)) else json.dumps(str(path))


def _command(command: str, *arguments: str) -> None:
    print(f"$ python -m {command}", shlex.join(arguments), flush=True)
