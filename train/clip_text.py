"""Prompts of any length through SD1.5's CLIP, in chunks, as ComfyUI does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

CHUNK_LENGTH = 77


def clip_chunks(tokenizer: Any, prompt: str) -> list[list[int]]:
    """Token ids of a prompt in chunks of 77: start, up to 75 tokens of text, end, padded with the end token.

    The text is taken literally: ComfyUI's weights `(word:1.3)` and `embedding:name` have no meaning here.

    Args:
        tokenizer: CLIP's.
        prompt: any text; the empty one gives one chunk.

    Returns:
        At least one list of 77 ids.
    """
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    ids = tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
    room = CHUNK_LENGTH - 2
    texts = [ids[i : i + room] for i in range(0, len(ids), room)] or [[]]
    return [[start, *text, end] + [end] * (room - len(text)) for text in texts]


@torch.no_grad()
def clip_hidden_states(text_encoder: nn.Module, tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    """CLIP's last hidden states, after its final layer norm.

    Shorter prompts are filled up with chunks of the empty prompt, so that both sides of guidance, encoded
    together, come out equally long and share one call of the UNet.

    Args:
        text_encoder: CLIPTextModel.
        tokenizer: of the same model.
        prompts: B texts.

    Returns:
        [B, 77 k, d_text], k being the number of chunks of the longest prompt.
    """
    chunks = [clip_chunks(tokenizer, prompt) for prompt in prompts]
    longest = max(len(of_prompt) for of_prompt in chunks)
    empty = clip_chunks(tokenizer, "")
    ids = torch.tensor([of_prompt + empty * (longest - len(of_prompt)) for of_prompt in chunks])
    device = next(text_encoder.parameters()).device
    hidden = text_encoder(input_ids=ids.flatten(0, 1).to(device)).last_hidden_state
    return hidden.unflatten(0, (len(prompts), longest)).flatten(1, 2)
