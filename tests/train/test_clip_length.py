"""A CLIP of another length than 77: everything that counts its tokens takes the length from its configuration."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from short_runs import losses, recipe_content, train
from small_models import make_world
from transformers import CLIPTextModel

from llm4gen_core import EntityPair, LLM4GENError, Span
from llm4gen_core.llm_spec import tokenize_prompt
from llm4gen_diffusers.families import SDXL, Family, load_family
from llm4gen_diffusers.options import GenerationOptions, ModelFiles
from llm4gen_diffusers.sampling import Pipeline
from train.loss import CaptionDropout, Conditioner
from train.memory import FakeRun, Shapes, text_form
from train.models import open_models
from train.recipe import Recipe
from train.recipe_file import parse_recipe

LENGTH = 32
CAPTION = "a red circle and a blue square on white"
PAIR = EntityPair(Span(19, 23, "blue"), Span(24, 30, "square"))


def shorten(folder: Path, length: int) -> None:
    """Keep the first positions of a text encoder."""
    config, file = folder / "config.json", folder / "model.safetensors"
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": length}))
    tensors = load_file(file)
    name = "text_model.embeddings.position_embedding.weight"
    save_file({**tensors, name: tensors[name][:length].clone()}, file, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = make_world(tmp_path_factory.mktemp("short") / "world", images=8)
    shorten(world / "base" / "text_encoder", LENGTH)
    return world


@pytest.fixture(scope="module")
def family(world: Path) -> Family:
    return load_family("miniature", world / "base", parts=("text",))


def recipe(world: Path, output: Path, **sections: Any) -> Recipe:
    return parse_recipe(recipe_content(world, output, **sections), "Recipe of the test")


def test_a_caption_is_encoded_in_one_short_chunk(world: Path, family: Family) -> None:
    clip = CLIPTextModel.from_pretrained(world / "base" / "text_encoder").eval()
    ids = family.tokenizers[0](CAPTION, padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids
    with torch.no_grad():
        expected, found = clip(ids).last_hidden_state, family.encode_text([CAPTION]).hidden
    assert family.clip_length == LENGTH and found.shape == (1, LENGTH, 64)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("words", "chunks"), [(30, 1), (31, 2), (60, 2), (61, 3)])
def test_every_30_tokens_make_a_chunk(family: Family, words: int, chunks: int) -> None:
    text = "cat " * words
    offsets = family.text_offsets(text)
    assert family.text_chunks(text) == chunks and len(offsets) == LENGTH * chunks
    assert offsets[1] == (0, 3) and offsets[LENGTH - 1] == (0, 0)
    if chunks > 1:
        assert offsets[LENGTH + 1] == (30 * 4, 30 * 4 + 3)
    with torch.no_grad():
        assert family.encode_text([text]).hidden.shape[1] == len(offsets)
        assert family.encode_text([text], chunks=1).hidden.shape[1] == LENGTH


def test_guided_words_are_found_after_a_short_chunk(world: Path, family: Family) -> None:
    """The LLM's copy begins where CLIP's ends, and the context is as long as both."""
    models = open_models(recipe(world, world / "none"), parts=())
    models.load_llm("cpu")
    models.family, llm = family, models.llm
    targets = Conditioner(models, torch.device("cpu")).targets([CAPTION], [[PAIR]], [CaptionDropout.NOTHING])
    assert targets is not None and llm is not None
    words = [targets.columns[0, targets.attribute[0, p].nonzero().flatten()].tolist() for p in range(2)]
    assert words[0] == [6]  # start, a, red, circle, and, a, blue
    ids = tokenize_prompt(llm.tokenizer, CAPTION, llm.spec).ids
    assert "".join(llm.tokenizer.decode([ids[p - LENGTH]]) for p in words[1]).strip() == "blue"


def test_memory_and_cache_use_the_length(world: Path, tmp_path: Path) -> None:
    models = open_models(recipe(world, tmp_path, data={"clip_chunks": 2}), parts=())
    assert text_form(models)["clip"][0] == (2 * LENGTH, 64)
    inputs = FakeRun(models).inputs(1, Shapes((16, 16), 8, 8), True)
    assert inputs.text is not None and inputs.text.shape[1] == 2 * LENGTH


def test_a_run_trains_and_its_export_generates(world: Path, tmp_path: Path) -> None:
    sections = {"train": {"steps": 1}, "guidance": {"alpha": 1.0}, "data": {"cache": {"text": True}}}
    folder = train(recipe_content(world, tmp_path / "run", **sections))
    assert len(losses(folder)) == 1
    export = folder / "export"
    files = {"unet": export, "adapter": export / "adapter.safetensors", "llm": world / "llm"}
    model = Pipeline.from_files(ModelFiles(base=world / "base", **files))  # type: ignore[arg-type]
    assert model.encode([CAPTION]).hidden.shape[1] == LENGTH + 24
    assert model.generate(CAPTION, GenerationOptions(steps=2, width=16, height=16)).isfinite().all()


def test_text_encoders_of_different_lengths_are_refused(models: Any, tmp_path: Path) -> None:
    base = shutil.copytree(models.sdxl, tmp_path / "sdxl")
    shorten(base / "text_encoder_2", 32)
    with pytest.raises(LLM4GENError, match="positions for 77 and 32 tokens; expected .* equally many"):
        SDXL.open(base)
