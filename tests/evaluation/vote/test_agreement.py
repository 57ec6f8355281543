"""Krippendorff's alpha: an example of his paper of 2011, missing values, and the interval."""

from __future__ import annotations

import itertools
import random

import pytest

from evaluation.vote.results import agreement


def units(*raters):
    """Turn rows of raters into units; "." is a missing value."""
    return [
        [value for value in column if value != "."] for column in zip(*(row.split() for row in raters), strict=True)
    ]


def krippendorff(data, clusters=None):
    return agreement(data, range(len(data)) if clusters is None else clusters)


def test_four_raters_with_missing_values():
    """Example C: .743; the unit that only one rater has judged does not count."""
    found = krippendorff(
        units(
            "1 2 3 3 2 1 4 1 2 . . .",
            "1 2 3 3 2 2 4 1 2 5 . 3",
            ". 3 3 3 2 3 4 2 2 5 1 .",
            "1 2 3 3 2 4 4 1 2 5 1 .",
        )
    )
    assert found.value == pytest.approx(0.743, abs=5e-4)
    assert (found.units, found.values) == (11, 40)
    assert 0 < found.low < 0.6 and 0.9 < found.high <= 1


def test_perfect_and_no_agreement():
    assert krippendorff([["a"] * 3, ["b"] * 3, ["a"] * 3]).value == 1
    # Two raters who never agree: D_o = 1, D_e = 2 8^2 / (16 15).
    assert krippendorff([["a", "b"]] * 8).value == pytest.approx(1 - 15 * 16 / 128)


def test_nothing_to_compare():
    same = krippendorff([["a", "a"]] * 5)
    assert same.value is same.low is same.high is None and same.units == 5
    assert krippendorff([["a"], ["b"]]).units == krippendorff([]).units == 0


def test_units_of_a_cluster_are_drawn_together():
    """Copies of a unit in its cluster add no information: the interval stays as wide."""
    few = [["a", "a"], ["b", "b"], ["a", "b"], ["b", "a"], ["a", "a"], ["b", "b"]]
    alone = krippendorff(few)
    copied = krippendorff(few * 40, list(range(6)) * 40)
    apart = krippendorff(few * 40)
    assert copied.high - copied.low == pytest.approx(alone.high - alone.low, abs=0.15)
    assert apart.high - apart.low < 0.4 * (copied.high - copied.low)


def by_pairs(data):
    """Alpha from all ordered pairs of values: within units for D_o, among all values for D_e."""
    within = sum(a != b for values in data for a, b in itertools.permutations(values, 2))
    values = [value for unit in data for value in unit]
    among = sum(a != b for a, b in itertools.permutations(values, 2))
    return 1 - (within / len(values)) / (among / (len(values) * (len(values) - 1)))


def test_interval_equals_a_plain_bootstrap():
    """Against a loop that resamples units, with another formula for alpha."""
    generator = random.Random(5)
    data = [[value, value] if place < 20 else [value, generator.choice("ab")] for place, value in enumerate("aab" * 12)]
    found = krippendorff(data)
    assert found.value == pytest.approx(by_pairs(data), abs=1e-12)
    drawn = sorted(by_pairs(generator.choices(data, k=36)) for _ in range(600))
    assert found.low == pytest.approx(drawn[15], abs=0.06) and found.high == pytest.approx(drawn[584], abs=0.06)
