"""CLIP and autoencoder of the base: the saved models are the trained ones, and the miniature family loads them."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from llm4gen_core import LLM4GENError
from llm4gen_diffusers.families import PatchAutoencoder, family_class
from miniature import base
from miniature.dataset import pairs
from miniature.scenes import COLORS, GRID, Object, line_up, render

TEXTS = ["a red circle and a blue square", "three green rings"]
SCENE = line_up((Object("circle", "red", "plain", "large"), Object("square", "blue", "plain", "large")))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, dict[str, float]]:
    """Folder of a base that was trained for some seconds, its CLIP, and the reported numbers."""
    folder = tmp_path_factory.mktemp("base")
    models: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "CLIPModel", lambda config: models.append(CLIPModel(config)) or models[0])
        found = base.train_clip(folder / "text_encoder", folder / "tokenizer", 2)
    found |= base.train_autoencoder(folder / "vae", 300, images=2000)
    base.write_untrained_unet(folder)
    return folder, models[0], found


def vae(folder: Path) -> Any:
    return family_class(None, folder).open(folder).load_parts(("vae",))


def pixels() -> torch.Tensor:
    return torch.from_numpy(render(SCENE)).permute(2, 0, 1)[None].float() / 127.5 - 1


def test_reported_numbers_are_shares(trained: tuple[Path, Any, dict[str, float]]) -> None:
    assert 0 <= trained[2]["retrieval"] < 0.5 and 0.2 < trained[2]["objects"] <= 1


@torch.no_grad()
def test_the_saved_text_encoder_is_the_trained_one(trained: tuple[Path, Any, dict[str, float]]) -> None:
    folder, model, _ = trained
    tokens = CLIPTokenizer.from_pretrained(folder / "tokenizer")(TEXTS, padding=True, return_tensors="pt")
    saved = CLIPTextModel.from_pretrained(folder / "text_encoder")(**tokens).last_hidden_state
    torch.testing.assert_close(saved, model.text_model(**tokens).last_hidden_state, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_family_encodes_prompts_with_it(trained: tuple[Path, Any, dict[str, float]]) -> None:
    folder, model, _ = trained
    family = family_class(None, folder).open(folder).load_parts(("text",))
    tokens = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    ids = tokens(TEXTS, padding="max_length", max_length=base.CLIP_LENGTH, return_tensors="pt").input_ids
    expected = model.text_model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(family.encode_text(TEXTS, 1).hidden, expected, rtol=1e-4, atol=1e-5)


def test_colours_are_one_token(trained: tuple[Path, Any, dict[str, float]]) -> None:
    tokens = CLIPTokenizer.from_pretrained(trained[0] / "tokenizer")
    assert {len(tokens(word)["input_ids"]) for word in COLORS} == {3}


def test_latents_have_mean_0_and_variance_1(trained: tuple[Path, Any, dict[str, float]]) -> None:
    images = np.stack([render(scene) for scene, _ in islice(pairs(7), 1000)])
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    latents, spread = vae(trained[0]).encode_images(batch)
    assert latents.shape == (1000, base.LATENT_CHANNELS, GRID, GRID) and not spread.any()
    assert latents.mean((0, 2, 3)).abs().max() < 0.1 and (latents.std((0, 2, 3)) - 1).abs().max() < 0.1


def test_images_are_reconstructed(trained: tuple[Path, Any, dict[str, float]]) -> None:
    family = vae(trained[0])
    made = family.decode_latents(family.encode_images(pixels())[0])
    assert (made - (pixels() / 2 + 0.5)).abs().mean() < 0.06


def test_a_latent_depends_on_its_own_cell_alone(trained: tuple[Path, Any, dict[str, float]]) -> None:
    autoencoder = PatchAutoencoder.from_pretrained(trained[0] / "vae")
    other = pixels()
    other[:, :, :8, :8] = 0
    change = (autoencoder.encode(other).latent - autoencoder.encode(pixels()).latent).abs().amax(1)[0]
    assert np.array_equal(change.detach().numpy() > 1e-4, [[True, False], [False, False]])


def test_missing_weights_are_an_error(trained: tuple[Path, Any, dict[str, float]], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((trained[0] / "vae" / "config.json").read_bytes())
    with pytest.raises(LLM4GENError, match=r"VAE .* should hold its weights as \.safetensors; found none"):
        family_class(None, trained[0]).open(trained[0], vae=tmp_path).load_parts(("vae",))
