"""λ over the sampling range."""

from __future__ import annotations

import pytest

from llm4gen_core import LLM4GENError
from llm4gen_core.lambda_modes import CURVES, StrengthSchedule


@pytest.mark.parametrize("curve", CURVES)
def test_a_curve_begins_and_ends_at_the_given_values_and_only_rises(curve: str) -> None:
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


def test_outside_of_the_range_it_is_0_and_the_ends_belong_to_it() -> None:
    schedule = StrengthSchedule(0.7, 0.7, 0.25, 0.75)
    assert [schedule.at(percent) for percent in (0.25, 0.5, 0.75)] == [0.7] * 3
    assert [schedule.at(percent) for percent in (0.0, 0.2499, 0.7501, 1.0)] == [0.0] * 4


def test_only_1_everywhere_is_neutral() -> None:
    assert StrengthSchedule().is_neutral and StrengthSchedule(curve="ease_in").is_neutral
    changes: list[dict[str, float]] = [{"start": 0.9}, {"end": 1.1}, {"start_percent": 0.1}, {"end_percent": 0.9}]
    assert not any(StrengthSchedule(**change).is_neutral for change in changes)


def test_it_says_what_it_is() -> None:
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
def test_what_makes_no_sense_is_refused(change: dict, message: str) -> None:
    with pytest.raises(LLM4GENError, match=message):
        StrengthSchedule(**change)
