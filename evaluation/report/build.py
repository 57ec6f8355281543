"""Content of a report, before it is written as HTML, JSON or Markdown: tables, notices, examples, cost, judges."""

from __future__ import annotations

import itertools
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import yaml

from llm4gen_diffusers.machine import machine

from ..image_set import ImageRow, Prompt, image_id
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


Record: TypeAlias = "dict[str, Any]"
"""A part of report.json; `write` says what is in it. `Cell`s are values too."""


@dataclass(frozen=True)
class BenchmarkReport:
    """Part of a report that is about one benchmark; see report.json for the records."""

    group: Group
    notices: Sequence[Notice]
    judges: Sequence[Record]
    tables: Sequence[Table]
    wins_and_losses: Sequence[Record]
    samples: Sequence[Record]
    cost: Sequence[Record]
    quoted: Sequence[Record]


@dataclass(frozen=True)
class Report:
    """A report.

    Attributes:
        benchmarks: one part for each benchmark of the sets.
        quoted_costs: published costs of training.
        program: versions of the software that made the report.
    """

    benchmarks: Sequence[BenchmarkReport]
    quoted_costs: Sequence[Record]
    program: Record

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
    benchmarks = [
        BenchmarkReport(
            group,
            list(notices(group)),
            _judges(group.sets),
            build_tables(group),
            list(wins_and_losses(group)),
            samples(group),
            [cost for one in group.sets for cost in costs(one)],
            quoted(group.benchmark.name),
        )
        for group in group_sets(read_sets(paths))
    ]
    packages = {name: metadata.version(name) for name in PACKAGES}
    program = {"llm4gen": machine()["llm4gen"], "python": platform.python_version(), "packages": packages}
    return Report(benchmarks, quoted("cost"), program)


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


def wins_and_losses(group: Group) -> Iterator[Record]:
    """Yield the prompts on which a set differs most from the baseline, for every metric of single images."""
    for metric in group.metrics():
        for one in group.sets[1:]:
            if not group.why_not_compared(one, metric):
                yield from _wins_and_losses(group, one, metric)


def _wins_and_losses(group: Group, one: EvaluatedSet, metric: str) -> Iterator[Record]:
    prompts, seeds = group.shared(one, metric)
    ours, baseline = (values[..., 0] for values in group.matched(one, metric))
    changes = ours - baseline
    means = {n: float(np.nanmean(row)) for n, row in enumerate(changes) if np.isfinite(row).any()}
    if len(means) < 2:
        return

    def example(n: int) -> Record:
        both, prompt = np.isfinite(changes[n]), one.known[prompts[n]]
        score, baseline_score = float(ours[n, both].mean()), float(baseline[n, both].mean())
        return {
            **_prompt(prompt),
            "score": score,
            "baseline_score": baseline_score,
            "difference": score - baseline_score,
            "seeds": int(both.sum()),
            "shown_seed": seeds[int(np.nanargmin(np.abs(changes[n] - means[n])))],
        }

    order = sorted(means, key=lambda n: -means[n])
    better, worse = [n for n in order if means[n] > 0], [n for n in order[::-1] if means[n] < 0]
    yield {
        "set": one.label,
        "baseline": group.baseline.label,
        "metric": metric,
        "better": Count(len(better), len(means)),
        "worse": Count(len(worse), len(means)),
        "equal": Count(len(means) - len(better) - len(worse), len(means)),
        "wins": list(map(example, better[:EXAMPLES])),
        "losses": list(map(example, worse[:EXAMPLES])),
    }


def samples(group: Group) -> list[Record]:
    """Return the first prompt of each category, then the second of each, and so on, with the baseline's first seed."""
    by_category: dict[str, list[Record]] = {}
    for prompt in group.baseline.prompts:
        sample = {**_prompt(prompt), "seed": group.baseline.settings.seeds[0]}
        by_category.setdefault(prompt.category, []).append(sample)
    turns = itertools.zip_longest(*by_category.values())
    return [sample for turn in turns for sample in turn if sample][:SAMPLES]


def _prompt(prompt: Prompt) -> Record:
    return {"prompt": prompt.id, "text": prompt.text, "category": prompt.category}


def costs(one: EvaluatedSet) -> Iterator[Record]:
    """Yield the cost of a set's images for each kind of device, from the manifest."""
    devices: dict[tuple[str, str], list[ImageRow]] = {}
    for row in one.rows.values():
        devices.setdefault(_device(row), []).append(row)
    for (device, unit), rows in sorted(devices.items(), key=lambda item: item[0]):
        by_image = {(row.prompt, row.seed): row.seconds for row in rows}
        prompts, seeds = dict.fromkeys(row.prompt for row in rows), sorted({row.seed for row in rows})
        values = np.array([[[by_image.get((prompt, seed), np.nan)] for seed in seeds] for prompt in prompts])
        seconds = mean({"": values}, share=False, asked=len(rows))
        yield {
            "set": one.label,
            "device": device,
            "seconds_per_image": seconds,
            "images_per_second": _reciprocal(seconds),
            "hours": Total(float(np.nansum(values)) / 3600, unit, len(rows)),
        }


def _reciprocal(seconds: Measured | Absent) -> Measured | Absent:
    """Images per second; there is no upper end if the interval of the seconds includes 0."""
    if isinstance(seconds, Absent):
        return seconds
    if seconds.low is None or seconds.high is None or seconds.low <= 0:
        return Absent("times vary too much")
    how, ends = f"one over the seconds of an image: {seconds.how}", (1 / seconds.high, 1 / seconds.low)
    return replace(seconds, value=1 / seconds.value, low=ends[0], high=ends[1], how=how)


def _device(row: ImageRow) -> tuple[str, str]:
    """Kind of device, such as "CPU" or "NVIDIA A100-SXM4-80GB", and the unit of its hours."""
    if server := row.made.get("server"):
        return f"ComfyUI at {server}", "hours"
    device = str(row.made.get("device") or "not recorded")
    if device == "cpu":
        return "CPU", "CPU-hours"
    return device, "hours" if device == "not recorded" else "GPU-hours"


def _judges(sets: Sequence[EvaluatedSet]) -> list[Record]:
    found: dict[tuple[str, str], Record] = {}
    for one in sets:
        scored: list[tuple[str, About | SetScores, int]] = [
            (metric, scores.about, len(scores.values)) for metric, scores in one.metrics.items()
        ]
        scored += [
            (metric, whole, max((found.n for found in whole.scores.values()), default=0))
            for metric, whole in one.set_metrics.items()
        ]
        for metric, about, count in scored:
            title = metric_title(metric, about.title)
            judge = {"metric": metric, "title": title, "judge": about.judge, "describe": about.describe, "sets": {}}
            found.setdefault((metric, about.judge), judge)["sets"][one.label] = count
    return [found[key] for key in sorted(found)]


def quoted(benchmark: str) -> list[Record]:
    """Return the published numbers for a benchmark, or for "cost", from `quoted.yaml`.

    All values are text, so that nothing is computed with them by mistake.
    """
    text = Path(__file__).with_name("quoted.yaml").read_text(encoding="utf-8")
    tables: list[Record] = [one for one in yaml.load(text, yaml.BaseLoader) if one["benchmark"] == benchmark]
    for table in tables:
        table["quoted"] = True
        table["rows"] = [
            {"model": model, "values": values.split() if isinstance(values, str) else values, "source": source}
            for source, models in table["rows"].items()
            for model, values in models.items()
        ]
    return tables
