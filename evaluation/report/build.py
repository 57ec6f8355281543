"""Everything that a report says, before it is written as a page, as JSON or as Markdown."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from llm4gen_diffusers.provenance import machine

from .cost import Cost, costs
from .examples import Sample, WinsAndLosses, samples, wins_and_losses
from .gaps import Notice, notices
from .groups import Group, group_sets
from .quoted import QuotedTable, quoted
from .read import EvaluatedSet, read_sets
from .tables import Table, build_tables

MOST_EXAMPLES = 3
"""Prompts shown on either side of a comparison."""

PACKAGES = ("numpy", "scipy", "pillow")
"""Whose versions decide a report's numbers and bytes."""


@dataclass(frozen=True)
class JudgeRecord:
    """Who has judged.

    Attributes:
        metric, title: of the metric.
        judge: fingerprint of `describe`.
        describe: everything that changes a score.
        sets: labels of the sets that this judge has scored.
        images: scores of each of them that count.
    """

    metric: str
    title: str
    judge: str
    describe: Mapping[str, Any]
    sets: tuple[str, ...]
    images: tuple[int, ...]


@dataclass(frozen=True)
class BenchmarkReport:
    """One benchmark's part of a report."""

    group: Group
    notices: tuple[Notice, ...]
    tables: tuple[Table, ...]
    quoted: tuple[QuotedTable, ...]
    wins_and_losses: tuple[WinsAndLosses, ...]
    samples: tuple[Sample, ...]
    costs: tuple[Cost, ...]
    judges: tuple[JudgeRecord, ...]


@dataclass(frozen=True)
class Report:
    """All of it.

    Attributes:
        benchmarks: one for each that the sets belong to.
        quoted_costs: of training, by others.
        program: versions of what made the report.
    """

    benchmarks: tuple[BenchmarkReport, ...]
    quoted_costs: tuple[QuotedTable, ...]
    program: Mapping[str, Any]

    @property
    def complete(self) -> bool:
        """No image is missing, and no score of a metric that was begun."""
        missing = ("missing_images", "missing_scores", "stale_scores")
        return not any(notice.kind in missing for one in self.benchmarks for notice in one.notices)


def build_report(paths: Sequence[str | os.PathLike[str]]) -> Report:
    """From folders of image sets; the first set of each benchmark is its baseline.

    Raises:
        LLM4GENError: see `read_sets`.
    """
    groups = group_sets(read_sets(paths))
    program = {
        "llm4gen": machine()["llm4gen"],
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
    }
    return Report(tuple(map(_benchmark, groups)), tuple(quoted("cost")), program)


def _benchmark(group: Group) -> BenchmarkReport:
    return BenchmarkReport(
        group,
        tuple(notices(group)),
        tuple(build_tables(group)),
        tuple(quoted(group.benchmark.name)),
        tuple(wins_and_losses(group, MOST_EXAMPLES)),
        tuple(samples(group)),
        tuple(costs(group.sets)),
        tuple(_judges(group.sets)),
    )


def _judges(sets: Sequence[EvaluatedSet]) -> list[JudgeRecord]:
    found: dict[tuple[str, str], tuple[str, Mapping[str, Any], list[str], list[int]]] = {}
    for one in sets:
        for metric, scores in one.metrics.items():
            about = scores.about
            record = found.setdefault((metric, about.judge), (about.title, about.describe, [], []))
            record[2].append(one.label)
            record[3].append(len(scores.values))
        for metric, whole in one.set_metrics.items():
            record = found.setdefault((metric, whole.judge), (whole.title or metric, whole.describe, [], []))
            record[2].append(one.label)
            record[3].append(max((number.n for number in whole.scores.values()), default=0))
    return [
        JudgeRecord(metric, title, judge, describe, tuple(labels), tuple(counts))
        for (metric, judge), (title, describe, labels, counts) in sorted(found.items(), key=lambda one: one[0])
    ]
