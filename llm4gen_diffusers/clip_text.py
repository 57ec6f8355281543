"""Prompts of any length for CLIP, in chunks, as ComfyUI does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llm4gen_core import LLM4GENError

CHUNK_LENGTH = 77
"""Of a CLIP whose configuration does not say how many positions it has."""


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
    """Tokens of a prompt.

    The text is taken literally: ComfyUI's weights `(word:1.3)` and `embedding:name` have no meaning here.

    Args:
        tokenizer: CLIP's, a fast one.
        prompt: any text; the empty one gives one chunk.
        length: L, of a chunk; see `Family.clip_length`.
        chunks: exactly so many: what exceeds them is cut, and empty chunks are added; None for as many as it needs.
        pad_id: token after the end; None for the end token itself.

    Raises:
        LLM4GENError: `chunks` is not at least 1.
    """
    if chunks is not None and chunks < 1:
        raise LLM4GENError(f"CLIP chunks: {chunks}; expected a whole number of at least 1.")
    room = length - 2  # between start and end
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    pad = end if pad_id is None else pad_id
    # ids and offsets of one call: nothing can come between them
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
    """Offsets that take in what was composed into a letter, such as an accent: the tokenizer names its first part.

    Only white space belongs to no token, so that whatever else follows a token and starts none is part of it.
    """
    starts = {start for start, _ in offsets}
    whole = []
    for start, end in offsets:
        while end < len(prompt) and end not in starts and not prompt[end].isspace():
            end += 1
        whole.append((start, end))
    return whole


def clip_ids(
    tokenizer: Any, prompts: Sequence[str], length: int, chunks: int | None = None, pad_id: int | None = None
) -> Tensor:
    """Token ids of several prompts.

    Shorter prompts are filled up with chunks of the empty prompt, so that both sides of guidance, encoded
    together, come out equally long and share one call of the UNet.

    Args:
        tokenizer, length, pad_id: see `clip_tokens`.
        prompts: B texts.
        chunks: k; None for as many as the longest prompt needs.

    Returns:
        [B, k, L].

    Raises:
        LLM4GENError: there is no prompt, or `chunks` is not at least 1.
    """
    if isinstance(prompts, str) or not prompts:
        raise LLM4GENError(f"Prompts are {prompts!r}; expected a list of at least one text, an empty one if need be.")
    if chunks is None:
        chunks = max(len(clip_tokens(tokenizer, prompt, length).ids) for prompt in prompts)
    return torch.tensor([clip_tokens(tokenizer, prompt, length, chunks, pad_id).ids for prompt in prompts])
