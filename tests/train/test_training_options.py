"""Options of a run: some must not change the losses, others must change them as described."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from short_runs import losses, metrics, recipe_content, train
from small_models import make_world

from llm4gen_core import LLM4GENError
from llm4gen_diffusers.options import GenerationOptions, ModelFiles
from llm4gen_diffusers.sampling import Pipeline
from train.data.images import to_model
from train.data.scan import scan
from train.recipe_file import parse_recipe

TRAIN = {"steps": 4, "batch_size": 4, "micro_batch": 2, "precision": "float32"}
DATA = {"resolution": 16, "entities": "rules", "workers": 0}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_world(folder, images=12)
    return folder


def data(world: Path, **settings: Any) -> dict[str, Any]:
    return {**DATA, "sources": [{"path": str(world / "images")}], **settings}


@pytest.fixture(scope="module")
def plain(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(recipe_content(world, tmp_path_factory.mktemp("runs") / "plain", seed=5))


@pytest.mark.parametrize(
    "changes",
    [
        {
            "train": {
                "steps": 4,
                "batch_size": 4,
                "micro_batch": 2,
                "precision": "float32",
                "gradient_checkpointing": True,
            }
        },
        {"validation": {"every": 2, "prompts": ["a red circle"], "steps": 2, "guidance": 3.0}},
        {"data": {"cache": {"latents": True}}},
        {"data": {"cache": {"text": True}}},
        {"data": {"workers": 2}},
        {"logging": {"every": 1, "gradient_ratio_every": 1, "tensorboard": True}},
    ],
    ids=["gradient checkpointing", "validation", "cached latents", "cached text", "workers", "logging"],
)
def test_losses_stay_the_same(world: Path, plain: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    if "data" in changes:
        changes = {**changes, "data": data(world, **changes["data"])}
    folder = train(recipe_content(world, tmp_path / "run", seed=5, **changes))
    assert losses(folder) == pytest.approx(losses(plain), rel=1e-6)


def test_losses_stay_the_same_when_compiled(
    world: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.compile captures and differentiates; it generates no code for the CPU, which would take a minute."""
    whole = UNet2DConditionModel.compile_repeated_blocks
    monkeypatch.setattr(UNet2DConditionModel, "compile_repeated_blocks", lambda unet: whole(unet, backend="aot_eager"))
    torch._dynamo.reset()
    folder = train(recipe_content(world, tmp_path / "run", seed=5, train={**TRAIN, "compile": True}))
    assert losses(folder) == pytest.approx(losses(plain), rel=1e-4)
    exported = load_file(folder / "export" / "unet" / "diffusion_pytorch_model.safetensors")
    assert exported.keys() == load_file(plain / "export" / "unet" / "diffusion_pytorch_model.safetensors").keys()


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 6},
        {"loss": {"noise_offset": 0.1}},
        {"loss": {"min_snr_gamma": 5.0}},
        {"loss": {"prediction": "v_prediction"}},
        {"loss": {"prediction": "v_prediction", "zero_terminal_snr": True}},
        {"guidance": {"alpha": 1000.0}},
        {"adapter": {"heads": 8}},
    ],
    ids=str,
)
def test_losses_change(world: Path, plain: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = train(recipe_content(world, tmp_path / "run", **{"seed": 5, **changes}))
    assert losses(folder) != pytest.approx(losses(plain), rel=1e-6)


def test_validation_images_are_those_of_the_export(world: Path, tmp_path: Path) -> None:
    validation = {
        "every": 4,
        "prompts": ["a red circle", "a blue square"],
        "seeds": [1, 2],
        "steps": 3,
        "guidance": 7.5,
    }
    folder = train(recipe_content(world, tmp_path / "run", validation=validation))
    files = sorted(file.name for file in (folder / "validation" / "step-00000004").iterdir())
    assert files == [f"prompt-0{prompt}-seed-{seed}.png" for prompt in (1, 2) for seed in (1, 2)]
    pipeline = Pipeline.from_files(
        ModelFiles(
            base=world / "base",
            unet=folder / "export" / "unet",
            adapter=folder / "export" / "adapter.safetensors",
            llm=world / "llm",
        )
    )
    generated = pipeline.generate("a blue square", GenerationOptions(steps=3, width=16, height=16), seed=2)[0]
    with Image.open(folder / "validation" / "step-00000004" / "prompt-02-seed-2.png") as image:
        found = torch.from_numpy(np.asarray(image).astype(np.int64))
    expected = (generated.permute(1, 2, 0) * 255).long()
    assert (found - expected).abs().max() <= 1


def test_tensorboard_has_the_numbers_and_the_images(world: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    validation = {"every": 4, "prompts": ["a red circle"], "steps": 2}
    settings = {"every": 2, "tensorboard": True}
    folder = train(recipe_content(world, tmp_path / "run", validation=validation, logging=settings))
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(values["step"], pytest.approx(values["loss"], rel=1e-6)) for values in metrics(folder)]
    assert [event.step for event in events.Images("validation/prompt-01-seed-0")] == [4]


def test_a_missing_tracker_is_an_error_at_once(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "wandb" else find(name, *a))
    with pytest.raises(LLM4GENError, match="pip install wandb"):
        train(recipe_content(world, tmp_path / "run", logging={"wandb": "project"}))


def test_ema_is_exported_and_follows_its_formula(world: Path, tmp_path: Path) -> None:
    settings = {**TRAIN, "steps": 3, "ema": {"enabled": True}}
    folder = train(recipe_content(world, tmp_path / "run", train=settings, checkpoints={"every": 1, "keep": None}))
    weights = [load_file(folder / "checkpoints" / f"step-0000000{i}" / "trained.safetensors") for i in (1, 2, 3)]
    # (1 + n) / (10 + n) for the steps n = 0, 1, 2; diffusers counts the first as 0.
    average = None
    for n, of_step in enumerate(weights):
        decay = 0.0 if n == 0 else (1 + n) / (10 + n)
        average = of_step if average is None else {k: decay * average[k] + (1 - decay) * v for k, v in of_step.items()}
    stored = load_file(folder / "checkpoints" / "step-00000003" / "ema.safetensors")
    exported = load_file(folder / "export" / "adapter.safetensors")
    name = "adapter.llm_proj.weight"
    assert average is not None
    torch.testing.assert_close(stored[name], average[name], rtol=1e-4, atol=1e-6)
    assert torch.equal(exported["cam.llm_proj.weight"], stored[name])


def test_buckets_train_images_of_every_shape(world: Path, tmp_path: Path) -> None:
    settings = data(world, resolution=32, buckets={"enabled": True, "step": 8, "max_ratio": 2.0})
    folder = train(recipe_content(world, tmp_path / "run", data=settings, checkpoints={"every": 10}))
    buckets = json.loads((folder / "data.json").read_text())["buckets"]
    assert len([bucket for bucket in buckets if bucket["images"]]) > 1
    assert len(losses(folder)) == 4


def test_images_damaged_during_the_run_are_listed_and_skipped(world: Path, tmp_path: Path) -> None:
    """They were intact when the data was scanned, and are found by the trainer in a batch."""
    shutil.copytree(world / "images", tmp_path / "images")
    content = recipe_content(world, tmp_path / "run", data={**data(world), "sources": str(tmp_path / "images")})
    content["data"]["cache"] = {"folder": str(tmp_path / "cache")}
    recipe = parse_recipe(content, "test")
    scan(recipe.data, tmp_path / "cache")
    victim = sorted((tmp_path / "images").glob("*.png"))[0]
    stamp = victim.stat()
    victim.write_bytes(victim.read_bytes()[:-40] + bytes(40))
    os.utime(victim, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    folder = train(content)
    assert len(losses(folder)) == 4
    assert {values["valid"] for values in metrics(folder)} == {3, 4}
    [problem] = [json.loads(line) for line in (folder / "data_unreadable.jsonl").read_text().splitlines()]
    assert problem["key"] == victim.name


@pytest.mark.slow
def test_four_pairs_are_memorised(tmp_path: Path) -> None:
    """With guidance and caption dropout: every caption generates its own image."""
    make_world(tmp_path, images=4)
    content = recipe_content(
        tmp_path,
        tmp_path / "run",
        data=data(tmp_path, caption_dropout=0.05, cache={"text": True}),
        train={"steps": 450, "batch_size": 16, "micro_batch": 16, "precision": "float32"},
        optimizer={"learning_rate": 3e-3, "schedule": "cosine", "warmup_steps": 20},
        loss={"prediction": "v_prediction", "zero_terminal_snr": True},
        checkpoints={"every": 1000},
        logging={"every": 50, "gradient_ratio_every": 0, "tensorboard": False},
    )
    folder = train(content)
    curve = [values["diffusion"] for values in metrics(folder)]
    assert curve[-1] < 0.3 * curve[0]
    manifest = scan(parse_recipe(content, "test").data, folder / "cache")
    cuts = [manifest.cut(i, (16, 16), 3, 0) for i in range(4)]
    images = torch.stack([to_model(manifest.pixels(i, cut)) for i, cut in enumerate(cuts)]) / 2 + 0.5
    pipeline = Pipeline.from_files(
        ModelFiles(
            base=tmp_path / "base",
            unet=folder / "export" / "unet",
            adapter=folder / "export" / "adapter.safetensors",
            llm=tmp_path / "llm",
        )
    )
    options = GenerationOptions(steps=20, guidance=1.0, width=16, height=16)
    generated = torch.cat([pipeline.generate(manifest.caption(i), options, seed=1, progress=False) for i in range(4)])
    errors = (generated[:, None] - images[None]).square().mean((2, 3, 4))
    assert errors.argmin(1).tolist() == list(range(4))
    assert errors.diagonal().max() < 0.03
