"""Krippendorff's alpha for nominal values: how far raters agree beyond what chance would give.

Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability". With n_uc the number of raters who gave unit u the
value c, m_u = sum_c n_uc of at least 2, n_c and n the sums over those units,

    D_o = 1/n sum_u (m_u^2 - sum_c n_uc^2) / (m_u - 1),    D_e = (n^2 - sum_c n_c^2) / (n (n - 1)),

and alpha = 1 - D_o / D_e: 1 where all agree, 0 where they agree as often as by chance. Raters need not have seen the
same units.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000


@dataclass(frozen=True)
class Alpha:
    """Krippendorff's alpha and its 95 % interval.

    Attributes:
        value: at most 1; None where all values are the same, which leaves chance nothing to be compared with.
        low, high: percentiles of a bootstrap over clusters of units; None with fewer than two clusters. They are about
            these raters on other units.
        units: with two values or more.
        values: on those units.
    """

    value: float | None
    low: float | None
    high: float | None
    units: int
    values: int


def krippendorff(
    units: Sequence[Sequence[Hashable]], clusters: Sequence[Hashable] | None = None, *, seed: int = 0
) -> Alpha:
    """Alpha of nominal values.

    Args:
        units: for each unit the values that raters gave it, one of each rater; the order does not matter.
        clusters: for each unit what it belongs to, such as a prompt, for units that are not independent; None where
            they are.
        seed: of the bootstrap.
    """
    clusters = range(len(units)) if clusters is None else clusters
    pairable = [(values, cluster) for values, cluster in zip(units, clusters, strict=True) if len(values) > 1]
    kinds = {value: place for place, value in enumerate(dict.fromkeys(v for values, _ in pairable for v in values))}
    counts = np.zeros((len(pairable), len(kinds)))
    for row, (values, _) in zip(counts, pairable, strict=True):
        for value in values:
            row[kinds[value]] += 1
    names = {cluster: place for place, cluster in enumerate(dict.fromkeys(cluster for _, cluster in pairable))}
    member = np.zeros((len(names), len(pairable)))
    for unit, (_, cluster) in enumerate(pairable):
        member[names[cluster], unit] = 1
    value = float(_alpha(np.ones((1, len(pairable))), counts)[0])
    low = high = None
    if len(names) > 1 and np.isfinite(value):
        generator = np.random.default_rng(seed)
        drawn = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), RESAMPLES)
        resampled = _alpha(drawn @ member, counts)
        low, high = (float(end) for end in np.nanpercentile(resampled, (2.5, 97.5)))
    return Alpha(value if np.isfinite(value) else None, low, high, len(pairable), int(counts.sum()))


def _alpha(weights: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Alpha with each unit taken so many times.

    Args:
        weights: [B, U].
        counts: [U, C], two or more values in each row.

    Returns:
        [B], NaN where all values are the same.
    """
    raters = counts.sum(1)
    disagreement = (raters**2 - (counts**2).sum(1)) / (raters - 1)
    totals = weights @ counts
    n = totals.sum(1)
    expected = n**2 - (totals**2).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1 - (n - 1) * (weights @ disagreement) / expected
