"""λ of eq. 3: the three ways to read it in cross-attention.

The paper writes the attention over concat(c_t, λ c'_l) as CA(x, c_t) + λ CA(x, c'_l). A softmax over all tokens makes
these two different things, so that both are modes, with a third between them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention_columns import attention_columns

LAMBDA_MODES = ("embedding", "value", "decoupled")
"""`embedding`: attention over concat(c_t, λ c'_l). `value`: the keys are those of concat(c_t, c'_l), and λ scales the
values of c'_l alone. `decoupled`: CA(x, c_t) + λ CA(x, c'_l), a softmax each."""


@dataclass(frozen=True)
class LLMTokens:
    """The LLM's tokens of a context, for a mode that scales them inside cross-attention.

    Attributes:
        mode: "value" or "decoupled"; the λ of "embedding" is in the context.
        first: the position of the first of them; CLIP's stand before it.
        strength: λ.
    """

    mode: str
    first: int
    strength: float = 1.0


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, llm: LLMTokens | None) -> Tensor:
    """Cross-attention with λ in it.

    Args:
        query: [B, heads, N, d].
        key, value: of the context, [B, heads, T, d], or [B, 1, T, d] for all heads.
        scale: of the logits, usually d^-0.5.
        llm: None for all tokens alike.

    Returns:
        [B, heads, N, d].
    """
    if key.shape[1] < query.shape[1]:  # every head's rows look at the same keys
        of_all = attend(query.flatten(1, 2).unsqueeze(1), key, value, scale, llm)
        return of_all.reshape(*query.shape[:3], -1)
    if llm is None:
        return F.scaled_dot_product_attention(query, key, value, scale=scale)
    of_text, of_llm = value[:, :, : llm.first], value[:, :, llm.first :]
    if llm.mode == "value":
        scaled = torch.cat((of_text, llm.strength * of_llm), 2)
        return F.scaled_dot_product_attention(query, key, scaled, scale=scale)
    text = F.scaled_dot_product_attention(query, key[:, :, : llm.first], of_text, scale=scale)
    return text + llm.strength * F.scaled_dot_product_attention(query, key[:, :, llm.first :], of_llm, scale=scale)


def attended_columns(
    query: Tensor,
    key: Tensor,
    columns: Tensor,
    scale: float,
    llm: LLMTokens | None,
    *,
    mean_heads: bool = False,
) -> Tensor:
    """`attention_columns` of what `attend` computes: of `decoupled`, each column from the softmax that it is in.

    λ is no part of it: these are shares of attention and not of what comes of it.

    Args: as of `attention_columns` and `attend`.

    Returns:
        [B, heads, N, C], or [B, N, C] with `mean_heads`.
    """
    if llm is None or llm.mode != "decoupled":
        return attention_columns(query, key, columns, scale, mean_heads=mean_heads)
    place = torch.arange(key.shape[2], device=key.device)
    found = []
    for outside in (place >= llm.first, place < llm.first):
        # A column outside of a softmax gets exactly 0 from it.
        bias = torch.zeros(1, len(place), device=key.device).masked_fill(outside, -math.inf)
        found.append(attention_columns(query, key, columns, scale, bias=bias, mean_heads=mean_heads))
    return found[0] + found[1]
