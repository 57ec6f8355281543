"""The cells of a table: a set's number in a column, and how far it is from the baseline's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..image_set import image_id
from .columns import Column
from .groups import Group, asked_prompts, matched, shared
from .numbers import (
    Absent,
    Cell,
    Contrast,
    Count,
    Measured,
    difference,
    macro_difference,
    macro_mean,
    mean,
)
from .read import EvaluatedSet

OTHER_JUDGE = "another judge"


def cell_of(group: Group, one: EvaluatedSet, column: Column) -> Cell:
    """What a set has in a column, marked where it cannot be compared with the baseline's beside it."""
    if column.metric not in one.metrics:
        return Absent("not scored")
    found = _cell(group, one, column)
    if isinstance(found, Measured) and column.metric in group.baseline.metrics:
        return found if group.same_judge(one, column.metric) else replace(found, note=OTHER_JUDGE)
    return found


def contrast_of(group: Group, one: EvaluatedSet, column: Column) -> Contrast | Absent:
    """How far a set is from the baseline, by images of the same prompt and seed that the same judge has scored."""
    if column.metric not in one.metrics:
        return Absent("not scored")
    if column.metric not in group.baseline.metrics:
        return Absent("baseline not scored")
    if not group.same_judge(one, column.metric):
        return Absent(OTHER_JUDGE)
    if column.macro:
        pairs = {name: matched(group, one, column.metric, name) for name in _categories(group, column.metric)}
        ours = {name: pair.ours for name, pair in pairs.items()}
        baseline = {name: pair.baseline for name, pair in pairs.items()}
        return macro_difference(ours, baseline, column.share) if pairs else Absent("no categories")
    if column.group:
        return _contrast_of_answers(group, one, column)
    pair = matched(group, one, column.metric, column.category, column.part)
    return difference(pair.ours, pair.baseline, column.share)


def _cell(group: Group, one: EvaluatedSet, column: Column) -> Cell:
    seeds = one.settings.seeds
    if column.macro:
        parts = {
            name: one.values(column.metric, "score", asked_prompts(group, one, column.metric, name), seeds)
            for name in _categories(group, column.metric)
        }
        return macro_mean(parts, column.share) if parts else Absent("no categories")
    prompts = asked_prompts(group, one, column.metric, column.category)
    if column.group:
        return _mean_of_answers(one, column, prompts)
    if column.counted:
        said = one.values(column.metric, column.part, prompts, seeds)
        known = said[np.isfinite(said).any(1)] if said.size else said
        return Count(int((known == 1).any(1).sum()), len(known)) if len(known) else Absent("not said")
    values = one.values(column.metric, column.part, prompts, seeds)
    return mean(values, column.share, asked=values.size)


def _categories(group: Group, metric: str) -> list[str]:
    """Those whose means a macro mean is of: all that the metric was asked about in any set."""
    return [name for name in group.categories() if any(asked_prompts(group, one, metric, name) for one in group.sets)]


def _mean_of_answers(one: EvaluatedSet, column: Column, prompts: Sequence[str]) -> Measured | Absent:
    """Share of yes among all answers to a group of questions; every question weighs the same.

    n counts images: those that were asked, of these and of those that have no row.
    """
    seeds = one.settings.seeds
    answers = one.answers(column.metric, column.group, prompts, seeds, _most_questions([one], column))
    found = mean(answers.reshape(len(prompts), -1), share=True, asked=answers.size)
    if isinstance(found, Absent):
        return found
    scored = one.metrics[column.metric].values
    images = int(np.isfinite(answers).any(2).sum())
    unscored = sum(image_id(prompt, seed) not in scored for prompt in prompts for seed in seeds)
    return replace(found, n=images, asked=images + unscored)


def _contrast_of_answers(group: Group, one: EvaluatedSet, column: Column) -> Contrast | Absent:
    prompts, seeds = shared(group, one, column.metric, column.category)
    most = _most_questions([one, group.baseline], column)
    ours, baseline = (
        images.answers(column.metric, column.group, prompts, seeds, most) for images in (one, group.baseline)
    )
    found = difference(ours.reshape(len(prompts), -1), baseline.reshape(len(prompts), -1), share=True)
    if isinstance(found, Absent):
        return found
    return replace(found, pairs=int(np.isfinite(ours - baseline).any(2).sum()))


def _most_questions(sets: Sequence[EvaluatedSet], column: Column) -> int:
    """Of the group, that any image was asked."""
    return max(
        one.asked_questions(column.metric, column.group, image)[0]
        for one in sets
        for image in one.metrics[column.metric].values
    )
