"""The λ modes in training and in painting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from short_runs import losses, prediction, recipe_content, relative_error, train
from small_models import make_world
from torch import Tensor

from llm4gen_core import AdapterMetadata, LLM4GENError, Span, load_adapter, save_adapter
from llm4gen_diffusers.attention import cross_attention_layers
from llm4gen_diffusers.attention_maps import attention_maps
from llm4gen_diffusers.sampling import Pipeline
from train.loop import Trainer
from train.recipe_file import parse_recipe
from train.run_folder import RunFolder
from train.validation import generate_validation

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


@pytest.fixture(scope="module")
def pipeline(models: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Pipeline]:
    """SD1.5 in small with an adapter that says its mode."""
    folder = tmp_path_factory.mktemp("adapters")

    def make(own: str, asked: str | None = None) -> Pipeline:
        path = folder / f"{own}.safetensors"
        if not path.is_file():
            save_adapter(load_adapter(models.adapter).module, path, AdapterMetadata("sd15", None, lambda_mode=own))
        return Pipeline.from_files(models.base, adapter=path, llm=models.llm, lambda_mode=asked)

    return make


@torch.no_grad()
def written_out(pipeline: Pipeline, mode: str, strength: float, latents: Tensor, prompts: list[str]) -> Tensor:
    """The prediction with each layer's formula, put in by hooks on the layers of a pipeline that knows no mode."""
    family = pipeline.family
    text = family.encode_text(prompts)
    assert pipeline.adapter is not None and pipeline.llm is not None
    llm = pipeline.adapter(text.hidden, pipeline.llm.encode(prompts).hidden)
    context = torch.cat((text.hidden, llm), 1)
    count = text.hidden.shape[1]

    def layer(module: Any, hidden: Tensor) -> Tensor:
        def split(tensor: Tensor) -> Tensor:
            return tensor.unflatten(-1, (module.heads, -1)).transpose(1, 2)

        scale = strength if mode == "embedding" else 1.0
        tokens = torch.cat((context[:, :count], scale * context[:, count:]), 1)
        query, key, value = split(module.to_q(hidden)), split(module.to_k(tokens)), split(module.to_v(tokens))
        logits = query @ key.transpose(-1, -2) * module.scale
        if mode == "decoupled":
            weights = torch.cat((logits[..., :count].softmax(-1), strength * logits[..., count:].softmax(-1)), -1)
        else:
            weights = logits.softmax(-1)
            if mode == "value":
                weights = torch.cat((weights[..., :count], strength * weights[..., count:]), -1)
        return module.to_out[0]((weights @ value).transpose(1, 2).flatten(2))

    handles = [
        module.register_forward_hook(lambda module, inputs, output: layer(module, inputs[0]))
        for module in cross_attention_layers(family.unet).values()
    ]
    try:
        return pipeline.predict_noise(latents, 481, replace(text, hidden=context))
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("strength", [0.5, 1.0, 1.75])
@pytest.mark.parametrize("mode", MODES)
def test_a_mode_is_its_formula_at_every_layer(pipeline: Callable[..., Pipeline], mode: str, strength: float) -> None:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    mine = pipeline(mode)
    found = mine.predict_noise(latents, 481, mine.encode(CAPTIONS, strength))
    assert relative_error(found, written_out(pipeline("embedding"), mode, strength, latents, CAPTIONS)) < 1e-5


@pytest.mark.parametrize("mode", MODES)
def test_strength_0_is_plain_clip(pipeline: Callable[..., Pipeline], plain: Pipeline, mode: str) -> None:
    off = pipeline(mode).generate(CAPTIONS[0], seed=1, steps=2, width=64, height=64, strength=0.0)
    assert torch.equal(off, plain.generate(CAPTIONS[0], seed=1, steps=2, width=64, height=64))


def test_another_mode_than_the_adapters_may_be_asked_for(pipeline: Callable[..., Pipeline]) -> None:
    def generate(own: str, asked: str | None) -> Tensor:
        return pipeline(own, asked).generate(CAPTIONS[0], seed=1, steps=2, width=64, height=64, strength=0.5)

    assert torch.equal(generate("embedding", "decoupled"), generate("decoupled", None))
    assert not torch.allclose(generate("embedding", None), generate("decoupled", None), atol=1e-3)


def test_the_unet_is_left_as_it_was(pipeline: Callable[..., Pipeline]) -> None:
    mine = pipeline("decoupled")
    before = dict(mine.family.unet.attn_processors)
    mine.generate(CAPTIONS[0], seed=1, steps=2, width=64, height=64)
    assert mine.family.unet.attn_processors == before


def test_a_mode_that_is_not_known_or_needs_an_adapter(models: Any, pipeline: Callable[..., Pipeline]) -> None:
    with pytest.raises(LLM4GENError, match="The λ mode is 'sum'; expected one of embedding, value, decoupled"):
        pipeline("embedding", "sum")
    with pytest.raises(LLM4GENError, match="The λ mode is 'value', but there is no adapter"):
        Pipeline.from_files(models.base, lambda_mode="value")


def test_maps_of_decoupled_are_shares_of_two_softmaxes(pipeline: Callable[..., Pipeline]) -> None:
    """Over all tokens they add up to 2, so that the words' shares are larger than in one softmax over all."""
    prompt = "red circle"
    words = [Span(0, 3, "red"), Span(4, 10, "circle")]
    shares = {
        mode: attention_maps(pipeline(mode), prompt, words, seed=1, steps=2, width=64, height=64).mass for mode in MODES
    }
    assert (shares["decoupled"] > shares["value"]).all()


# ---- training


def test_the_adapter_says_its_mode_and_paints_in_it(runs: dict[str, Path], world: Path) -> None:
    for mode, run in runs.items():
        export = run / "export"
        mine = Pipeline.from_files(world / "base", adapter=export / "adapter.safetensors", llm=world / "llm")
        assert mine.lambda_mode == mode


def test_value_trains_as_embedding_and_decoupled_as_neither(runs: dict[str, Path]) -> None:
    assert losses(runs["value"]) == losses(runs["embedding"])
    assert losses(runs["decoupled"])[0] != losses(runs["embedding"])[0]


@pytest.mark.parametrize("mode", MODES)
def test_what_is_painted_is_what_was_trained(world: Path, tmp_path: Path, mode: str) -> None:
    content = recipe_content(world, tmp_path / "run", adapter={"heads": 4, "lambda_mode": mode})
    trainer = Trainer(parse_recipe(content, "Recipe of the test"), RunFolder(tmp_path / "run"))
    noisy, expected, timesteps = prediction(trainer.objective, trainer.conditioner, CAPTIONS)
    mine = Pipeline(trainer.family, trainer.adapter, trainer.llm, mode)
    features = mine.encode(CAPTIONS, 1.0)
    found = mine.predict_noise(noisy, timesteps, features)
    assert relative_error(found, expected) < 1e-5


def test_validation_paints_in_the_mode_of_the_run(world: Path, tmp_path: Path) -> None:
    """Before the first step too, when no layer has been told a mode yet."""
    settings = {"every": 4, "prompts": CAPTIONS[:1], "seeds": [3], "steps": 2, "guidance": 3.0}
    content = recipe_content(
        world, tmp_path / "run", adapter={"heads": 4, "lambda_mode": "decoupled"}, validation=settings
    )
    recipe = parse_recipe(content, "Recipe of the test")
    trainer = Trainer(recipe, RunFolder(tmp_path / "run"))
    [file] = generate_validation(recipe, trainer.family, trainer.adapter, trainer.llm, tmp_path / "images" / "step")
    found = torch.from_numpy(np.array(Image.open(file)).astype(np.float32))

    def generate(mode: str) -> Tensor:
        mine = Pipeline(trainer.family, trainer.adapter, trainer.llm, mode)
        image = mine.generate(CAPTIONS[0], seed=3, steps=2, guidance=3.0, width=16, height=16)[0]
        return image.permute(1, 2, 0) * 255

    assert (found - generate("decoupled")).abs().max() <= 1
    assert (found - generate("embedding")).abs().max() > 1


@pytest.mark.parametrize("fusion", ["mlp", "cross_attention"])
def test_a_fusion_that_replaces_clip_has_no_other_mode(world: Path, tmp_path: Path, fusion: str) -> None:
    content = recipe_content(world, tmp_path, adapter={"heads": 4, "lambda_mode": "decoupled", "fusion": fusion})
    with pytest.raises(LLM4GENError, match='lambda_mode is "decoupled"; expected embedding with a fusion that leaves'):
        parse_recipe(content, "Recipe of the test")


def test_an_adapter_of_another_mode_is_no_start(world: Path, tmp_path: Path, runs: dict[str, Path]) -> None:
    start = runs["decoupled"] / "export" / "adapter.safetensors"
    content = recipe_content(world, tmp_path / "run", model={"adapter": str(start)})
    with pytest.raises(LLM4GENError, match="was trained with the λ mode decoupled, the recipe has adapter.lambda_mode"):
        train(content)
