"""The miniature: a complete text-to-image system that trains on a CPU, made by `train.small_models`.

Its text side and its UNet are SD1.5's in small. Its VAE is lossless, so that nothing has to be trained for it: the
pixels of a small square become the channels of one latent.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm4gen_core import LLM4GENError

from .folder import folder_part, subfolder
from .parts import Base, Part
from .sd15 import SD15


class PixelUnshuffle(nn.Module):
    """Images to latents and back without loss: every square of pixels is one latent.

    Args:
        factor: f, pixels on a side of a square.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def encode(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, 3 f², H / f, W / f]."""
        return F.pixel_unshuffle(pixels, self.factor)

    def decode(self, latents: Tensor) -> Tensor:
        """[B, 3 f², h, w] to [B, 3, h f, w f]."""
        return F.pixel_shuffle(latents, self.factor)


class Miniature(SD15):
    """A base of the miniature world."""

    name = "miniature"
    title = "miniature"
    pipeline = "LLM4GENMiniaturePipeline"
    vae_class = PixelUnshuffle
    is_lossless = True

    @property
    def pixels_per_latent(self) -> int:
        return self.base.vae.config["factor"]

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.vae.encode(pixels.float())
        return mean, torch.zeros_like(mean)

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        return (self.vae.decode(latents.float()) / 2 + 0.5).clamp(0, 1)

    @classmethod
    def _open(cls, base: Path, tokenizer: Path | None) -> Base:
        opened = super()._open(base, tokenizer)
        return dataclasses.replace(opened, vae=_without_weights(opened.vae))

    @classmethod
    def _other_unet(cls, path: Path) -> Part:
        if path.is_file():
            raise LLM4GENError(f"UNet {path} is a file; expected a diffusers folder, the miniature's only form.")
        return super()._other_unet(path)

    @classmethod
    def _other_vae(cls, path: Path) -> Part:
        return _without_weights(folder_part(cls.vae_class, subfolder(path, "vae"), "VAE"))


def _without_weights(vae: Part) -> Part:
    """`PixelUnshuffle` has none: its configuration is all of it."""
    return dataclasses.replace(vae, check=lambda: None, load=lambda dtype: PixelUnshuffle(vae.config["factor"]).eval())
