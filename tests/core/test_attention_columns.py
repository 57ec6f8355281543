"""Columns of the attention against autograd through the whole softmax."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from llm4gen_core import LLM4GENError, attention_columns
from llm4gen_core.attention import _BLOCK_ELEMENTS

B, HEADS, N, T, D = 2, 3, 20, 13, 8
SCALE = D**-0.5
SHARED = torch.tensor([0, 4, 4, 12])
OWN = torch.tensor([[0, 4, 4, 12], [7, 1, 2, 7]])


def make(dtype: torch.dtype = torch.float64, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(B, HEADS, N, D, generator=generator, dtype=torch.float64) * spread
    key = torch.randn(B, HEADS, T, D, generator=generator, dtype=torch.float64)
    return query.to(dtype).requires_grad_(), key.to(dtype).requires_grad_()


def reference(query: Tensor, key: Tensor, columns: Tensor, bias: Tensor | None, mean_heads: bool) -> Tensor:
    logits = query @ key.transpose(-1, -2) * SCALE
    if bias is not None:
        logits = logits + bias[:, None, None]
    full = logits.softmax(-1)
    chosen = torch.stack([full[b][..., columns.expand(B, -1)[b]] for b in range(B)])
    return chosen.mean(1) if mean_heads else chosen


def gradients(result: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    arriving = torch.randn(result.shape, generator=generator, dtype=torch.float64).to(result.dtype)
    return torch.autograd.grad(result, (query, key), arriving)


@pytest.fixture(params=[1, 3 * T * B * HEADS, 10**9], ids=["row by row", "three rows", "one block"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_BLOCK_ELEMENTS, "cpu", request.param)


MASK = torch.zeros(B, T, dtype=torch.float64)
MASK[0, 5:] = -math.inf
MASK[1, 0] = -math.inf
ADDED = torch.linspace(-1, 1, T, dtype=torch.float64).unsqueeze(0)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("mean_heads", [False, True])
@pytest.mark.parametrize("columns", [SHARED, OWN], ids=["shared", "own"])
@pytest.mark.parametrize("bias", [None, MASK, ADDED], ids=["no bias", "mask", "bias"])
def test_equals_the_full_softmax_in_float64(columns: Tensor, bias: Tensor | None, mean_heads: bool) -> None:
    query, key = make()
    expected = reference(query, key, columns, bias, mean_heads)
    found = attention_columns(query, key, columns, SCALE, bias=bias, mean_heads=mean_heads)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-14
    for ours, theirs in zip(gradients(found, query, key), gradients(expected, query, key), strict=True):
        assert (ours - theirs).abs().max() < 1e-13


@pytest.mark.parametrize("mean_heads", [False, True])
def test_gradcheck(mean_heads: bool) -> None:
    query, key = (tensor[:, :2, :5].detach().requires_grad_() for tensor in make())
    columns = OWN % 5
    mask = torch.tensor([[0.0, 0.0, 0.0, -math.inf, 0.0], [0.0] * 5], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda q, k: attention_columns(q, k, columns, SCALE, bias=mask, mean_heads=mean_heads), (query, key)
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_lower_precisions(dtype: torch.dtype, tolerance: float) -> None:
    """The columns are computed in float32; only the gradients are rounded to the inputs' precision."""
    query, key = make(dtype)
    exact_query, exact_key = (tensor.detach().double().requires_grad_() for tensor in (query, key))
    expected = reference(exact_query, exact_key, OWN, None, mean_heads=False)
    found = attention_columns(query, key, OWN, SCALE)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 1e-6
    for ours, theirs in zip(gradients(found, query, key), gradients(expected, exact_query, exact_key), strict=True):
        assert ours.dtype == dtype
        assert (ours - theirs).abs().max() < tolerance * theirs.abs().max()


def test_autocast_does_not_round() -> None:
    query, key = make(torch.float32)
    plain = attention_columns(query, key, OWN, SCALE)
    with torch.autocast("cpu", torch.bfloat16):
        inside = attention_columns(query, key, OWN, SCALE)
    assert torch.equal(plain, inside)


def test_large_logits_do_not_overflow() -> None:
    query, key = make(torch.float32, spread=1e4)
    found = attention_columns(query, key, SHARED, SCALE)
    assert found.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients(found, query, key))


def test_the_matrix_is_never_materialised(monkeypatch: pytest.MonkeyPatch) -> None:
    """With smaller blocks, neither forward nor backward pass allocates a tensor of N x T."""
    monkeypatch.setitem(_BLOCK_ELEMENTS, "cpu", B * HEADS * T * 4)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):  # type: ignore[name-defined, misc]
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    query, key = make()
    with Watch():
        attention_columns(query, key, OWN, SCALE, mean_heads=True).square().sum().backward()
    assert largest < B * HEADS * N * T


def test_compiles_without_graph_breaks() -> None:
    query, key = make(torch.float32)
    compiled = torch.compile(
        lambda q, k: attention_columns(q, k, OWN, SCALE, mean_heads=True), fullgraph=True, backend="aot_eager"
    )
    eager = attention_columns(query, key, OWN, SCALE, mean_heads=True)
    torch.testing.assert_close(compiled(query, key), eager)
    for ours, theirs in zip(gradients(compiled(query, key), query, key), gradients(eager, query, key), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("query", "key", "columns", "bias", "message"),
    [
        ((2, 3, 4, 8), (2, 3, 5, 7), [0], None, "do not match"),
        ((2, 3, 4, 8), (2, 5, 8), [0], None, "do not match"),
        ((2, 3, 4, 8), (2, 3, 5, 8), [[0]], None, "Columns"),
        ((2, 3, 4, 8), (2, 3, 5, 8), [0.5], None, "Columns"),
        ((2, 3, 4, 8), (2, 3, 5, 8), [0], (3, 5), "bias"),
        ((2, 3, 4, 8), (2, 3, 5, 8), [0], (2, 4), "bias"),
    ],
)
def test_mismatched_shapes_are_refused(
    query: tuple[int, ...], key: tuple[int, ...], columns: list[int], bias: tuple[int, ...] | None, message: str
) -> None:
    with pytest.raises(LLM4GENError, match=message):
        attention_columns(
            torch.zeros(query),
            torch.zeros(key),
            torch.tensor(columns),
            SCALE,
            bias=None if bias is None else torch.zeros(bias),
        )


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("mean_heads", [False, True])
@pytest.mark.parametrize("bias", [None, MASK], ids=["no bias", "mask"])
def test_key_shared_by_all_heads(bias: Tensor | None, mean_heads: bool) -> None:
    query, key = make()
    one = key[:, :1].detach().requires_grad_()
    expected = reference(query, one.expand(-1, HEADS, -1, -1), OWN, bias, mean_heads)
    found = attention_columns(query, one, OWN, SCALE, bias=bias, mean_heads=mean_heads)
    assert (found - expected).abs().max() < 1e-14
    for ours, theirs in zip(gradients(found, query, one), gradients(expected, query, one), strict=True):
        assert (ours - theirs).abs().max() < 1e-13
