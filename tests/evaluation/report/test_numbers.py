"""Means, differences and their intervals, against formulas written out here."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from evaluation.report.columns import Column
from evaluation.report.layout import ReportPage
from evaluation.report.numbers import (
    Absent,
    Compared,
    Contrast,
    Count,
    Measured,
    Total,
    correct,
    difference,
    macro_difference,
    macro_mean,
    mean,
)
from evaluation.report.report_json import cell_json
from evaluation.report.shown import write
from evaluation.report.tables import Row
from llm4gen_core import LLM4GENError

RNG = np.random.default_rng(3)


@pytest.fixture(autouse=True)
def _numbers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test draws does not depend on which tests ran before."""
    monkeypatch.setitem(globals(), "RNG", np.random.default_rng(3))


def by_prompt(values: np.ndarray) -> tuple[float, float, int]:
    """Mean over all images, its standard error from the prompts' means, and their number; for complete values."""
    means = values.mean(1)
    return float(values.mean()), float(stats.sem(means)), len(means)


def test_interval_is_that_of_the_prompts_means() -> None:
    values = RNG.normal(5, 1, (40, 3)) + RNG.normal(0, 1, (40, 1))
    found = mean(values, share=False, asked=120)
    assert isinstance(found, Measured)
    value, error, prompts = by_prompt(values)
    low, high = stats.t.interval(0.95, prompts - 1, value, error)
    assert (found.value, found.low, found.high) == pytest.approx((value, low, high))
    assert (found.n, found.prompts, found.asked) == (120, 40, 120)
    as_if_independent = stats.t.interval(0.95, 119, value, stats.sem(values.ravel()))
    assert found.high - found.low > 1.3 * (as_if_independent[1] - as_if_independent[0])


def test_a_missing_score_is_counted_and_weighs_nothing() -> None:
    values = RNG.uniform(size=(20, 4))
    values[3, 1] = math.nan
    found = mean(values, share=True, asked=80)
    assert isinstance(found, Measured)
    assert (found.n, found.asked, found.value) == (79, 80, pytest.approx(np.nanmean(values)))
    assert 0 <= found.low < found.value < found.high <= 1


def test_macro_mean_adds_the_variances_of_the_categories() -> None:
    parts = {
        name: RNG.uniform(0, top, (count, 4)) for name, top, count in (("a", 1, 30), ("b", 0.6, 12), ("c", 0.2, 50))
    }
    found = macro_mean(parts, share=True)
    assert isinstance(found, Measured)
    known = [by_prompt(values) for values in parts.values()]
    value = sum(one[0] for one in known) / 3
    variances = [one[1] ** 2 for one in known]
    freedom = sum(variances) ** 2 / sum(v**2 / (one[2] - 1) for v, one in zip(variances, known, strict=True))
    half = stats.t.ppf(0.975, freedom) * math.sqrt(sum(variances)) / 3
    assert (found.value, found.low, found.high) == pytest.approx((value, value - half, value + half))
    assert found.value != pytest.approx(np.concatenate([one.ravel() for one in parts.values()]).mean(), abs=0.01)
    assert (found.n, found.prompts) == (4 * 92, 92)
    assert "delta method" in found.how


def test_macro_interval_agrees_with_a_bootstrap_over_prompts() -> None:
    rng = np.random.default_rng(8)
    parts = {
        str(n): (rng.uniform(size=(80, 4)) < rng.beta(1, 2, (80, 1)) * (0.5 + n / 10)).astype(float) for n in range(6)
    }
    found = macro_mean(parts, share=True)
    assert isinstance(found, Measured)
    draws = [np.mean([values[rng.integers(0, 80, 80)].mean() for values in parts.values()]) for _ in range(3000)]
    low, high = np.quantile(draws, (0.025, 0.975))
    assert (found.low, found.high) == (pytest.approx(low, abs=0.006), pytest.approx(high, abs=0.006))


def test_a_category_without_any_failure_does_not_count_as_certain() -> None:
    varied = RNG.integers(0, 2, (40, 4)).astype(float)
    certain = macro_mean({"all right": np.ones((40, 4)), "varied": varied}, share=True)
    alone = by_prompt(varied)[1] / 2
    assert isinstance(certain, Measured)
    assert certain.high - certain.low > 2 * stats.t.ppf(0.975, 39) * alone


def test_difference_is_a_paired_t_test_over_prompts() -> None:
    a, b = RNG.uniform(size=(25, 2)), RNG.uniform(size=(25, 2))
    found = difference(a, b, share=False)
    assert isinstance(found, Contrast)
    expected = stats.ttest_rel(a.mean(1), b.mean(1))
    interval = expected.confidence_interval(0.95)
    assert (found.p, found.low, found.high) == pytest.approx((expected.pvalue, interval.low, interval.high))
    assert (found.pairs, found.prompts) == (50, 25)


def test_only_images_with_both_scores_are_compared() -> None:
    a, b = RNG.uniform(size=(10, 2)), RNG.uniform(size=(10, 2))
    a[0, 0] = b[5, 1] = math.nan
    found = difference(a, b, share=True)
    assert isinstance(found, Contrast)
    assert found.pairs == 18
    assert found.value == pytest.approx(np.nanmean(a - b))
    assert found.value != pytest.approx(np.nanmean(a) - np.nanmean(b))


def test_macro_difference_has_the_difference_of_the_macro_means() -> None:
    ours = {name: RNG.uniform(size=(15, 2)) for name in "ab"}
    baseline = {name: RNG.uniform(size=(15, 2)) for name in "ab"}
    found = macro_difference(ours, baseline, share=False)
    assert isinstance(found, Contrast)
    known = [by_prompt(ours[name] - baseline[name]) for name in "ab"]
    error = math.hypot(known[0][1], known[1][1]) / 2
    freedom = (known[0][1] ** 2 + known[1][1] ** 2) ** 2 / sum(one[1] ** 4 / 14 for one in known)
    value = (known[0][0] + known[1][0]) / 2
    assert found.value == pytest.approx(value)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(value) / error, freedom))


def test_p_values_are_corrected_for_all_comparisons() -> None:
    raw = [0.01, 0.04, 0.03, 0.5]
    found = correct([Contrast(0.1, 0, 0.2, p, 10, 5, "x") for p in raw])
    assert [one.p_holm for one in found] == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert [one.p for one in found] == raw


def test_one_prompt_or_no_score_gives_no_number() -> None:
    assert mean(np.array([[0.5, 0.7]]), share=True, asked=2) == Absent("one prompt has no interval")
    assert mean(np.full((3, 2), math.nan), share=True, asked=6) == Absent("no scores")
    assert isinstance(macro_mean({"a": np.ones((4, 2)), "b": np.ones((1, 2))}, share=True), Absent)
    assert isinstance(difference(np.ones((0, 2)), np.ones((0, 2)), share=True), Absent)


@pytest.mark.parametrize(
    "wrong",
    [
        {"low": math.nan},
        {"high": math.inf},
        {"low": 0.9},
        {"n": 0},
        {"asked": 3},
        {"how": ""},
    ],
)
def test_a_number_without_interval_count_or_method_cannot_be_made(wrong: dict[str, object]) -> None:
    right = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 4, "prompts": 2, "asked": 4, "how": "somehow"}
    Measured(**right)  # type: ignore[arg-type]
    with pytest.raises(LLM4GENError):
        Measured(**{**right, **wrong})  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Measured(0.5)  # type: ignore[call-arg]


def test_counts_totals_and_comparisons_check_themselves() -> None:
    with pytest.raises(LLM4GENError):
        Count(3, 2)
    with pytest.raises(LLM4GENError):
        Total(1.0, "", 3)
    with pytest.raises(LLM4GENError):
        Compared(0.1, 0, 0.2, 0.5, 0.4, 10, 5, "x")


@pytest.mark.parametrize("bare", [0.5, 3, "0.5", None, np.float64(0.5)])
def test_nothing_but_a_cell_is_shown(bare: object) -> None:
    column = Column("a", "A", "a")
    with pytest.raises(TypeError, match="no interval"):
        write(bare, False, 2)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no interval"):
        cell_json(bare)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no interval"):
        ReportPage("x").numbers([column], [Row("a", (bare,))], "caption")  # type: ignore[arg-type]
