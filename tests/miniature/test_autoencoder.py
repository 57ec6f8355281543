"""The world's autoencoder: it is trained, saved in diffusers' form, and read by the family of the miniature."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from miniature.autoencoder import LATENT_CHANNELS, train_autoencoder

from llm4gen_core import LLM4GENError
from llm4gen_diffusers.families import family_class
from llm4gen_diffusers.families.patch_autoencoder import PatchAutoencoder
from miniature import clip
from miniature.dataset import pairs
from miniature.scenes import GRID, Object, line_up, render
from miniature.world import write_untrained_base

SCENE = line_up((Object("circle", "red", "plain", "large"), Object("square", "blue", "plain", "large")))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A whole base whose VAE has been trained for some seconds, and what is said of it."""
    folder = tmp_path_factory.mktemp("vae")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip, "BATCH", 4)
        clip.train_clip(folder / "text_encoder", folder / "tokenizer", 1)
    found = train_autoencoder(folder / "vae", 300, images=2000)
    write_untrained_base(folder)
    return folder, found


def pixels() -> torch.Tensor:
    return torch.from_numpy(render(SCENE)).permute(2, 0, 1)[None].float() / 127.5 - 1


def test_most_objects_are_kept_already(base: tuple[Path, dict[str, float]]) -> None:
    assert 0.2 < base[1]["objects"] <= 1


def test_latents_have_mean_0_and_variance_1(base: tuple[Path, dict[str, float]]) -> None:
    family = family_class(None, base[0]).open(base[0]).load_parts(("vae",))
    images = np.stack([render(scene) for scene, _ in islice(pairs(7), 1000)])
    latents, spread = family.encode_images(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1)
    assert latents.shape == (1000, LATENT_CHANNELS, GRID, GRID) and not spread.any()
    assert latents.mean((0, 2, 3)).abs().max() < 0.1 and (latents.std((0, 2, 3)) - 1).abs().max() < 0.1


def test_images_come_back(base: tuple[Path, dict[str, float]]) -> None:
    family = family_class(None, base[0]).open(base[0]).load_parts(("vae",))
    made = family.decode_latents(family.encode_images(pixels())[0])
    assert (made - (pixels() / 2 + 0.5)).abs().mean() < 0.06


def test_a_latent_knows_its_own_cell_alone(base: tuple[Path, dict[str, float]]) -> None:
    vae = PatchAutoencoder.from_pretrained(base[0] / "vae")
    before = vae.encode(pixels()).latent
    other = pixels()
    other[:, :, :8, :8] = 0
    changed = (vae.encode(other).latent - before).abs().amax(1)[0] > 1e-6
    assert np.array_equal(changed.numpy(), [[True, False], [False, False]])


def test_weights_that_are_missing_are_an_error(base: tuple[Path, dict[str, float]], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((base[0] / "vae" / "config.json").read_bytes())
    with pytest.raises(LLM4GENError, match=r"VAE .* should hold its weights as \.safetensors; found none"):
        family_class(None, base[0]).open(base[0], vae=tmp_path).load_parts(("vae",))
