"""The miniature: a complete text-to-image system that trains on a CPU.

Its text side and its UNet are SD1.5's in small. In the place of a VAE it has a deterministic autoencoder: a small one
that is trained, or one without weights, whose latents are the pixels of a small square.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import DecoderOutput, EncoderOutput
from torch import Tensor, nn

from llm4gen_core import LLM4GENError

from .folder import folder_part, read_json, subfolder
from .parts import Base, Part
from .patch_autoencoder import PatchAutoencoder
from .sd15 import SD15


class PixelUnshuffle(nn.Module):
    """Images to latents and back without loss: every square of pixels is one latent.

    Args:
        factor: f, pixels on a side of a square.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def encode(self, pixels: Tensor) -> EncoderOutput:
        """[B, 3, H, W] to [B, 3 f², H / f, W / f]."""
        return EncoderOutput(latent=F.pixel_unshuffle(pixels, self.factor))

    def decode(self, latents: Tensor) -> DecoderOutput:
        """[B, 3 f², h, w] to [B, 3, h f, w f]."""
        return DecoderOutput(sample=F.pixel_shuffle(latents, self.factor))


class Miniature(SD15):
    """A base of the miniature world."""

    name = "miniature"
    title = "miniature"
    pipeline = "LLM4GENMiniaturePipeline"
    vae_class = PatchAutoencoder
    is_deterministic = True

    @property
    def vae_kind(self) -> type[nn.Module]:
        return _vae_class(self.base.vae.config)

    @property
    def pixels_per_latent(self) -> int:
        return self.base.vae.config["factor"]

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        latents = self.vae.encode(pixels.float()).latent
        return latents, torch.zeros_like(latents)

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        return (self.vae.decode(latents.float()).sample / 2 + 0.5).clamp(0, 1)

    @classmethod
    def _open(cls, base: Path, tokenizer: Path | None) -> Base:
        return dataclasses.replace(super()._open(base, tokenizer), vae=_vae(base / "vae"))

    @classmethod
    def _other_unet(cls, path: Path) -> Part:
        if path.is_file():
            raise LLM4GENError(f"UNet {path} is a file; expected a diffusers folder, the miniature's only form.")
        return super()._other_unet(path)

    @classmethod
    def _other_vae(cls, path: Path) -> Part:
        return _vae(subfolder(path, "vae"))


def _vae_class(config: Mapping[str, Any]) -> type[nn.Module]:
    lossless = config.get("_class_name") == PixelUnshuffle.__name__
    return PixelUnshuffle if lossless else PatchAutoencoder


def _vae(folder: Path) -> Part:
    """Of either class; `PixelUnshuffle` has no weights, its configuration is all of it."""
    kind = _vae_class(read_json(folder / "config.json", "VAE"))
    part = folder_part(kind, folder, "VAE")
    if kind is PatchAutoencoder:
        return part
    return dataclasses.replace(
        part, check=lambda: None, load=lambda dtype: PixelUnshuffle(part.config["factor"]).eval()
    )
