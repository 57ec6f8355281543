"""Training loop: logged values, exact resume, signals, and independence of how a batch is split."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from short_runs import checkpoint_tensors, go_on, losses, metrics, recipe_content, start_process, train
from small_models import make_world

from llm4gen_core import LLM4GENError, load_adapter
from train import loop
from train.loop import Interrupt, Stopped, Trainer


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_world(folder, images=12)
    return folder


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Uninterrupted run with all parts that have a state."""
    return train(recipe_content(world, tmp_path_factory.mktemp("runs") / "whole", **STATEFUL))


STATEFUL: dict[str, Any] = {
    "train": {"steps": 6, "batch_size": 4, "micro_batch": 2, "precision": "float32", "ema": {"enabled": True}},
    "optimizer": {"learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 2},
    "loss": {"noise_offset": 0.05, "min_snr_gamma": 5.0},
    "guidance": {"balance_steps": 2},
}


def assert_same_state(first: Path, second: Path, step: int) -> None:
    """Compare weights, average and optimizer bit for bit."""
    expected, found = checkpoint_tensors(first, step), checkpoint_tensors(second, step)
    assert expected.keys() == found.keys()
    assert any(name.startswith("optimizer.") for name in expected)
    different = [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])]
    assert not different


def test_a_run_writes_all_its_files(whole: Path) -> None:
    assert [values["step"] for values in metrics(whole)] == [1, 2, 3, 4, 5, 6]
    assert load_adapter(whole / "export" / "adapter.safetensors").metadata is not None
    assert (whole / "export" / "unet" / "config.json").is_file()
    provenance = json.loads((whole / "provenance.json").read_text())
    assert provenance["parser"].startswith("rules/")
    assert provenance["recipe"]["seed"] == 3
    assert sorted(path.name for path in (whole / "checkpoints").iterdir()) == [f"step-0000000{i}" for i in (2, 4, 6)]


def test_logged_values(whole: Path) -> None:
    first, second, third = metrics(whole)[:3]
    assert {"loss", "diffusion", "guidance", "mass_attribute", "mass_entity", "gradient_norm", "paired"} <= set(first)
    assert 0 < first["mass_attribute"] < 1
    assert third["loss"] == pytest.approx(third["diffusion"] + third["alpha"] * third["guidance"])


def test_alpha_is_found_by_its_effect_and_then_constant(whole: Path) -> None:
    """With balance_steps 2: two steps without guidance, then the constant for which the gradient ratio is `balance`."""
    values = metrics(whole)
    first, second = (values[i]["gradient_ratio"] for i in (0, 1))
    expected = 0.1 / (first * second) ** 0.5
    assert [v["alpha"] for v in values] == [0, 0, *[pytest.approx(expected)] * 4]
    assert "gradient_ratio" in values[2]  # every third step it is still measured for the log
    assert values[2]["gradient_share"] == pytest.approx(expected * values[2]["gradient_ratio"])
    assert "gradient_ratio" not in values[3]


def test_the_same_recipe_gives_the_same_bits(world: Path, whole: Path, tmp_path: Path) -> None:
    again = train(recipe_content(world, tmp_path / "again", **STATEFUL))
    assert losses(again) == losses(whole)
    assert_same_state(whole, again, 6)


def test_a_killed_run_resumes_exactly(world: Path, whole: Path, tmp_path: Path) -> None:
    """SIGKILL at a random moment after the first checkpoint."""
    from train.recipe_file import parse_recipe

    folder = tmp_path / "killed"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(parse_recipe(recipe_content(world, folder, **STATEFUL), "test").to_yaml())
    process = start_process("run", str(recipe))
    while not (folder / "checkpoints" / "step-00000002").is_dir():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    time.sleep(random.random())
    process.send_signal(signal.SIGKILL)
    process.communicate()
    go_on(folder)
    assert losses(folder) == losses(whole)
    assert_same_state(whole, folder, 6)
    exported, expected = (load_file(run / "export" / "adapter.safetensors") for run in (folder, whole))
    assert all(torch.equal(tensor, exported[name]) for name, tensor in expected.items())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_writes_a_checkpoint_and_the_run_resumes_exactly(
    world: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    step = Trainer.optimizer_step
    done = []

    def interrupted(self: Trainer, *arguments: Any) -> Any:
        result = step(self, *arguments)
        done.append(1)
        if len(done) == 3:
            signal.raise_signal(number)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "optimizer_step", interrupted)
        with pytest.raises(Stopped) as stopped:
            train(recipe_content(world, tmp_path / "stopped", **STATEFUL))
    assert stopped.value.signal == number.name
    folder = tmp_path / "stopped"
    assert (folder / "checkpoints" / "step-00000003").is_dir()
    assert not (folder / "export").exists()
    go_on(folder)
    assert losses(folder) == losses(whole)
    assert_same_state(whole, folder, 6)


def test_a_broken_checkpoint_is_skipped_for_the_one_before(world: Path, whole: Path, tmp_path: Path) -> None:
    folder = train(recipe_content(world, tmp_path / "broken", **STATEFUL))
    for name, cut in (("step-00000006", 1), ("step-00000004", 100)):
        path = folder / "checkpoints" / name / "trained.safetensors"
        path.write_bytes(path.read_bytes()[:-cut])
    go_on(folder)
    assert losses(folder) == losses(whole)
    assert_same_state(whole, folder, 6)


def test_the_split_of_a_batch_does_not_matter(world: Path, tmp_path: Path) -> None:
    """Captions without pairs and dropped ones are spread unevenly; the means are over the whole batch."""
    data = {"caption_dropout": 0.4, "llm_dropout": 0.2, "entities": "rules", "resolution": 16, "workers": 0}
    data["sources"] = [{"path": str(world / "images")}]
    runs = [
        train(
            recipe_content(
                world,
                tmp_path / str(micro),
                data=data,
                train={"steps": 3, "batch_size": 4, "micro_batch": micro, "precision": "float32"},
            )
        )
        for micro in (4, 2, 1)
    ]
    expected = metrics(runs[0])
    assert {values["paired"] for values in expected} != {4}
    for folder in runs[1:]:
        for values, found in zip(expected, metrics(folder), strict=True):
            for name in ("loss", "guidance", "mass_attribute", "gradient_norm"):
                assert found[name] == pytest.approx(values[name], rel=2e-4), name


@pytest.mark.slow
def test_two_processes_train_as_one(world: Path, whole: Path, tmp_path: Path) -> None:
    from train.recipe_file import parse_recipe

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(parse_recipe(recipe_content(world, tmp_path / "two", **STATEFUL), "test").to_yaml())
    process = start_process("run", str(recipe), processes=2)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    assert json.loads((tmp_path / "two" / "provenance.json").read_text())["processes"] == 2
    for values, found in zip(metrics(whole), metrics(tmp_path / "two"), strict=True):
        assert found["loss"] == pytest.approx(values["loss"], rel=1e-4)
        assert found["guidance"] == pytest.approx(values["guidance"], rel=1e-3)
    two, one = checkpoint_tensors(tmp_path / "two", 6), checkpoint_tensors(whole, 6)
    assert two.keys() == one.keys()
    # One process resumes the run of two.
    go_on(tmp_path / "two")


def test_a_run_does_not_overwrite_another(world: Path, whole: Path) -> None:
    with pytest.raises(LLM4GENError, match="holds a run already"):
        train(recipe_content(world, whole, **STATEFUL))


def test_changed_data_is_noticed_on_resuming(world: Path, tmp_path: Path) -> None:
    make_world(tmp_path / "world", images=8)
    folder = train(recipe_content(tmp_path / "world", tmp_path / "run"))
    caption = next((tmp_path / "world" / "images").glob("*.txt"))
    caption.write_text("a purple circle on white")
    with pytest.raises(LLM4GENError, match="other data"):
        go_on(folder)


def test_a_loss_that_is_not_a_number_stops_with_the_samples(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from train.loss import TrainingLoss

    forward = TrainingLoss.forward

    def broken(self: TrainingLoss, inputs: Any) -> Any:
        error, guidance, mass = forward(self, inputs)
        return error * torch.tensor([1.0, float("nan")]), guidance, mass

    monkeypatch.setattr(TrainingLoss, "forward", broken)
    with pytest.raises(LLM4GENError, match=r"Step 1: the loss is not a number for samples \S+\.png, \S+\.png"):
        train(recipe_content(world, tmp_path / "nan"))


def test_a_batch_that_cannot_be_split_is_refused_before_anything_is_loaded(world: Path, tmp_path: Path) -> None:
    content = recipe_content(world, tmp_path / "run", model={"base": "nowhere", "llm": "nowhere"})
    content["train"] |= {"batch_size": 6, "micro_batch": 4}
    with pytest.raises(LLM4GENError, match="micro_batch"):
        train(content)


def test_caption_dropout_is_drawn_anew_each_time(world: Path, tmp_path: Path) -> None:
    """Over many epochs each sample must be seen both with and without its caption."""
    from train.loss import CaptionDropout
    from train.recipe_file import parse_recipe

    content = recipe_content(
        world,
        tmp_path / "run",
        data={
            "caption_dropout": 0.5,
            "workers": 0,
            "resolution": 16,
            "sources": [{"path": str(world / "images")}],
            "entities": "rules",
        },
    )
    from short_runs import forget_accelerate

    from train.run import RunFolder

    forget_accelerate()
    recipe = parse_recipe(content, "test")
    folder = RunFolder(tmp_path / "run")
    folder.create(recipe)
    trainer = Trainer(recipe, folder)
    seen: dict[str, set[CaptionDropout]] = {}
    for batches in trainer.data.steps(0, 60, trainer.accumulation):
        for batch in batches:
            for key, drop in zip(batch.keys, trainer.conditioner.dropout(batch), strict=True):
                seen.setdefault(key, set()).add(drop)
    assert len(seen) == 12
    assert all(drops == {CaptionDropout.NOTHING, CaptionDropout.CAPTION} for drops in seen.values())


# Signals


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_is_a_request(name, capfd):
    with Interrupt("saving") as stop:
        assert stop.active and not stop.requested
        send(getattr(signal, name))
        assert stop.requested and stop.signal == name
    assert capfd.readouterr().err == "\nsaving\n"


def test_the_handlers_are_restored():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError), Interrupt():
        assert signal.getsignal(signal.SIGINT) != before[0]
        raise RuntimeError
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_second_sigint_stops_at_once(monkeypatch):
    monkeypatch.setattr(loop, "_ONE_PRESS", 0.0)
    with Interrupt() as stop:
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert stop.signal == "SIGTERM"


def test_a_signal_repeated_by_a_launcher_is_ignored():
    with Interrupt() as stop:
        send(signal.SIGINT)
        send(signal.SIGINT)
        assert stop.requested


def test_another_thread_handles_nothing():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def run() -> None:
        with Interrupt() as stop:
            seen.append((stop.active, stop.requested, signal.getsignal(signal.SIGINT) == before))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(False, False, True)]
