"""Results of a study: how often each model is preferred, agreement between raters, and each rater's consistency.

A preference is the share of votes for a model, ties as half a vote for each. Raters and prompts are crossed, as
training seeds and prompts are elsewhere in this project, so that the same analysis of variance gives the interval
(`evaluation.statistics`, raters in place of training seeds): it is about other raters and other prompts. The p-value
is that of "both are preferred equally often", from votes for one minus votes for the other; Holm's method adjusts it
for the number of comparisons and questions. Second showings of a pair count only for a rater's consistency.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import krippendorff
import numpy as np
from numpy.typing import NDArray

from ..report.page import Cell, Page, Shown, literal, number, p_value
from ..statistics import Estimate, estimate, holm, paired
from .study import Pair, Study
from .votes import Vote, aliases, counted

QUOTED: dict[str, str | float | None] = {
    "source": "LLM4GEN, text on Fig. 6: 60.3% and 66.5% higher voting preferences compared to SDXL; whether a share "
    "of votes or a difference is not said",
    "quality": 0.603,
    "alignment": 0.665,
    "n": None,
    "interval": None,
}
"""Numbers of the paper, which states neither votes, raters, prompts and ties nor an interval."""

RESAMPLES = 2000
"""Bootstrap samples for alpha's interval."""

_POINTS = {"first": 1.0, "tie": 0.5, "second": 0.0}


@dataclass(frozen=True)
class Alpha:
    """Krippendorff's alpha and its 95 % interval.

    Attributes:
        value: at most 1; None if all values are the same, so that there is no chance agreement to compare with.
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


@dataclass(frozen=True)
class Comparison:
    """Votes on two models and one question.

    Attributes:
        question: id.
        first, second: names of the models.
        category: of the prompts; None for all of them.
        votes: number of votes.
        wins, ties, losses: votes for the first model, for neither, for the second one.
        pairs, prompts, raters: with votes.
        preference: share of votes for the first model, ties as half; None with fewer than two prompts, for which there
            is no interval. Its seeds are raters.
        p: two-sided, of "both are preferred equally often"; None without a preference, and for single categories.
        p_holm: p adjusted for all comparisons and questions.
        alpha: agreement of raters about each pair; None for single categories.
    """

    question: str
    first: str
    second: str
    category: str | None
    votes: int
    wins: int
    ties: int
    losses: int
    pairs: int
    prompts: int
    raters: int
    preference: Estimate | None
    p: float | None
    p_holm: float | None
    alpha: Alpha | None


@dataclass(frozen=True)
class Share:
    """`of` out of `n`, with Wilson's 95 % interval; None if n is 0."""

    of: int
    n: int
    interval: tuple[float, float] | None

    @classmethod
    def count(cls, values: Sequence[bool]) -> Share:
        from scipy.stats import binomtest

        if not values:
            return cls(0, 0, None)
        found = binomtest(sum(values), len(values)).proportion_ci(method="wilson")
        return cls(sum(values), len(values), (float(found.low), float(found.high)))


@dataclass(frozen=True)
class RaterSummary:
    """Votes of one rater.

    Attributes:
        name: or the alias.
        votes: that count, including second showings.
        pairs: with votes.
        median_seconds: of a vote.
        left: votes for the left image among those that are not ties; far from a half, the rater follows the side
            rather than the image.
        ties: among all votes.
        consistent: votes on second showings that are the same as on the first.
    """

    name: str
    votes: int
    pairs: int
    median_seconds: float
    left: Share
    ties: Share
    consistent: Share


@dataclass(frozen=True)
class Consistency:
    """Whether raters vote the same on a pair that they see twice.

    Attributes:
        question: id.
        n: pairs of votes.
        share: of those that are the same; None with fewer than two prompts. Its seeds are raters.
    """

    question: str
    n: int
    share: Estimate | None


@dataclass(frozen=True)
class Results:
    """Results of a study."""

    study: Study
    comparisons: list[Comparison]
    categories: list[Comparison]
    consistency: list[Consistency]
    raters: list[RaterSummary]

    def as_json(self) -> dict[str, Any]:
        """JSON values; a preference comes with its interval and the numbers of votes, pairs, prompts and raters."""
        # The seeds of an estimate are raters here, which a comparison names itself.
        dropped = ("study", "seeds")
        numbers = asdict(self, dict_factory=lambda fields: {name: one for name, one in fields if name not in dropped})
        return {
            "study": self.study.id,
            "models": [model.model_dump() for model in self.study.models],
            "questions": [question.model_dump() for question in self.study.questions],
            **numbers,
            "quoted": QUOTED,
        }


def results(study: Study, votes: Sequence[Vote], *, names: bool = False) -> Results:
    """Count the votes of a study.

    Args:
        study: of the votes.
        votes: all rows; the last one of each key counts.
        names: call raters by their names.
    """
    called = aliases(votes, names)
    valid = counted(votes)
    pairs = {pair.id: pair for pair in study.pairs}
    grouped: dict[tuple[str, tuple[str, str]], list[Vote]] = defaultdict(list)
    for vote in valid:
        if not vote.repeat:
            grouped[vote.question, pairs[vote.pair].models].append(vote)
    comparisons, by_category = [], []
    categories = sorted({pair.category for pair in study.pairs})
    for question in study.questions:
        for models in study.comparisons:
            compared = grouped[question.id, models]
            comparisons.append(_comparison(question.id, models, None, compared, pairs))
            for category in categories if len(categories) > 1 else ():
                chosen = [vote for vote in compared if pairs[vote.pair].category == category]
                by_category.append(_comparison(question.id, models, category, chosen, pairs))
    adjusted = iter(holm([one.p for one in comparisons if one.p is not None]))
    return Results(
        study,
        [one if one.p is None else replace(one, p_holm=next(adjusted)) for one in comparisons],
        by_category,
        [_consistency(question.id, valid, pairs) for question in study.questions],
        [_rater(name, [vote for vote in valid if vote.rater == rater]) for rater, name in called.items()],
    )


def agreement(units: Sequence[Sequence[Hashable]], clusters: Sequence[Hashable], *, seed: int = 0) -> Alpha:
    """Compute Krippendorff's alpha of nominal values, with an interval by a bootstrap over clusters of units.

    Args:
        units: for each unit the values that raters gave it, one of each rater, in any order.
        clusters: for each unit its cluster, such as a prompt; units of different clusters are independent.
        seed: of the bootstrap.
    """
    pairable = [(values, cluster) for values, cluster in zip(units, clusters, strict=True) if len(values) > 1]
    kinds = list(dict.fromkeys(value for values, _ in pairable for value in values))
    total = sum(len(values) for values, _ in pairable)
    if len(kinds) < 2:
        return Alpha(None, None, None, len(pairable), total)
    counts = np.array([[values.count(kind) for kind in kinds] for values, _ in pairable])
    names = list(dict.fromkeys(cluster for _, cluster in pairable))
    member = np.array([[cluster == name for _, cluster in pairable] for name in names], int)

    def alpha(weights: NDArray[np.int_]) -> float:
        with np.errstate(divide="ignore", invalid="ignore"):  # NaN where all values that were drawn are the same
            return krippendorff.alpha(value_counts=counts.repeat(weights, axis=0), level_of_measurement="nominal")

    low = high = None
    if len(names) > 1:
        generator = np.random.default_rng(seed)
        drawn = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), RESAMPLES)
        low, high = map(float, np.nanpercentile([alpha(weights) for weights in drawn @ member], (2.5, 97.5)))
    return Alpha(float(alpha(np.ones(len(pairable), int))), low, high, len(pairable), total)


def _comparison(
    question: str, models: tuple[str, str], category: str | None, votes: Sequence[Vote], pairs: dict[str, Pair]
) -> Comparison:
    said = {vote.key: "tie" if vote.winner is None else "first" if vote.winner == models[0] else "second"
            for vote in votes}  # fmt: skip
    counts = {kind: list(said.values()).count(kind) for kind in _POINTS}
    prompts = {pairs[vote.pair].prompt for vote in votes}
    preference = p = alpha = None
    if len(prompts) > 1:
        cells = _cells(votes, pairs, lambda vote: _POINTS[said[vote.key]])
        preference = estimate(cells)
        p = paired(cells, 1 - cells).p if category is None else None
    units: dict[str, list[str]] = defaultdict(list)
    for vote in votes:
        units[vote.pair].append(said[vote.key])
    if category is None:
        alpha = agreement(list(units.values()), [pairs[pair].prompt for pair in units])
    return Comparison(
        question,
        *models,
        category,
        votes=len(votes),
        wins=counts["first"],
        ties=counts["tie"],
        losses=counts["second"],
        pairs=len(units),
        prompts=len(prompts),
        raters=len({vote.rater for vote in votes}),
        preference=preference,
        p=p,
        p_holm=None,
        alpha=alpha,
    )


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


def _twice(votes: Iterable[Vote]) -> dict[Vote, bool]:
    """Votes on second showings that have a vote on the first one, and whether both are the same."""
    votes = list(votes)
    first = {vote.key: vote.winner for vote in votes if not vote.repeat}
    seconds = [(vote, (vote.rater, vote.pair, False, vote.question)) for vote in votes if vote.repeat]
    return {vote: vote.winner == first[key] for vote, key in seconds if key in first}


def _consistency(question: str, votes: Sequence[Vote], pairs: dict[str, Pair]) -> Consistency:
    same = _twice(vote for vote in votes if vote.question == question)
    share = None
    if len({pairs[vote.pair].prompt for vote in same}) > 1:
        share = estimate(_cells(list(same), pairs, lambda vote: float(same[vote])))
    return Consistency(question, len(same), share)


def _rater(name: str, votes: Sequence[Vote]) -> RaterSummary:
    return RaterSummary(
        name,
        len(votes),
        len({vote.pair for vote in votes}),
        statistics.median(vote.seconds for vote in votes),
        left=Share.count([vote.choice == "left" for vote in votes if vote.choice != "tie"]),
        ties=Share.count([vote.choice == "tie" for vote in votes]),
        consistent=Share.count(list(_twice(votes).values())),
    )


HOW = (
    "A preference is the share of votes for the first model, ties as half a vote for each. Brackets are 95 % intervals "
    "over raters and prompts, which are crossed, so they cover other raters and prompts. p is two-sided, of *both are "
    "preferred equally often*; p (Holm) is adjusted for all comparisons and questions. Alpha is Krippendorff's for "
    "nominal values (first, tie, second): 1 if raters agree about every pair, 0 if they agree as often as by chance; "
    "its interval is a bootstrap over prompts. Second showings of a pair count only for consistency."
)
ONE_RATER = "† One rater: the interval is over prompts alone, and does not cover other people."

_QUOTED_TEXT = (
    "Quoted, not measured here: *60.3 % and 66.5 % higher voting preferences compared to SDXL in terms of Aesthetic "
    "and Semantic* (text on Fig. 6), read here as shares of votes, though a difference may be meant. The paper states "
    "neither the numbers of votes, raters and prompts nor an interval, and not how ties were counted; its prompts and "
    "its SDXL model were never published."
)
_FEW = "too few prompts"


def page(found: Results) -> Page:
    """Build the page of the results, which ends with the paper's quoted numbers."""
    study = found.study
    shown = Page("User study", ONE_RATER)
    names = ", ".join(f"**{literal(model.name)}**" for model in study.models)
    shown.text(
        f"Blind pairwise votes on images of {names}: same prompt, same seed, sides and order drawn for each rater. "
        f"{len(study.pairs)} pairs, {len(found.raters)} raters, study `{study.id}`.\n\n{HOW}"
    )
    votes = ("Wins", "Ties", "Losses", "Preference for the first")
    n = ("Votes", "Pairs", "Prompts", "Raters")
    for question in study.questions:
        shown.heading(question.text)
        rows = [
            [*_votes(one), _p(one.p), _p(one.p_holm), one.votes, one.pairs, one.prompts, one.raters]
            for one in found.comparisons
            if one.question == question.id
        ]
        shown.table(("Models", *votes, "p", "p (Holm)", *n), rows, f"{question.id.capitalize()}: votes by models.")
        rows = [
            [
                Shown(one.category or "none"),
                *_votes(one),
                one.votes,
                one.pairs,
                one.prompts,
                one.raters,
            ]
            for one in found.categories
            if one.question == question.id
        ]
        if rows:
            caption = f"{question.id.capitalize()}: votes by category of the prompt, without adjustment."
            shown.table(("Category", "Models", *votes, *n), rows, caption)
    shown.heading("Raters")
    shown.table(
        ("Question", "Models", "Alpha", "Pairs", "Votes"),
        [
            [one.question, _models(one), _alpha_cell(one.alpha), one.alpha.units, one.alpha.values]
            for one in found.comparisons
            if one.alpha is not None
        ],
        "Agreement between raters: Krippendorff's alpha, and the pairs and votes of pairs that two or more judged.",
    )
    shown.table(
        ("Question", "Same answer", "n"),
        [[one.question, (one.share or _FEW) if one.n else "no pair seen twice", one.n] for one in found.consistency],
        "Consistency: how often raters give the same answer on a pair that they see again, with sides swapped.",
    )
    shown.table(
        ("Rater", "Votes", "Pairs", "Median time", "Left", "Ties", "Same answer again"),
        [
            [
                Shown(one.name),
                one.votes,
                one.pairs,
                f"{one.median_seconds:.1f} s",
                *map(_share, (one.left, one.ties, one.consistent)),
            ]
            for one in found.raters
        ],
        "Each rater. Left: votes for the left image among those that are not ties; a half is expected. Brackets are "
        "Wilson's 95 % intervals.",
    )
    shown.heading("What the paper says")
    shown.text(_QUOTED_TEXT)
    shown.table(
        ("Model", "Quality", "Alignment", "n"),
        [("LLM4GEN-SDXL against SDXL", QUOTED["quality"], QUOTED["alignment"], "not stated")],
        "Share of votes for LLM4GEN-SDXL, as the paper states it.",
        quoted=True,
    )
    return shown


def _votes(one: Comparison) -> list[Cell]:
    return [_models(one), one.wins, one.ties, one.losses, one.preference or _FEW]


def _models(one: Comparison) -> Shown:
    return Shown(f"{one.first} : {one.second}")


def _p(p: float | None) -> str:
    return "–" if p is None else p_value(p, "")


def _alpha_cell(alpha: Alpha) -> Cell:
    if not alpha.units:
        return "no pair of two raters"
    if alpha.value is None:
        return "all votes alike"
    if alpha.low is None or alpha.high is None:
        return _FEW
    return Shown(number(alpha.value, 2), _interval(alpha.low, alpha.high))


def _share(share: Share) -> Cell:
    return Shown(f"{share.of} of {share.n}", _interval(*share.interval)) if share.interval else "–"


def _interval(low: float, high: float) -> str:
    return f"[{number(low, 2)}, {number(high, 2)}]"
