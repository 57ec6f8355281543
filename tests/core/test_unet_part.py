"""UNet parts of adapter files: their arithmetic, and refusal of invalid ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llm4gen_core import LLM4GENError, UNetPart

DOWN = "down_blocks.0.attentions.0.transformer_blocks.0"
MID = "mid_block.attentions.0.transformer_blocks.0"


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kv(**changes: Any) -> dict[str, Tensor]:
    """Two cross-attentions of unequal width; None removes a tensor."""
    tensors = {f"{DOWN}.attn2.to_{x}.diff": random(8, 6, seed=i) for i, x in enumerate("kv")}
    tensors |= {f"{MID}.attn2.to_{x}.diff": random(4, 6, seed=5 + i) for i, x in enumerate("kv")}
    return {name: tensor for name, tensor in {**tensors, **changes}.items() if tensor is not None}


def lora(**changes: Any) -> dict[str, Tensor]:
    """A LoRA of rank 3 on two layers; None removes a tensor."""
    tensors: dict[str, Tensor] = {}
    for i, (module, rows, columns) in enumerate(((f"{DOWN}.attn1.to_q", 8, 8), (f"{DOWN}.ff.net.2", 8, 32))):
        tensors[f"{module}.lora_A.weight"] = random(3, columns, seed=i)
        tensors[f"{module}.lora_B.weight"] = random(rows, 3, seed=9 + i)
        tensors[f"{module}.alpha"] = torch.tensor(1.5 + i)
    return {name: tensor for name, tensor in {**tensors, **changes}.items() if tensor is not None}


def test_deltas_of_key_and_value_are_the_stored_differences() -> None:
    deltas = dict(UNetPart("cross_attention_kv", kv()).deltas())
    assert set(deltas) == {f"{block}.attn2.to_{x}" for block in (DOWN, MID) for x in "kv"}
    assert all(torch.equal(delta, kv()[f"{module}.diff"]) for module, delta in deltas.items())


def test_base_and_difference_restore_the_trained_weight() -> None:
    base, trained = random(8, 6, seed=20), random(8, 6, seed=21)
    names = {f"{DOWN}.attn2.to_{x}.diff": trained - base for x in "kv"}
    ((_, delta), _) = UNetPart("cross_attention_kv", names).deltas()
    assert torch.allclose(base + delta, trained, rtol=0, atol=1e-6)


def test_deltas_of_a_lora_are_alpha_over_rank_times_b_a() -> None:
    arrays = {name: tensor.double().numpy() for name, tensor in lora().items()}
    deltas = dict(UNetPart("lora", lora()).deltas())
    assert set(deltas) == {f"{DOWN}.attn1.to_q", f"{DOWN}.ff.net.2"}
    for module, delta in deltas.items():
        product = arrays[f"{module}.lora_B.weight"] @ arrays[f"{module}.lora_A.weight"]
        expected = arrays[f"{module}.alpha"] / 3 * product
        assert np.abs(delta.double().numpy() - expected).max() < 1e-6
        assert np.abs(expected).max() > 0.1


@pytest.mark.parametrize(("kind", "make"), [("cross_attention_kv", kv), ("lora", lora)])
def test_deltas_are_float32_in_any_stored_precision(kind: str, make: Any) -> None:
    half = UNetPart(kind, {name: tensor.half() for name, tensor in make().items()})
    full = dict(UNetPart(kind, make()).deltas())
    for module, delta in half.deltas():
        assert delta.dtype == torch.float32
        assert torch.allclose(delta, full[module], rtol=0, atol=1e-2)


@pytest.mark.parametrize(("kind", "make"), [("cross_attention_kv", kv), ("lora", lora)])
def test_shapes_are_those_of_the_deltas(kind: str, make: Any) -> None:
    part = UNetPart(kind, make())
    assert [(module, part.shape(module)) for module in part.modules] == [
        (module, tuple(delta.shape)) for module, delta in part.deltas()
    ]


@pytest.mark.parametrize(
    ("kind", "tensors", "words"),
    [
        ("full", kv(), "kind 'full' is unknown; expected one of cross_attention_kv, lora. Update"),
        ("lora", {}, "it holds no tensors"),
        ("cross_attention_kv", lora(), "6 tensors do not belong to kind 'cross_attention_kv'"),
        ("lora", kv(), "4 tensors do not belong to kind 'lora'"),
        ("cross_attention_kv", kv(**{f"{MID}.attn2.to_v.diff": None}), f"1 tensors .* missing .{MID}.attn2.to_v.diff"),
        ("cross_attention_kv", kv(**{f"{MID}.attn2.to_q.diff": random(2, 2)}), "1 tensors do not belong"),
        ("cross_attention_kv", kv(**{f"{MID}.attn2.to_k.weight": random(2, 2)}), "1 tensors do not belong"),
        ("cross_attention_kv", kv(**{".attn2.to_k.diff": random(2, 2)}), "1 tensors do not belong"),
        ("cross_attention_kv", kv(**{f"{MID}.attn2.to_v.diff": random(4)}), r"shape \[4\]; expected a matrix"),
        ("cross_attention_kv", kv(**{f"{MID}.attn2.to_v.diff": random(4, 0)}), r"shape \[4, 0\]; expected a matrix"),
        ("cross_attention_kv", kv(**{f"{MID}.attn2.to_v.diff": torch.ones(4, 6).int()}), "to_v.diff is torch.int32"),
        ("lora", lora(**{f"{DOWN}.ff.net.2.alpha": None}), "1 tensors .* missing .*ff.net.2.alpha"),
        ("lora", lora(**{f"{DOWN}.ff.net.2.lora_A.weight": None}), "1 tensors .* missing .*ff.net.2.lora_A.weight"),
        ("lora", lora(**{f"{DOWN}.ff.net.2.lora_B.weight": None}), "1 tensors .* missing .*ff.net.2.lora_B.weight"),
        ("lora", lora(**{f"{DOWN}.ff.net.2.bias": random(8)}), "1 tensors do not belong"),
        ("lora", lora(**{f"{DOWN}.ff.net.2.lora_A.weight": random(2, 32)}), "lora_A .2, 32. and lora_B .8, 3., whose"),
        ("lora", lora(**{f"{DOWN}.ff.net.2.lora_A.weight": random(3, 8, 1, 1)}), "expected a matrix"),
        ("lora", lora(**{f"{DOWN}.ff.net.2.alpha": random(3)}), r"alpha has shape \[3\]; expected a single number"),
        ("lora", lora(**{f"{DOWN}.ff.net.2.alpha": torch.tensor(4)}), "alpha is torch.int64; expected floating"),
    ],
)
def test_invalid_parts_are_refused(kind: str, tensors: dict[str, Tensor], words: str) -> None:
    with pytest.raises(LLM4GENError, match=f"^UNet part: .*{words}") as caught:
        UNetPart(kind, tensors)
    assert "\n" not in str(caught.value)
