"""What the votes say: how often each model is preferred, how far raters agree, and whether they agree with themselves.

A preference is the share of votes for a model, ties as half a vote for each. Raters and prompts are crossed, as
training seeds and prompts are elsewhere in this project, so that the same analysis of variance gives the interval
(`evaluation.statistics`, raters in place of training seeds): it is about other raters and other prompts. The p
value is that of "both are preferred equally often", from votes for one minus votes for the other; Holm's adjusts it for
the number of comparisons and questions. Second showings of a pair count for a rater's consistency alone.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..statistics import Estimate, estimate, holm, paired
from .agreement import Alpha, krippendorff
from .study import Pair, Study
from .votes import Vote, counted

QUOTED: dict[str, str | float | None] = {
    "source": "LLM4GEN, text on Fig. 6: 60.3% and 66.5% higher voting preferences compared to SDXL; whether a share "
    "of votes or a difference is not said",
    "quality": 0.603,
    "alignment": 0.665,
    "n": None,
    "interval": None,
}
"""The paper's numbers, which it gives without the number of votes, raters or prompts, without ties and interval."""

_POINTS = {"first": 1.0, "tie": 0.5, "second": 0.0}


@dataclass(frozen=True)
class Comparison:
    """Two models and one question.

    Attributes:
        question: id.
        first, second: names of the models.
        category: of the prompts; None for all of them.
        wins, ties, losses: votes for the first model, for neither, for the second one.
        preference: share of votes for the first model, ties as half; None with fewer than two prompts, for which there
            is no interval. Its seeds are raters.
        p: two-sided, of "both are preferred equally often"; None without a preference, and for single categories.
        p_holm: p adjusted for all comparisons and questions.
        pairs, prompts, raters: that votes were given on, and by.
        alpha: agreement of raters about each pair; None for single categories.
    """

    question: str
    first: str
    second: str
    category: str | None
    wins: int
    ties: int
    losses: int
    preference: Estimate | None
    p: float | None
    p_holm: float | None
    pairs: int
    prompts: int
    raters: int
    alpha: Alpha | None

    @property
    def votes(self) -> int:
        return self.wins + self.ties + self.losses


@dataclass(frozen=True)
class Share:
    """How many of how many; a share with Wilson's 95 % interval, None where there is nothing to count."""

    of: int
    n: int

    @property
    def interval(self) -> tuple[float, float] | None:
        from scipy.stats import binomtest

        if not self.n:
            return None
        found = binomtest(self.of, self.n).proportion_ci(method="wilson")
        return float(found.low), float(found.high)


@dataclass(frozen=True)
class RaterSummary:
    """One rater.

    Attributes:
        name: or what stands for it.
        votes: that count, second showings included.
        pairs: that were voted on.
        seconds: median of a vote.
        left: votes for the left image among those that are no ties; far from a half means that the rater looks at
            places rather than at images.
        ties: among all votes.
        consistent: votes on second showings that say the same as the first time.
    """

    name: str
    votes: int
    pairs: int
    seconds: float
    left: Share
    ties: Share
    consistent: Share


@dataclass(frozen=True)
class Consistency:
    """Whether raters say the same about a pair that they see twice.

    Attributes:
        question: id.
        n: pairs of votes.
        share: of those that say the same; None with fewer than two prompts. Its seeds are raters.
    """

    question: str
    n: int
    share: Estimate | None


@dataclass(frozen=True)
class Results:
    """Everything that `results` shows."""

    study: Study
    comparisons: list[Comparison]
    categories: list[Comparison]
    consistency: list[Consistency]
    raters: list[RaterSummary]

    def as_json(self) -> dict[str, Any]:
        """JSON values; a preference comes with its interval and the numbers of votes, pairs, prompts and raters."""
        return {
            "study": self.study.id,
            "models": [model.model_dump() for model in self.study.models],
            "questions": [question.model_dump() for question in self.study.questions],
            "comparisons": [_comparison_json(one) for one in self.comparisons],
            "categories": [_comparison_json(one) for one in self.categories],
            "consistency": [
                {"question": one.question, "n": one.n, "share": _estimate_json(one.share)} for one in self.consistency
            ],
            "raters": [
                {
                    "name": one.name,
                    "votes": one.votes,
                    "pairs": one.pairs,
                    "median_seconds": one.seconds,
                    **{
                        name: {"of": share.of, "n": share.n, "interval": share.interval}
                        for name, share in (("left", one.left), ("ties", one.ties), ("consistent", one.consistent))
                    },
                }
                for one in self.raters
            ],
            "quoted": QUOTED,
        }


def aliases(votes: Iterable[Vote], names: bool) -> dict[str, str]:
    """What stands for each rater: the name, or "rater 1" and on in the order of first votes."""
    raters = dict.fromkeys(vote.rater for vote in votes)
    return {rater: rater if names else f"rater {number}" for number, rater in enumerate(raters, 1)}


def results(study: Study, votes: Sequence[Vote], *, names: bool = False) -> Results:
    """Count and judge.

    Args:
        study: that was voted on.
        votes: all rows; of several for the same thing the last one counts.
        names: call raters by their names.
    """
    called = aliases(votes, names)
    valid = counted(votes)
    shown_first = [vote for vote in valid if not vote.repeat]
    pairs = {pair.id: pair for pair in study.pairs}
    by_comparison: dict[tuple[str, tuple[str, str]], list[Vote]] = defaultdict(list)
    for vote in shown_first:
        by_comparison[vote.question, pairs[vote.pair].models].append(vote)
    comparisons, categories = [], []
    names_of_categories = list(dict.fromkeys(pair.category for pair in study.pairs))
    for question in study.questions:
        for models in study.comparisons:
            of_both = by_comparison[question.id, models]
            comparisons.append(_comparison(question.id, models, None, of_both, pairs))
            for category in sorted(names_of_categories) if len(names_of_categories) > 1 else ():
                of_category = [vote for vote in of_both if pairs[vote.pair].category == category]
                categories.append(_comparison(question.id, models, category, of_category, pairs))
    return Results(
        study,
        _adjusted(comparisons),
        categories,
        [_consistency(question.id, valid, pairs) for question in study.questions],
        [_rater(called[rater], [vote for vote in valid if vote.rater == rater]) for rater in called],
    )


def _comparison(
    question: str, models: tuple[str, str], category: str | None, votes: Sequence[Vote], pairs: dict[str, Pair]
) -> Comparison:
    said = {vote.key: _said(vote, models) for vote in votes}
    counts = {kind: sum(one == kind for one in said.values()) for kind in _POINTS}
    prompts = {pairs[vote.pair].prompt for vote in votes}
    preference = p = alpha = None
    if len(prompts) > 1:
        cells = _cells(votes, pairs, lambda vote: _POINTS[said[vote.key]])
        preference = estimate(cells)
        p = paired(cells, 1 - cells).p if category is None else None
    if category is None:
        units: dict[str, list[str]] = defaultdict(list)
        for vote in votes:
            units[vote.pair].append(said[vote.key])
        alpha = krippendorff(list(units.values()), [pairs[pair].prompt for pair in units])
    return Comparison(
        question,
        *models,
        category,
        counts["first"],
        counts["tie"],
        counts["second"],
        preference,
        p,
        None,
        len({vote.pair for vote in votes}),
        len(prompts),
        len({vote.rater for vote in votes}),
        alpha,
    )


def _adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    adjusted = iter(holm([one.p for one in comparisons if one.p is not None]))
    return [one if one.p is None else replace(one, p_holm=next(adjusted)) for one in comparisons]


def _said(vote: Vote, models: tuple[str, str]) -> str:
    return "tie" if vote.winner is None else "first" if vote.winner == models[0] else "second"


def _cells(votes: Sequence[Vote], pairs: dict[str, Pair], value: Callable[[Vote], float]) -> NDArray[np.float64]:
    """[raters, prompts, K]: a prompt's pairs, of several seeds or models, are one cluster; NaN without a vote."""
    raters = {rater: place for place, rater in enumerate(dict.fromkeys(vote.rater for vote in votes))}
    of_prompt: dict[str, dict[str, int]] = defaultdict(dict)
    for vote in votes:
        of_prompt[pairs[vote.pair].prompt].setdefault(vote.pair, len(of_prompt[pairs[vote.pair].prompt]))
    prompts = {prompt: place for place, prompt in enumerate(of_prompt)}
    cells = np.full((len(raters), len(prompts), max(map(len, of_prompt.values()))), np.nan)
    for vote in votes:
        prompt = pairs[vote.pair].prompt
        cells[raters[vote.rater], prompts[prompt], of_prompt[prompt][vote.pair]] = value(vote)
    return cells


def _twice(votes: Iterable[Vote]) -> list[tuple[Vote, bool]]:
    """Votes on second showings that have a first one, and whether both say the same."""
    votes = list(votes)
    first = {vote.key: vote for vote in votes if not vote.repeat}
    seconds = [(vote, first.get((vote.rater, vote.pair, False, vote.question))) for vote in votes if vote.repeat]
    return [(vote, vote.winner == other.winner) for vote, other in seconds if other is not None]


def _consistency(question: str, votes: Sequence[Vote], pairs: dict[str, Pair]) -> Consistency:
    same = {vote.key: (vote, agrees) for vote, agrees in _twice(vote for vote in votes if vote.question == question)}
    seen = [vote for vote, _ in same.values()]
    share = None
    if len({pairs[vote.pair].prompt for vote in seen}) > 1:
        share = estimate(_cells(seen, pairs, lambda vote: float(same[vote.key][1])))
    return Consistency(question, len(seen), share)


def _rater(name: str, votes: Sequence[Vote]) -> RaterSummary:
    chosen = [vote for vote in votes if vote.choice != "tie"]
    same = [agrees for _, agrees in _twice(votes)]
    return RaterSummary(
        name,
        len(votes),
        len({vote.pair for vote in votes}),
        statistics.median(vote.seconds for vote in votes),
        Share(sum(vote.choice == "left" for vote in chosen), len(chosen)),
        Share(len(votes) - len(chosen), len(votes)),
        Share(sum(same), len(same)),
    )


def _comparison_json(one: Comparison) -> dict[str, Any]:
    return {
        "question": one.question,
        "first": one.first,
        "second": one.second,
        **({} if one.category is None else {"category": one.category}),
        "votes": one.votes,
        "wins": one.wins,
        "ties": one.ties,
        "losses": one.losses,
        "pairs": one.pairs,
        "prompts": one.prompts,
        "raters": one.raters,
        "preference": _estimate_json(one.preference),
        **({} if one.category is not None else {"p": one.p, "p_holm": one.p_holm}),
        **({} if one.alpha is None else {"alpha": asdict(one.alpha)}),
    }


def _estimate_json(one: Estimate | None) -> dict[str, Any] | None:
    return None if one is None else {"mean": one.mean, "low": one.low, "high": one.high}
