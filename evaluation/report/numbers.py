"""The numbers of a report. None of them exists without its interval and its count.

Tables, JSON and Markdown take `Cell` alone, so that a bare float cannot be printed: whoever wants to show a number has
to say of how many images it is and how its interval was made.

Prompts are clusters: the images of a prompt (one a seed) are not independent, and an interval over images would be too
narrow. `statistics.estimate` with values [1, P prompts, K images] does this; the interval is about other prompts, for
one trained model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from llm4gen_core import LLM4GENError

from ..statistics import CONFIDENCE, Difference, Estimate, estimate, holm, paired

Values: TypeAlias = "NDArray[np.float64]"
"""[P prompts, K seeds], NaN where there is no value."""

HOW_MEAN = "Student's t over prompts as clusters"
HOW_SHARE = "Wilson's score interval with Student's t over prompts as clusters"
HOW_MACRO = (
    "delta method: variances of the {} means, each over its prompts as clusters, added; Student's t with "
    "Satterthwaite's degrees of freedom"
)


@dataclass(frozen=True)
class Measured:
    """A number with its 95 % interval.

    The interval may lie beside the value: that of a biased number, such as FID, does when it is made by resampling.

    Attributes:
        value: the number.
        low, high: ends of the interval.
        n: images that have a value.
        prompts: that have one; None where prompts play no part.
        asked: images that were asked for; more than n where some are missing or could not be judged.
        how: the interval was made, in words.
        note: what sets it apart from the others of its column, such as another judge.

    Raises:
        LLM4GENError: a number that is not finite, an interval that is none, no images, or no word on how.
    """

    value: float
    low: float
    high: float
    n: int
    prompts: int | None
    asked: int
    how: str
    note: str = ""

    def __post_init__(self) -> None:
        _check_interval(self.value, self.low, self.high)
        if self.n < 1 or self.asked < self.n or not self.how:
            raise LLM4GENError(
                f"A number has n = {self.n} of {self.asked} images and the interval {self.how!r}; expected one image "
                "or more, of at least as many that were asked for, and how the interval was made."
            )


@dataclass(frozen=True)
class Compared:
    """A set's mean less that of the baseline, over images of the same prompt and seed.

    Attributes:
        value: of the difference.
        low, high: ends of its 95 % interval, not corrected for being one of several.
        p: two-sided p value of "there is no difference".
        p_holm: the same, after Holm's correction for all comparisons of the table.
        pairs: of images.
        prompts: of the pairs.
        how: the interval was made, in words.

    Raises:
        LLM4GENError: as for `Measured`.
    """

    value: float
    low: float
    high: float
    p: float
    p_holm: float
    pairs: int
    prompts: int
    how: str

    def __post_init__(self) -> None:
        _check_interval(self.value, self.low, self.high)
        if self.pairs < 1 or not 0 <= self.p <= self.p_holm <= 1:
            raise LLM4GENError(
                f"A comparison has {self.pairs} pairs, p = {self.p} and {self.p_holm} after correction; expected one "
                "pair or more and 0 <= p <= corrected p <= 1."
            )


@dataclass(frozen=True)
class Count:
    """A part of a whole that was counted, not sampled, such as the prompts that a judge cuts off."""

    part: int
    whole: int

    def __post_init__(self) -> None:
        if not 0 <= self.part <= self.whole or not self.whole:
            raise LLM4GENError(f"{self.part} of {self.whole} were counted; expected a part of one or more.")


@dataclass(frozen=True)
class Total:
    """A sum over all n images that are there. It is no sample of anything, and has no interval."""

    value: float
    unit: str
    n: int

    def __post_init__(self) -> None:
        if not math.isfinite(self.value) or self.n < 1 or not self.unit:
            raise LLM4GENError(f"A total is {self.value} {self.unit!r} of {self.n} images; expected a sum of some.")


@dataclass(frozen=True)
class Absent:
    """No number, and why."""

    why: str


Cell: TypeAlias = Measured | Compared | Count | Total | Absent


@dataclass(frozen=True)
class Contrast:
    """A comparison before it is known of how many it is one; `correct` makes it a `Compared`."""

    value: float
    low: float
    high: float
    p: float
    pairs: int
    prompts: int
    how: str


def mean(values: Values, share: bool, asked: int) -> Measured | Absent:
    """Mean over all images; every image weighs the same.

    Args:
        values: [P, K].
        share: the values lie from 0 to 1.
        asked: values that should be there.
    """
    if (left := _too_few(values)) is not None:
        return left
    found = estimate(values[None], share=share)
    how = HOW_SHARE if share else HOW_MEAN
    return Measured(found.mean, found.low, found.high, _count(values), found.prompts, asked, how)


def macro_mean(parts: Mapping[str, Values], share: bool) -> Measured | Absent:
    """Mean of the means of categories, each weighing the same, as GenEval's overall score.

    Its variance is the sum of those of the T means, over T squared: categories have different prompts.

    Args:
        parts: [P, K] of each category.
        share: the values lie from 0 to 1.
    """
    for name, values in parts.items():
        if (left := _too_few(values)) is not None:
            return Absent(f"{name}: {left.why}")
    found = {name: estimate(values[None], share=False) for name, values in parts.items()}
    widest = {name: estimate(values[None], share=share) for name, values in parts.items()}
    value, error, freedom = _combined([(found[name], widest[name]) for name in parts])
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    low, high = value - half, value + half
    if share:
        low, high = max(low, 0.0), min(high, 1.0)
    return Measured(
        value,
        low,
        high,
        sum(map(_count, parts.values())),
        sum(one.prompts for one in found.values()),
        sum(values.size for values in parts.values()),
        HOW_MACRO.format(len(parts)),
    )


def difference(a: Values, b: Values, share: bool) -> Contrast | Absent:
    """a - b, over images that have a value in both.

    Args:
        a, b: [P, K] of the same prompts and seeds.
    """
    if (left := _too_few(a - b)) is not None:
        return left
    found = paired(a[None], b[None], share=share)
    return Contrast(found.mean, found.low, found.high, found.p, found.pairs, found.prompts, HOW_MEAN)


def macro_difference(parts_a: Mapping[str, Values], parts_b: Mapping[str, Values], share: bool) -> Contrast | Absent:
    """Difference of two macro means, over images that have a value in both."""
    for name in parts_a:
        if (left := _too_few(parts_a[name] - parts_b[name])) is not None:
            return Absent(f"{name}: {left.why}")
    found = {name: paired(parts_a[name][None], parts_b[name][None], share=False) for name in parts_a}
    widest = {name: paired(parts_a[name][None], parts_b[name][None], share=share) for name in parts_a}
    value, error, freedom = _combined([(found[name], widest[name]) for name in parts_a])
    prompts = sum(one.prompts for one in found.values())
    if error:
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
        p = 2 * float(stats.t.sf(abs(value) / error, freedom))
    else:
        half, p = 0.0, 1.0 if value == 0 else 2.0 ** (1 - prompts)
    low, high = value - half, value + half
    if share:
        low, high = max(low, -1.0), min(high, 1.0)
    pairs = sum(one.pairs for one in found.values())
    return Contrast(value, low, high, p, pairs, prompts, HOW_MACRO.format(len(found)))


def correct(contrasts: Sequence[Contrast]) -> list[Compared]:
    """With p values corrected for being as many as there are (Holm)."""
    corrected = holm([one.p for one in contrasts])
    return [
        Compared(one.value, one.low, one.high, one.p, p, one.pairs, one.prompts, one.how)
        for one, p in zip(contrasts, corrected, strict=True)
    ]


def _combined(parts: Sequence[tuple[Estimate, Estimate | Difference]]) -> tuple[float, float, float]:
    """Mean of means, its standard error and Satterthwaite's degrees of freedom.

    Student's interval is t SE wide on either side. Where no two values of a part differ it has no width, and the
    bounded interval, which knows that a few equal tries prove little, stands in.
    """
    variances, freedoms = [], []
    for plain, bounded in parts:
        quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, plain.prompts - 1))
        width = (plain.high - plain.low) or (bounded.high - bounded.low)
        variances.append((width / 2 / quantile) ** 2)
        freedoms.append(plain.prompts - 1)
    total = sum(variances)
    below = sum(one**2 / freedom for one, freedom in zip(variances, freedoms, strict=True))
    value = math.fsum(plain.mean for plain, _ in parts) / len(parts)
    return value, total**0.5 / len(parts), total**2 / below if below else float(sum(freedoms))


def _count(values: Values) -> int:
    return int(np.isfinite(values).sum())


def _too_few(values: Values) -> Absent | None:
    """Why there is no interval, if there is none."""
    prompts = int(np.isfinite(values).any(1).sum()) if values.size else 0
    if prompts == 0:
        return Absent("no scores")
    return Absent("one prompt has no interval") if prompts == 1 else None


def _check_interval(value: float, low: float, high: float) -> None:
    if not all(map(math.isfinite, (value, low, high))) or low > high:
        raise LLM4GENError(
            f"A number is {value} with the interval [{low}, {high}]; expected finite numbers and an interval that "
            "begins before it ends."
        )
