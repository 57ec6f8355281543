"""Distances between sets of features, and the intervals of numbers that only a whole set has."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import linalg, stats
from torch import from_numpy
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from evaluation.metrics.frechet import Gaussian, frechet_distance
from evaluation.metrics.kernel import KernelSample, kernel_distance
from evaluation.metrics.spread import complete_seeds, over_prompts, over_seeds
from llm4gen_core import LLM4GENError


def _features(n: int, dimensions: int, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(dimensions, dimensions)) / dimensions**0.5
    return generator.normal(size=(n, dimensions)) @ mix + shift


def _with_moments(mean: np.ndarray, covariance: np.ndarray, n: int = 50) -> np.ndarray:
    """Features that have exactly these moments."""
    raw = np.random.default_rng(3).normal(size=(n, len(mean)))
    raw -= raw.mean(0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(raw, rowvar=False)))).T
    return white @ np.linalg.cholesky(covariance).T + mean


def test_known_gaussians_have_the_closed_form() -> None:
    one = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 3.0]])
    two = np.array([[1.0, -0.3, 0.1], [-0.3, 2.0, 0.0], [0.1, 0.0, 0.5]])
    mean_one, mean_two = np.array([1.0, 0.0, -2.0]), np.array([0.0, 3.0, -1.0])
    by_hand = 1 + 9 + 1 + np.trace(one) + np.trace(two) - 2 * np.trace(linalg.sqrtm(one @ two)).real
    found = frechet_distance(_with_moments(mean_one, one), Gaussian(mean_two, two))
    assert found.value == pytest.approx(by_hand, rel=1e-9)


def test_gaussians_on_one_line() -> None:
    """In one dimension it is (m - r)^2 + (s - t)^2."""
    found = frechet_distance(_with_moments(np.array([1.0]), np.array([[9.0]])), Gaussian(np.ones(1) * 5, np.eye(1) * 4))
    assert found.value == pytest.approx(16 + 1, rel=1e-12)


@pytest.mark.parametrize("n", [6, 40, 300])
def test_a_set_is_at_distance_0_from_itself(n: int) -> None:
    """Also with fewer images than dimensions, where the root of a product of covariances loses digits."""
    features = _features(n, 40, shift=3)
    found = frechet_distance(features, Gaussian.of(features))
    assert found.value < 1e-10
    assert np.abs(found.influence).max() < 1e-6


@pytest.mark.parametrize("n", [20, 200])
def test_frechet_is_that_of_torch_fidelity(n: int) -> None:
    generated, real = _features(n, 32, 1, 0.3).astype(np.float32), (_features(150, 32, 2) * 1.3).astype(np.float32)
    theirs = fid_statistics_to_metric(
        fid_features_to_statistics(from_numpy(generated)), fid_features_to_statistics(from_numpy(real)), False
    )["frechet_inception_distance"]
    assert frechet_distance(generated, Gaussian.of(real)).value == pytest.approx(theirs, rel=1e-5)


def test_kernel_is_that_of_torch_fidelity() -> None:
    """With one subset that is everything, and with the mean over many subsets."""
    generated, real = _features(60, 16, 1, 0.3), _features(60, 16, 2)
    settings = {"kid_subsets": 1, "kid_subset_size": 60, "kid_kernel": "poly", "kid_kernel_poly_degree": 3}
    settings |= {"kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1.0, "verbose": False, "rng_seed": 0}
    tensors = from_numpy(generated), from_numpy(real)
    theirs = kid_features_to_metric(*tensors, **settings)["kernel_inception_distance_mean"]
    found = kernel_distance(generated, KernelSample(real)).value
    assert found == pytest.approx(theirs, rel=1e-9)
    drawn = kid_features_to_metric(*tensors, **(settings | {"kid_subsets": 400, "kid_subset_size": 30}))
    assert found == pytest.approx(drawn["kernel_inception_distance_mean"], rel=0.05)


def test_kernel_has_no_bias_where_images_are_few() -> None:
    """Half of the sets that are drawn alike lie below 0, on average they are at 0."""
    real = KernelSample(_features(1000, 8, 50))
    found = np.array([kernel_distance(_features(10, 8, seed), real).value for seed in range(400)])
    assert abs(found.mean()) < 3 * found.std() / 20
    assert (found < 0).mean() > 0.3


@pytest.mark.parametrize("n", [30, 400])
def test_frechet_influence_is_the_change_by_the_weight_of_an_image(n: int) -> None:
    """An image that stands in the set once more moves the value by its influence over n, to first order."""
    features, real = _features(n, 12, 1, 0.5), Gaussian.of(_features(300, 12, 2))
    # In many copies of the set one more image is a small step, and n - 1 is as good as n.
    copies = np.tile(features, (40, 1))
    plain = frechet_distance(copies, real).value
    changes = [(frechet_distance(np.vstack([copies, row]), real).value - plain) * len(copies) for row in features[:8]]
    influence = frechet_distance(features, real).influence[:8]
    assert np.corrcoef(changes, influence)[0, 1] > 0.999
    assert np.polyfit(influence, changes, 1)[0] == pytest.approx(1, abs=0.1)


def test_kernel_influence_is_the_change_without_an_image() -> None:
    features, real = _features(60, 12, 1, 0.5), KernelSample(_features(80, 12, 2))
    found = kernel_distance(features, real)
    changes = [59 * (found.value - kernel_distance(np.delete(features, row, 0), real).value) for row in range(20)]
    assert np.corrcoef(changes, found.influence[:20])[0, 1] > 0.999
    assert np.polyfit(found.influence[:20], changes, 1)[0] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("dimensions", "n"), [(16, 400), (48, 32)])
def test_interval_holds_the_fid_of_sets_of_that_size(dimensions: int, n: int) -> None:
    """95 % intervals of 400 drawn sets, also where images are fewer than dimensions."""
    real = Gaussian.of(_features(5000, dimensions, 7) * 1.2)
    names = [str(number) for number in range(n)]
    found = [frechet_distance(_features(n, dimensions, seed, 0.2), real) for seed in range(400)]
    average = np.mean([one.value for one in found])
    held = [low <= average <= high for low, high, _ in (over_prompts(one.value, one.influence, names) for one in found)]
    assert 0.91 < np.mean(held) < 0.995


def test_fewer_than_two_images_are_refused() -> None:
    with pytest.raises(LLM4GENError, match="1 images"):
        frechet_distance(_features(1, 3), Gaussian.of(_features(5, 3)))
    with pytest.raises(LLM4GENError, match="1 images"):
        kernel_distance(_features(5, 3), KernelSample(_features(1, 3)))


def test_complete_seeds_have_every_prompt() -> None:
    found = complete_seeds(["a", "a", "b", "b"], [2, 1, 1, 2])
    assert {seed: rows.tolist() for seed, rows in found.items()} == {1: [1, 2], 2: [0, 3]}
    assert complete_seeds(["a", "b", "a"], [1, 1, 2]) == {}
    assert complete_seeds(["a", "b"], [1, 1]) == {}
    assert complete_seeds(["a", "a", "b", "b"], [1, 1, 2, 2]) == {}


def test_interval_over_seeds_is_students() -> None:
    value, low, high, how = over_seeds({1: 20.0, 2: 23.0, 3: 26.0}, 30000)
    assert value == 23
    # 3 / sqrt(3) times the quantile of two degrees of freedom, 4.3027
    assert (low, high) == (pytest.approx(23 - 4.3027 * 3**0.5, abs=1e-3), pytest.approx(23 + 4.3027 * 3**0.5, abs=1e-3))
    assert "3 seeds" in how and "30000 images" in how


def test_interval_over_prompts_counts_images_of_a_prompt_together() -> None:
    influence = np.array([1.0, -2.0, 0.5, 0.5])
    low, high, how = over_prompts(10.0, influence, ["a", "b", "c", "d"])
    half = stats.t.ppf(0.975, 3) * influence.std(ddof=1) / 2
    assert (low, high) == (pytest.approx(10 - half), pytest.approx(10 + half))
    # Four images that are each there twice say no more than four.
    twice = over_prompts(10.0, np.repeat(influence, 2), ["a", "a", "b", "b", "c", "c", "d", "d"])
    assert twice[:2] == (pytest.approx(low), pytest.approx(high))
    assert "4 prompts" in how
    assert "4 images" in over_prompts(10.0, influence, ["a"] * 4)[2]
