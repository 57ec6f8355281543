"""Which images to show: the prompts where a set gains and loses most, and some that nobody has chosen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..image_set import ImageRow, image_id
from .groups import Group, matched
from .numbers import Absent, Count, difference
from .read import EvaluatedSet

SAMPLES = 8
"""Prompts of the grid that nobody has chosen."""


@dataclass(frozen=True)
class Picture:
    """An image to show.

    Attributes:
        label: of the set that it comes from.
        images: the set.
        row: of the manifest; None where the image is missing.
        seed: of it.
        score: by the metric that the image is shown for; None where there is none.
    """

    label: str
    images: EvaluatedSet
    row: ImageRow | None
    seed: int
    score: float | None = None


@dataclass(frozen=True)
class Example:
    """A prompt, painted by a set and by the baseline.

    Attributes:
        prompt, text, category: of it.
        ours, baseline: mean scores over the seeds that both have.
        seeds: how many those are.
        pictures: of the baseline and of the set, with one seed: that whose difference is closest to the mean.
    """

    prompt: str
    text: str
    category: str
    ours: float
    baseline: float
    seeds: int
    pictures: tuple[Picture, ...]

    @property
    def change(self) -> float:
        return self.ours - self.baseline


@dataclass(frozen=True)
class WinsAndLosses:
    """Where a set differs most from the baseline by a metric.

    Attributes:
        label, baseline: of the sets.
        metric, title, share: of the metric.
        better, worse, equal: of all prompts that are compared.
        wins, losses: the prompts with the largest differences, the largest first.
    """

    label: str
    baseline: str
    metric: str
    title: str
    share: bool
    better: Count
    worse: Count
    equal: Count
    wins: tuple[Example, ...]
    losses: tuple[Example, ...]


@dataclass(frozen=True)
class Sample:
    """A prompt that nobody has chosen, painted by every set with the same seed."""

    prompt: str
    text: str
    category: str
    seed: int
    pictures: tuple[Picture, ...]


def wins_and_losses(group: Group, most: int) -> Iterator[WinsAndLosses]:
    """By every metric of single images and for every set but the baseline, where their judges are the same.

    Args:
        most: prompts on either side.
    """
    for metric in group.metrics():
        for one in group.sets[1:]:
            if not (metric in one.metrics and metric in group.baseline.metrics and group.same_judge(one, metric)):
                continue
            if found := _of_metric(group, one, metric, most):
                yield found


def _of_metric(group: Group, one: EvaluatedSet, metric: str, most: int) -> WinsAndLosses | None:
    pair = matched(group, one, metric, "")
    about = one.metrics[metric].about
    if isinstance(difference(pair.ours, pair.baseline, about.share), Absent):
        return None
    changes = pair.ours - pair.baseline
    known = [n for n, row in enumerate(changes) if np.isfinite(row).any()]
    means = {n: float(np.nanmean(changes[n])) for n in known}
    order = sorted(known, key=lambda n: -means[n])

    def example(n: int) -> Example:
        both = np.isfinite(changes[n])
        shown = int(np.nanargmin(np.abs(changes[n] - means[n])))
        seed, prompt = pair.seeds[shown], one.known[pair.prompts[n]]
        pictures = (
            _picture(group.baseline, prompt.id, seed, pair.baseline[n, shown]),
            _picture(one, prompt.id, seed, pair.ours[n, shown]),
        )
        ours, baseline = float(pair.ours[n, both].mean()), float(pair.baseline[n, both].mean())
        return Example(prompt.id, prompt.text, prompt.category, ours, baseline, int(both.sum()), pictures)

    better, worse = ([n for n in side if sign * means[n] > 0] for side, sign in ((order, 1), (order[::-1], -1)))
    return WinsAndLosses(
        one.label,
        group.baseline.label,
        metric,
        about.title,
        about.share,
        Count(len(better), len(known)),
        Count(len(worse), len(known)),
        Count(len(known) - len(better) - len(worse), len(known)),
        tuple(example(n) for n in better[:most]),
        tuple(example(n) for n in worse[:most]),
    )


def samples(group: Group) -> list[Sample]:
    """The first prompt of each category, then the second of each, and so on; with the first seed of the baseline.

    No score plays a part.
    """
    baseline = group.baseline
    seed = baseline.settings.seeds[0]
    by_category: dict[str, list[str]] = {}
    for prompt in baseline.prompts:
        by_category.setdefault(prompt.category, []).append(prompt.id)
    turns = range(max(map(len, by_category.values())))
    chosen = [prompts[turn] for turn in turns for prompts in by_category.values() if turn < len(prompts)][:SAMPLES]
    return [
        Sample(
            name,
            baseline.known[name].text,
            baseline.known[name].category,
            seed,
            tuple(_picture(one, name, seed) for one in group.sets if one.known.get(name) == baseline.known[name]),
        )
        for name in chosen
    ]


def _picture(one: EvaluatedSet, prompt: str, seed: int, score: float | None = None) -> Picture:
    name = image_id(prompt, seed)
    row = one.rows.get(name)
    here = row is not None and name not in one.gone
    return Picture(one.label, one, row if here else None, seed, None if score is None else float(score))
