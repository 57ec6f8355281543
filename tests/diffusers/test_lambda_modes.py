"""The λ modes when images are generated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from short_runs import relative_error
from small_painters import with_strength
from torch import Tensor

from llm4gen_core import AdapterMetadata, LLM4GENError, Span, load_adapter, save_adapter
from llm4gen_diffusers.attention import cross_attention_layers
from llm4gen_diffusers.attention_maps import attention_maps
from llm4gen_diffusers.options import GenerationOptions, ModelFiles
from llm4gen_diffusers.sampling import Pipeline

MODES = ("embedding", "value", "decoupled")
SMALL = GenerationOptions(steps=2, width=64, height=64)
CAPTIONS = ["a red circle and a blue square on black", "a green cross"]


@pytest.fixture(scope="module")
def pipeline(models: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Pipeline]:
    """A small SD1.5 with an adapter of that mode."""
    folder = tmp_path_factory.mktemp("adapters")

    def make(own: str, asked: str | None = None) -> Pipeline:
        path = folder / f"{own}.safetensors"
        if not path.is_file():
            save_adapter(load_adapter(models.adapter).module, path, AdapterMetadata("sd15", None, lambda_mode=own))
        return Pipeline.from_files(ModelFiles(base=models.base, adapter=path, llm=models.llm, lambda_mode=asked))

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
    found = mine.predict_noise(latents, 481, with_strength(mine, strength).encode(CAPTIONS))
    assert relative_error(found, written_out(pipeline("embedding"), mode, strength, latents, CAPTIONS)) < 1e-5


@pytest.mark.parametrize("mode", MODES)
def test_strength_0_is_plain_clip(pipeline: Callable[..., Pipeline], plain: Pipeline, mode: str) -> None:
    off = with_strength(pipeline(mode), 0.0).generate(CAPTIONS[0], SMALL, seed=1)
    assert torch.equal(off, plain.generate(CAPTIONS[0], SMALL, seed=1))


def test_another_mode_than_the_adapters_may_be_asked_for(pipeline: Callable[..., Pipeline]) -> None:
    def generate(own: str, asked: str | None) -> Tensor:
        return with_strength(pipeline(own, asked), 0.5).generate(CAPTIONS[0], SMALL, seed=1)

    assert torch.equal(generate("embedding", "decoupled"), generate("decoupled", None))
    assert not torch.allclose(generate("embedding", None), generate("decoupled", None), atol=1e-3)


def test_the_unet_is_left_as_it_was(pipeline: Callable[..., Pipeline]) -> None:
    mine = pipeline("decoupled")
    before = dict(mine.family.unet.attn_processors)
    mine.generate(CAPTIONS[0], SMALL, seed=1)
    assert mine.family.unet.attn_processors == before


def test_a_mode_that_is_not_known_or_needs_an_adapter(sd15: Pipeline) -> None:
    with pytest.raises(LLM4GENError, match="The λ mode is 'sum'; expected one of embedding, value, decoupled"):
        Pipeline(sd15.family, sd15.adapter, sd15.llm, "sum")
    with pytest.raises(LLM4GENError, match="The λ mode is 'value', but there is no adapter"):
        Pipeline(sd15.family, lambda_mode="value")


def test_maps_of_decoupled_are_shares_of_two_softmaxes(pipeline: Callable[..., Pipeline]) -> None:
    """Over all tokens they add up to 2, so that the words' shares are larger than in one softmax over all."""
    prompt = "red circle"
    words = [Span(0, 3, "red"), Span(4, 10, "circle")]
    shares = {mode: attention_maps(pipeline(mode), prompt, words, SMALL, seed=1).mass for mode in MODES}
    assert (shares["decoupled"] > shares["value"]).all()
