"""What is not there: images, scores, and rows that do not count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..benchmarks import METRICS
from ..image_set import image_id
from .groups import Group, asked_prompts
from .read import About, EvaluatedSet, SetScores, number_of


@dataclass(frozen=True)
class Notice:
    """Something that a reader has to know before any number.

    Attributes:
        kind: "missing_images", "missing_scores", "not_judged", "left_out_scores", "stale_scores", "missing_metrics",
            "missing_categories", "unmatched" or "other_judge".
        benchmark: its title.
        set: label of the set; "" for all of them.
        text: a sentence.
    """

    kind: str
    benchmark: str
    set: str
    text: str


def notices(group: Group) -> list[Notice]:
    """Of all sets of a benchmark."""
    title = group.benchmark.title
    found: list[Notice] = []
    for one in group.sets:
        if one.missing:
            text = (
                f"{title}, {one.label}: {len(one.missing):,} of {one.asked:,} images are missing, {_some(one.missing)}."
            )
            found.append(Notice("missing_images", title, one.label, text))
        for metric in sorted(one.metrics):
            found += _of_metric(group, one, metric)
        for name, scores in sorted(one.set_metrics.items()):
            if scores.images not in ("", one.images_hash):
                text = (
                    f"{title}, {one.label}: {scores.title or name} was measured on other images than are there now; "
                    "score the set again."
                )
                found.append(Notice("stale_scores", title, one.label, text))
        if lacking := _missing_metrics(group, one):
            text = f"{title}: {one.label} has not been scored by: {', '.join(lacking)}."
            found.append(Notice("missing_metrics", title, one.label, text))
    for one in group.sets[1:]:
        found += _unmatched(group, one)
        found += _refusals(group, one)
    count = group.benchmark.official_categories
    if count and (here := len(group.categories())) != count:
        text = f"{title}: the overall score is over {here} categories here; officially they are {count}."
        found.append(Notice("missing_categories", title, "", text))
    return found


def _missing_metrics(group: Group, one: EvaluatedSet) -> list[str]:
    """Titles of the official metrics that a set lacks."""
    have = {*one.metrics, *one.set_metrics}
    return [METRICS[name].title for name in group.benchmark.metrics if name not in have]


def _unmatched(group: Group, one: EvaluatedSet) -> list[Notice]:
    baseline = group.baseline
    prompts = sum(one.known.get(prompt.id) == prompt for prompt in baseline.prompts)
    seeds = len({*one.settings.seeds} & {*baseline.settings.seeds})
    most = max(len(baseline.prompts), len(one.prompts)), max(len(baseline.settings.seeds), len(one.settings.seeds))
    if (prompts, seeds) == most:
        return []
    text = (
        f"{group.benchmark.title}: {one.label} and {baseline.label} share {prompts:,} of {most[0]:,} prompts, word for "
        f"word, and {seeds} of {most[1]} seeds; only these are compared."
    )
    return [Notice("unmatched", group.benchmark.title, one.label, text)]


def _refusals(group: Group, one: EvaluatedSet) -> list[Notice]:
    """A sentence for each comparison that is not made because the judges differ."""
    judges: list[tuple[str, About | SetScores, About | SetScores]] = [
        (group.title(metric), one.metrics[metric].about, group.baseline.metrics[metric].about)
        for metric in sorted({*one.metrics} & {*group.baseline.metrics})
    ]
    judges += [
        (scores.title or name, scores, group.baseline.set_metrics[name])
        for name, scores in sorted(one.set_metrics.items())
        if name in group.baseline.set_metrics
    ]
    return [_refusal(group, one, *judge) for judge in judges if judge[1].judge != judge[2].judge]


def _refusal(group: Group, one: EvaluatedSet, title: str, ours: About | SetScores, theirs: About | SetScores) -> Notice:
    a, b = ours.describe, theirs.describe
    differing = sorted(key for key in {*a, *b} if a.get(key) != b.get(key))
    text = (
        f"{group.benchmark.title}, {title}: {one.label} and {group.baseline.label} are not compared, for they have "
        f"different judges ({ours.judge} and {theirs.judge}; they differ in "
        f"{', '.join(differing) or 'their fingerprints alone'}). Score one of them again with the other's judge."
    )
    return Notice("other_judge", group.benchmark.title, one.label, text)


def _of_metric(group: Group, one: EvaluatedSet, metric: str) -> list[Notice]:
    title, scores = group.benchmark.title, one.metrics[metric]
    asked = [image_id(prompt, seed) for prompt in asked_prompts(group, one, metric, "") for seed in one.settings.seeds]
    without_row = [name for name in asked if name not in scores.values]
    no_image = sum(name in one.gone for name in without_row)
    not_judged = sum(1 for name in asked if name in scores.values and number_of(scores.values[name], "score") is None)
    where = f"{title}, {one.label}: {scores.about.title}"
    found = []
    if unscored := len(without_row) - no_image:  # that images are missing has been said already
        text = f"{where} has not scored {unscored:,} of {len(asked):,} images; score the set again."
        found.append(Notice("missing_scores", title, one.label, text))
    if not_judged:
        text = f"{where} could not judge {not_judged:,} of {len(asked):,} images; its mean is without them."
        found.append(Notice("not_judged", title, one.label, text))
    if scores.left_out:
        text = (
            f"{where}: {scores.left_out:,} rows are not used, for they are another judge's, or of images that are not "
            "there as they were."
        )
        found.append(Notice("left_out_scores", title, one.label, text))
    return found


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" and others" if len(names) > 3 else "")
