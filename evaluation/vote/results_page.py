"""The results of a study for people: lines for a terminal, and a page beside the paper's quoted numbers."""

from __future__ import annotations

from collections.abc import Sequence

from ..report.html_page import Cell, Page, markdown_table, plain
from ..statistics import Estimate
from .agreement import Alpha
from .results import QUOTED, Comparison, Results, Share

_FEW = "too few prompts"

HOW = (
    "A preference is the share of votes for the first model, ties as half a vote for each. Brackets are 95 % intervals "
    "over raters and prompts, which are crossed: what other raters would say about other prompts. p is two-sided, of "
    "*both are preferred equally often*; p (Holm) is adjusted for all comparisons and questions. Alpha is "
    "Krippendorff's for nominal values (first, tie, second): 1 where raters agree about every pair, 0 where they agree "
    "as often as by chance; its interval is a bootstrap over prompts. Second showings of a pair count for consistency "
    "alone."
)
ONE_RATER = "† One rater: the interval is over prompts alone, and says nothing about other people."

_COUNTED = ("Votes", "Pairs", "Prompts", "Raters")
_COLUMNS = ("Models", "Wins", "Ties", "Losses", "Preference for the first", "p", "p (Holm)", *_COUNTED)


def printed(results: Results) -> str:
    """Tables as text; ends with a line break."""
    parts = []
    for question in results.study.questions:
        rows = [_row(one, text=True) for one in results.comparisons if one.question == question.id]
        parts.append(f"{question.text} ({question.id})\n\n{markdown_table(_COLUMNS, rows)}")
    parts += [f"{title}\n\n{markdown_table(columns, rows)}" for title, columns, rows in _raters(results, text=True)]
    if _one_rater(results):
        parts.append(ONE_RATER + "\n")
    return "\n".join(parts)


def page(results: Results) -> Page:
    """The page."""
    study = results.study
    shown = Page("User study")
    names = ", ".join(f"**{model.name}**" for model in study.models)
    shown.text(
        f"Blind pairwise votes on images of {names}: same prompt, same seed, sides and order drawn for each rater. "
        f"{len(study.pairs)} pairs, {len(results.raters)} raters, study `{study.id}`.\n\n{HOW}"
    )
    if _one_rater(results):
        shown.text(ONE_RATER)
    for question in study.questions:
        shown.heading(question.text)
        rows = [_row(one) for one in results.comparisons if one.question == question.id]
        shown.table(_COLUMNS, rows, f"{question.id.capitalize()}: votes by models.")
        of_categories = [one for one in results.categories if one.question == question.id]
        if of_categories:
            shown.table(
                ("Category", "Models", "Wins", "Ties", "Losses", "Preference for the first", *_COUNTED),
                [_category_row(one) for one in of_categories],
                f"{question.id.capitalize()}: votes by category of the prompt. Not adjusted for their number.",
            )
    shown.heading("Raters")
    for title, columns, table in _raters(results):
        shown.table(columns, table, title)
    shown.heading("What the paper says")
    shown.text(_QUOTED_TEXT)
    shown.table(
        ("Quoted from the paper", "Quality", "Alignment", "n"),
        [("LLM4GEN-SDXL against SDXL", QUOTED["quality"], QUOTED["alignment"], "not stated")],
        "Share of votes for LLM4GEN-SDXL, as the paper states it.",
    )
    return shown


_QUOTED_TEXT = (
    "Quoted, not measured here: *60.3 % and 66.5 % higher voting preferences compared to SDXL in terms of Aesthetic "
    "and Semantic* (text on Fig. 6), read here as shares of votes, though a "
    "difference may be meant. The paper states neither the numbers of votes, "
    "raters and prompts nor an interval, and not how ties were counted; its prompts and its SDXL model were never "
    "published."
)


def _row(one: Comparison, text: bool = False) -> list[Cell]:
    return [
        f"{one.first} : {one.second}",
        one.wins,
        one.ties,
        one.losses,
        _preference(one.preference, text),
        _p(one.p),
        _p(one.p_holm),
        *_counted(one),
    ]


def _category_row(one: Comparison) -> list[Cell]:
    return [
        one.category or "none",
        f"{one.first} : {one.second}",
        one.wins,
        one.ties,
        one.losses,
        _preference(one.preference, False),
        *_counted(one),
    ]


def _raters(results: Results, text: bool = False) -> list[tuple[str, Sequence[str], list[list[Cell]]]]:
    agreement: list[list[Cell]] = [
        [one.question, f"{one.first} : {one.second}", _alpha(one.alpha), one.alpha.units, one.alpha.values]
        for one in results.comparisons
        if one.alpha is not None
    ]
    consistency: list[list[Cell]] = [
        [one.question, _preference(one.share, text) if one.n else "no pair seen twice", one.n]
        for one in results.consistency
    ]
    raters: list[list[Cell]] = [
        [
            one.name,
            one.votes,
            one.pairs,
            f"{one.seconds:.1f} s",
            _share(one.left),
            _share(one.ties),
            _share(one.consistent),
        ]
        for one in results.raters
    ]
    return [
        (
            "Agreement between raters: Krippendorff's alpha, and the pairs and votes of pairs that two or more judged.",
            ("Question", "Models", "Alpha", "Pairs", "Votes"),
            agreement,
        ),
        (
            "Consistency: how often raters say the same about a pair that they see again, with sides swapped.",
            ("Question", "Same answer", "n"),
            consistency,
        ),
        (
            "Each rater. Left: of the votes that are no ties, those for the left image, where a half is expected. "
            "Brackets are Wilson's 95 % intervals.",
            ("Rater", "Votes", "Pairs", "Median time", "Left", "Ties", "Same answer again"),
            raters,
        ),
    ]


def _preference(value: Estimate | None, text: bool) -> Cell:
    if value is None:
        return _FEW
    # The page's own note on a single training seed would be about something else than raters.
    return plain(value) if text or not value.over_seeds else value


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return "< .001" if value < 0.001 else plain(value) if value < 0.1 else f"{value:.2f}".removeprefix("0")


def _alpha(value: Alpha | None) -> str:
    if value is None or not value.units:
        return "no pair of two raters"
    if value.value is None:
        return "all votes alike"
    if value.low is None or value.high is None:
        return _FEW
    return f"{_decimal(value.value)} {_interval(value.low, value.high)}"


def _share(value: Share) -> str:
    interval = value.interval
    if interval is None:
        return "–"
    return f"{value.of} of {value.n} {_interval(*interval)}"


def _interval(low: float, high: float) -> str:
    return f"[{_decimal(low)},\u00a0{_decimal(high)}]"


def _decimal(value: float) -> str:
    return f"{value:.2f}".replace("0.", ".", 1).replace("-", "−")


def _counted(one: Comparison) -> list[int]:
    return [one.votes, one.pairs, one.prompts, one.raters]


def _one_rater(results: Results) -> bool:
    return any(
        estimate is not None and not estimate.over_seeds
        for estimate in (
            *(one.preference for one in (*results.comparisons, *results.categories)),
            *(one.share for one in results.consistency),
        )
    )
