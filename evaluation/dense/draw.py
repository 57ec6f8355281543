"""Random choices that are the same on every machine and with every version of Python.

Of `random.Random` only the seeding with a text and `random()` are promised to stay as they are (its documentation,
"Notes on Reproducibility"); `choice`, `sample` and `shuffle` are not, so they are made of `random()` here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Draw:
    """Draws that a seed decides.

    Args:
        seed: any text.
    """

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed).random

    def chance(self, probability: float) -> bool:
        return self._random() < probability

    def between(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return low + int(self._random() * (high - low + 1))

    def one(self, choices: Sequence[T]) -> T:
        return choices[int(self._random() * len(choices))]

    def weighted(self, choices: Sequence[tuple[T, float]]) -> T:
        """One of (choice, weight); weights need not add up to one."""
        left = self._random() * sum(weight for _, weight in choices)
        for choice, weight in choices:
            left -= weight
            if left < 0:
                return choice
        return choices[-1][0]

    def some(self, choices: Sequence[T], count: int) -> list[T]:
        """Up to `count` of them, each at most once, in the order in which they are given."""
        left = list(range(len(choices)))
        taken = [left.pop(int(self._random() * len(left))) for _ in range(min(count, len(choices)))]
        return [choices[place] for place in sorted(taken)]

    def shuffled(self, choices: Sequence[T]) -> list[T]:
        left = list(choices)
        return [left.pop(int(self._random() * len(left))) for _ in choices]
