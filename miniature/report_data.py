"""What a report is made from: the results of one folder that can be compared, their means and differences."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

import numpy as np

from evaluation.report.html_page import Cell
from evaluation.statistics import Difference, Estimate, estimate, holm, paired
from miniature.captions import CATEGORIES
from miniature.dataset import SETS

from .results import Result, Results, matched, stack
from .variants import BASE_PAPER, CORE, VARIANTS

PAPER = {"base": BASE_PAPER} | {name: arm.paper for name, arm in VARIANTS.items() if arm.paper}
PAPER_MEANS = {name: fmean(scores) for name, scores in PAPER.items()}
TITLES = {"base": "Base"} | {name: arm.title for name, arm in VARIANTS.items()}
CALLED = {name: one.title.split(": ")[name not in CATEGORIES].lower() for name, one in SETS.items()}
"""Sets in the middle of a sentence."""
ATTRIBUTES = ("color", "shape", "texture")
"""Those that stand beside T2I-CompBench's attribute binding."""
CONTRAST_SETS = ("color", "dense", "texture", "shape")
MEASURES = ("accuracy", "words", "binding")
"""What the main claims are measured by: all of it, what is there at all, and what of that belongs together."""

Contrast: TypeAlias = tuple[str, str, tuple[str, ...]]
"""Arms a and b of a difference a - b, and the sets that it is over."""
Differences: TypeAlias = dict[Contrast, Difference]
Groups: TypeAlias = "Sequence[Sequence[Result]]"
"""Of one arm: for each of some sets a result of each seed."""
Columns: TypeAlias = "dict[str, Callable[[str], Cell]]"
"""By header, the cell of an arm."""


CONTRASTS: tuple[Contrast, ...] = tuple(
    (a, b, (name,)) for a, b in (*combinations(CORE[::-1], 2), ("finetune", "base")) for name in CONTRAST_SETS
)


class ReportData:
    """What the folder holds.

    Final results are those at the last step of the arms, which all train equally long, and on the prompts that most of
    them were painted from; no others can be compared.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.world, self.base = _json(folder / "world" / "world.json"), _json(folder / "base" / "base.json")
        self.judge, self.scale = _json(folder / "judge.json"), _json(folder / "reproduction.json").get("scale", {})
        self.results = [one for one in Results(folder / "results.jsonl").load() if one.arm in TITLES]
        base_steps = max((one.step for one in self.results if one.arm == "base"), default=0)
        steps = max((one.step for one in self.results if one.arm != "base"), default=0)
        self.steps = self.scale.get("arm_steps", steps)
        last = [one for one in self.results if one.step == (base_steps if one.arm == "base" else self.steps)]
        self._final = [one for name in SETS for one in _comparable([one for one in last if one.set == name])]
        self.contrasts = {measure: self.differences(measure, CONTRASTS) for measure in MEASURES}

    def seeds(self, arm: str) -> list[int]:
        """Of an arm's final results."""
        return sorted({one.seed for one in self._final if one.arm == arm})

    def final(self, arm: str, sets: Sequence[str], strength: float = 1.0) -> list[list[Result]]:
        """For each set, one of each seed."""
        found = [one for one in self._final if (one.arm, one.strength) == (arm, strength)]
        return [[one for one in found if one.set == name] for name in sets]

    def mean(self, measure: str, sets: Sequence[str], arm: str, strength: float = 1.0) -> Estimate | None:
        """Over the prompts of all sets, and the seeds that have them all."""
        return mean_of(self.final(arm, sets, strength), measure)

    def differences(self, measure: str, contrasts: Iterable[Contrast]) -> Differences:
        """Of those that can be compared; their p values are adjusted for being several."""
        found = {
            (a, b, sets): difference
            for a, b, sets in contrasts
            if (difference := difference_of(self.final(a, sets), self.final(b, sets), measure, b == "base"))
        }
        p_values = holm([difference.p for difference in found.values()])
        return {key: replace(found[key], p=p) for key, p in zip(found, p_values, strict=True)}

    def curve(self, arm: str, name: str) -> dict[int, list[Result]]:
        """Results by step, ascending, all on the same prompts; those may be the first of the final ones."""
        found = [one for one in self.results if (one.arm, one.set, one.strength) == (arm, name, 1.0)]
        earlier = _comparable([one for one in found if one.step < self.steps])
        points = {step: [one for one in earlier if one.step == step] for step in sorted({r.step for r in earlier})}
        if earlier and (final := first_of(self.final(arm, [name])[0], earlier[0])):
            points[self.steps] = final
        return points

    def columns(self, measure: str, sets: Iterable[str], header: str = "{}") -> Columns:
        """One for each set."""
        return {header.format(CALLED[name]).capitalize(): partial(self.mean, measure, (name,)) for name in sets}

    def orders(self, rows: Sequence[str], known: Sequence[str] = ()) -> Differences:
        """Accuracy of each two rows that the paper orders, its better one first, but for those both in `known`."""
        pairs = combinations(sorted((row for row in rows if row in PAPER), key=lambda row: -PAPER_MEANS[row]), 2)
        asked = [(a, b, ATTRIBUTES) for a, b in pairs if PAPER[a] != PAPER[b] and not {a, b} <= {*known}]
        return self.differences("accuracy", asked)

    def sizes(self) -> dict[str, int]:
        """Pairs of the arms that have been run with different numbers of them, ascending; LLM4GEN has all."""
        full = self.scale.get("pairs")
        sizes = {arm.name: arm.pairs for arm in VARIANTS.values() if arm.pairs and (full is None or arm.pairs < full)}
        sizes |= {"llm4gen": full} if full else {}
        return {arm: sizes[arm] for arm in sorted(sizes, key=lambda arm: sizes[arm]) if self.seeds(arm)}

    def growth(self) -> Differences:
        """Accuracy of each number of pairs less that of the next smaller."""
        return self.differences("accuracy", [(large, small, ATTRIBUTES) for small, large in pairwise(self.sizes())])


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _images(result: Result) -> int:
    return len(next(iter(result.scores.values())))


def _comparable(results: Sequence[Result]) -> list[Result]:
    """Those with the fingerprint that most have; of several such the one of most images."""
    counts = Counter((one.prompts, _images(one)) for one in results)
    best = max(counts, key=lambda key: (counts[key], key[1], key[0]), default=("", 0))
    return [one for one in results if one.prompts == best[0]]


def first_of(results: Sequence[Result], like: Result) -> list[Result]:
    """Results on the prompts of another: the first of a set's prompts are the same, however many there are."""
    count = _images(like)
    return [
        one.model_copy(update={"prompts": like.prompts, "scores": {k: v[:count] for k, v in one.scores.items()}})
        for one in results
        if one.prompts == like.prompts or _images(one) > count
    ]


def mean_of(groups: Groups, measure: str) -> Estimate | None:
    """Over the seeds that all groups have; None if there is nothing to take it from."""
    if not (seeds := _shared(groups)):
        return None
    values = np.hstack([stack([one for one in group if one.seed in seeds], measure)[1] for group in groups])
    return estimate(values) if np.isfinite(values).any(0).sum() > 1 else None


def difference_of(a: Groups, b: Groups, measure: str, b_is_fixed: bool = False) -> Difference | None:
    """As `mean_of`, of a - b on the same sets."""
    if not (seeds := _shared(a if b_is_fixed else [*a, *b])) or not all(b):
        return None
    firsts = [[one for one in group if one.seed in seeds] for group in a]
    values = [matched(*pair, measure, b_is_fixed=b_is_fixed) for pair in zip(firsts, b, strict=True)]
    left, right = (np.hstack(side) for side in zip(*values, strict=True))
    return paired(left, right) if np.isfinite(left - right).any(0).sum() > 1 else None


def _shared(groups: Groups) -> set[int]:
    return set.intersection(*({one.seed for one in group} for group in groups))
