"""From the sets of a benchmark to its tables: what each set scores, and how it differs from the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .cells import OTHER_JUDGE, cell_of, contrast_of
from .columns import Column, by_category, column_of, official_columns, truncated
from .groups import Group
from .numbers import Absent, Cell, Contrast, Measured, correct
from .read import EvaluatedSet

WHOLE_SETS = "whole_sets"
"""Key of the table of set metrics."""

SET_TITLES = {"fid": "FID", "kid": "KID", "inception_score": "Inception score"}
LOWER_IS_BETTER = ("fid", "kid")
WITHOUT_PAIRS = (
    "A number of a whole set has no value for a prompt, so that nothing can be paired and there is no p value."
)


@dataclass(frozen=True)
class Row:
    """A set's cells, one for each column."""

    label: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """Numbers of several sets.

    Attributes:
        key: stable name, unique in its benchmark.
        title: for people.
        columns: of the rows.
        rows: of all sets, the baseline first.
        comparisons: of all but the baseline, with a cell for each of `compared_columns`.
        notes: what a reader must know.
    """

    key: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    comparisons: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def compared_columns(self) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if not column.counted)


def build_tables(group: Group) -> list[Table]:
    """The official table first, then each other metric, and the numbers of whole sets."""
    official = official_columns(group)
    tables = []
    if official:
        tables.append(_table(group, "official", group.benchmark.title, official))
    overall = [] if official else [column_of(group, metric, "") for metric in group.metrics()]
    if overall:
        overall = [shown for column in overall for shown in (column, *truncated(group, column))]
        tables.append(_table(group, "all_metrics", group.benchmark.title, overall))
    shown = {column.key for column in (*official, *overall)}
    with_columns = {column.metric for column in official}
    for metric in group.metrics():
        columns = [column for column in by_category(group, metric) if column.key not in shown]
        # The mean over categories that have official columns of their own is nobody's number.
        if any(column.category or metric not in with_columns for column in columns):
            tables.append(_table(group, f"by_category_{metric}", f"{group.title(metric)} by category", columns))
    if table := _set_table(group):
        tables.append(table)
    return tables


def _table(group: Group, key: str, title: str, columns: Sequence[Column]) -> Table:
    rows = tuple(Row(one.label, tuple(cell_of(group, one, column) for column in columns)) for one in group.sets)
    compared = [column for column in columns if not column.counted]
    contrasts = [[contrast_of(group, one, column) for column in compared] for one in group.sets[1:]]
    corrected = iter(correct([one for row in contrasts for one in row if isinstance(one, Contrast)]))
    comparisons = tuple(
        Row(one.label, tuple(next(corrected) if isinstance(cell, Contrast) else cell for cell in row))
        for one, row in zip(group.sets[1:], contrasts, strict=True)
    )
    return Table(key, title, tuple(columns), rows, comparisons)


def _set_table(group: Group) -> Table | None:
    """Numbers of whole sets; they have no value of a prompt that could be paired."""
    names = sorted({(metric, name) for one in group.sets for metric, s in one.set_metrics.items() for name in s.scores})
    if not names:
        return None
    columns = []
    for metric, name in names:
        about = next(one.set_metrics[metric] for one in group.sets if metric in one.set_metrics)
        title = about.title or metric
        shown = SET_TITLES.get(name, title if len(about.scores) == 1 else f"{title}: {name}")
        lower = name in LOWER_IS_BETTER
        columns.append(Column(f"{metric}:{name}", shown, metric, part=name, lower_is_better=lower))
    rows = [Row(one.label, tuple(_set_cell(one, group.baseline, column) for column in columns)) for one in group.sets]
    return Table(WHOLE_SETS, "Numbers of whole sets", tuple(columns), tuple(rows), (), (WITHOUT_PAIRS,))


def _set_cell(one: EvaluatedSet, baseline: EvaluatedSet, column: Column) -> Cell:
    scores = one.set_metrics.get(column.metric)
    if scores is None or column.part not in scores.scores:
        return Absent("not scored")
    found = scores.scores[column.part]
    asked = max(found.n, one.asked)
    other = column.metric in baseline.set_metrics and baseline.set_metrics[column.metric].judge != scores.judge
    return Measured(found.value, found.low, found.high, found.n, None, asked, found.how, OTHER_JUDGE if other else "")
