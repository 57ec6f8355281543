"""λ: its modes in one layer of cross-attention, against their formulas in float64, and its schedule."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llm4gen_core import LLM4GENError, attention_columns
from llm4gen_core.attention import CURVES, LLMTokens, StrengthSchedule, attend, attended_columns
from llm4gen_core.entity_guidance import GuidanceOptions, PairPositions, guidance_targets, layer_guidance

TEXT, TOKENS, SCALE = 5, 12, 0.35


def tensors(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, 3, n, 8, generator=generator, dtype=dtype) for n in (7, TOKENS, TOKENS))  # type: ignore[return-value]


def softmax(query: Tensor, key: Tensor) -> Tensor:
    return (query @ key.transpose(-1, -2) * SCALE).softmax(-1)


@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0, 3.0])
def test_value_scales_values_and_not_keys(strength: float) -> None:
    query, key, value = tensors()
    weights = softmax(query, key)
    expected = weights[..., :TEXT] @ value[:, :, :TEXT] + strength * weights[..., TEXT:] @ value[:, :, TEXT:]
    assert torch.allclose(attend(query, key, value, SCALE, LLMTokens("value", TEXT, strength)), expected, atol=1e-12)


@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0, 3.0])
def test_decoupled_is_the_right_side_of_eq_3(strength: float) -> None:
    query, key, value = tensors()
    expected = softmax(query, key[:, :, :TEXT]) @ value[:, :, :TEXT]
    expected = expected + strength * softmax(query, key[:, :, TEXT:]) @ value[:, :, TEXT:]
    found = attend(query, key, value, SCALE, LLMTokens("decoupled", TEXT, strength))
    assert torch.allclose(found, expected, atol=1e-12)


def test_without_llm_tokens_it_is_plain_attention() -> None:
    query, key, value = tensors()
    assert torch.allclose(attend(query, key, value, SCALE, None), softmax(query, key) @ value, atol=1e-12)


@pytest.mark.parametrize("mean_heads", [False, True])
def test_columns_of_decoupled_come_from_their_own_softmax(mean_heads: bool) -> None:
    query, key, _ = tensors()
    columns = torch.tensor([[0, 4, 5, 11], [2, 2, 7, 6]])
    both = torch.cat((softmax(query, key[:, :, :TEXT]), softmax(query, key[:, :, TEXT:])), -1)
    expected = both.gather(3, columns[:, None, None].expand(-1, 3, 7, -1))
    expected = expected.mean(1) if mean_heads else expected
    found = attended_columns(query, key, columns, SCALE, LLMTokens("decoupled", TEXT), mean_heads=mean_heads)
    assert torch.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("llm", [None, LLMTokens("value", TEXT, 0.3)])
def test_columns_of_the_other_modes_are_those_of_one_softmax(llm: LLMTokens | None) -> None:
    query, key, _ = tensors()
    columns = torch.tensor([1, 9])
    expected = attention_columns(query, key, columns, SCALE)
    assert torch.equal(attended_columns(query, key, columns, SCALE, llm), expected)


def test_guidance_sees_these_columns_and_its_gradient_flows() -> None:
    query, key, _ = (tensor.requires_grad_() for tensor in tensors())
    options = GuidanceOptions()
    targets = guidance_targets([[PairPositions((1,), (3,))], [PairPositions((7,), (10,))]])
    llm = LLMTokens("decoupled", TEXT)
    loss, _ = layer_guidance(query, key, targets, SCALE, options, llm)
    maps = torch.cat((softmax(query, key[:, :, :TEXT]), softmax(query, key[:, :, TEXT:])), -1).mean(1)
    expected = [(maps[0, :, 1] - maps[0, :, 3]).square().mean(), (maps[1, :, 7] - maps[1, :, 10]).square().mean()]
    assert torch.allclose(loss, torch.stack(expected).to(loss), rtol=1e-6)
    [gradient] = torch.autograd.grad(loss.sum(), key, retain_graph=True)
    [truth] = torch.autograd.grad(sum(expected), key)  # type: ignore[arg-type]
    assert torch.allclose(gradient, truth, rtol=1e-5, atol=1e-12) and truth.any()
    assert not torch.allclose(loss, layer_guidance(query, key, targets, SCALE, options)[0])


@pytest.mark.parametrize("llm", [None, LLMTokens("value", TEXT, 0.3), LLMTokens("decoupled", TEXT, 0.3)])
def test_key_and_value_shared_by_all_heads(llm: LLMTokens | None) -> None:
    query, key, value = tensors()
    one, of_one = key[:, :1], value[:, :1]
    expected = attend(query, one.expand_as(key), of_one.expand_as(value), SCALE, llm)
    assert torch.allclose(attend(query, one, of_one, SCALE, llm), expected, atol=1e-12)


# Schedule


@pytest.mark.parametrize("curve", CURVES)
def test_curves_rise_from_start_to_end(curve: str) -> None:
    schedule = StrengthSchedule(0.5, 2.0, 0.2, 0.8, curve)
    values = [schedule.at(0.2 + 0.006 * step) for step in range(101)]
    assert values[0] == pytest.approx(0.5) and values[-1] == pytest.approx(2.0)
    assert values == sorted(values)


@pytest.mark.parametrize(
    ("curve", "middle", "quarter"),
    [("linear", 0.5, 0.25), ("ease_in", 0.25, 0.0625), ("ease_out", 0.75, 0.4375), ("ease_in_out", 0.5, 0.15625)],
)
def test_curves(curve: str, middle: float, quarter: float) -> None:
    schedule = StrengthSchedule(0.0, 1.0, curve=curve)
    assert schedule.at(0.5) == pytest.approx(middle) and schedule.at(0.25) == pytest.approx(quarter)


def test_lambda_is_0_outside_of_the_range() -> None:
    schedule = StrengthSchedule(0.7, 0.7, 0.25, 0.75)
    assert [schedule.at(percent) for percent in (0.25, 0.5, 0.75)] == [0.7] * 3
    assert [schedule.at(percent) for percent in (0.0, 0.2499, 0.7501, 1.0)] == [0.0] * 4


def test_only_1_everywhere_is_neutral() -> None:
    assert StrengthSchedule().is_neutral and StrengthSchedule(curve="ease_in").is_neutral
    changes: list[dict[str, float]] = [{"start": 0.9}, {"end": 1.1}, {"start_percent": 0.1}, {"end_percent": 0.9}]
    assert not any(StrengthSchedule(**change).is_neutral for change in changes)


def test_label() -> None:
    assert StrengthSchedule().label == "λ 1, from 0 % to 100 %"
    assert StrengthSchedule(1, 0.25, 0.1, 0.8, "ease_in").label == "λ 1 → 0.25 (ease in), from 10 % to 80 %"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": float("nan")}, "λ is nan at first and 1.0 at last; expected numbers"),
        ({"end": float("inf")}, "λ is 1.0 at first and inf at last; expected numbers"),
        ({"start_percent": 0.5, "end_percent": 0.5}, "The range of λ is 0.5 to 0.5; expected 0 <= start < end <= 1"),
        ({"start_percent": -0.1}, "The range of λ is -0.1 to 1.0"),
        ({"curve": "bouncy"}, "The curve of λ is 'bouncy'; expected one of linear, ease_in"),
    ],
)
def test_invalid_schedules_are_refused(change: dict, message: str) -> None:
    with pytest.raises(LLM4GENError, match=message):
        StrengthSchedule(**change)
