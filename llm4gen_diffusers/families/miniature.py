"""The miniature: a complete text-to-image system that trains on a CPU.

Its text encoder and UNet are small ones of SD1.5's kind. In place of a VAE it has a deterministic autoencoder: a small
one that is trained, or one without weights whose latents are squares of pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, EncoderOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from llm4gen_core import LLM4GENError
from llm4gen_core.files import read_json

from .parts import Base, FolderPart, Part, subfolder
from .stable_diffusion import SD15


class PatchAutoencoder(ModelMixin, ConfigMixin):  # type: ignore[misc]  # as diffusers derives its own
    """A deterministic autoencoder of squares of pixels, with the interface of diffusers' AutoencoderDC.

    Args:
        factor: f, pixels on a side of a square.
        latent_channels: C.
        width: channels of the hidden layers.
    """

    @register_to_config
    def __init__(self, factor: int = 8, latent_channels: int = 16, width: int = 256) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, factor, factor),
            nn.SiLU(),
            nn.Conv2d(width, width, 1),
            nn.SiLU(),
            nn.Conv2d(width, latent_channels, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(latent_channels, width, 1),
            nn.SiLU(),
            nn.Conv2d(width, width, 1),
            nn.SiLU(),
            nn.Conv2d(width, width, 1),
            nn.SiLU(),
            nn.ConvTranspose2d(width, 3, factor, factor),
        )

    def encode(self, pixels: Tensor) -> EncoderOutput:
        """Encode pixels [B, 3, H, W] from -1 to 1 to latents [B, C, H / f, W / f]."""
        return EncoderOutput(latent=self.encoder(pixels))

    def decode(self, latents: Tensor) -> DecoderOutput:
        """Decode latents [B, C, h, w] to pixels [B, 3, h f, w f]."""
        return DecoderOutput(sample=self.decoder(latents))


class PixelUnshuffle(nn.Module):
    """A lossless autoencoder without weights: every square of pixels is one latent.

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


class _PixelUnshufflePart(FolderPart):
    """A `PixelUnshuffle`, which has a configuration and no weights."""

    def check(self) -> None:
        pass

    def load(self, dtype: torch.dtype) -> nn.Module:
        return PixelUnshuffle(self.config["factor"]).eval()


def _vae_class(config: Mapping[str, Any]) -> type[nn.Module]:
    return PixelUnshuffle if config.get("_class_name") == PixelUnshuffle.__name__ else PatchAutoencoder


def _vae(folder: Path) -> Part:
    kind = _vae_class(read_json(folder / "config.json", "VAE"))
    return (_PixelUnshufflePart if kind is PixelUnshuffle else FolderPart)(kind, folder, "VAE")
