"""The sets of a benchmark, and which of their images can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..benchmarks import Benchmark, benchmark_of
from .numbers import Values
from .read import EvaluatedSet


@dataclass(frozen=True)
class Group:
    """The sets of one benchmark; the first is the baseline."""

    benchmark: Benchmark
    sets: tuple[EvaluatedSet, ...]

    @property
    def baseline(self) -> EvaluatedSet:
        return self.sets[0]

    def metrics(self) -> list[str]:
        """Of single images, that any set was scored by."""
        return sorted({name for one in self.sets for name in one.metrics})

    def title(self, metric: str) -> str:
        """Of a metric, as the first set that has it says."""
        return next(one.metrics[metric].about.title for one in self.sets if metric in one.metrics)

    def categories(self) -> list[str]:
        """Of all sets' prompts, in the order of the official table, then in the prompts' own."""
        official = [column.category for column in self.benchmark.columns if column.category]
        found = list(dict.fromkeys(name for one in self.sets for name in one.categories()))
        ranks = {name: official.index(name) for name in found if name in official}
        return sorted(found, key=lambda name: ranks.get(name, len(official)))

    def same_judge(self, one: EvaluatedSet, metric: str) -> bool:
        """Whether a set's scores and the baseline's come from the same judge."""
        return one.metrics[metric].about.judge == self.baseline.metrics[metric].about.judge


@dataclass(frozen=True)
class Matched:
    """Scores of two sets for the same prompts and seeds.

    Attributes:
        prompts, seeds: see `shared`.
        ours, baseline: [P, K].
    """

    prompts: Sequence[str]
    seeds: Sequence[int]
    ours: Values = field(repr=False)
    baseline: Values = field(repr=False)


def group_sets(sets: Sequence[EvaluatedSet]) -> list[Group]:
    """By benchmark, in the order in which they come."""
    found: dict[str, list[EvaluatedSet]] = {}
    for one in sets:
        found.setdefault(benchmark_of(one.settings.benchmark).name, []).append(one)
    return [Group(benchmark_of(group[0].settings.benchmark), tuple(group)) for group in found.values()]


def asked_prompts(group: Group, one: EvaluatedSet, metric: str, category: str) -> list[str]:
    """Ids of the prompts that the metric was asked about.

    Metrics write no row where they do not apply. A prompt is asked about if any set has a row for its category: then
    what is missing is missing, and is counted as such.
    """
    applies = frozenset().union(*(other.metrics[metric].categories for other in group.sets if metric in other.metrics))
    return [prompt.id for prompt in one.prompts if prompt.category in applies and category in ("", prompt.category)]


def shared(group: Group, one: EvaluatedSet, metric: str, category: str) -> tuple[list[str], list[int]]:
    """Ids of the prompts that a set and the baseline both have, in every field, and the seeds that both have."""
    baseline = group.baseline
    seeds = [seed for seed in baseline.settings.seeds if seed in one.settings.seeds]
    asked = asked_prompts(group, baseline, metric, category)
    return [prompt for prompt in asked if one.known.get(prompt) == baseline.known[prompt]], seeds


def matched(group: Group, one: EvaluatedSet, metric: str, category: str, part: str = "score") -> Matched:
    """Scores of a set and the baseline, which both have been scored by the metric."""
    prompts, seeds = shared(group, one, metric, category)
    ours, baseline = (images.values(metric, part, prompts, seeds) for images in (one, group.baseline))
    return Matched(prompts, seeds, ours, baseline)
