"""SD1.5 and SDXL: prompts in chunks of CLIP tokens as in ComfyUI, one or two CLIP text encoders, size conditions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from llm4gen_core import LLM4GENError

from .base import Family, TextFeatures
from .parts import Part

CLIP_LENGTH = 77
"""Tokens of a chunk for a CLIP whose configuration does not say how many positions it has."""
SIZES = 6
"""Numbers in SDXL's size condition: (original height, width, crop top, left, target height, width)."""


@dataclass(frozen=True)
class ClipTokens:
    """A prompt in k chunks of L tokens: start, up to L - 2 tokens of text, end, padding. L is 77 in SD1.5 and SDXL.

    Attributes:
        ids: k lists of L ids.
        offsets: L k pairs (start, end), the characters of the prompt that a token stands for; (0, 0) for start, end
            and padding. The tokenizer changes case, white space and composed letters; the offsets do not move.
    """

    ids: list[list[int]]
    offsets: list[tuple[int, int]]


def clip_tokens(
    tokenizer: Any, prompt: str, length: int, chunks: int | None = None, pad_id: int | None = None
) -> ClipTokens:
    """Tokenize a prompt, taken literally: ComfyUI's weights `(word:1.3)` and `embedding:name` have no meaning here.

    Args:
        tokenizer: CLIP's, a fast one.
        prompt: any text; the empty one gives one chunk.
        length: L, tokens of a chunk; see `Family.clip_length`.
        chunks: number of chunks: a longer prompt is cut, and empty chunks are added; None for as many as it needs.
        pad_id: token after the end; None for the end token itself.

    Raises:
        LLM4GENError: `chunks` is not at least 1.
    """
    if chunks is not None and chunks < 1:
        raise LLM4GENError(f"CLIP chunks: {chunks}; expected a whole number of at least 1.")
    room = length - 2  # between start and end
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    pad = end if pad_id is None else pad_id
    encoded = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    text: list[int] = encoded["input_ids"]
    where = _whole_letters(prompt, encoded["offset_mapping"])
    if chunks is None:
        chunks = max(1, -(-len(text) // room))
    ids, offsets = [], []
    for first in range(0, chunks * room, room):
        part = text[first : first + room]
        padding = room - len(part)
        ids.append([start, *part, end] + [pad] * padding)
        offsets += [(0, 0), *where[first : first + room], (0, 0)] + [(0, 0)] * padding
    return ClipTokens(ids, offsets)


def _whole_letters(prompt: str, offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Extend offsets over combining characters such as accents: the tokenizer names only the first part of a letter.

    Only white space belongs to no token, so whatever else follows a token and starts none is part of it.
    """
    starts = {start for start, _ in offsets}
    whole = []
    for start, end in offsets:
        while end < len(prompt) and end not in starts and not prompt[end].isspace():
            end += 1
        whole.append((start, end))
    return whole


class StableDiffusion(Family):
    """Families whose context comes from CLIP text encoders that read a prompt in chunks."""

    @property
    def clip_length(self) -> int:
        return _positions(self.base.text[0])

    def text_offsets(self, prompt: str, chunks: int | None = None) -> list[tuple[int, int]]:
        return clip_tokens(self.tokenizers[0], prompt, self.clip_length, chunks).offsets

    def text_chunks(self, prompt: str) -> int:
        return len(clip_tokens(self.tokenizers[0], prompt, self.clip_length).ids)

    def _clip_ids(self, index: int, prompts: Sequence[str], chunks: int | None, pad_id: int | None) -> Tensor:
        """Token ids [B, k, L] for a text encoder, on its device.

        Shorter prompts are filled up with chunks of the empty prompt, so that both sides of guidance, encoded
        together, are equally long and share one call of the UNet.
        """
        if isinstance(prompts, str) or not prompts:
            raise LLM4GENError(
                f"Prompts are {prompts!r}; expected a list of at least one text, an empty one if need be."
            )
        if chunks is None:
            chunks = max(map(self.text_chunks, prompts))
        tokenizer = self.tokenizers[index]
        ids = [clip_tokens(tokenizer, prompt, self.clip_length, chunks, pad_id).ids for prompt in prompts]
        return torch.tensor(ids, device=next(self.text_encoders[index].parameters()).device)

    def _check(self) -> None:
        super()._check()
        text = self.base.text
        lengths = [_positions(part) for part in text]
        if len(set(lengths)) > 1 or lengths[0] < 3:
            raise LLM4GENError(
                f"CLIP {text[0].path} has positions for {' and '.join(map(str, lengths))} tokens; expected at least 3 "
                f"(start, text, end), and equally many in all text encoders. Use the text encoders of {self.title}."
            )


class SD15(StableDiffusion):
    """SD1.5 and its fine-tunes: the context is the last hidden states of CLIP-L."""

    name = "sd15"
    title = "SD1.5"
    pipeline = "StableDiffusionPipeline"
    text_classes = (CLIPTextModel,)

    def encode_text(self, prompts: Sequence[str], chunks: int | None = None) -> TextFeatures:
        ids = self._clip_ids(0, prompts, chunks, pad_id=None)
        hidden = self.text_encoders[0](input_ids=ids.flatten(0, 1)).last_hidden_state
        return TextFeatures(_join_chunks(hidden, len(prompts)))


class SDXL(StableDiffusion):
    """SDXL base and its fine-tunes (arXiv 2307.01952).

    The context is CLIP-L's and OpenCLIP bigG's hidden states before their last block, without final norm, concatenated
    along the width; the pooled embedding is bigG's projection of the end token of the first chunk.
    """

    name = "sdxl"
    title = "SDXL"
    pipeline = "StableDiffusionXLPipeline"
    text_classes = (CLIPTextModel, CLIPTextModelWithProjection)
    vae_in_half = False
    pad_ids = (None, 0)
    """After the end token, CLIP-L reads end tokens and bigG id 0, "!", in diffusers and ComfyUI alike."""

    def encode_text(self, prompts: Sequence[str], chunks: int | None = None) -> TextFeatures:
        hidden = []
        for index, (encoder, pad_id) in enumerate(zip(self.text_encoders, self.pad_ids, strict=True)):
            ids = self._clip_ids(index, prompts, chunks, pad_id)
            output = encoder(input_ids=ids.flatten(0, 1), output_hidden_states=True)
            hidden.append(_join_chunks(output.hidden_states[-2], len(prompts)))
        pooled = output.text_embeds.unflatten(0, ids.shape[:2])[:, 0]
        return TextFeatures(torch.cat(hidden, dim=-1), pooled.float())

    def unused_text_parameters(self) -> set[str]:
        """Parameters of CLIP-L after its last block but one; bigG's all go into the pooled embedding."""
        last = f"encoder.layers.{self.text_encoders[0].config.num_hidden_layers - 1}."
        return {
            f"0.{name}"
            for name, _ in self.text_encoders[0].named_parameters()
            if last in name or "final_layer_norm" in name
        }

    def _added_conditions(self, latents: Tensor, pooled: Tensor | None, sizes: Tensor | None) -> dict[str, Tensor]:
        if pooled is None or sizes is None:
            missing = "pooled" if pooled is None else "sizes"
            raise LLM4GENError(f"SDXL's UNet needs {missing}; see Family.predict.")
        if sizes.shape != (len(latents), SIZES):
            raise LLM4GENError(f"sizes has shape {list(sizes.shape)}; expected {[len(latents), SIZES]}.")
        # In float32: bfloat16 has no number between 1024 and 1032. The UNet casts their embedding, not them.
        return {"text_embeds": pooled.to(latents), "time_ids": sizes.to(latents.device, torch.float32)}

    def _check_conditions(self) -> None:
        unet, text = self.base.unet, self.base.text[-1]
        kind = unet.config.get("addition_embed_type")
        if kind != "text_time":
            raise LLM4GENError(f"UNet {unet.path} has conditions of type {kind!r}; expected 'text_time', as in SDXL.")
        pooled = unet.config["projection_class_embeddings_input_dim"] - SIZES * unet.config["addition_time_embed_dim"]
        if pooled != text.config["projection_dim"]:
            raise LLM4GENError(
                f"UNet {unet.path} reads a pooled text embedding of width {pooled}, but {text.path} writes "
                f"{text.config['projection_dim']}; use a UNet of the same family as the base."
            )


def _positions(text: Part) -> int:
    """Number of tokens that a text encoder reads at once."""
    return text.config.get("max_position_embeddings", CLIP_LENGTH)


def _join_chunks(hidden: Tensor, prompts: int) -> Tensor:
    """[B k, L, d] to [B, L k, d] in float32."""
    return hidden.float().reshape(prompts, -1, hidden.shape[-1])
