"""The interface behind which base models differ, and what they have in common."""

from __future__ import annotations

import dataclasses
import os
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
from llm4gen_core.lambda_modes import LLMTokens

from ..clip_text import CHUNK_LENGTH, clip_ids, clip_tokens
from .folder import folder_part, open_folder, schedule_beside, subfolder, text_parts
from .parts import Base, Part
from .single_file import open_checkpoint, unet_file, vae_file

PathLike = str | os.PathLike[str]

_ENCODED_PIXELS = 2**20
"""Of the images that the VAE encodes at once: four of 512x512. Beyond, it needs more memory and is no faster."""

PARTS = ("unet", "vae", "text")
"""What `Family.load` can load, each by itself."""


@dataclass(frozen=True)
class TextFeatures:
    """What the text encoders say of B prompts.

    Attributes:
        hidden: c_t [B, L k, d_text] in float32, for k chunks of `Family.clip_length` L.
        pooled: [B, d_pooled] in float32; None in families that have none.
        llm: the LLM's tokens in a fused context whose λ belongs into the attention; None where all count alike.
    """

    hidden: Tensor
    pooled: Tensor | None = None
    llm: LLMTokens | None = None


class Family(ABC):
    """A base model: its UNet, VAE and text encoders, and how they are called. Made by `load` or `open`.

    The modules are the caller's to move, train and wrap; what is called here casts its inputs to their precision and
    gives float32. Gradients flow through the UNet and the text encoders, the VAE computes without.

    Attributes:
        unet, vae, text_encoders, tokenizers: there as far as they were loaded.
        base: where they come from.
    """

    name: ClassVar[str]
    """Key of `llm4gen_core.adapter_file.FAMILIES`."""
    title: ClassVar[str]
    """Name for people."""
    pipeline: ClassVar[str]
    """Of diffusers, as model_index.json names it."""
    text_classes: ClassVar[tuple[type[nn.Module], ...]]
    vae_class: ClassVar[type[nn.Module]] = AutoencoderKL
    is_deterministic: ClassVar[bool] = False
    """Whether an image has one latent; otherwise latents are drawn from the VAE's distribution."""
    vae_in_half: ClassVar[bool] = True
    """Whether the VAE stays within float16's range."""

    unet: Any
    vae: Any
    text_encoders: tuple[Any, ...]
    tokenizers: tuple[Any, ...]

    def __init__(self, base: Base) -> None:
        self.base = base

    @classmethod
    def load(
        cls,
        base: PathLike,
        *,
        unet: PathLike | None = None,
        vae: PathLike | None = None,
        clip: PathLike | None = None,
        tokenizer: PathLike | None = None,
        unet_dtype: torch.dtype = torch.float32,
        vae_dtype: torch.dtype = torch.float32,
        text_dtype: torch.dtype = torch.float32,
        parts: Collection[str] = PARTS,
    ) -> Family:
        """`open`, then `load_parts`.

        What is missing or does not fit together is found from configuration files and headers, before any large file
        is read.
        """
        family = cls.open(base, unet=unet, vae=vae, clip=clip, tokenizer=tokenizer)
        return family.load_parts(parts, unet_dtype=unet_dtype, vae_dtype=vae_dtype, text_dtype=text_dtype)

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
        """Find and check everything on this machine, without reading weights; nothing is downloaded.

        Args:
            base: diffusers folder, or checkpoint file as ComfyUI loads it.
            unet: in place of the base's: a diffusers UNet folder, a folder that holds one as `unet`, or a file. A
                folder `scheduler` beside `unet` says what it was trained with, and takes the place of the base's.
            vae: the same for the VAE.
            clip: in place of the base's text encoders: a transformers folder, or one that holds them as
                `text_encoder` and, in SDXL, `text_encoder_2`.
            tokenizer: folder with CLIP's vocab.json and merges.txt; needed for a checkpoint outside of a ComfyUI.

        Returns:
            What tells sizes and schedule, and nothing that computes.

        Raises:
            LLM4GENError: a configuration is missing or broken, or two of them do not belong together.
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
            parts: of `PARTS`; "text" is text encoders and tokenizers.
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
        """From now on compute with what a run has made of the base's schedule; see `NoiseSchedule.trained_with`."""
        schedule = self.base.schedule.trained_with(prediction, zero_terminal_snr)
        self.base = dataclasses.replace(self.base, schedule=schedule)

    @property
    def alphas_cumprod(self) -> Tensor:
        """alpha_bar [1000]; see `NoiseSchedule`."""
        return self.base.schedule.alphas_cumprod

    @property
    def prediction_type(self) -> str:
        """What the UNet predicts, "epsilon" or "v_prediction"."""
        return self.base.schedule.prediction_type

    @property
    def d_text(self) -> int:
        """Width of the context that cross-attention reads."""
        return self.base.unet.config["cross_attention_dim"]

    @property
    def clip_length(self) -> int:
        """Tokens of a chunk, start and end among them: as many as CLIP has positions for, 77 in SD1.5 and SDXL."""
        return _positions(self.base.text[0])

    @property
    def latent_channels(self) -> int:
        return self.base.unet.config["in_channels"]

    @property
    def vae_kind(self) -> type[nn.Module]:
        """The class of this base's VAE, which need not be loaded."""
        return self.vae_class

    @property
    def pixels_per_latent(self) -> int:
        """Pixels on a side of what one latent stands for."""
        return 2 ** (len(self.base.vae.config["block_out_channels"]) - 1)

    @property
    def native_size(self) -> int:
        """Pixels on a side of the images that the base was trained on."""
        return self.base.unet.config["sample_size"] * self.pixels_per_latent

    def to(self, device: torch.device | str) -> Family:
        """Move all modules that are loaded."""
        for part in ("unet", "vae"):
            if hasattr(self, part):
                getattr(self, part).to(device)
        for encoder in getattr(self, "text_encoders", ()):
            encoder.to(device)
        return self

    @abstractmethod
    def encode_text(self, prompts: Sequence[str], chunks: int | None = None) -> TextFeatures:
        """What the text encoders say of prompts, differentiable with respect to their parameters.

        Args:
            prompts: B texts, taken literally.
            chunks: k chunks of `clip_length` tokens: what exceeds them is cut, and empty ones are added. None, as
                ComfyUI, for as many as the longest prompt needs.

        Returns:
            hidden [B, L k, d_text], and pooled of the first chunk.
        """

    def unused_text_parameters(self) -> set[str]:
        """Parameters that `encode_text` does not depend on, as "<index of the text encoder>.<name>"."""
        return set()

    def text_offsets(self, prompt: str, chunks: int | None = None) -> list[tuple[int, int]]:
        """Which characters of the prompt each of its L k positions in `encode_text(...).hidden` stands for.

        Returns:
            (start, end) a position; (0, 0) for start, end and padding.
        """
        return clip_tokens(self.tokenizers[0], prompt, self.clip_length, chunks).offsets

    def text_chunks(self, prompt: str) -> int:
        """How many chunks of CLIP tokens a prompt needs."""
        return len(clip_tokens(self.tokenizers[0], prompt, self.clip_length).ids)

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The VAE's normal distribution of latents, in the scale that the UNet works in.

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
        """Images from latents [B, C, h, w], one by one: the VAE's activations are the peak of the whole run.

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
        **options: Any,
    ) -> Tensor:
        """What the UNet says of noisy latents: noise or velocity, by `prediction_type`.

        Args:
            latents: x_t [B, C, h, w].
            timesteps: 0 to 999, [B] or one for all.
            text: context [B, L, d_text].
            pooled: [B, d_pooled]; needed by SDXL, ignored where there is none.
            sizes: [B, 6], pixels (original height, original width, crop top, crop left, target height, target
                width); needed by SDXL, ignored elsewhere.
            options: further arguments of the UNet's forward.

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
            **options,
        )[0].float()

    def _added_conditions(
        self, latents: Tensor, pooled: Tensor | None, sizes: Tensor | None
    ) -> dict[str, Tensor] | None:
        """diffusers' `added_cond_kwargs`, where the family has any."""
        return None

    def _clip_ids(self, index: int, prompts: Sequence[str], chunks: int | None, pad_id: int | None) -> Tensor:
        """Ids [B, k, L] for a text encoder, on its device."""
        ids = clip_ids(self.tokenizers[index], prompts, self.clip_length, chunks, pad_id)
        return ids.to(next(self.text_encoders[index].parameters()).device)

    @classmethod
    def _open(cls, base: Path, tokenizer: Path | None) -> Base:
        if base.is_file():
            return open_checkpoint(base, cls.name, tokenizer)
        return open_folder(base, cls.pipeline, cls.vae_class, cls.text_classes, tokenizer)

    @classmethod
    def _other_unet(cls, path: Path) -> Part:
        if path.is_file():
            return unet_file(path, cls.name)
        return folder_part(UNet2DConditionModel, subfolder(path, "unet"), "UNet")

    @classmethod
    def _other_vae(cls, path: Path) -> Part:
        if path.is_file():
            return vae_file(path, cls.name)
        return folder_part(cls.vae_class, subfolder(path, "vae"), "VAE")

    def _check(self) -> None:
        """Raise LLM4GENError unless the parts are of this family and of each other's sizes."""
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
        lengths = [_positions(part) for part in text]
        if len(set(lengths)) > 1 or lengths[0] < 3:
            raise LLM4GENError(
                f"CLIP {text[0].path} has positions for {' and '.join(map(str, lengths))} tokens; expected at least 3 "
                f"(start, text, end), and equally many in all text encoders. Use those of {self.title}."
            )
        if vae.config.get("latents_mean") is not None:
            raise LLM4GENError(
                f"VAE {vae.path} scales every channel by itself (latents_mean), as Playground 2.5 does; expected the "
                f"VAE of {self.title}."
            )
        self._check_conditions()

    def _check_conditions(self) -> None:
        """The part of `_check` that concerns conditions beside the text."""
        kind = self.base.unet.config.get("addition_embed_type")
        if kind is not None:
            raise LLM4GENError(
                f"UNet {self.base.unet.path} needs conditions of type {kind!r}, as SDXL's does; expected {self.title}."
            )


def _positions(text: Part) -> int:
    """Tokens that a text encoder reads at once."""
    return text.config.get("max_position_embeddings", CHUNK_LENGTH)


def join_chunks(hidden: Tensor, prompts: int) -> Tensor:
    """[B k, L, d] to [B, L k, d] in float32."""
    return hidden.float().reshape(prompts, -1, hidden.shape[-1])


def _cast(tensor: Tensor, module: nn.Module) -> Tensor:
    """In the precision and on the device of a module, which may be wrapped for training in parallel."""
    first = next(parameter for parameter in module.parameters() if parameter.is_floating_point())
    return tensor.to(first.device, first.dtype)
