"""`python -m miniature reproduce`, quickly: all of it runs, learning happens, files load, nothing is made twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from short_runs import REPOSITORY, losses

from llm4gen_core import LLM4GENError
from llm4gen_diffusers.options import GenerationOptions, ModelFiles
from llm4gen_diffusers.sampling import Pipeline
from miniature import experiment, reproduce
from miniature.dataset import SETS
from miniature.experiment import CURVE_SETS, HELD_OUT_SETS, MAIN_SETS, QUICK, SAMPLES, Reproduction
from miniature.judge import read
from miniature.reproduce import QUICK_VARIANTS, run_tasks, tasks
from miniature.results import Result, Results
from miniature.ship import ship
from miniature.variants import CORE, EXPERIMENTS, VARIANTS, find_variant
from train.__main__ import main
from train.recipe_file import load_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quick reproduction, by the command in a process of its own."""
    path = tmp_path_factory.mktemp("reproduction") / "quick"
    command = [sys.executable, "-m", "miniature", "reproduce", str(path), "--quick"]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True, env=os.environ)
    return path


@pytest.fixture(scope="module")
def results(folder: Path) -> list[Result]:
    return Results(folder / "results.jsonl").load()


@pytest.mark.slow
def test_every_arm_was_painted_and_judged(results: list[Result]) -> None:
    for name in ("base", *QUICK_VARIANTS):
        step = QUICK.base_steps if name == "base" else QUICK.arm_steps
        sets = {one.set for one in results if (one.arm, one.step, one.strength) == (name, step, 1.0)}
        held_out = HELD_OUT_SETS if name in ("base", *CORE) else ()
        assert sets == {*MAIN_SETS, *held_out}, name
    assert all(len(values) == QUICK.prompts for one in results for values in one.scores.values())


@pytest.mark.slow
def test_trainings_are_followed(results: list[Result]) -> None:
    for name in QUICK_VARIANTS:
        assert {one.step for one in results if (one.arm, one.set) == (name, "dense")} == {2, 4, 6, 8, 10}


@pytest.mark.slow
def test_the_strength_is_varied_when_painting(results: list[Result]) -> None:
    found = {
        one.strength: one for one in results if (one.arm, one.set, one.step) == ("llm4gen", "dense", QUICK.arm_steps)
    }
    assert len(found) == 8 and {0.0, 1.0, 2.0} <= {*found}
    assert found[0.0].prompts == found[2.0].prompts


@pytest.mark.slow
def test_the_base_learns(folder: Path) -> None:
    found = losses(folder / "runs" / "base")
    assert found[-1] < 0.9 * found[0]


@pytest.mark.slow
def test_arms_train_the_same_unet_and_differ_in_what_they_should(folder: Path) -> None:
    unets = {
        name: load_file(folder / "runs" / f"{name}-0" / "export" / "unet" / "diffusion_pytorch_model.safetensors")
        for name in CORE
    }
    base = load_file(folder / "base" / "unet" / "diffusion_pytorch_model.safetensors")
    for name, tensors in unets.items():
        assert {key: tensor.shape for key, tensor in tensors.items()} == {k: t.shape for k, t in base.items()}
        assert (tensors["conv_in.weight"] != base["conv_in.weight"]).any(), name
    recipes = [load_recipe(str(folder / "runs" / f"{name}-0" / "recipe.yaml")) for name in CORE]
    finetune, plain, full = ({**recipe.to_dict(), "output": ""} for recipe in recipes)
    assert plain == {**full, "guidance": plain["guidance"]} and plain["guidance"]["alpha"] == 0
    same = ("data", "train", "loss", "checkpoints", "seed", "logging")
    assert {name: finetune[name] for name in same} == {name: full[name] for name in same}


@pytest.mark.slow
def test_an_arm_may_train_the_text_encoder(folder: Path) -> None:
    clip = [
        path / "model.safetensors"
        for path in (folder / "runs" / "finetuned_clip-0" / "export" / "text_encoder", folder / "base" / "text_encoder")
    ]
    trained, before = (load_file(path) for path in clip)
    assert any((trained[name] != tensor).any() for name, tensor in before.items())


@pytest.mark.slow
def test_pictures_and_maps_are_kept(folder: Path) -> None:
    samples = np.load(folder / "samples" / "llm4gen-0.npz")
    assert {*samples} == {*CURVE_SETS} and samples["dense"].shape == (SAMPLES, 16, 16, 3)
    maps = np.load(folder / "maps" / "llm4gen-0.npz")
    assert str(maps["0.prompt"]) == SETS["color"].prompts(1)[0].text
    assert maps["0.maps"].shape[0] == len(maps["0.words"]) == 4
    assert (maps["0.image"] == samples["color"][0]).mean() > 0.99  # the same prompt and noise


@pytest.mark.slow
def test_the_report_is_there(folder: Path) -> None:
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "miniature results" in page and "Not run yet" in page and "<svg" in page


@pytest.mark.slow
def test_the_judge_was_tried(folder: Path) -> None:
    assert json.loads((folder / "judge.json").read_text())["rendered"] == [1.0, 1.0]


@pytest.mark.slow
def test_what_is_there_is_not_made_again(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = {
        path: path.stat().st_mtime_ns for path in folder.rglob("*.*") if path.suffix in (".jsonl", ".safetensors")
    }
    assert main(["reproduce", str(folder), "--quick"]) == 0
    assert f"{len(QUICK_VARIANTS)} of {len(QUICK_VARIANTS)} trainings are there already." in capfd.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.slow
def test_what_is_shipped_paints(folder: Path, tmp_path: Path) -> None:
    models = ship(Reproduction(folder), tmp_path / "models")
    files = {"unet": "llm4gen/unet", "adapter": "llm4gen/adapter.safetensors", "llm": "t5"}
    pipeline = Pipeline.from_files(
        ModelFiles(base=models / "base", **{name: models / file for name, file in files.items()})
    )
    image = pipeline.generate("a red circle", GenerationOptions(steps=2, guidance=3), progress=False)
    assert image.shape == (1, 3, 16, 16) and image.isfinite().all()
    read(image.permute(0, 2, 3, 1).numpy())
    assert json.loads((models / "provenance.json").read_text())["scale"] == asdict(QUICK)
    assert not [file for file in models.rglob("*.json") if str(folder) in file.read_text(encoding="utf-8")]
    with pytest.raises(LLM4GENError, match="exists already"):
        ship(Reproduction(folder), tmp_path / "models")


def test_the_core_comes_first_with_all_of_its_seeds() -> None:
    found = tasks([*EXPERIMENTS], 3, everywhere=False)
    assert found[:9] == [(name, seed) for seed in range(3) for name in CORE]
    assert sorted(found[9:]) == sorted((name, 0) for name in VARIANTS if name not in CORE)
    assert len(tasks([*EXPERIMENTS], 3, everywhere=True)) == 3 * len(VARIANTS)
    assert tasks(["data"], 2, everywhere=False) == [
        (name, 0) for name in VARIANTS if VARIANTS[name].experiment == "data"
    ]


def test_a_world_that_was_interrupted_goes_on_with_the_part_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def train_llm(folder: Path, steps: int, device: object) -> dict[str, float]:
        made.append(folder.name)
        if made == ["t5", "llama"]:
            raise KeyboardInterrupt
        return {"color": float(len(made))}

    monkeypatch.setattr(experiment, "LLMS", {"t5": train_llm, "llama": train_llm})
    monkeypatch.setattr(experiment, "probe_encoders", lambda base, llms, prompts: {name: prompts for name in llms})
    scale = replace(QUICK, pairs=4, vae_steps=1, clip_steps=1)
    with pytest.raises(KeyboardInterrupt):
        Reproduction(tmp_path, scale).make_world()
    weights = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert {path.parent.name for path in weights} == {"unet", "vae", "text_encoder"}
    Reproduction(tmp_path, scale).make_world()
    assert made == ["t5", "llama", "llama"]
    assert weights == {path: path.stat().st_mtime_ns for path in weights}
    world = json.loads((tmp_path / "world" / "world.json").read_text())
    assert world["t5"] == {"color": 1} and world["llama"] == {"color": 3}
    assert world["probe"] == {"t5": QUICK.probe_prompts, "llama": QUICK.probe_prompts}
    assert {"vae", "clip", "seconds", "machine"} <= {*world}


def test_another_size_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    Reproduction(tmp_path, QUICK)
    with pytest.raises(LLM4GENError, match=r"with pairs 400; this one would have pairs 401\. Give another folder"):
        Reproduction(tmp_path, replace(QUICK, pairs=401))


def test_a_folder_without_a_reproduction_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LLM4GENError, match="holds no reproduction"):
        Reproduction(tmp_path)


def test_an_unknown_arm_is_named() -> None:
    with pytest.raises(LLM4GENError, match="Variant 'llm5gen' is not known; expected one of finetune"):
        find_variant("llm5gen")


@pytest.mark.parametrize("arguments", [["--task", "llm4gen"], ["--jobs", "0"], ["--seeds", "0"], ["--report"]])
def test_wrong_options_are_one_sentence(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", str(tmp_path / "nothing"), *arguments]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_training_that_fails_is_named_with_its_log(tmp_path: Path) -> None:
    reproduction = Reproduction(tmp_path, QUICK)  # without a world, nothing can be trained
    with pytest.raises(LLM4GENError, match=r"1 of 1 trainings failed; .*logs.finetune-0\.log"):
        run_tasks(reproduction, [("finetune", 0)], 1)
    assert "error: " in (tmp_path / "logs" / "finetune-0.log").read_text()


def test_sigterm_reaches_trainings_and_starts_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start(folder: Path, task: tuple[str, int], jobs: int) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
        return started[-1]

    monkeypatch.setattr(reproduce, "_start", start)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(SystemExit) as end:
        run_tasks(Reproduction(tmp_path, QUICK), [("finetune", seed) for seed in range(3)], 2)
    assert end.value.code == 128 + signal.SIGTERM
    assert [process.returncode for process in started] == [-signal.SIGTERM] * 2
