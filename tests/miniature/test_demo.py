"""`python -m miniature demo`."""

import contextlib
import io
import json
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from short_runs import forget_accelerate

import miniature.demo
from llm4gen_core import load_adapter
from llm4gen_diffusers.__main__ import main
from miniature.demo import GAP, LINE, SIDE, TEXT, demo
from train.recipe_file import load_recipe
from train.run import RunFolder

QUICK = {"PROMPTS": 2, "WORLD_IMAGES": 8, "TRAIN_STEPS": 8, "STOP_AT": 2}


@dataclass(frozen=True)
class Shown:
    """A demo of a few seconds: its folder, the files that it gave, and what it printed."""

    folder: Path
    files: list[Path]
    lines: list[str]

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.folder / miniature.demo.TRAINING / "run")

    def command(self, package: str, name: str) -> list[str]:
        """Arguments of a printed `python -m PACKAGE NAME ...`, with the name."""
        start = f"$ python -m {package} "
        [line] = [line for line in self.lines if line.startswith(f"{start}{name} ")]
        return shlex.split(line.removeprefix(start))


def show(folder: Path) -> Shown:
    forget_accelerate()
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        for name, value in QUICK.items():
            patch.setattr(miniature.demo, name, value)
        files = demo(folder)
    return Shown(folder, files, printed.getvalue().splitlines())


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    return show(tmp_path_factory.mktemp("demo: first"))  # ": " means something in YAML


def test_the_demo_shows_base_and_llm4gen_side_by_side(shown: Shown) -> None:
    pixels = np.asarray(Image.open(shown.files[0])).astype(int)
    rows = [pixels[top : top + SIDE, TEXT:] for top in (2 * LINE, 2 * LINE + SIDE + 3 * LINE + GAP)]
    for row in rows:
        images = [row[:, left : left + SIDE] for left in (GAP + n * (SIDE + GAP) for n in range(3))]
        assert all(image.std() > 5 for image in images)
        assert all(np.abs(a - b).max() > 100 for i, a in enumerate(images) for b in images[:i])


def test_the_demo_shows_attention_maps_of_both(shown: Shown) -> None:
    pixels = np.asarray(Image.open(shown.files[1])).astype(int)
    base, llm4gen = np.split(pixels, 2)
    assert base.std() > 5 and np.abs(base - llm4gen).max() > 100


def test_the_demo_says_that_its_models_are_miniatures(shown: Shown) -> None:
    printed = "\n".join(shown.lines)
    assert "miniatures" in printed and "says nothing about SD1.5" in printed and "so short a training" in printed


def test_the_demo_prints_the_scores_of_the_judge(shown: Shown) -> None:
    found = [line for line in shown.lines if line.lstrip().startswith(("base: ", "with LLM4GEN: "))]
    assert len(found) == 2 * QUICK["PROMPTS"] and all("% of the requested words present" in line for line in found)


def test_the_command_that_the_demo_shows_works(shown: Shown, tmp_path: Path) -> None:
    assert main([*shown.command("llm4gen_diffusers", "generate"), "--output", str(tmp_path / "again.png")]) == 0
    assert (tmp_path / "again.png").read_bytes() == (shown.folder / "llm4gen.png").read_bytes()


def test_the_demo_trains_what_its_command_says(shown: Shown) -> None:
    _, name, *overrides = shown.command("train", "run")
    assert shown.run.load() == load_recipe(name, overrides).absolute()


def test_the_demo_stops_its_run_and_resumes_it(shown: Shown) -> None:
    steps = sorted(int(path.name.removeprefix("step-")) for path in shown.run.checkpoints.iterdir())
    assert len(steps) == 2 and QUICK["STOP_AT"] <= steps[0] < steps[1] == QUICK["TRAIN_STEPS"]
    assert shown.command("train", "resume") == ["resume", str(shown.run.path)]
    assert f"left a checkpoint after step {steps[0]}." in "\n".join(shown.lines)
    losses = [json.loads(line)["loss"] for line in shown.run.metrics.read_text().splitlines()]
    assert len(losses) == QUICK["TRAIN_STEPS"]
    assert f"the loss went from {losses[0]:.3f} to {losses[-1]:.3f}" in "\n".join(shown.lines)


def test_the_demo_uses_the_model_that_it_trained(shown: Shown) -> None:
    before, after = shown.files[3:]
    assert "llm" not in json.loads(Image.open(before).text["llm4gen"])
    settings = json.loads(Image.open(after).text["llm4gen"])
    adapter = shown.folder / miniature.demo.TRAINING / "adapter" / "adapter.safetensors"
    assert settings["adapter"] == adapter.name
    assert load_adapter(adapter).metadata.training["steps"] == QUICK["TRAIN_STEPS"]
    assert np.abs(np.asarray(Image.open(before)).astype(int) - np.asarray(Image.open(after))).max() > 0


def test_a_second_demo_keeps_the_images_and_the_run_of_the_first(shown: Shown) -> None:
    metrics = shown.run.metrics.read_bytes()
    second = show(shown.folder)
    assert len(set(shown.files + second.files)) == 10 and all(file.is_file() for file in shown.files)
    assert shown.run.metrics.read_bytes() == metrics
