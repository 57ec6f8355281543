"""Content of a report, before it is written as HTML, JSON or Markdown: tables, notices, examples, cost, judges."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from llm4gen_diffusers.provenance import machine

from ..image_set import ImageRow, image_id
from .read import About, EvaluatedSet, SetScores, metric_title, number_of, read_sets
from .tables import Absent, Count, Group, Measured, Table, Total, build_tables, group_sets, mean

EXAMPLES = 3
"""Prompts shown on either side of a comparison."""

SAMPLES = 8
"""Prompts in the grid of samples."""

PACKAGES = ("jinja2", "numpy", "scipy", "pillow")
"""Packages whose versions affect a report's numbers or bytes."""

INCOMPLETE = ("missing_images", "missing_scores", "stale_scores")
"""Kinds of notices that make a report incomplete."""


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


@dataclass(frozen=True)
class Example:
    """A prompt of which a set and the baseline have images.

    Attributes:
        prompt, text, category: of the prompt.
        score, baseline_score, difference: means over the seeds that both have.
        seeds: number of those seeds.
        shown_seed: the seed whose difference is closest to the mean.
    """

    prompt: str
    text: str
    category: str
    score: float
    baseline_score: float
    difference: float
    seeds: int
    shown_seed: int


@dataclass(frozen=True)
class WinsAndLosses:
    """Prompts on which a set differs most from the baseline by a metric.

    Attributes:
        set, baseline: labels of the sets.
        metric, title, share: of the metric.
        better, worse, equal: counts of the prompts that are compared.
        wins, losses: prompts with the largest differences, the largest first.
    """

    set: str
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
    """A prompt that was chosen without regard to scores, and the seed of its images."""

    prompt: str
    text: str
    category: str
    seed: int


@dataclass(frozen=True)
class Cost:
    """Cost of the images of a set that were generated on one kind of device.

    Attributes:
        set: label of the set.
        device: such as "NVIDIA A100-SXM4-80GB" or "CPU".
        seconds_per_image: with its interval over prompts.
        images_per_second: the reciprocal.
        hours: GPU-hours or CPU-hours of all these images: time of processes, which may have run at the same time.
    """

    set: str
    device: str
    seconds_per_image: Measured | Absent
    images_per_second: Measured | Absent
    hours: Total


@dataclass(frozen=True)
class Judge:
    """The judge of a metric.

    Attributes:
        metric, title: of the metric.
        judge: fingerprint of `describe`.
        describe: everything that changes a score.
        sets: number of scores by label of the set.
    """

    metric: str
    title: str
    judge: str
    describe: Mapping[str, Any]
    sets: dict[str, int]


@dataclass(frozen=True)
class QuotedRow:
    """Values of a model, as its source prints them."""

    model: str
    values: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class QuotedTable:
    """Published numbers from `quoted.yaml`. They are text, so that nothing is computed with them by mistake."""

    key: str
    benchmark: str
    title: str
    unit: str
    columns: tuple[str, ...]
    rows: tuple[QuotedRow, ...]
    warnings: tuple[str, ...]
    quoted: bool = True

    def __post_init__(self) -> None:
        for row in self.rows:
            if not row.source or len(row.values) != len(self.columns):
                raise ValueError(f"{self.key}, {row.model}: expected a source and {len(self.columns)} values")


@dataclass(frozen=True)
class BenchmarkReport:
    """Part of a report that is about one benchmark."""

    group: Group
    notices: tuple[Notice, ...]
    judges: tuple[Judge, ...]
    tables: tuple[Table, ...]
    wins_and_losses: tuple[WinsAndLosses, ...]
    samples: tuple[Sample, ...]
    cost: tuple[Cost, ...]
    quoted: tuple[QuotedTable, ...]


@dataclass(frozen=True)
class Report:
    """A report.

    Attributes:
        benchmarks: one part for each benchmark of the sets.
        quoted_costs: published costs of training.
        program: versions of the software that made the report.
    """

    benchmarks: tuple[BenchmarkReport, ...]
    quoted_costs: tuple[QuotedTable, ...]
    program: Mapping[str, Any]

    @property
    def notices(self) -> list[Notice]:
        return [notice for one in self.benchmarks for notice in one.notices]

    @property
    def complete(self) -> bool:
        """Whether no image is missing, and no score of a metric that was begun."""
        return not any(notice.kind in INCOMPLETE for notice in self.notices)


def build_report(paths: Sequence[str | os.PathLike[str]]) -> Report:
    """Return the report on some image sets; the first set of each benchmark is its baseline.

    Args:
        paths: folders.

    Raises:
        LLM4GENError: see `read_sets`.
    """
    benchmarks = tuple(
        BenchmarkReport(
            group,
            tuple(notices(group)),
            tuple(_judges(group.sets)),
            tuple(build_tables(group)),
            tuple(wins_and_losses(group)),
            tuple(samples(group)),
            tuple(cost for one in group.sets for cost in costs(one)),
            quoted_tables(group.benchmark.name),
        )
        for group in group_sets(read_sets(paths))
    )
    packages = {name: metadata.version(name) for name in PACKAGES}
    program = {"llm4gen": machine()["llm4gen"], "python": platform.python_version(), "packages": packages}
    return Report(benchmarks, quoted_tables("cost"), program)


def notices(group: Group) -> Iterator[Notice]:
    """Yield the notices on all sets of a benchmark."""
    title, count = group.benchmark.title, group.benchmark.official_categories
    for one in group.sets:
        for kind, text in _notices_of_set(group, one):
            yield Notice(kind, title, one.label, f"{title}, {one.label}: {text}")
    for one in group.sets[1:]:
        yield from _not_compared(group, one)
    if count and (here := len(group.categories())) != count:
        text = f"{title}: the overall score is over {here} categories here; the official score is over {count}."
        yield Notice("missing_categories", title, "", text)


def _notices_of_set(group: Group, one: EvaluatedSet) -> Iterator[tuple[str, str]]:
    """Kind and text of the notices on one set."""
    if one.missing:
        names = ", ".join(one.missing[:3]) + " and others" * (len(one.missing) > 3)
        yield "missing_images", f"{len(one.missing):,} of {one.asked:,} images are missing: {names}."
    for metric in sorted(one.metrics):
        scores, title = one.metrics[metric], group.title(metric)
        asked = [image_id(id, seed) for id in group.asked_prompts(one, metric) for seed in one.settings.seeds]
        # A missing image has no row either, and is reported above.
        unscored = sum(name not in scores.values and name not in one.gone for name in asked)
        rows = [scores.values[name] for name in asked if name in scores.values]
        not_judged = sum(number_of(row, "score") is None for row in rows)
        if unscored:
            text = f"{title} has not scored {unscored:,} of {len(asked):,} images; score the image set again."
            yield "missing_scores", text
        if not_judged:
            text = f"{title} could not judge {not_judged:,} of {len(asked):,} images; the mean is without them."
            yield "not_judged", text
        if scores.left_out:
            text = (
                f"{title} has {scores.left_out:,} rows that are not used: they are from another judge, or of images "
                "that have changed or do not exist."
            )
            yield "left_out_scores", text
    for metric, whole in sorted(one.set_metrics.items()):
        if whole.images not in ("", one.images_hash):
            title = metric_title(metric, whole.title)
            yield "stale_scores", f"{title} was computed on other images than exist now; score the image set again."
    if lacking := [name for name in group.benchmark.metrics if name not in {*one.metrics, *one.set_metrics}]:
        yield "missing_metrics", f"not scored by {', '.join(map(metric_title, lacking))}."


def _not_compared(group: Group, one: EvaluatedSet) -> Iterator[Notice]:
    """Notices on what of a set is not compared with the baseline."""
    title, baseline = group.benchmark.title, group.baseline
    prompts = sum(one.known.get(prompt.id) == prompt for prompt in baseline.prompts)
    seeds = len({*one.settings.seeds} & {*baseline.settings.seeds})
    most = max(len(baseline.prompts), len(one.prompts)), max(len(baseline.settings.seeds), len(one.settings.seeds))
    if (prompts, seeds) != most:
        text = (
            f"{title}: {one.label} and {baseline.label} share {prompts:,} of {most[0]:,} prompts (equal in every "
            f"field) and {seeds} of {most[1]} seeds; only these are compared."
        )
        yield Notice("unmatched", title, one.label, text)
    judges: list[tuple[str, About | SetScores, About | SetScores]] = [
        (group.title(metric), one.metrics[metric].about, baseline.metrics[metric].about)
        for metric in sorted({*one.metrics} & {*baseline.metrics})
    ]
    judges += [
        (metric_title(metric, one.set_metrics[metric].title), one.set_metrics[metric], baseline.set_metrics[metric])
        for metric in sorted({*one.set_metrics} & {*baseline.set_metrics})
    ]
    for metric_name, ours, theirs in judges:
        if ours.judge != theirs.judge:
            a, b = ours.describe, theirs.describe
            differing = sorted(key for key in {*a, *b} if a.get(key) != b.get(key))
            text = (
                f"{title}, {metric_name}: {one.label} and {baseline.label} are not compared, because they were scored "
                f"by different judges ({ours.judge} and {theirs.judge}; they differ in "
                f"{', '.join(differing) or 'their fingerprints alone'}). Score one again with the other's judge."
            )
            yield Notice("other_judge", title, one.label, text)


def wins_and_losses(group: Group) -> Iterator[WinsAndLosses]:
    """Yield examples for every metric of single images and every set that is compared with the baseline."""
    for metric in group.metrics():
        for one in group.sets[1:]:
            if not group.why_not_compared(one, metric) and (found := _wins_and_losses(group, one, metric)):
                yield found


def _wins_and_losses(group: Group, one: EvaluatedSet, metric: str) -> WinsAndLosses | None:
    prompts, seeds = group.shared(one, metric)
    ours, baseline = (values[..., 0] for values in group.matched(one, metric))
    changes = ours - baseline
    means = {n: float(np.nanmean(row)) for n, row in enumerate(changes) if np.isfinite(row).any()}
    if len(means) < 2:
        return None
    order = sorted(means, key=lambda n: -means[n])

    def example(n: int) -> Example:
        both, prompt = np.isfinite(changes[n]), one.known[prompts[n]]
        seed = seeds[int(np.nanargmin(np.abs(changes[n] - means[n])))]
        scores = float(ours[n, both].mean()), float(baseline[n, both].mean())
        return Example(prompt.id, prompt.text, prompt.category, *scores, scores[0] - scores[1], int(both.sum()), seed)

    better, worse = [n for n in order if means[n] > 0], [n for n in order[::-1] if means[n] < 0]
    return WinsAndLosses(
        one.label,
        group.baseline.label,
        metric,
        group.title(metric),
        group.share(metric),
        Count(len(better), len(means)),
        Count(len(worse), len(means)),
        Count(len(means) - len(better) - len(worse), len(means)),
        tuple(map(example, better[:EXAMPLES])),
        tuple(map(example, worse[:EXAMPLES])),
    )


def samples(group: Group) -> list[Sample]:
    """Return the first prompt of each category, then the second of each, and so on, with the baseline's first seed."""
    by_category: dict[str, list[Sample]] = {}
    for prompt in group.baseline.prompts:
        sample = Sample(prompt.id, prompt.text, prompt.category, group.baseline.settings.seeds[0])
        by_category.setdefault(prompt.category, []).append(sample)
    turns = range(max(map(len, by_category.values())))
    return [found[turn] for turn in turns for found in by_category.values() if turn < len(found)][:SAMPLES]


def costs(one: EvaluatedSet) -> Iterator[Cost]:
    """Yield the cost of a set's images for each kind of device, from the manifest."""
    devices: dict[tuple[str, str], list[ImageRow]] = {}
    for row in one.rows.values():
        devices.setdefault(_device(row), []).append(row)
    for device, unit in sorted(devices):
        rows = devices[device, unit]
        by_image = {(row.prompt, row.seed): row.seconds for row in rows}
        prompts, seeds = dict.fromkeys(row.prompt for row in rows), sorted({row.seed for row in rows})
        values = np.array([[[by_image.get((prompt, seed), np.nan)] for seed in seeds] for prompt in prompts])
        seconds = mean({"": values}, share=False, asked=len(rows))
        hours = Total(float(np.nansum(values)) / 3600, unit, len(rows))
        yield Cost(one.label, device, seconds, _reciprocal(seconds), hours)


def _reciprocal(seconds: Measured | Absent) -> Measured | Absent:
    """Images per second; there is no upper end if the interval of the seconds includes 0."""
    if isinstance(seconds, Absent):
        return seconds
    if seconds.low is None or seconds.high is None or seconds.low <= 0:
        return Absent("times vary too much")
    how = f"one over the seconds of an image: {seconds.how}"
    low, high = 1 / seconds.high, 1 / seconds.low
    return Measured(1 / seconds.value, low, high, seconds.n, seconds.prompts, seconds.asked, how)


def _device(row: ImageRow) -> tuple[str, str]:
    """Kind of device, and the unit of its hours."""
    if server := row.made.get("server"):
        return f"ComfyUI at {server}", "hours"
    device = str(row.made.get("device") or "not recorded")
    if device == "cpu":
        return "CPU", "CPU-hours"
    return device, "hours" if device == "not recorded" else "GPU-hours"


def _judges(sets: Sequence[EvaluatedSet]) -> list[Judge]:
    found: dict[tuple[str, str], Judge] = {}
    for one in sets:
        counts: list[tuple[str, About | SetScores, int]] = [
            (metric, scores.about, len(scores.values)) for metric, scores in one.metrics.items()
        ]
        counts += [
            (metric, whole, max((number.n for number in whole.scores.values()), default=0))
            for metric, whole in one.set_metrics.items()
        ]
        for metric, about, count in counts:
            judge = Judge(metric, metric_title(metric, about.title), about.judge, about.describe, {})
            found.setdefault((metric, about.judge), judge).sets[one.label] = count
    return [found[key] for key in sorted(found)]


def quoted_tables(benchmark: str) -> tuple[QuotedTable, ...]:
    """Return the published numbers for a benchmark, or for "cost"."""
    return tuple(table for table in _quoted() if table.benchmark == benchmark)


@cache
def _quoted() -> tuple[QuotedTable, ...]:
    content = yaml.load(Path(__file__).with_name("quoted.yaml").read_text(encoding="utf-8"), yaml.BaseLoader)
    tables = []
    for table in content:
        rows = tuple(
            QuotedRow(model, tuple(values.split() if isinstance(values, str) else values), source)
            for source, models in table.pop("rows").items()
            for model, values in models.items()
        )
        columns, warnings = tuple(table.pop("columns")), tuple(table.pop("warnings"))
        tables.append(QuotedTable(columns=columns, rows=rows, warnings=warnings, **table))
    return tuple(tables)
