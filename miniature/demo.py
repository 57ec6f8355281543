"""`python -m miniature demo`: base and LLM4GEN side by side, and the whole trainer, on miniature models."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import threading
from itertools import count
from pathlib import Path

from llm4gen_diffusers.generate import generate
from llm4gen_diffusers.images import check_output
from llm4gen_diffusers.options import GenerateSettings
from miniature import GUIDANCE, MODELS, STEPS
from miniature.scenes import CELL, GRID
from train.export import ExportSettings, export
from train.loop import Stopped, resume, run
from train.recipe_file import load_recipe
from train.run_folder import RunFolder

from .showcase import ARM, LLM, compare, looks, painters, save, sheet
from .world import make_world

PROMPTS = 4
SHORT_PROMPT = "a red square and a blue circle"

TRAINING = "llm4gen_demo_training"
WORLD_PROMPT = "a red circle and a blue square on white"
WORLD_SIZE = 32
WORLD_IMAGES = 32
TRAIN_STEPS = 20
PAINT_STEPS = 10
STOP_AT = 8
"""Step after which the demo interrupts its own run. Enough of them follow for the signal to arrive in time."""


def demo(output: str | os.PathLike[str]) -> list[Path]:
    """Paint with the shipped miniature, then train another one; print what happened and what it means.

    First dense prompts without and with LLM4GEN, and where both looked at an attribute and its entity. Then a training
    that is interrupted once and resumed, exported, and painted with.

    Args:
        output: folder; models and runs go into folders of their own inside it, images beside them.

    Returns:
        The PNG files: the comparison, the attention maps, one image as `generate` paints it, and those of before and
        after the training.

    Raises:
        LLM4GENError: the folder cannot be used.
    """
    folder = Path(output)
    check_output(folder)
    print("1. Paint")
    files = _paint(folder)
    print("\n2. Train")
    return files + _train(folder)


def _paint(folder: Path) -> list[Path]:
    print(
        f"The models are miniatures, trained from scratch on pictures of {GRID * CELL} pixels by `python -m train "
        "reproduce`; what they show of LLM4GEN is measured in its report, and says nothing of SD1.5.\n"
    )
    base, llm4gen = painters()
    shown = compare(base, llm4gen, PROMPTS)
    for number, one in enumerate(shown, 1):
        print(f"{number}. {one.caption.text}")
        for name, found in zip(("base", "with LLM4GEN"), one.scores(), strict=True):
            bound = "" if found.binding is None else f", {found.binding:.0%} of objects bound as told"
            print(f"   {name}: {found.words:.0%} of the words are there{bound}")
    text = "; ".join(one.caption.text for one in shown)
    print("\nSide by side, and where both looked at the first prompt's first attribute and its entity:", flush=True)
    files = [save(sheet(shown), folder / "base_and_llm4gen.png", text)]
    files.append(save(looks(base, llm4gen, shown[0], seed=0), folder / "attention.png", shown[0].caption.text))
    for file in files:
        print(file, flush=True)
    arguments: dict[str, Path | float] = {
        "base": MODELS / "base",
        "unet": MODELS / ARM / "unet",
        "adapter": MODELS / ARM / "adapter.safetensors",
        "llm": MODELS / LLM,
        "steps": STEPS,
        "guidance": GUIDANCE,
    }
    print("\nA single image, by the command that paints with the real models too:")
    command = " ".join(f"--{name} {shlex.quote(str(value))}" for name, value in arguments.items())
    print(f'python -m llm4gen_diffusers generate {command} --prompt "{SHORT_PROMPT}"')
    single = GenerateSettings(
        base=str(arguments["base"]),
        unet=str(arguments["unet"]),
        adapter=str(arguments["adapter"]),
        llm=str(arguments["llm"]),
        prompts=(SHORT_PROMPT,),
        steps=STEPS,
        guidance=GUIDANCE,
        output=str(folder / "llm4gen.png"),
    )
    return files + generate(single)


def _train(folder: Path) -> list[Path]:
    training = _free(folder / TRAINING)
    world = training / "world"
    _command("miniature", str(world), "--images", str(WORLD_IMAGES))
    make_world(world, WORLD_IMAGES)
    print(f"Made {WORLD_IMAGES} pictures of coloured shapes with captions, a random base and a random LLM.\n")

    overrides = [
        f"output={_yaml(training / 'run')}",
        f"model.base={_yaml(world / 'base')}",
        f"model.llm={_yaml(world / 'llm')}",
        f"data.sources={_yaml(world / 'images')}",
        f"train.steps={TRAIN_STEPS}",
        "logging.every=1",
    ]
    _command("run", "miniature", *overrides)
    recipe = load_recipe("miniature", overrides)
    path = training / "run"
    with _Interruption(path, STOP_AT), contextlib.suppress(Stopped):
        run(recipe)
    stopped = _losses(path)
    if len(stopped) < TRAIN_STEPS:
        print(f"\nThe demo sent itself what Ctrl-C sends; the run left a checkpoint after step {len(stopped)}.\n")
        _command("resume", str(path))
        resume(path)
    losses = _losses(path)
    print(f"\nTrained {len(losses)} steps: the loss fell from {losses[0]:.3f} to {losses[-1]:.3f}.")
    print("What was resumed is to the bit what an undisturbed run gives; the tests check that.\n")

    _command("export", str(path), "--output", str(training / "adapter"))
    adapter, unet, _ = export(ExportSettings(source=str(path), output=str(training / "adapter")))
    print(
        f"\n{WORLD_PROMPT!r}, {WORLD_SIZE} pixels, before and after so short a training, still a pattern:", flush=True
    )
    before = GenerateSettings(
        base=str(world / "base"),
        prompts=(WORLD_PROMPT,),
        output=str(folder / "before_training.png"),
        width=WORLD_SIZE,
        height=WORLD_SIZE,
        steps=PAINT_STEPS,
    )
    trained = {"unet": unet, "adapter": adapter, "llm": world / "llm", "output": folder / "after_training.png"}
    after = before.model_copy(update=trained)
    return generate(before) + generate(after)


class _Interruption:
    """Context manager that presses Ctrl-C, once, when the run in a folder has done so many steps."""

    def __init__(self, folder: Path, step: int) -> None:
        self._folder = folder
        self._step = step
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            if len(_losses(self._folder)) >= self._step:
                signal.raise_signal(signal.SIGINT)
                return


def _losses(run_folder: Path) -> list[float]:
    """Of every logged step so far; a line that is being written does not count."""
    metrics = RunFolder(run_folder).metrics
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True) if metrics.is_file() else []
    return [json.loads(line)["loss"] for line in lines if line.endswith("\n")]


def _free(folder: Path) -> Path:
    """A name that does not exist yet: a second demo leaves the first one's run alone."""
    if not folder.exists():
        return folder
    return next(path for number in count(2) if not (path := folder.with_name(f"{folder.name}_{number}")).exists())


def _yaml(path: Path) -> str:
    """A path as the value of an override: as it is where YAML reads it so, else in quotes."""
    import yaml

    try:
        plain = yaml.safe_load(str(path)) == str(path)
    except yaml.YAMLError:
        plain = False
    return str(path) if plain else json.dumps(str(path))


def _command(*arguments: str) -> None:
    print("$ python -m train", shlex.join(arguments), flush=True)
