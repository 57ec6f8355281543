"""Interface of the families of base models, and what they have in common."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from llm4gen_core import LLM4GENError
from llm4gen_core.attention import LLMTokens

from ..options import PathLike
from .parts import Base, FolderPart, Part, open_folder, schedule_beside, subfolder, text_parts
from .single_file import open_checkpoint, unet_file, vae_file

_ENCODED_PIXELS = 2**20
"""Pixels that the VAE encodes at once, such as four images of 512x512. More takes more memory and is no faster."""

PARTS = ("unet", "vae", "text")
"""Parts that `Family.load_parts` can load, each by itself."""


@dataclass(frozen=True)
class TextFeatures:
    """Outputs of the text encoders for B prompts.

    Attributes:
        hidden: c_t [B, L k, d_text] in float32, for k chunks of `Family.clip_length` L.
        pooled: [B, d_pooled] in float32; None in families that have none.
        llm: the LLM's tokens in a fused context whose λ applies inside the attention; None where all count alike.
    """

    hidden: Tensor
    pooled: Tensor | None = None
    llm: LLMTokens | None = None


class Family(ABC):
    """A base model: its UNet, VAE and text encoders, and how they are called. Made by `open`.

    The caller moves, trains and wraps the modules; the methods cast their inputs to the modules' precision and return
    float32. Gradients flow through the UNet and the text encoders; the VAE computes without.

    Attributes:
        unet, vae, text_encoders, tokenizers: set by `load_parts`, each if it was loaded.
        base: files of the parts, and the noise schedule.
    """

    name: ClassVar[str]
    """Key of `llm4gen_core.adapter_file.FAMILIES`."""
    title: ClassVar[str]
    """Name in messages."""
    pipeline: ClassVar[str]
    """Pipeline class of diffusers, as in model_index.json."""
    text_classes: ClassVar[tuple[type[nn.Module], ...]]
    vae_class: ClassVar[type[nn.Module]] = AutoencoderKL
    is_deterministic: ClassVar[bool] = False
    """Whether an image has one latent; otherwise latents are sampled from the VAE's distribution."""
    vae_in_half: ClassVar[bool] = True
    """Whether the VAE stays within float16's range."""

    unet: Any
    vae: Any
    text_encoders: tuple[Any, ...]
    tokenizers: tuple[Any, ...]

    def __init__(self, base: Base) -> None:
        self.base = base

    @classmethod
    def open(
        cls,
        base: PathLike,
        *,
        unet: PathLike | None = None,
        vae: PathLike | None = None,
        clip: PathLike | None = None,
        tokenizer: PathLike | None = None,
    ) -> Family:
        """Find and check all files on this machine, without reading weights; nothing is downloaded.

        Args:
            base: diffusers folder, or checkpoint file as ComfyUI loads it.
            unet: UNet in place of the base's: a diffusers UNet folder, a folder that holds one as `unet`, or a file. A
                folder `scheduler` beside `unet` says what it was trained with, and replaces the base's.
            vae: VAE in place of the base's, in the same forms.
            clip: text encoders in place of the base's: a transformers folder, or one that holds them as
                `text_encoder` and, for SDXL, `text_encoder_2`.
            tokenizer: folder with CLIP's vocab.json and merges.txt; needed for a checkpoint outside of a ComfyUI.

        Returns:
            The family with sizes and schedule; `load_parts` adds the modules.

        Raises:
            LLM4GENError: a configuration is missing or broken, or two of them do not fit each other.
        """
        opened = cls._open(Path(base), None if tokenizer is None else Path(tokenizer))
        if unet is not None:
            part = cls._other_unet(Path(unet))
            schedule = schedule_beside(part.path) or opened.schedule
            opened = dataclasses.replace(opened, unet=part, schedule=schedule)
        if vae is not None:
            opened = dataclasses.replace(opened, vae=cls._other_vae(Path(vae)))
        if clip is not None:
            opened = dataclasses.replace(opened, text=text_parts(Path(clip), cls.text_classes))
        family = cls(opened)
        family._check()
        return family

    def load_parts(
        self,
        parts: Collection[str] = PARTS,
        *,
        unet_dtype: torch.dtype = torch.float32,
        vae_dtype: torch.dtype = torch.float32,
        text_dtype: torch.dtype = torch.float32,
    ) -> Family:
        """Load weights onto the CPU, in evaluation mode and frozen.

        Args:
            parts: some of `PARTS`; "text" is the text encoders and tokenizers.
            unet_dtype, vae_dtype, text_dtype: precision of the weights.

        Returns:
            This family.

        Raises:
            LLM4GENError: weights are missing or broken.
        """
        if unknown := sorted(set(parts) - set(PARTS)):
            raise LLM4GENError(f"Parts {unknown} are not known; expected some of {', '.join(PARTS)}.")
        base = self.base
        in_files = {"unet": (base.unet,), "vae": (base.vae,), "text": base.text}
        for part in (one for name in parts for one in in_files[name]):
            part.check()
        if "text" in parts:
            self.tokenizers = base.load_tokenizers()
            self.text_encoders = tuple(part.load(text_dtype) for part in base.text)
        if "vae" in parts:
            self.vae = base.vae.load(vae_dtype)
        if "unet" in parts:
            self.unet = base.unet.load(unet_dtype)
        return self

    def change_schedule(self, prediction: str, zero_terminal_snr: bool) -> None:
        """Replace the base's noise schedule by that of a training; see `NoiseSchedule.trained_with`."""
        schedule = self.base.schedule.trained_with(prediction, zero_terminal_snr)
        self.base = dataclasses.replace(self.base, schedule=schedule)

    @property
    def alphas_cumprod(self) -> Tensor:
        """alpha_bar [1000]; see `NoiseSchedule`."""
        return self.base.schedule.alphas_cumprod

    @property
    def prediction_type(self) -> str:
        """Output of the UNet, "epsilon" or "v_prediction"."""
        return self.base.schedule.prediction_type

    @property
    def d_text(self) -> int:
        """Width of the context that cross-attention reads."""
        return self.base.unet.config["cross_attention_dim"]

    @property
    def latent_channels(self) -> int:
        return self.base.unet.config["in_channels"]

    @property
    def vae_kind(self) -> type[nn.Module]:
        """Class of this base's VAE, which need not be loaded."""
        return self.vae_class

    @property
    def pixels_per_latent(self) -> int:
        """Pixels on a side of the square that one latent stands for."""
        return 2 ** (len(self.base.vae.config["block_out_channels"]) - 1)

    @property
    def native_size(self) -> int:
        """Pixels on a side of the images that the base was trained on."""
        return self.base.unet.config["sample_size"] * self.pixels_per_latent

    def to(self, device: torch.device | str) -> Family:
        """Move all loaded modules."""
        for module in (getattr(self, "unet", None), getattr(self, "vae", None), *getattr(self, "text_encoders", ())):
            if module is not None:
                module.to(device)
        return self

    @property
    @abstractmethod
    def clip_length(self) -> int:
        """Tokens of a chunk, start and end included: as many as CLIP has positions for, 77 in SD1.5 and SDXL."""

    @abstractmethod
    def encode_text(self, prompts: Sequence[str], chunks: int | None = None) -> TextFeatures:
        """Encode prompts, differentiable with respect to the text encoders' parameters.

        Args:
            prompts: B texts, taken literally.
            chunks: k chunks of `clip_length` tokens: a longer prompt is cut, and empty chunks are added. None, as
                ComfyUI, for as many as the longest prompt needs.

        Returns:
            hidden [B, L k, d_text], and pooled of the first chunk.
        """

    @abstractmethod
    def text_offsets(self, prompt: str, chunks: int | None = None) -> list[tuple[int, int]]:
        """Characters of the prompt that each of its L k positions in `encode_text(...).hidden` stands for.

        Returns:
            (start, end) for each position; (0, 0) for start, end and padding.
        """

    @abstractmethod
    def text_chunks(self, prompt: str) -> int:
        """Number of chunks of CLIP tokens that a prompt needs."""

    def unused_text_parameters(self) -> set[str]:
        """Parameters that `encode_text` does not depend on, as "<index of the text encoder>.<name>"."""
        return set()

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images to the VAE's normal distribution of latents, scaled as the UNet reads them.

        Args:
            pixels: [B, 3, H, W] from -1 to 1; H and W are multiples of `pixels_per_latent`.

        Returns:
            (mean, standard deviation), each [B, C, H / p, W / p] in float32.
        """
        config = self.vae.config
        means, deviations = [], []
        for part in pixels.split(max(1, _ENCODED_PIXELS // pixels[0, 0].numel())):
            distribution = self.vae.encode(_cast(part, self.vae)).latent_dist
            means.append((distribution.mean.float() - (config.shift_factor or 0)) * config.scaling_factor)
            deviations.append(distribution.std.float() * config.scaling_factor)
        return torch.cat(means), torch.cat(deviations)

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Decode latents [B, C, h, w] one by one: the VAE's activations are the memory peak of sampling.

        Returns:
            [B, 3, h p, w p] from 0 to 1 in float32.
        """
        config = self.vae.config
        images = [
            self.vae.decode(_cast(one / config.scaling_factor + (config.shift_factor or 0), self.vae)).sample
            for one in latents.split(1)
        ]
        return (torch.cat(images).float() / 2 + 0.5).clamp(0, 1)

    def predict(
        self,
        latents: Tensor,
        timesteps: Tensor | int,
        text: Tensor,
        pooled: Tensor | None = None,
        sizes: Tensor | None = None,
    ) -> Tensor:
        """Call the UNet on noisy latents; it predicts noise or velocity, see `prediction_type`.

        Args:
            latents: x_t [B, C, h, w].
            timesteps: 0 to 999, [B] or one for all.
            text: context [B, L, d_text].
            pooled: [B, d_pooled]; needed by SDXL, ignored where there is none.
            sizes: [B, 6], pixels (original height, original width, crop top, crop left, target height, target
                width); needed by SDXL, ignored elsewhere.

        Returns:
            [B, C, h, w] in float32.
        """
        latents = _cast(latents, self.unet)
        if isinstance(timesteps, Tensor):
            timesteps = timesteps.to(latents.device)
        return self.unet(
            latents,
            timesteps,
            encoder_hidden_states=text.to(latents),
            added_cond_kwargs=self._added_conditions(latents, pooled, sizes),
            return_dict=False,
        )[0].float()

    def _added_conditions(
        self, latents: Tensor, pooled: Tensor | None, sizes: Tensor | None
    ) -> dict[str, Tensor] | None:
        """diffusers' `added_cond_kwargs`; None for a family without."""
        return None

    @classmethod
    def _open(cls, base: Path, tokenizer: Path | None) -> Base:
        if base.is_file():
            return open_checkpoint(base, cls.name, tokenizer)
        return open_folder(base, cls.pipeline, cls.vae_class, cls.text_classes, tokenizer)

    @classmethod
    def _other_unet(cls, path: Path) -> Part:
        if path.is_file():
            return unet_file(path, cls.name)
        return FolderPart(UNet2DConditionModel, subfolder(path, "unet"), "UNet")

    @classmethod
    def _other_vae(cls, path: Path) -> Part:
        if path.is_file():
            return vae_file(path, cls.name)
        return FolderPart(cls.vae_class, subfolder(path, "vae"), "VAE")

    def _check(self) -> None:
        """Raise LLM4GENError unless the parts are of this family and their sizes fit each other."""
        unet, vae, text = self.base.unet, self.base.vae, self.base.text
        config = unet.config
        channels = vae.config.get("latent_channels")
        if config.get("in_channels") != channels:
            raise LLM4GENError(
                f"UNet {unet.path} reads {config.get('in_channels')} channels; expected {channels}, as VAE {vae.path} "
                "writes. Inpainting models cannot be used here."
            )
        width = config.get("cross_attention_dim")
        if width == 1024:
            raise LLM4GENError(f"UNet {unet.path} is that of SD2 (context of width 1024); expected {self.title}.")
        d_text = sum(part.config.get("hidden_size", 0) for part in text)
        if width != d_text:
            raise LLM4GENError(
                f"UNet {unet.path} reads a text context of width {width}, but the CLIP of {text[0].path} writes "
                f"{d_text}; use a UNet of the same family as the base."
            )
        if vae.config.get("latents_mean") is not None:
            raise LLM4GENError(
                f"VAE {vae.path} scales every channel by itself (latents_mean), as Playground 2.5 does; expected the "
                f"VAE of {self.title}."
            )
        self._check_conditions()

    def _check_conditions(self) -> None:
        """Check the conditions beside the text; part of `_check`."""
        kind = self.base.unet.config.get("addition_embed_type")
        if kind is not None:
            raise LLM4GENError(
                f"UNet {self.base.unet.path} needs conditions of type {kind!r}, as SDXL's does; expected {self.title}."
            )


def _cast(tensor: Tensor, module: nn.Module) -> Tensor:
    """Move a tensor to the precision and device of a module, which may be wrapped for training in parallel."""
    first = next(parameter for parameter in module.parameters() if parameter.is_floating_point())
    return tensor.to(first.device, first.dtype)
