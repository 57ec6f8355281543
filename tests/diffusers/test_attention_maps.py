"""Heat maps of words: those of the full softmax, of the right side, words and layers, and nothing left behind."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor
from PIL import Image
from small_painters import with_strength
from torch import Tensor

from llm4gen_core import LLM4GENError, Span, token_indices
from llm4gen_core.llm_spec import prompt_offsets
from llm4gen_diffusers.attention import cross_attention_layers
from llm4gen_diffusers.attention_maps import AttentionMaps, attention_maps, find_words, overlay, strip
from llm4gen_diffusers.families import load_family
from llm4gen_diffusers.options import GenerationOptions, ModelFiles
from llm4gen_diffusers.sampling import Pipeline
from train.__main__ import main

PROMPT = "a red circle and a blue square"
WORDS = find_words(PROMPT, ["red", "circle", "blue square"])
SMALL = GenerationOptions(steps=2, width=64, height=32)
ONE = SMALL.model_copy(update={"steps": 1})
RUN: dict[str, Any] = {"seed": 3, "progress": False}
LARGEST = ("down_blocks.0.*",)
"""Layers of the latents' own size, so that maps are not enlarged."""


def tokens(pipeline: Pipeline, word: Span, copy: str) -> list[int]:
    clip = pipeline.family.text_offsets(PROMPT)
    found = token_indices(word, clip) if copy != "llm" else []
    if pipeline.llm is not None and copy != "clip":
        llm = prompt_offsets(pipeline.llm.tokenizer, PROMPT, pipeline.llm.spec)
        found += [len(clip) + index for index in token_indices(word, llm)]
    return found


def full_softmax(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, names: list[str]) -> Tensor:
    """Attention [layers and steps, N, T] of the side that sees the prompt, from diffusers' plain processor."""
    unet, seen = pipeline.family.unet, []
    usual = dict(unet.attn_processors)
    chosen = [module for name, module in cross_attention_layers(unet).items() if name in names]
    scores = Attention.get_attention_scores

    def keep(self: Attention, *arguments: Tensor) -> Tensor:
        found = scores(self, *arguments)
        if any(self is module for module in chosen):
            seen.append(found.unflatten(0, (-1, self.heads))[-1].mean(0))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Attention, "get_attention_scores", keep)
        unet.set_attn_processor(AttnProcessor())
        try:
            pipeline.generate(PROMPT, SMALL, **RUN)
        finally:
            unet.set_attn_processor(usual)
    return torch.stack(seen)


@pytest.mark.parametrize("copy", ["clip", "llm", "both"])
def test_maps_are_columns_of_the_full_softmax(sd15: Pipeline, monkeypatch: pytest.MonkeyPatch, copy: str) -> None:
    names = [name for name in cross_attention_layers(sd15.family.unet) if name.startswith("down_blocks.0.")]
    full = full_softmax(sd15, monkeypatch, names)
    assert full.shape[:2] == (SMALL.steps * len(names), 4 * 8)
    found = attention_maps(sd15, PROMPT, WORDS, SMALL, tokens=copy, layers=LARGEST, **RUN)
    for word, heat, mass in zip(WORDS, found.maps, found.mass, strict=True):
        expected = full[:, :, tokens(sd15, word, copy)].sum(2).mean(0).view(4, 8)
        torch.testing.assert_close(mass * heat, expected, rtol=1e-4, atol=1e-7)


def test_mass_is_the_mean_over_all_layers_and_steps(plain: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    for name in cross_attention_layers(plain.family.unet):
        full = full_softmax(plain, monkeypatch, [name])
        shares.append([full[:, :, tokens(plain, word, "clip")].sum(2).mean() for word in WORDS])
    found = attention_maps(plain, PROMPT, WORDS, SMALL, **RUN)
    assert len(shares) == 4
    torch.testing.assert_close(found.mass, torch.tensor(shares).mean(0), rtol=1e-4, atol=1e-7)


def test_smaller_layers_are_enlarged_in_their_place(plain: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    [middle] = [name for name in cross_attention_layers(plain.family.unet) if name.startswith("mid_block")]
    full = full_softmax(plain, monkeypatch, [middle]).mean(0)
    found = attention_maps(plain, PROMPT, WORDS, SMALL, layers=("mid_block*",), **RUN)
    assert found.maps.shape == (3, 4, 8) and len(full) == 2 * 4
    for word, pooled in zip(WORDS, F.avg_pool2d(found.maps, 2), strict=True):
        expected = full[:, tokens(plain, word, "clip")].sum(1)
        assert torch.corrcoef(torch.stack([pooled.flatten(), expected]))[0, 1] > 0.95


def test_the_image_is_that_of_generate_and_nothing_stays_attached(sd15: Pipeline) -> None:
    unet = sd15.family.unet
    before = dict(unet.attn_processors)
    expected = sd15.generate(PROMPT, SMALL, **RUN)[0]
    found = attention_maps(sd15, PROMPT, WORDS, SMALL, **RUN)
    assert torch.equal(found.image, expected)
    assert unet.attn_processors == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules())
    assert torch.equal(sd15.generate(PROMPT, SMALL, **RUN)[0], expected)


def test_nothing_stays_attached_after_an_error(plain: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(plain.family, "decode_latents", fail)
    with pytest.raises(KeyboardInterrupt):
        attention_maps(plain, PROMPT, WORDS, SMALL, **RUN)
    assert not any(module._forward_hooks for module in plain.family.unet.modules())


def test_the_side_that_sees_the_prompt_is_looked_at(plain: Pipeline) -> None:
    """In the first step both sides see the same noise, so that guidance makes no difference to it yet."""
    changes = {"negative": "a long and blue negative", "guidance": 5.0}
    alone = attention_maps(plain, PROMPT, WORDS, ONE.model_copy(update={"guidance": 1.0}), **RUN)
    guided = attention_maps(plain, PROMPT, WORDS, ONE.model_copy(update=changes), **RUN)
    torch.testing.assert_close(guided.maps, alone.maps, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(guided.mass, alone.mass, rtol=1e-4, atol=1e-7)


def test_a_longer_negative_prompt_moves_no_word(sd15: Pipeline) -> None:
    """It makes CLIP's part of the context longer, and the LLM's begins later."""
    three = copy.copy(sd15)
    three.chunks = 3
    options = ONE.model_copy(update={"negative": "blue " * 160})
    chunks = attention_maps(three, PROMPT, WORDS, ONE, tokens="llm", **RUN)
    long = attention_maps(sd15, PROMPT, WORDS, options, tokens="llm", **RUN)
    torch.testing.assert_close(long.mass, chunks.mass, rtol=1e-4, atol=1e-7)
    assert not torch.allclose(long.mass, attention_maps(sd15, PROMPT, WORDS, ONE, tokens="llm", **RUN).mass, rtol=1e-3)


@pytest.mark.parametrize("family", ["sd15", "sdxl", "miniature"])
def test_maps_of_every_family(models: Any, family: str) -> None:
    base = {"sd15": "base"}.get(family, family)
    pipeline = Pipeline(load_family(None, getattr(models, base)))
    found = attention_maps(
        pipeline, PROMPT, WORDS, GenerationOptions(steps=2, width=64, height=64), seed=1, progress=False
    )
    side = 64 // pipeline.family.pixels_per_latent
    assert pipeline.family.name == family
    assert found.image.shape == (3, 64, 64) and found.maps.shape == (3, side, side)
    torch.testing.assert_close(found.maps.mean((1, 2)), torch.ones(3))
    assert found.maps.min() >= 0 and found.mass.min() > 0 and found.mass.sum() < 1


def test_words_have_maps_of_their_own(sd15: Pipeline) -> None:
    red, circle, square = attention_maps(sd15, PROMPT, WORDS, SMALL, **RUN).maps
    assert min((red - circle).abs().max(), (red - square).abs().max(), (circle - square).abs().max()) > 1e-3


def test_without_strength_the_context_is_clips_alone(sd15: Pipeline, plain: Pipeline) -> None:
    found = attention_maps(with_strength(sd15, 0.0), PROMPT, WORDS, SMALL, **RUN)
    assert torch.equal(found.maps, attention_maps(plain, PROMPT, WORDS, SMALL, **RUN).maps)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"words": []}, "no word"),
        ({"words": [Span(2, 5, "bed")]}, "'red' stands"),
        ({"tokens": "llm"}, "comes from the LLM"),
        ({"prompt": "blue " * 80 + "red", "words": [Span(400, 403, "red")]}, "too long"),
        ({"layers": ("nowhere*",)}, "selects none"),
        ({"tokens": "t5"}, "tokens is 't5'"),
    ],
)
def test_impossible_words_tokens_and_layers_are_refused(plain: Pipeline, changes: dict[str, Any], message: str) -> None:
    settings = {"prompt": PROMPT, "words": WORDS, "options": SMALL, **RUN, **changes}
    with pytest.raises(LLM4GENError, match=message):
        attention_maps(Pipeline(plain.family, chunks=1), **settings)


def test_words_are_found_whole_and_in_turn() -> None:
    prompt = "A colored red cat, a red  dog and 红猫"
    assert [span.start for span in find_words(prompt, ["red", "RED", "Cat", "猫"])] == [10, 21, 14, 35]
    assert find_words(prompt, [" red cat "])[0].text == "red cat"


@pytest.mark.parametrize(
    ("words", "message"), [(["or"], "does not occur in"), (["a", "a", "a"], "occur 3 times"), ([""], "''")]
)
def test_words_that_are_not_there(words: list[str], message: str) -> None:
    with pytest.raises(LLM4GENError, match=message):
        find_words("a colored cat, a dog", words)


def test_an_overlay_is_brightest_where_the_map_is_highest() -> None:
    heat = torch.zeros(4, 8)
    heat[1, 6] = 1
    shown = overlay(torch.full((3, 32, 64), 0.5), heat)
    assert shown.shape == (32, 64, 3) and shown.dtype == np.uint8
    row, column = np.unravel_index(shown.sum(2).argmax(), (32, 64))
    assert (row // 8, column // 8) == (1, 6)


def test_a_strip_shows_the_image_and_every_map() -> None:
    generator = torch.Generator().manual_seed(0)
    image, maps = torch.rand(3, 8, 16, generator=generator), torch.rand(2, 4, 8, generator=generator)
    words = (Span(0, 3, "red"), Span(4, 104, "x" * 100))
    shown = strip(AttentionMaps(words, maps, torch.tensor([0.1, 0.2]), image))
    height, width, line = 256, 512, shown.shape[0] - 256
    assert 0 < line < 40 and shown.shape[1] > 3 * width
    assert np.array_equal(shown[line::32, :width:32], (image * 255).round().byte().permute(1, 2, 0).numpy())
    for number in (1, 2):
        left = number * (shown.shape[1] - width) // 2
        panel = shown[line : line + height : 32, left : left + width : 32]
        assert np.array_equal(panel, overlay(image, maps[number - 1]))
        assert shown[:line, left : left + width].min() < 100  # its label


def test_the_command_writes_a_strip(models: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["attention", "--base", str(models.base), "--adapter", str(models.adapter), "--llm", str(models.llm)]
    arguments += ["--prompt", PROMPT, "--word", "red", "--word", "circle", "--tokens", "llm", "--seed", "3"]
    arguments += ["--steps", "2", "--width", "64", "--height", "32", "--device", "cpu", "--output"]
    assert main([*arguments, str(tmp_path / "maps.png")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "maps.png")
    image = Image.open(tmp_path / "maps.png")
    record = json.loads(image.text["llm4gen"])
    assert record.items() >= {"prompt": PROMPT, "words": ["red", "circle"], "tokens": "llm", "seed": 3}.items()
    assert record["base"] == "sd15" and record["adapter"] == "projector.pth"
    pipeline = Pipeline.from_files(ModelFiles(base=models.base, adapter=models.adapter, llm=models.llm))
    found = attention_maps(pipeline, PROMPT, WORDS[:2], SMALL, tokens="llm", **RUN)
    assert np.array_equal(np.asarray(image), strip(found))
