"""Tables of a benchmark: the score of each image set, and its difference from the baseline.

Prompts are clusters: the images of a prompt (one for each seed) are not independent, and an interval over images would
be too narrow. An interval covers other prompts, for one trained model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np

from ..benchmarks import METRICS, Benchmark, benchmark_of
from ..benchmarks import Column as OfficialColumn
from ..image_set import image_id
from ..statistics import CONFIDENCE, estimate, holm, macro, paired
from .read import EvaluatedSet, Values, metric_title, number_of

MOST_CATEGORIES = 12
"""A metric is split by at most this many categories; a wider table could not be read."""

WHOLE_SETS = "whole_sets"
"""Key of the table of set metrics."""

OTHER_JUDGE = "another judge"
HOW_MEAN = "Student's t over prompts as clusters"
HOW_SHARE = "Wilson's score interval with Student's t over prompts as clusters"
HOW_MACRO = (
    "delta method: variances of the {} means, each over its prompts as clusters, added; Student's t with "
    "Satterthwaite's degrees of freedom"
)
WITHOUT_PAIRS = (
    "A number of a whole set has no value for each prompt, so sets cannot be paired and there is no p-value."
)


@dataclass(frozen=True)
class Measured:
    """A number with its 95 % interval.

    The interval need not contain the value: that of a biased number, such as FID, does not if it is made by resampling.

    Attributes:
        value: the number.
        low, high: ends of the interval; both None if there is none, for the reason in `how`.
        n: images that have a value.
        prompts: prompts that have one; None where prompts do not matter.
        asked: images that were asked for; more than n if some are missing or could not be judged.
        how: how the interval was made.
        note: how it differs from the others of its column, such as another judge.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    prompts: int | None
    asked: int
    how: str
    note: str = ""
    confidence: float = field(default=CONFIDENCE, init=False)
    kind: str = field(default="measured", init=False)


@dataclass(frozen=True)
class Compared:
    """Mean difference of a set from the baseline, over images of the same prompt and seed.

    Attributes:
        value: the difference.
        low, high: ends of its 95 % interval, not corrected for multiple tests.
        p: two-sided p-value of "there is no difference".
        p_holm: the same after Holm's correction for all comparisons of the table.
        pairs: pairs of images.
        prompts: prompts of the pairs.
        how: how the interval was made.
    """

    value: float
    low: float
    high: float
    p: float
    p_holm: float
    pairs: int
    prompts: int
    how: str
    confidence: float = field(default=CONFIDENCE, init=False)
    kind: str = field(default="difference", init=False)


@dataclass(frozen=True)
class Count:
    """Prompts that were counted, such as those that a judge cuts off: not a sample, so there is no interval."""

    part: int
    whole: int
    kind: str = field(default="count", init=False)


@dataclass(frozen=True)
class Total:
    """A sum over all n images that exist: not a sample, so there is no interval."""

    value: float
    unit: str
    n: int
    kind: str = field(default="total", init=False)


@dataclass(frozen=True)
class Absent:
    """A cell without a number, and why."""

    why: str
    kind: str = field(default="absent", init=False)


Cell: TypeAlias = Measured | Compared | Count | Total | Absent
"""No number is shown without its count, and none that was sampled without its interval."""


@dataclass(frozen=True, kw_only=True)
class Column(OfficialColumn):
    """A column of a table.

    Attributes:
        key: stable name, unique in the table.
        share: whether values lie from 0 to 1.
        counted: whether cells are `Count`s of prompts, which are not compared.
        lower_is_better: known for some metrics.
    """

    key: str
    share: bool = False
    counted: bool = False
    lower_is_better: bool = False

    @property
    def header(self) -> str:
        """Title with its unit."""
        return f"{self.title}{', %' * self.percent}{', lower is better' * self.lower_is_better}"


@dataclass(frozen=True)
class Row:
    """Numbers of a set: a cell for each column, by its key."""

    set: str
    cells: Mapping[str, Cell]


@dataclass(frozen=True)
class Comparison(Row):
    """Differences of a set from the baseline, for each column that is not counted."""

    baseline: str


@dataclass(frozen=True)
class Table:
    """Numbers of several sets.

    Attributes:
        key: stable name, unique in the benchmark.
        title: for people.
        columns: of the rows.
        rows: one for each set, the baseline first.
        comparisons: one for each set except the baseline.
        notes: what a reader must know.
    """

    key: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def compared_columns(self) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if not column.counted)


@dataclass(frozen=True)
class Group:
    """The image sets of one benchmark; the first is the baseline."""

    benchmark: Benchmark
    sets: tuple[EvaluatedSet, ...]

    @property
    def baseline(self) -> EvaluatedSet:
        return self.sets[0]

    def metrics(self) -> list[str]:
        """Metrics of single images that any set was scored by."""
        return sorted({name for one in self.sets for name in one.metrics})

    def title(self, metric: str) -> str:
        """Title of a metric that any set was scored by."""
        return next(metric_title(metric, one.metrics[metric].about.title) for one in self._scored_by(metric))

    def share(self, metric: str) -> bool:
        """Whether scores of a metric lie from 0 to 1."""
        return next(one.metrics[metric].about.share for one in self._scored_by(metric))

    def categories(self) -> list[str]:
        """Categories of all sets' prompts, in the order of the official table, then of the prompts."""
        official = [column.category for column in self.benchmark.columns if column.category]
        found = dict.fromkeys(prompt.category for one in self.sets for prompt in one.prompts if prompt.category)
        return sorted(found, key=lambda name: official.index(name) if name in official else len(official))

    def why_not_compared(self, one: EvaluatedSet, metric: str) -> str:
        """Reason why a set is not compared with the baseline by a metric; "" if it is."""
        if metric not in one.metrics:
            return "not scored"
        if metric not in self.baseline.metrics:
            return "baseline not scored"
        return "" if one.metrics[metric].about.judge == self.baseline.metrics[metric].about.judge else OTHER_JUDGE

    def asked_prompts(self, one: EvaluatedSet, metric: str, category: str = "") -> list[str]:
        """Ids of a set's prompts that a metric was asked about.

        Metrics write no row for prompts that they do not apply to. They apply to a category if any set has a row of
        it; what is missing then is counted as missing.
        """
        applies = frozenset().union(*(other.metrics[metric].categories for other in self._scored_by(metric)))
        return [prompt.id for prompt in one.prompts if prompt.category in applies and category in ("", prompt.category)]

    def shared(self, one: EvaluatedSet, metric: str, category: str = "") -> tuple[list[str], list[int]]:
        """Ids of prompts, and seeds, that a set and the baseline have in common; prompts are equal in every field."""
        asked = self.asked_prompts(self.baseline, metric, category)
        prompts = [prompt for prompt in asked if one.known.get(prompt) == self.baseline.known[prompt]]
        return prompts, [seed for seed in self.baseline.settings.seeds if seed in one.settings.seeds]

    def matched(
        self, one: EvaluatedSet, metric: str, category: str = "", part: str = "score", group: str = ""
    ) -> tuple[Values, Values]:
        """Values [P, K, Q] of a set and of the baseline for the prompts and seeds that they share."""
        prompts, seeds = self.shared(one, metric, category)
        ours, baseline = (images.values(metric, prompts, seeds, part, group) for images in (one, self.baseline))
        width = max(ours.shape[2], baseline.shape[2])
        return _widened(ours, width), _widened(baseline, width)

    def _scored_by(self, metric: str) -> list[EvaluatedSet]:
        return [one for one in self.sets if metric in one.metrics]


def group_sets(sets: Sequence[EvaluatedSet]) -> list[Group]:
    """Return the sets by benchmark, in the given order."""
    found: dict[str, list[EvaluatedSet]] = {}
    for one in sets:
        found.setdefault(benchmark_of(one.settings.benchmark).name, []).append(one)
    return [Group(benchmark_of(group[0].settings.benchmark), tuple(group)) for group in found.values()]


def build_tables(group: Group) -> list[Table]:
    """Return the official table, then each other metric by category, then the numbers of whole sets."""
    official = _official_columns(group)
    tables = []
    if official:
        tables.append(_table(group, "official", group.benchmark.title, official))
    overall = [] if official else [shown for metric in group.metrics() for shown in _overall(group, metric)]
    if overall:
        tables.append(_table(group, "all_metrics", group.benchmark.title, overall))
    shown = {column.key for column in (*official, *overall)}
    with_columns = {column.metric for column in official}
    for metric in group.metrics():
        columns = [column for column in _by_category(group, metric) if column.key not in shown]
        # A mean over categories that have official columns of their own has no meaning in the benchmark.
        if any(column.category or metric not in with_columns for column in columns):
            tables.append(_table(group, f"by_category_{metric}", f"{group.title(metric)} by category", columns))
    return [*tables, *_set_tables(group)]


def mean(parts: Mapping[str, Values], share: bool, asked: int) -> Measured | Absent:
    """Return the mean over all images; of several categories the mean of their means (as GenEval's overall score).

    Args:
        parts: values [P, K, Q] by category; every value of a category has the same weight.
        share: whether values lie from 0 to 1.
        asked: images that were asked for.
    """
    if why := _too_few(parts):
        return Absent(why)
    flat = [values.reshape(1, len(values), -1) for values in parts.values()]
    found = estimate(flat[0], share=share) if len(flat) == 1 else macro(flat, (0.0, 1.0) if share else None)
    how = HOW_MACRO.format(len(flat)) if len(flat) > 1 else HOW_SHARE if share else HOW_MEAN
    n = sum(int(np.isfinite(values).any(2).sum()) for values in parts.values())
    return Measured(found.mean, found.low, found.high, n, found.prompts, asked, how)


def difference(parts: Mapping[str, tuple[Values, Values]], share: bool) -> Compared | Absent:
    """Return the mean of a - b over images that have a value in both, for parts (a, b) as for `mean`."""
    both = {name: a - b for name, (a, b) in parts.items()}
    if why := _too_few(both):
        return Absent(why)
    if len(both) == 1:
        found = paired(*(values.reshape(1, len(values), -1) for values in next(iter(parts.values()))), share=share)
        how = HOW_MEAN
    else:
        flat = [values.reshape(1, len(values), -1) for values in both.values()]
        found, how = macro(flat, (-1.0, 1.0) if share else None), HOW_MACRO.format(len(flat))
    pairs = sum(int(np.isfinite(values).any(2).sum()) for values in both.values())
    return Compared(found.mean, found.low, found.high, found.p, found.p, pairs, found.prompts, how)


def corrected(rows: Sequence[Mapping[str, Compared | Absent]]) -> list[dict[str, Cell]]:
    """Return comparisons with p-values corrected for their number (Holm)."""
    p_values = iter(holm([cell.p for row in rows for cell in row.values() if isinstance(cell, Compared)]))
    return [
        {key: replace(cell, p_holm=next(p_values)) if isinstance(cell, Compared) else cell for key, cell in row.items()}
        for row in rows
    ]


def _table(group: Group, key: str, title: str, columns: Sequence[Column]) -> Table:
    others, baseline = group.sets[1:], group.baseline.label
    compared = [column for column in columns if not column.counted]
    differences = [{column.key: _compared(group, one, column) for column in compared} for one in others]
    comparisons = [
        Comparison(one.label, cells, baseline) for one, cells in zip(others, corrected(differences), strict=True)
    ]
    rows = [Row(one.label, {column.key: _cell(group, one, column) for column in columns}) for one in group.sets]
    return Table(key, title, tuple(columns), tuple(rows), tuple(comparisons))


def _cell(group: Group, one: EvaluatedSet, column: Column) -> Cell:
    metric, seeds = column.metric, one.settings.seeds
    if metric not in one.metrics:
        return Absent("not scored")
    if column.counted:
        said = one.values(metric, group.asked_prompts(one, metric), seeds, column.part)
        known = said[np.isfinite(said).any((1, 2))]
        return Count(int((known == 1).any((1, 2)).sum()), len(known)) if len(known) else Absent("not recorded")
    categories = _macro_categories(group, metric) if column.macro else [column.category]
    prompts = {name: group.asked_prompts(one, metric, name) for name in categories}
    parts = {name: one.values(metric, ids, seeds, column.part, column.group) for name, ids in prompts.items()}
    asked = sum(map(len, prompts.values())) * len(seeds)
    if column.group:
        # Images that were not asked any question of the group are not missing; those without a row are.
        rows = [one.metrics[metric].values.get(image_id(id, seed)) for id in prompts[column.category] for seed in seeds]
        asked = sum(row is None or bool(number_of(row, f"categories.{column.group}.asked")) for row in rows)
    found = mean(parts, column.share, asked)
    if isinstance(found, Measured) and group.why_not_compared(one, metric) == OTHER_JUDGE:
        return replace(found, note=OTHER_JUDGE)
    return found


def _compared(group: Group, one: EvaluatedSet, column: Column) -> Compared | Absent:
    if why := group.why_not_compared(one, column.metric):
        return Absent(why)
    categories = _macro_categories(group, column.metric) if column.macro else [column.category]
    parts = {name: group.matched(one, column.metric, name, column.part, column.group) for name in categories}
    return difference(parts, column.share)


def _macro_categories(group: Group, metric: str) -> list[str]:
    """Categories that a metric was asked about in any set."""
    return [name for name in group.categories() if any(group.asked_prompts(one, metric, name) for one in group.sets)]


def _official_columns(group: Group) -> list[Column]:
    """Columns of the benchmark that any set has scores for."""
    columns: list[Column] = []
    for wanted in group.benchmark.columns:
        scores = [one.metrics[wanted.metric] for one in group.sets if one.scored(wanted.metric, wanted.category)]
        if scores and (not wanted.group or any(wanted.group in one.question_groups for one in scores)):
            columns += _columns(group, wanted)
    return columns


def _by_category(group: Group, metric: str) -> list[Column]:
    """All prompts, and each category of those that the metric has scored."""
    categories = [name for name in group.categories() if any(one.scored(metric, name) for one in group.sets)]
    columns = _overall(group, metric) if len(categories) != 1 else []
    official = {one.category: one.title for one in group.benchmark.columns}
    for name in categories if len(categories) <= MOST_CATEGORIES else ():
        title = official.get(name, name.replace("_", " ").capitalize())
        columns += _columns(group, OfficialColumn(metric, title, name))
    return columns


def _overall(group: Group, metric: str) -> list[Column]:
    return _columns(group, OfficialColumn(metric, f"{group.title(metric)}, all prompts"))


def _columns(group: Group, wanted: OfficialColumn) -> list[Column]:
    """A column, and beside a score of all prompts the number of prompts that its judge cuts off, if it records that."""
    share, metric = group.share(wanted.metric), wanted.metric
    name = "macro" if wanted.macro else wanted.group or wanted.category
    key = ":".join(filter(None, [metric, name, wanted.part.removeprefix("score")]))
    columns = [Column(**{**vars(wanted), "percent": share or wanted.percent}, key=key, share=share)]
    rows = (row for one in group.sets if metric in one.metrics for row in one.metrics[metric].values.values())
    if key == metric and any(number_of(row, "truncated") is not None for row in rows):
        cut_off = f"{metric}:truncated"
        columns.append(Column(metric, "Prompts cut off", part="truncated", key=cut_off, counted=True))
    return columns


def _set_tables(group: Group) -> list[Table]:
    """The table of numbers of whole sets, if there are any."""
    numbers: dict[str, Column] = {}
    for one in group.sets:
        for metric, about in one.set_metrics.items():
            title, entry = metric_title(metric, about.title), METRICS.get(metric)
            for name in about.scores:
                shown = title if len(about.scores) == 1 or name == metric else f"{title}: {name}"
                shown = entry.also.get(name, shown) if entry else shown
                lower = bool(entry and entry.lower_is_better)
                key = f"{metric}:{name}"
                numbers.setdefault(key, Column(metric, shown, part=name, key=key, lower_is_better=lower))
    columns = tuple(numbers[key] for key in sorted(numbers))
    rows = [Row(one.label, {column.key: _set_cell(group, one, column) for column in columns}) for one in group.sets]
    return [Table(WHOLE_SETS, "Numbers of whole sets", columns, tuple(rows), (), (WITHOUT_PAIRS,))] if columns else []


def _set_cell(group: Group, one: EvaluatedSet, column: Column) -> Cell:
    scores, baseline = one.set_metrics.get(column.metric), group.baseline.set_metrics.get(column.metric)
    if scores is None or column.part not in scores.scores:
        return Absent("not scored")
    found = scores.scores[column.part]
    note = OTHER_JUDGE if baseline and baseline.judge != scores.judge else ""
    return Measured(found.value, found.low, found.high, found.n, None, max(found.n, one.asked), found.how, note)


def _widened(values: Values, width: int) -> Values:
    """Values [P, K, Q] with NaN up to Q = width."""
    return np.pad(values, ((0, 0), (0, 0), (0, width - values.shape[2])), constant_values=np.nan)


def _too_few(parts: Mapping[str, Values]) -> str:
    """Reason why there is no interval; "" if there is one."""
    for name, values in parts.items():
        prompts = int(np.isfinite(values).any((1, 2)).sum())
        if prompts < 2:
            why = "one prompt has no interval" if prompts else "no scores"
            return f"{name}: {why}" if len(parts) > 1 else why
    return "" if parts else "no categories"
