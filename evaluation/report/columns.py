"""Which columns the tables of a benchmark have: its official ones, and those of whatever else was scored."""

from __future__ import annotations

from dataclasses import dataclass

from ..benchmarks import Column as Wanted
from .groups import Group
from .read import EvaluatedSet, question_groups, says

MOST_CATEGORIES = 12
"""A metric is not split by more categories than these: no reader would see through such a table."""


@dataclass(frozen=True)
class Column:
    """What a column shows.

    Attributes:
        key: stable name, unique in its table.
        title: for people.
        metric: name of the metric, as its files have it.
        category: as the prompts have it; "" for all prompts that the metric has scored.
        part: which number of the metric.
        group: of the questions that the metric asks; their answers are pooled.
        macro: mean of the categories' means.
        share: from 0 to 1.
        percent: shown in percent.
        counted: the cells are `Count`s of prompts, and are not compared.
        lower_is_better: known of some set metrics.
    """

    key: str
    title: str
    metric: str
    category: str = ""
    part: str = "score"
    macro: bool = False
    group: str = ""
    share: bool = False
    percent: bool = False
    counted: bool = False
    lower_is_better: bool = False


def official_columns(group: Group) -> list[Column]:
    """Those of the benchmark that any set has scores for, and what CLIP cuts off beside its score."""
    columns: list[Column] = []
    for wanted in group.benchmark.columns:
        metric = wanted.metric
        if metric not in group.metrics() or (wanted.category and wanted.category not in group.categories()):
            continue
        if wanted.group and not any(wanted.group in question_groups(one.metrics.get(metric)) for one in group.sets):
            continue
        column = column_of(group, metric, wanted.category, wanted)
        if any(_scored(one, metric, column.category) for one in group.sets):
            columns.append(column)
            columns += truncated(group, column)
    return columns


def truncated(group: Group, column: Column) -> list[Column]:
    """Prompts that the judge of a column's score cuts off, if it says so."""
    if column.category or column.macro or column.group or column.part != "score":
        return []
    if not any(says(one.metrics.get(column.metric), "truncated") for one in group.sets):
        return []
    return [Column(f"{column.key}:truncated", "Prompts that it cuts off", column.metric, "", "truncated", counted=True)]


def by_category(group: Group, metric: str) -> list[Column]:
    """All prompts, and each category of those that the metric has scored."""
    categories = [name for name in group.categories() if any(_scored(one, metric, name) for one in group.sets)]
    columns: list[Column] = []
    if len(categories) != 1:
        everything = column_of(group, metric, "")
        columns += [everything, *truncated(group, everything)]
    if len(categories) <= MOST_CATEGORIES:
        columns += [column_of(group, metric, name) for name in categories]
    return columns


def column_of(group: Group, metric: str, category: str, wanted: Wanted | None = None) -> Column:
    """Of a metric's scores in a category; "" is all prompts.

    Args:
        wanted: what the official table says of it.
    """
    about = next(one.metrics[metric].about for one in group.sets if metric in one.metrics)
    official = {one.category: one.title for one in group.benchmark.columns if one.category}
    title = official.get(category, category.replace("_", " ").capitalize())
    if wanted is None:
        key = f"{metric}:{category}" if category else metric
        shown = title if category else f"{about.title}, all prompts"
        return Column(key, shown, metric, category, share=about.share, percent=about.share)
    name = "macro" if wanted.macro else wanted.group or category
    if wanted.part != "score":
        name = f"{name}:{wanted.part}"
    return Column(
        f"{metric}:{name}" if name else metric,
        wanted.title,
        metric,
        category,
        wanted.part,
        macro=wanted.macro,
        group=wanted.group,
        share=about.share,
        percent=about.share or wanted.percent,
    )


def _scored(one: EvaluatedSet, metric: str, category: str) -> bool:
    """Whether a set has any score of the metric in the category; "" is any."""
    found = one.metrics[metric].categories if metric in one.metrics else frozenset()
    return category in found if category else bool(found)
