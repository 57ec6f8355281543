"""Single columns of an attention matrix, exact and differentiable, without materialising the matrix.

Entity guidance (eq. 4) needs every pixel's attention to a few words. Cross-attention itself runs in fused kernels that
never materialise softmax(Q Kᵀ), which for SD1.5 at 512 pixels with 333 tokens takes 144 MB per sample. Here the rows
are processed in blocks: the softmax of a block is computed, the requested columns are kept and the rest is discarded.
The backward pass recomputes each block. Between the passes only the query and key, which attention keeps anyway, and
the columns stay in memory.
"""

from __future__ import annotations

from typing import Any

import torch
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
