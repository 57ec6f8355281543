"""λ over the sampling range: how much the LLM's tokens count at every noise level."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from .errors import LLM4GENError

CURVES: dict[str, Callable[[float], float]] = {
    "linear": lambda u: u,
    "ease_in": lambda u: u * u,
    "ease_out": lambda u: u * (2 - u),
    "ease_in_out": lambda u: u * u * (3 - 2 * u),
}
"""From the way through the range, 0 to 1, to the way from the first λ to the last, 0 to 1."""


@dataclass(frozen=True)
class StrengthSchedule:
    """λ by how far sampling has come; outside of the range the LLM's tokens are left out, as with λ = 0.

    Attributes:
        start, end: λ at both ends of the range.
        start_percent, end_percent: the range, as shares of the noise schedule: 0 is pure noise, 1 the image. Both ends
            belong to it.
        curve: a key of `CURVES`.

    Raises:
        LLM4GENError: a number is no finite number or out of order, or the curve is not known.
    """

    start: float = 1.0
    end: float = 1.0
    start_percent: float = 0.0
    end_percent: float = 1.0
    curve: str = "linear"

    def __post_init__(self) -> None:
        if not all(math.isfinite(number) for number in (self.start, self.end)):
            raise LLM4GENError(f"λ runs from {self.start} to {self.end}; expected numbers such as 1.0.")
        if not 0 <= self.start_percent < self.end_percent <= 1:
            raise LLM4GENError(
                f"The range of λ is {self.start_percent} to {self.end_percent}; expected 0 <= start < end <= 1."
            )
        if self.curve not in CURVES:
            raise LLM4GENError(f"The curve of λ is {self.curve!r}; expected one of {', '.join(CURVES)}.")

    @property
    def is_neutral(self) -> bool:
        """Whether λ is 1 everywhere."""
        return (self.start, self.end, self.start_percent, self.end_percent) == (1, 1, 0, 1)

    @property
    def label(self) -> str:
        """For people: "λ 1 → 0.5 (linear), from 0 % to 80 %"."""
        text = f"λ {self.start:g}"
        if self.start != self.end:
            text += f" → {self.end:g} ({self.curve.replace('_', ' ')})"
        return f"{text}, from {100 * self.start_percent:g} % to {100 * self.end_percent:g} %"

    def at(self, percent: float) -> float:
        """λ at a share of the noise schedule from 0 to 1."""
        if not self.start_percent <= percent <= self.end_percent:
            return 0.0
        way = (percent - self.start_percent) / (self.end_percent - self.start_percent)
        return self.start + (self.end - self.start) * CURVES[self.curve](way)
