"""The world's CLIP: what is saved is what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import miniature.clip as clip
import pytest
import torch
from miniature.autoencoder import LATENT_CHANNELS
from transformers import CLIPTextModel, CLIPTokenizer

from llm4gen_diffusers.families import family_class
from llm4gen_diffusers.families.patch_autoencoder import PatchAutoencoder
from miniature.scenes import COLORS
from miniature.world import write_untrained_base

TEXTS = ["a red circle and a blue square", "three green rings"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, dict[str, float]]:
    """Folder of a base, the model that was trained for a few steps, and what is said of it."""
    folder = tmp_path_factory.mktemp("clip")
    models: list[Any] = []
    retrieval = clip._retrieval
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip, "BATCH", 16)
        patch.setattr(clip, "_retrieval", lambda model, *rest: models.append(model) or retrieval(model, *rest))
        found = clip.train_clip(folder / "text_encoder", folder / "tokenizer", 4)
    write_untrained_base(folder)
    PatchAutoencoder(latent_channels=LATENT_CHANNELS).save_pretrained(folder / "vae")
    return folder, models[0], found


@torch.no_grad()
def test_the_saved_encoder_is_the_trained_one(trained: tuple[Path, Any, dict[str, float]]) -> None:
    folder, model, _ = trained
    tokens = CLIPTokenizer.from_pretrained(folder / "tokenizer")(TEXTS, padding=True, return_tensors="pt")
    saved = CLIPTextModel.from_pretrained(folder / "text_encoder")(**tokens).last_hidden_state
    expected = model.text_model(**tokens).last_hidden_state
    assert torch.allclose(saved, expected, atol=1e-6)


@torch.no_grad()
def test_a_base_reads_prompts_with_it(trained: tuple[Path, Any, dict[str, float]]) -> None:
    folder, model, _ = trained
    family = family_class(None, folder).open(folder).load_parts(("text",))
    tokens = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    ids = tokens(TEXTS, padding="max_length", max_length=clip.LENGTH, return_tensors="pt").input_ids
    expected = model.text_model(input_ids=ids).last_hidden_state
    assert torch.allclose(family.encode_text(TEXTS, 1).hidden, expected, atol=1e-5)


def test_colours_are_one_token_of_it(trained: tuple[Path, Any, dict[str, float]]) -> None:
    tokens = CLIPTokenizer.from_pretrained(trained[0] / "tokenizer")
    assert {len(tokens(word)["input_ids"]) for word in COLORS} == {3}


def test_retrieval_is_a_share(trained: tuple[Path, Any, dict[str, float]]) -> None:
    assert 0 <= trained[2]["retrieval"] < 0.5
