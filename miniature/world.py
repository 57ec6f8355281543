"""The world on disk: captioned images, and a base with an untrained UNet, before its encoders are trained."""

from __future__ import annotations

import json
import os
from itertools import islice
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image

from llm4gen_diffusers.schedule import BETA_END, BETA_START, NoiseSchedule
from miniature.dataset import pairs
from miniature.scenes import GRID, render

from .autoencoder import LATENT_CHANNELS
from .clip import WIDTH
from .small_models import write_model_index

CHANNELS = (64, 128)
"""Of the UNet's levels, of 2 x 2 positions and one, with cross-attention in both."""


def write_pairs(folder: Path, number: int, seed: int = 0) -> Path:
    """Images and `pairs.jsonl`: captions, and the attribute-entity pairs that are true by construction.

    Args:
        folder: made if it does not exist.
        number: how many; the first of more are the same as fewer.
        seed: another one gives other pairs.

    Returns:
        The JSONL file.
    """
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    lines = []
    for index, (scene, caption) in enumerate(islice(pairs(seed), number)):
        name = f"images/{index:06}.png"
        Image.fromarray(render(scene)).save(folder / name, compress_level=1)
        spans = [[*attribute, *entity] for attribute, entity in caption.pairs]
        lines.append(json.dumps({"image": name, "caption": caption.text, "pairs": spans}))
    file = folder / "pairs.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def first_pairs(file: Path, number: int) -> Path:
    """A JSONL file beside another one, of its first lines."""
    lines = file.read_text(encoding="utf-8").splitlines()[:number]
    fewer = file.with_name(f"{file.stem}-{number}.jsonl")
    partial = fewer.with_name(f"{fewer.name}.{os.getpid()}.partial")  # another arm may be reading the same file
    partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    partial.replace(fewer)
    return fewer


def write_untrained_base(folder: Path, seed: int = 0) -> None:
    """All of a base but its CLIP and its VAE: a UNet with random weights, and the noise schedule.

    Velocity and zero terminal SNR, because SD1.5's own schedule never shows the UNet an image without a trace of
    the answer: on so few pixels, the mean of all of them (arXiv 2305.08891).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=GRID,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            block_out_channels=CHANNELS,
            down_block_types=("CrossAttnDownBlock2D",) * len(CHANNELS),
            up_block_types=("CrossAttnUpBlock2D",) * len(CHANNELS),
            layers_per_block=1,
            cross_attention_dim=WIDTH,
            attention_head_dim=4,
            norm_num_groups=8,
        )
    unet.save_pretrained(folder / "unet")
    schedule = NoiseSchedule(BETA_START, BETA_END, "scaled_linear", "v_prediction", zero_terminal_snr=True)
    schedule.to_diffusers().save_pretrained(folder / "scheduler")
    write_model_index(
        folder, "LLM4GENMiniaturePipeline", vae=("llm4gen_diffusers.families.miniature", "PatchAutoencoder")
    )
