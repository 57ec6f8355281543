"""The λ modes in training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from short_runs import losses, prediction, recipe_content, relative_error, train
from small_models import make_world
from torch import Tensor

from llm4gen_core import Adapter, AdapterMetadata, LLM4GENError
from llm4gen_diffusers.options import GenerationOptions, ModelFiles
from llm4gen_diffusers.sampling import Pipeline
from train.loop import Trainer
from train.recipe_file import parse_recipe
from train.run import RunFolder

MODES = ("embedding", "value", "decoupled")
CAPTIONS = ["a red circle and a blue square on black", "a green cross"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"), images=12)


@pytest.fixture(scope="module")
def runs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A short training in each mode."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        mode: train(recipe_content(world, folder / mode, adapter={"heads": 4, "lambda_mode": mode})) for mode in MODES
    }


def adapter_of(trainer: Trainer, mode: str = "embedding") -> Adapter:
    return Adapter(trainer.models.adapter, AdapterMetadata("miniature", None, lambda_mode=mode))


def test_the_adapter_stores_its_mode_and_generates_with_it(runs: dict[str, Path], world: Path) -> None:
    for mode, run in runs.items():
        export = run / "export"
        mine = Pipeline.from_files(
            ModelFiles(base=world / "base", adapter=export / "adapter.safetensors", llm=world / "llm")
        )
        assert mine.lambda_mode == mode


def test_value_trains_as_embedding_and_decoupled_as_neither(runs: dict[str, Path]) -> None:
    assert losses(runs["value"]) == losses(runs["embedding"])
    assert losses(runs["decoupled"])[0] != losses(runs["embedding"])[0]


@pytest.mark.parametrize("mode", MODES)
def test_the_pipeline_predicts_what_was_trained(world: Path, tmp_path: Path, mode: str) -> None:
    content = recipe_content(world, tmp_path / "run", adapter={"heads": 4, "lambda_mode": mode})
    trainer = Trainer(parse_recipe(content, "Recipe of the test"), RunFolder(tmp_path / "run"))
    noisy, expected, timesteps = prediction(trainer.training_loss, trainer.conditioner, CAPTIONS)
    mine = Pipeline(trainer.models.family, adapter_of(trainer), trainer.models.llm, mode)
    features = mine.encode(CAPTIONS)
    found = mine.predict_noise(noisy, timesteps, features)
    assert relative_error(found, expected) < 1e-5


def test_validation_generates_in_the_mode_of_the_run(world: Path, tmp_path: Path) -> None:
    """Also before the first step, when no layer has a mode yet."""
    settings = {"every": 4, "prompts": CAPTIONS[:1], "seeds": [3], "steps": 2, "guidance": 3.0}
    content = recipe_content(
        world, tmp_path / "run", adapter={"heads": 4, "lambda_mode": "decoupled"}, validation=settings
    )
    recipe = parse_recipe(content, "Recipe of the test")
    trainer = Trainer(recipe, RunFolder(tmp_path / "run"))
    [file] = trainer.models.validation_images(tmp_path / "images" / "step")
    found = torch.from_numpy(np.array(Image.open(file)).astype(np.float32))

    def generate(mode: str) -> Tensor:
        mine = Pipeline(trainer.models.family, adapter_of(trainer), trainer.models.llm, mode)
        image = mine.generate(CAPTIONS[0], GenerationOptions(steps=2, guidance=3.0, width=16, height=16), seed=3)[0]
        return image.permute(1, 2, 0) * 255

    assert (found - generate("decoupled")).abs().max() <= 1
    assert (found - generate("embedding")).abs().max() > 1


@pytest.mark.parametrize("fusion", ["mlp", "cross_attention"])
def test_a_fusion_that_replaces_clip_has_no_other_mode(world: Path, tmp_path: Path, fusion: str) -> None:
    content = recipe_content(world, tmp_path, adapter={"heads": 4, "lambda_mode": "decoupled", "fusion": fusion})
    with pytest.raises(LLM4GENError, match='lambda_mode is "decoupled"; expected embedding with a fusion that keeps'):
        parse_recipe(content, "Recipe of the test")


def test_an_adapter_of_another_mode_is_refused_as_start(world: Path, tmp_path: Path, runs: dict[str, Path]) -> None:
    start = runs["decoupled"] / "export" / "adapter.safetensors"
    content = recipe_content(world, tmp_path / "run", model={"adapter": str(start)})
    with pytest.raises(LLM4GENError, match="was trained with the λ mode decoupled, the recipe has adapter.lambda_mode"):
        train(content)
