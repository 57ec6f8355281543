"""In which order, and on which sides, a rater sees the pairs: always the same for the same study and name."""

from __future__ import annotations

from dataclasses import dataclass

from .study import Pair, PairImage, Study, draw

GAP = 10
"""Other pairs that lie between a pair and its repetition, where a study has enough."""


@dataclass(frozen=True)
class Task:
    """A pair as it is put before a rater.

    Attributes:
        pair: of the study.
        repeat: it is the second time, with sides swapped.
        left: image on the left, "Image A".
        right: the other one.
    """

    pair: Pair
    repeat: bool
    left: PairImage
    right: PairImage

    @property
    def id(self) -> str:
        """Unique for the rater."""
        return self.pair.id + "-2" * self.repeat


def schedule(study: Study, rater: str) -> list[Task]:
    """All that a rater is to see, in order.

    Each draw is a hash of the study's seed, the rater and the pair, so that a server which was started again goes on
    with exactly the same. The pairs that come twice are drawn among those that leave room for `GAP` others between.

    Args:
        study: the pairs.
        rater: as `votes.rater_name` gives it.
    """

    def drawn(what: str, pair: Pair) -> float:
        return draw(study.seed, what, rater, pair.id)

    order = sorted(study.pairs, key=lambda pair: drawn("order", pair))
    gap = min(GAP, len(order) // 2)
    early = order[: len(order) - gap]
    twice = sorted(early, key=lambda pair: drawn("twice", pair))[: round(study.repeat * len(order))]
    place = {pair.id: number for number, pair in enumerate(order)}

    def again(pair: Pair) -> float:
        """Between two of the places from `gap` behind the first time on, or behind the last."""
        earliest = place[pair.id] + gap
        return earliest + 0.5 + int(drawn("again", pair) * (len(order) - earliest))

    placed = [(float(place[pair.id]), _task(pair, False, drawn("side", pair) < 0.5)) for pair in order]
    placed += [(again(pair), _task(pair, True, drawn("side", pair) >= 0.5)) for pair in twice]
    return [task for _, task in sorted(placed, key=lambda one: (one[0], one[1].id))]


def _task(pair: Pair, repeat: bool, first_is_left: bool) -> Task:
    left, right = (pair.first, pair.second) if first_is_left else (pair.second, pair.first)
    return Task(pair, repeat, left, right)
