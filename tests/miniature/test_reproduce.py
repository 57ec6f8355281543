"""`python -m miniature reproduce` at a tiny size: everything runs, nothing is made twice, a run can be interrupted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file
from short_runs import forget_accelerate, losses

from llm4gen_core import LLM4GENError
from llm4gen_diffusers.options import GenerationOptions, ModelFiles
from llm4gen_diffusers.sampling import Pipeline
from miniature import MODELS, experiment, reproduce
from miniature.__main__ import main
from miniature.dataset import SETS
from miniature.demo import _interruption
from miniature.experiment import QUICK, Reproduction, ship
from miniature.judge import read
from miniature.reproduce import QUICK_VARIANTS, run_tasks, tasks
from miniature.results import Results, attention_files, image_set, read_scale, read_set
from miniature.variants import CORE, EXPERIMENTS, STRENGTHS, VARIANTS, find_variant
from train.loop import Stopped
from train.recipe_file import load_recipe
from train.run import RunFolder

INTERRUPTED = "llm4gen"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quick reproduction, one of whose training runs was interrupted and continued."""
    path = tmp_path_factory.mktemp("reproduction") / "quick"
    reproduction = Reproduction(path, QUICK)
    reproduction.measure_judge()
    reproduction.make_world()
    forget_accelerate()
    reproduction.train_base()
    for name in QUICK_VARIANTS:
        run = RunFolder(path / "runs" / f"{name}-0")
        forget_accelerate()
        if name == INTERRUPTED:
            with _interruption(run.path, 2), pytest.raises(Stopped):
                reproduction.run_variant(find_variant(name), 0)
            assert run.checkpoints.is_dir() and not run.export.exists()
            forget_accelerate()
        assert not reproduction.is_done(find_variant(name), 0)
        reproduction.run_variant(find_variant(name), 0)
    return path


@pytest.mark.slow
def test_every_variant_is_measured_on_its_prompt_sets(folder: Path) -> None:
    for name in ("base", *QUICK_VARIANTS):
        scored = Results.read(folder).scores[name, 0, "final"]
        sets = {key[0].rpartition("-")[0] for key in scored}
        assert sets == {*SETS, *(["single"] if name == "base" else [])}, name
        assert len(scored) == len(sets) * QUICK.prompts
        assert all({"score", "words", "binding", "exact"} <= {*scores} for scores in scored.values())


@pytest.mark.slow
def test_training_runs_are_measured_on_their_way(folder: Path) -> None:
    for name in QUICK_VARIANTS:
        assert {*Results.read(folder).curve(name, "words", "dense", 5)} == {1, 2, 3, 4, 5}


@pytest.mark.slow
def test_an_interrupted_training_run_is_continued(folder: Path) -> None:
    assert len(losses(folder / "runs" / f"{INTERRUPTED}-0")) == QUICK.variant_steps


@pytest.mark.slow
def test_images_are_generated_with_several_strengths(folder: Path) -> None:
    for strength in STRENGTHS:
        images = image_set(folder, "llm4gen", 0, "final" if strength == 1 else f"strength-{strength:g}")
        assert images.settings.generation["strength"] == strength and read_set(images)


@pytest.mark.slow
def test_every_prompt_of_a_set_has_noise_of_its_own(folder: Path) -> None:
    prompts = [prompt for prompt in image_set(folder, "base", 0).prompts if prompt.category == "color"]
    assert [prompt.about["seed"] for prompt in prompts] == [*range(QUICK.prompts)]
    assert [prompt.text for prompt in prompts] == [caption.text for caption in SETS["color"].prompts(QUICK.prompts)]


@pytest.mark.slow
def test_the_base_learns(folder: Path) -> None:
    found = losses(folder / "runs" / "base")
    assert found[-1] < 0.9 * found[0]


@pytest.mark.slow
def test_variants_train_the_same_unet_and_differ_in_what_they_should(folder: Path) -> None:
    base = load_file(folder / "base" / "unet" / "diffusion_pytorch_model.safetensors")
    for name in QUICK_VARIANTS:
        unet = load_file(folder / "runs" / f"{name}-0" / "export" / "unet" / "diffusion_pytorch_model.safetensors")
        assert {key: tensor.shape for key, tensor in unet.items()} == {key: t.shape for key, t in base.items()}
        assert (unet["conv_in.weight"] != base["conv_in.weight"]).any(), name
    plain, full = (
        {**load_recipe(str(folder / "runs" / f"{name}-0" / "recipe.yaml")).to_dict(), "output": ""}
        for name in QUICK_VARIANTS
    )
    assert plain == {**full, "guidance": plain["guidance"]} and plain["guidance"]["alpha"] == 0
    files = ["model.base=b", "data.sources=d"]
    finetune, llm4gen = (
        load_recipe(find_variant(name).recipe, files + llm).to_dict()
        for name, llm in (("finetune", []), ("llm4gen", ["model.llm=l"]))
    )
    same = ("data", "train", "loss", "checkpoints", "seed", "logging")
    assert {name: finetune[name] for name in same} == {name: llm4gen[name] for name in same}


def test_a_trained_text_encoder_takes_the_place_of_the_bases(tmp_path: Path) -> None:
    reproduction = Reproduction(tmp_path, QUICK)
    reproduction.base = MODELS / "base"
    shutil.copytree(MODELS / "base" / "text_encoder", tmp_path / "export" / "text_encoder")
    model = reproduction._open_variant(find_variant("finetuned_clip"), tmp_path / "export")
    assert "clip" in model.describe() and "unet" not in model.describe()


@pytest.mark.slow
def test_attention_maps_are_drawn(folder: Path) -> None:
    for name in ("base", *QUICK_VARIANTS):
        sizes = [Image.open(file).size for file in attention_files(folder, name, 0)]
        assert sizes[0] == sizes[1] == sizes[2] > sizes[3]  # two pairs of a short prompt, one of a dense one


@pytest.mark.slow
def test_the_judge_was_tested(folder: Path) -> None:
    assert json.loads((folder / "judge.json").read_text())["rendered"] == [1.0, 1.0]


@pytest.mark.slow
def test_nothing_is_made_twice_and_the_report_is_written(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = [path for path in folder.rglob("*.*") if path.suffix in (".jsonl", ".safetensors", ".png")]
    before = {path: path.stat().st_mtime_ns for path in files}
    assert before and main(["reproduce", str(folder), "--quick"]) == 0
    assert f"{len(QUICK_VARIANTS)} of {len(QUICK_VARIANTS)} variants are done already." in capfd.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in before}
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "miniature results" in page and "Not run yet" in page and "<svg" in page
    assert image_set(folder, "llm4gen", 0).settings.name == "llm4gen, seed 0"


@pytest.mark.slow
def test_shipped_models_can_be_used(folder: Path, tmp_path: Path) -> None:
    models = ship(Reproduction(folder), tmp_path / "models")
    files = {"unet": "llm4gen/unet", "adapter": "llm4gen/adapter.safetensors", "llm": "t5"}
    given = ModelFiles(base=models / "base", **{name: models / file for name, file in files.items()})
    image = Pipeline.from_files(given).generate(
        "a red circle", GenerationOptions(steps=2, guidance=3), seed=0, progress=False
    )
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


def test_an_interrupted_world_continues_with_the_missing_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_another_scale_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    Reproduction(tmp_path, QUICK)
    with pytest.raises(LLM4GENError, match=r"with pairs 200; this one would have pairs 201\. Choose another folder"):
        Reproduction(tmp_path, replace(QUICK, pairs=201))


def test_a_folder_of_a_former_version_is_continued(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its training runs are used; its results are not read, which one sentence says."""
    scale = asdict(QUICK)
    scale["arm_steps"] = scale.pop("variant_steps")
    (tmp_path / "reproduction.json").write_text(json.dumps({"scale": scale}))
    (tmp_path / "results.jsonl").write_text("{}\n")
    assert Reproduction(tmp_path, QUICK).scale == QUICK and read_scale(tmp_path) == asdict(QUICK)
    assert main(["reproduce", str(tmp_path), "--report"]) == 0
    assert capsys.readouterr().out.startswith("results.jsonl of a former version is not read any more")


def test_a_folder_without_a_reproduction_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LLM4GENError, match="is not a reproduction"):
        Reproduction(tmp_path)


def test_an_unknown_variant_is_named() -> None:
    with pytest.raises(LLM4GENError, match="Variant 'llm5gen' is not known; expected one of finetune"):
        find_variant("llm5gen")


@pytest.mark.parametrize("arguments", [["--task", "llm4gen"], ["--jobs", "0"], ["--seeds", "0"], ["--report"]])
def test_wrong_options_are_one_sentence(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", str(tmp_path / "nothing"), *arguments]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_variant_that_fails_is_named_with_its_log(tmp_path: Path) -> None:
    reproduction = Reproduction(tmp_path, QUICK)  # without a world, nothing can be trained
    with pytest.raises(LLM4GENError, match=r"1 of 1 variants failed; .*logs.finetune-0\.log"):
        run_tasks(reproduction, [("finetune", 0)], 1)
    assert "error: " in (tmp_path / "logs" / "finetune-0.log").read_text()


def test_sigterm_reaches_training_runs_and_starts_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start(log: Path, folder: Path, task: tuple[str, int], jobs: int) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
        return started[-1]

    monkeypatch.setattr(reproduce, "_start", start)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(SystemExit) as end:
        run_tasks(Reproduction(tmp_path, QUICK), [("finetune", seed) for seed in range(3)], 2)
    assert end.value.code == 128 + signal.SIGTERM
    assert [process.returncode for process in started] == [-signal.SIGTERM] * 2
