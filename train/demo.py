"""`python -m train demo`: the whole path, on random miniature models that it makes itself."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import signal
import threading
from itertools import count
from pathlib import Path

from .export import ExportSettings, export
from .generate import GenerateSettings, generate
from .images import check_output
from .loop import Stopped, resume, run
from .miniature_world import make_world
from .recipe_file import load_recipe
from .run_folder import RunFolder
from .small_models import make_diffusers_folder, make_projector, make_t5_folder

PROMPTS = (
    "a red cat on a blue chair and a black dog in a white hat",
    "three green birds in the sky, two men in a boat and a woman with four white hats",
)
MODELS = "llm4gen_demo_models"
SIZE = 256
STEPS = 10

TRAINING = "llm4gen_demo_training"
WORLD_PROMPT = "a red circle and a blue square on white"
WORLD_SIZE = 32
WORLD_IMAGES = 32
TRAIN_STEPS = 20
STOP_AT = 8
"""Step after which the demo interrupts its own run. Enough of them follow for the signal to arrive in time."""


def demo(output: str | os.PathLike[str]) -> list[Path]:
    """Make models, paint with them, train with them; print what happened and what it means.

    First `PROMPTS` without and with LLM4GEN, in the file formats of the real models. Then a training on the miniature
    world, which is interrupted once and resumed, exported, and painted with.

    Args:
        output: folder; models and runs go into folders of their own inside it, images beside them.

    Returns:
        The PNG files: both prompts without LLM4GEN, both with it, and the miniature's before and after training.

    Raises:
        LLM4GENError: the folder cannot be used.
    """
    folder = Path(output)
    check_output(folder)
    print("These models are random miniatures: the images are abstract patterns, like noise, and show no cats.")
    print("The point is that the whole path runs on this machine, with the file formats of the real models.\n")
    print("1. Paint")
    files = _paint(folder)
    print("\n2. Train")
    return files + _train(folder)


def _paint(folder: Path) -> list[Path]:
    models = folder / MODELS
    base = make_diffusers_folder(models / "sd15")
    llm = make_t5_folder(models / "rankgen-t5")
    adapter = make_projector(models / "projector.pth")
    print(
        f"Models, in {models}: {base.name} (diffusers), {llm.name} (RankGen's layout), {adapter.name} (the release's)."
    )
    plain = GenerateSettings(
        base=str(base),
        prompts=PROMPTS,
        output=str(folder / "plain.png"),
        width=SIZE,
        height=SIZE,
        steps=STEPS,
    )
    print(f"\nImages of {len(PROMPTS)} prompts, without LLM4GEN:", flush=True)
    files = generate(plain)
    print("\nThe same with LLM4GEN:", flush=True)
    with_llm = dataclasses.replace(plain, adapter=str(adapter), llm=str(llm), output=str(folder / "llm4gen.png"))
    files += generate(with_llm)
    print("\nThe same by hand; put the real models in the place of these:")
    print(
        f"python -m train generate --base {shlex.quote(str(base))} --adapter {shlex.quote(str(adapter))} "
        f'--llm {shlex.quote(str(llm))} --width {SIZE} --height {SIZE} --steps {STEPS} --prompt "{PROMPTS[0]}"'
    )
    return files


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
        prompts=[WORLD_PROMPT],
        output=str(folder / "before_training.png"),
        width=WORLD_SIZE,
        height=WORLD_SIZE,
        steps=STEPS,
    )
    after = dataclasses.replace(
        before,
        unet=str(unet),
        adapter=str(adapter),
        llm=str(world / "llm"),
        output=str(folder / "after_training.png"),
    )
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
