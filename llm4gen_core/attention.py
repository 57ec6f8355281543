"""Cross-attention over CLIP's and the LLM's tokens: exact single columns of its matrix, and λ.

Columns. Entity guidance (eq. 4) needs every pixel's attention to a few words. Cross-attention itself runs in fused
kernels that never materialise softmax(Q Kᵀ), which for SD1.5 at 512 pixels with 333 tokens takes 144 MB per sample.
Here the rows are processed in blocks: the softmax of a block is computed, the requested columns are kept and the rest
is discarded. The backward pass recomputes each block. Between the passes only the query and key, which attention keeps
anyway, and the columns stay in memory.

λ of eq. 3 has three interpretations in cross-attention, and a schedule over the sampling range. The paper equates
attention over concat(c_t, λ c'_l) with CA(x, c_t) + λ CA(x, c'_l). With a softmax over all tokens the two differ, so
that both are modes, with a third between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import LLM4GENError

_BLOCK_ELEMENTS = {"cpu": 2**22}
_BLOCK_ELEMENTS_ACCELERATOR = 2**26
"""Elements per block of logits: small enough for a CPU's caches, large enough to keep an accelerator busy."""


def attention_columns(
    query: Tensor,
    key: Tensor,
    columns: Tensor,
    scale: float,
    *,
    bias: Tensor | None = None,
    mean_heads: bool = False,
) -> Tensor:
    """Compute the columns J of P = softmax(Q Kᵀ · scale + bias) over the tokens.

    With g the gradient with respect to P_J and h = g ∘ P_J, the gradient of the logits is P ∘ (-Σ_J h) with h added at
    the columns J. The gradients of query and key follow by two matrix products per block.

    Args:
        query: [B, heads, N, d].
        key: [B, heads, T, d], or [B, 1, T, d] shared by all heads.
        columns: [C] or [B, C], integers from 0 to T - 1, which may repeat.
        scale: scale of the logits, usually d^-0.5.
        bias: [B, T] or [1, T], added to the logits of every row; -inf excludes a token from the softmax. It receives
            no gradient.
        mean_heads: average over the heads, after the softmax.

    Returns:
        [B, heads, N, C], or [B, N, C] with `mean_heads`; float32, or float64 for float64 inputs, also under autocast.

    Raises:
        LLM4GENError: shapes do not match.
    """
    known = query.ndim == 4 and key.ndim == 4 and query.shape[0] == key.shape[0] and query.shape[3] == key.shape[3]
    if not known or key.shape[1] not in (1, query.shape[1]):
        raise LLM4GENError(
            f"Query {list(query.shape)} and key {list(key.shape)} do not match; expected [B, heads, N, d] and "
            "[B, heads or 1, T, d]."
        )
    batch, tokens = query.shape[0], key.shape[2]
    if columns.is_floating_point() or columns.ndim not in (1, 2) or columns.shape[:-1] not in ((), (batch,)):
        raise LLM4GENError(
            f"Columns have shape {list(columns.shape)} and dtype {columns.dtype}; expected integers [C] or "
            f"[{batch}, C]."
        )
    if bias is not None and (bias.ndim != 2 or bias.shape[0] not in (1, batch) or bias.shape[1] != tokens):
        raise LLM4GENError(f"The bias has shape {list(bias.shape)}; expected [{batch} or 1, {tokens}].")
    columns = columns.expand(batch, -1)
    heads, rows = query.shape[1:3]
    if key.shape[1] < heads:  # all heads share the keys
        of_all = _AttentionColumns.apply(query.reshape(batch, 1, heads * rows, -1), key, columns, scale, bias, False)
        by_heads = of_all.view(batch, heads, rows, -1)
        return by_heads.mean(1) if mean_heads else by_heads
    return _AttentionColumns.apply(query, key, columns, scale, bias, mean_heads)


class _AttentionColumns(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, columns: Tensor, scale: float, bias: Tensor | None, mean_heads: bool
    ) -> Tensor:
        ctx.save_for_backward(query, key, columns, bias)
        ctx.scale = scale
        ctx.mean_heads = mean_heads
        batch, heads, rows, _ = query.shape
        precision = _precision(query)
        shape = (batch, rows, columns.shape[1]) if mean_heads else (batch, heads, rows, columns.shape[1])
        result = query.new_empty(shape, dtype=precision)
        with torch.autocast(query.device.type, enabled=False):
            keys = key.to(precision)
            for block in _blocks(query, key):
                chosen = _softmax(query[:, :, block], keys, scale, bias).gather(-1, _index(columns, heads, block))
                if mean_heads:
                    result[:, block] = chosen.mean(1)
                else:
                    result[:, :, block] = chosen
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        query, key, columns, bias = ctx.saved_tensors
        heads = query.shape[1]
        precision = _precision(query)
        with torch.autocast(query.device.type, enabled=False):
            keys = key.to(precision)
            query_gradient = torch.empty_like(query)
            key_gradient = torch.zeros_like(keys)
            for block in _blocks(query, key):
                rows = query[:, :, block].to(precision)
                weights = _softmax(rows, keys, ctx.scale, bias)
                index = _index(columns, heads, block)
                arriving = gradient[:, block].unsqueeze(1) / heads if ctx.mean_heads else gradient[:, :, block]
                at_columns = arriving * weights.gather(-1, index)
                logits = weights.mul_(-at_columns.sum(-1, keepdim=True)).scatter_add_(-1, index, at_columns)
                query_gradient[:, :, block] = torch.matmul(logits, keys).mul_(ctx.scale)
                key_gradient += torch.matmul(logits.transpose(-1, -2), rows).mul_(ctx.scale)
        return query_gradient, key_gradient.to(key.dtype), None, None, None, None


def _precision(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _softmax(rows: Tensor, keys: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """Softmax [B, heads, n, T] of a block of n rows."""
    logits = torch.matmul(rows.to(keys.dtype), keys.transpose(-1, -2)).mul_(scale)
    if bias is not None:
        logits += bias[:, None, None].to(logits.dtype)
    return torch.softmax(logits, dim=-1)


def _index(columns: Tensor, heads: int, block: slice) -> Tensor:
    """Expand columns [B, C] to an index [B, heads, n, C] into the last dimension of a block."""
    return columns[:, None, None].expand(-1, heads, block.stop - block.start, -1)


def _blocks(query: Tensor, key: Tensor) -> list[slice]:
    batch, heads, rows, _ = query.shape
    budget = _BLOCK_ELEMENTS.get(query.device.type, _BLOCK_ELEMENTS_ACCELERATOR)
    size = max(1, min(rows, budget // (batch * heads * key.shape[2])))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


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
