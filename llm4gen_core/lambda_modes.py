"""λ of eq. 3: its three interpretations in cross-attention, and its schedule over the sampling range.

The paper equates attention over concat(c_t, λ c'_l) with CA(x, c_t) + λ CA(x, c'_l). With a softmax over all tokens the
two differ, so that both are modes, with a third between them.
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
"""`embedding`: attention over concat(c_t, λ c'_l). `value`: attention over concat(c_t, c'_l), with the values of c'_l
scaled by λ. `decoupled`: CA(x, c_t) + λ CA(x, c'_l), with a softmax each."""


@dataclass(frozen=True)
class LLMTokens:
    """LLM tokens of a context, for modes that scale them inside cross-attention.

    Attributes:
        mode: "value" or "decoupled"; with "embedding" the context itself is scaled.
        first: position of the first LLM token; CLIP's tokens precede it.
        strength: λ.
    """

    mode: str
    first: int
    strength: float = 1.0


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, llm: LLMTokens | None) -> Tensor:
    """Compute cross-attention with λ applied to the LLM tokens.

    Args:
        query: [B, heads, N, d].
        key, value: [B, heads, T, d] of the context, or [B, 1, T, d] shared by all heads.
        scale: scale of the logits, usually d^-0.5.
        llm: None treats all tokens alike.

    Returns:
        [B, heads, N, d].
    """
    if key.shape[1] < query.shape[1]:  # all heads share the keys
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
    """Return `attention_columns` of `attend`; with `decoupled`, each column from the softmax that contains it.

    λ is not applied: the columns are attention weights, not contributions to the output.

    Args: see `attention_columns` and `attend`.

    Returns:
        [B, heads, N, C], or [B, N, C] with `mean_heads`.
    """
    if llm is None or llm.mode != "decoupled":
        return attention_columns(query, key, columns, scale, mean_heads=mean_heads)
    place = torch.arange(key.shape[2], device=key.device)
    found = []
    for outside in (place >= llm.first, place < llm.first):
        # A column outside of a softmax is exactly 0 in it.
        bias = torch.zeros(1, len(place), device=key.device).masked_fill(outside, -math.inf)
        found.append(attention_columns(query, key, columns, scale, bias=bias, mean_heads=mean_heads))
    return found[0] + found[1]


CURVES: dict[str, Callable[[float], float]] = {
    "linear": lambda u: u,
    "ease_in": lambda u: u * u,
    "ease_out": lambda u: u * (2 - u),
    "ease_in_out": lambda u: u * u * (3 - 2 * u),
}
"""Interpolation weight from the first λ (0) to the last (1), as a function of the position in the range, 0 to 1."""


@dataclass(frozen=True)
class StrengthSchedule:
    """λ as a function of the noise level. Outside of the range λ is 0: LLM tokens are left out.

    Attributes:
        start, end: λ at the two ends of the range.
        start_percent, end_percent: the range, ends included, as fractions of the noise schedule: 0 is pure noise, 1 is
            the image.
        curve: a key of `CURVES`.

    Raises:
        LLM4GENError: a number is not finite, the range is empty or not within 0 to 1, or the curve is unknown.
    """

    start: float = 1.0
    end: float = 1.0
    start_percent: float = 0.0
    end_percent: float = 1.0
    curve: str = "linear"

    def __post_init__(self) -> None:
        if not all(math.isfinite(number) for number in (self.start, self.end)):
            raise LLM4GENError(f"λ is {self.start} at first and {self.end} at last; expected numbers such as 1.0.")
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
        """Summary for people, such as "λ 1 → 0.5 (linear), from 0 % to 80 %"."""
        text = f"λ {self.start:g}"
        if self.start != self.end:
            text += f" → {self.end:g} ({self.curve.replace('_', ' ')})"
        return f"{text}, from {100 * self.start_percent:g} % to {100 * self.end_percent:g} %"

    def at(self, percent: float) -> float:
        """Return λ at a fraction of the noise schedule from 0 to 1."""
        if not self.start_percent <= percent <= self.end_percent:
            return 0.0
        position = (percent - self.start_percent) / (self.end_percent - self.start_percent)
        return self.start + (self.end - self.start) * CURVES[self.curve](position)
