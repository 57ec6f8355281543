"""Coverage of intervals in simulated experiments, and values known by hand or from scipy."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from evaluation.statistics import Difference, Estimate, estimate, holm, kendall, paired
from llm4gen_core import LLM4GENError


class World:
    """Experiments with binary scores and a known mean: a probit model with prompts and seeds as random effects.

    Args:
        seeds: training seeds.
        spread: standard deviation of the seeds' effect; that of the prompts is .7, of the residual 1.
    """

    def __init__(self, seeds: int, spread: float, prompts: int = 150) -> None:
        self.draws = np.random.default_rng(0)
        self.seeds, self.spread, self.prompts = seeds, spread, prompts

    def prompt_effects(self) -> NDArray[np.float64]:
        return self.draws.normal(0, 0.7, (1, self.prompts))

    def variant(self, share: float, prompts: NDArray[np.float64]) -> NDArray[np.float64]:
        seeds = self.draws.normal(0, self.spread, (self.seeds, 1))
        rest = self.draws.normal(0, 1, (self.seeds, self.prompts))
        return (prompts + seeds + rest < stats.norm.ppf(share) * (1 + 0.49 + self.spread**2) ** 0.5).astype(float)


def coverage(intervals: list[Estimate], truth: float) -> float:
    return float(np.mean([interval.low <= truth <= interval.high for interval in intervals]))


@pytest.mark.parametrize(
    ("seeds", "spread", "share"), [(1, 0, 0.5), (1, 0, 0.95), (3, 0, 0.5), (3, 0.1, 0.5), (3, 0.3, 0.9), (5, 0.2, 0.7)]
)
def test_coverage_of_shares(seeds: int, spread: float, share: float) -> None:
    world = World(seeds, spread)
    intervals = [estimate(world.variant(share, world.prompt_effects())) for _ in range(1000)]
    assert 0.92 <= coverage(intervals, share) <= 0.985


def test_coverage_where_cells_are_missing_by_prompt_and_seed() -> None:
    """Values are missing more often where prompts are hard, as binding is where an object is missing altogether."""
    world = World(3, 0.15)

    def experiment() -> NDArray[np.float64]:
        prompts = world.prompt_effects()
        return np.where(world.variant(0.7, prompts) > 0, world.variant(0.6, prompts), np.nan)

    # The true mean is a ratio of two expectations, estimated from 1,500 experiments to about .002.
    many = np.stack([experiment() for _ in range(1500)])
    truth = np.nansum(many) / np.isfinite(many).sum()
    assert 0.92 <= coverage([estimate(values) for values in many[:1000]], truth) <= 0.985


@pytest.mark.parametrize(("seeds", "spread"), [(1, 0), (3, 0.1)])
def test_coverage_of_differences(seeds: int, spread: float) -> None:
    world = World(seeds, spread)
    intervals = []
    for _ in range(1000):
        prompts = world.prompt_effects()
        intervals.append(paired(world.variant(0.6, prompts), world.variant(0.5, prompts)))
    assert 0.92 <= coverage(intervals, 0.1) <= 0.985


def test_p_values_are_uniform_where_nothing_differs() -> None:
    world = World(1, 0)
    p = []
    for _ in range(1000):
        prompts = world.prompt_effects()
        p.append(paired(world.variant(0.5, prompts), world.variant(0.5, prompts)).p)
    assert 0.03 < np.mean(np.array(p) < 0.05) < 0.07
    assert 0.45 < np.mean(p) < 0.55


def test_the_variance_is_that_of_the_analysis_of_variance_by_hand() -> None:
    # Rows differ by 2 and columns by 2, with a residual of +-.5 in each cell: MS_s = 4, MS_p = 4, MS_e = 1.
    values = np.array([[0.5, 1.5], [1.5, 4.5]])
    square_seeds, square_prompts, square_rest = 4.0, 4.0, 1.0
    got = estimate(values, share=False)
    total = square_seeds - square_rest + square_prompts
    freedom = total**2 / (square_seeds**2 + square_prompts**2 + square_rest**2)
    half = stats.t.ppf(0.975, freedom) * (total / 4) ** 0.5
    assert (got.mean, got.low, got.high) == pytest.approx((2, 2 - half, 2 + half))


def test_with_one_seed_a_difference_is_students_paired_test() -> None:
    draws = np.random.default_rng(0)
    a, b = draws.normal(0.2, 1, 30), draws.normal(0, 1, 30)
    got, expected = paired(a[None], b[None], share=False), stats.ttest_rel(a, b)
    interval = expected.confidence_interval()
    assert got.p == pytest.approx(expected.pvalue)
    assert (got.low, got.high) == pytest.approx((interval.low, interval.high))
    assert not got.over_seeds


def test_a_seed_that_stands_out_widens_the_interval() -> None:
    even = np.tile([0.0, 1.0], (3, 50))
    uneven = even.copy()
    uneven[0] = 1
    assert estimate(uneven).high - estimate(uneven).low > 3 * (estimate(even).high - estimate(even).low)
    assert estimate(even).over_seeds


@pytest.mark.parametrize("share", [0.0, 0.01, 0.99, 1.0])
def test_intervals_of_shares_stay_within_and_are_never_empty(share: float) -> None:
    values = np.zeros((3, 100))
    values[:, : round(100 * share)] = 1
    got = estimate(values)
    assert 0 <= got.low <= got.mean <= got.high <= 1 and got.high - got.low > 0.02


def test_missing_cells_do_not_count() -> None:
    values = [[1, None, 0, None], [1, 1, float("nan"), None]]
    got = estimate(values)
    assert got.mean == pytest.approx(0.75) and (got.seeds, got.prompts) == (2, 3)


def test_images_of_one_prompt_are_one_cluster() -> None:
    values = np.random.default_rng(0).integers(0, 2, (2, 40)).astype(float)
    repeated = np.repeat(values[:, :, None], 5, axis=2)
    once, five_times = estimate(values), estimate(repeated)
    assert (five_times.low, five_times.high) == pytest.approx((once.low, once.high))


def test_only_cells_with_a_value_on_both_sides_are_compared() -> None:
    got = paired([[1, None, 1, 0.5]], [[0, 1, None, 0.25]])
    assert got.mean == pytest.approx((1 + 0.25) / 2) and got.pairs == 2


def test_no_difference_anywhere_is_no_certainty() -> None:
    values = np.ones((3, 50))
    got = paired(values, values)
    assert isinstance(got, Difference) and got.p == 1 and got.low == -got.high and 0.05 < got.high < 0.1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.5, 0.5], r"values have shape \[2\]"),
        ([[0.5, 1.5]], "values lie from 0.5 to 1.5"),
        ([[0.5, np.inf]], "infinite"),
        ([[0.5, None]], "1 prompts have a value"),
        ([[None, None]], "0 prompts have a value"),
    ],
)
def test_refusals(values: object, message: str) -> None:
    with pytest.raises(LLM4GENError, match=message):
        estimate(values)


def test_pairs_need_the_same_seeds_and_prompts() -> None:
    with pytest.raises(LLM4GENError, match=r"a has shape \[3, 4, 1\] and b has \[1, 4, 1\]"):
        paired(np.ones((3, 4)), np.ones((1, 4)))


def test_holm_of_a_worked_example() -> None:
    # Sorted .01, .02, .03, .04: times 4, 3, 2, 1, never falling.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_kendall_compares_by_name() -> None:
    paper = {"mlp": 39.25, "mlp_concat": 40.24, "ca_concat": 42.31, "clip_query": 43.69, "no_reg": 46.10, "full": 47.34}
    ours = {"full": 0.9, "no_reg": 0.8, "clip_query": 0.7, "ca_concat": 0.5, "mlp_concat": 0.6, "mlp": 0.1}
    got = kendall(ours, paper)
    # One of 15 pairs is swapped.
    assert got.tau == pytest.approx(13 / 15) and 0.01 < got.p < 0.05
    with pytest.raises(LLM4GENError, match="expected the same rows"):
        kendall({"full": 1.0, "mlp": 0.0}, {"full": 1.0, "base": 0.0})
