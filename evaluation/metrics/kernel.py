"""Kernel distance between two sets of features (Binkowski et al. 2018, arXiv 1801.01401)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .frechet import Distance, at_least_two

_ROWS = 1024


@dataclass(frozen=True)
class KernelSample:
    """Features [N, D] under the kernel k(x, y) = (x'y / D + 1)^3."""

    features: NDArray[np.floating]

    @cached_property
    def rows(self) -> NDArray[np.float64]:
        return at_least_two(self.features)

    @cached_property
    def means(self) -> NDArray[np.float64]:
        """[N], the mean of k between each row and the others."""
        with_itself = ((self.rows**2).sum(1) / self.rows.shape[1] + 1) ** 3
        return (_sums(self.rows, self.rows) - with_itself) / (len(self.rows) - 1)


def kernel_distance(features: NDArray[np.floating], reference: KernelSample) -> Distance:
    """Squared maximum mean discrepancy, without bias for any number of images:

        mean over i != j of k(x_i, x_j) + mean over i != j of k(y_i, y_j) - 2 mean of k(x_i, y_j).

    All pairs count, where torch-fidelity averages over drawn subsets of 1000: it is what their average tends to, and
    needs no draw. May lie below 0 where sets are alike.

    Args:
        features: [N, D].
        reference: of D dimensions; counts as given.

    Raises:
        LLM4GENError: either has fewer than two rows.
    """
    own = KernelSample(features)
    across = _sums(own.rows, reference.rows) / len(reference.rows)
    influence = 2 * (own.means - across)
    value = own.means.mean() + reference.means.mean() - 2 * across.mean()
    return Distance(float(value), influence - influence.mean())


def _sums(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N], each the sum of k over y, some rows of x at a time."""
    return np.concatenate(
        [((x[first : first + _ROWS] @ y.T / x.shape[1] + 1) ** 3).sum(1) for first in range(0, len(x), _ROWS)]
    )
