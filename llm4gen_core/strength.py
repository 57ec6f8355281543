"""λ of eq. 3: the three ways to read it in cross-attention, and λ over the sampling range.

The paper writes the attention over concat(c_t, λ c'_l) as CA(x, c_t) + λ CA(x, c'_l). A softmax over all tokens makes
these two different things, so that both are modes, with a third between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention_columns import attention_columns
from .errors import LLM4GENError

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
        key, value: of the context, [B, heads, T, d].
        scale: of the logits, usually d^-0.5.
        llm: None for all tokens alike.

    Returns:
        [B, heads, N, d].
    """
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
    bias: Tensor | None = None,
    mean_heads: bool = False,
) -> Tensor:
    """`attention_columns` of what `attend` computes: of `decoupled`, each column from the softmax that it is in.

    λ is no part of it: these are shares of attention and not of what comes of it.

    Args: as of `attention_columns` and `attend`.

    Returns:
        [B, heads, N, C], or [B, N, C] with `mean_heads`.
    """
    if llm is None or llm.mode != "decoupled":
        return attention_columns(query, key, columns, scale, bias=bias, mean_heads=mean_heads)
    place = torch.arange(key.shape[2], device=key.device)
    found: list[Tensor] = []
    for inside in (place < llm.first, place >= llm.first):
        # A column outside of a softmax gets exactly 0 from it.
        part = torch.zeros(1, len(place), device=key.device) if bias is None else bias
        part = part.masked_fill(~inside, -math.inf)
        empty = part.isneginf().all(1, keepdim=True)  # no real token in it: it takes all, rather than be NaN
        part = part.masked_fill(empty & inside, 0.0)
        found.append(attention_columns(query, key, columns, scale, bias=part, mean_heads=mean_heads))
    return found[0] + found[1]


CURVES: dict[str, Callable[[float], float]] = {
    "linear": lambda u: u,
    "ease_in": lambda u: u * u,
    "ease_out": lambda u: u * (2 - u),
    "ease_in_out": lambda u: u * u * (3 - 2 * u),
}
"""From the way through the range, 0 to 1, to the way from the first λ to the last, 0 to 1."""


@dataclass(frozen=True)
class StrengthSchedule:
    """λ by how far sampling has come; outside of the range the LLM's tokens are left out, as with λ = 0.

    Attributes:
        start, end: λ at both ends of the range.
        start_percent, end_percent: the range, as shares of the noise schedule: 0 is pure noise, 1 the image. Both ends
            belong to it.
        curve: a key of `CURVES`.

    Raises:
        LLM4GENError: a number is no finite number or out of order, or the curve is not known.
    """

    start: float = 1.0
    end: float = 1.0
    start_percent: float = 0.0
    end_percent: float = 1.0
    curve: str = "linear"

    def __post_init__(self) -> None:
        if not all(math.isfinite(number) for number in (self.start, self.end)):
            raise LLM4GENError(f"λ runs from {self.start} to {self.end}; expected numbers such as 1.0.")
        if not 0 <= self.start_percent < self.end_percent <= 1:
            raise LLM4GENError(
                f"The range of λ is {self.start_percent} to {self.end_percent}; expected 0 <= start < end <= 1."
            )
        if self.curve not in CURVES:
            raise LLM4GENError(f"The curve of λ is {self.curve!r}; expected one of {', '.join(CURVES)}.")

    @property
    def is_neutral(self) -> bool:
        """Whether λ is 1 everywhere."""
        return (self.start, self.end, self.start_percent, self.end_percent) == (1, 1, 0, 1)

    @property
    def label(self) -> str:
        """For people: "λ 1 → 0.5 (linear), from 0 % to 80 %"."""
        text = f"λ {self.start:g}"
        if self.start != self.end:
            text += f" → {self.end:g} ({self.curve.replace('_', ' ')})"
        return f"{text}, from {100 * self.start_percent:g} % to {100 * self.end_percent:g} %"

    def at(self, percent: float) -> float:
        """λ at a share of the noise schedule from 0 to 1."""
        if not self.start_percent <= percent <= self.end_percent:
            return 0.0
        way = (percent - self.start_percent) / (self.end_percent - self.start_percent)
        return self.start + (self.end - self.start) * CURVES[self.curve](way)
