"""The Frechet distance between two Gaussians, one of them of features (Heusel et al. 2017, arXiv 1706.08500)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from llm4gen_core import LLM4GENError

_NULL = 1e-6
"""A direction whose singular value is below this share of the largest holds rounding and nothing else."""


@dataclass(frozen=True)
class Gaussian:
    """Moments of features.

    Attributes:
        mean: [D], float64.
        covariance: [D, D], float64, divided by n - 1.
    """

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]

    @classmethod
    def of(cls, features: NDArray[np.floating]) -> Gaussian:
        """Of [N, D].

        Raises:
            LLM4GENError: fewer than two have no covariance.
        """
        values = at_least_two(features)
        mean = values.mean(0)
        centred = values - mean
        return cls(mean, centred.T @ centred / (len(values) - 1))

    @cached_property
    def root(self) -> NDArray[np.float64]:
        """Symmetric square root of the covariance."""
        squares, axes = np.linalg.eigh(self.covariance)
        return np.asarray((axes * np.sqrt(squares.clip(0))) @ axes.T)


@dataclass(frozen=True)
class Distance:
    """
    Attributes:
        value: at least 0.
        influence: [N], by how much the value changes for the weight that a row of features gets.
    """

    value: float
    influence: NDArray[np.float64]


def frechet_distance(features: NDArray[np.floating], reference: Gaussian) -> Distance:
    """Squared Frechet (2-Wasserstein) distance between the Gaussian of features, N(m, S), and another, N(r, R):

        |m - r|^2 + tr S + tr R - 2 tr (R^1/2 S R^1/2)^1/2.

    With X the centred features over sqrt(N - 1), S = X'X, so that the last trace is the sum of the singular values of
    X R^1/2 = U s V'. No product of covariances is formed, whose root would lose half of the digits: identical sets
    have 0 even where there are fewer images than dimensions.

    Influence. With T = R^1/2 V s^-1 V' R^1/2, the map that carries N(m, S) to N(r, R), the derivative of the distance
    by S is I - T (Bhatia, Jain and Lim 2019, arXiv 1712.01504) and by m is 2 (m - r), so that a row x has
    2 (m - r)'(x - m) + (x - m)'(I - T)(x - m), less its mean.

    Args:
        features: [N, D].
        reference: of D dimensions.

    Raises:
        LLM4GENError: there are fewer than two rows.
    """
    values = at_least_two(features)
    mean = values.mean(0)
    centred = values - mean
    apart = mean - reference.mean
    joint = centred @ reference.root
    # The singular values and V of a tall matrix are those of its triangle.
    triangle = np.linalg.qr(joint, mode="r") if len(joint) > joint.shape[1] else joint
    _, singular, axes = np.linalg.svd(triangle, full_matrices=False)
    scale = (len(values) - 1) ** 0.5
    own = (centred**2).sum(1)
    value = apart @ apart + own.sum() / scale**2 + np.trace(reference.covariance) - 2 * singular.sum() / scale
    here = singular > singular[0] * _NULL
    carried = ((joint @ axes[here].T) ** 2 / (singular[here] / scale)).sum(1)
    influence = 2 * centred @ apart + own - carried
    return Distance(max(float(value), 0.0), influence - influence.mean())


def at_least_two(features: NDArray[np.floating]) -> NDArray[np.float64]:
    """The features in float64, if there are two rows or more."""
    if len(features) < 2:
        raise LLM4GENError(f"There are {len(features)} images to compare; expected two or more.")
    return np.asarray(features, np.float64)
