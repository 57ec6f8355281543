"""Scores of a reproduction: read from its image sets, averaged and compared.

The image sets are in `images/VARIANT/SEED/`: `final` with the prompts of all prompt sets, `step-N` during the training
and `strength-X` with another λ. A prompt's category is its prompt set.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from evaluation.image_set import ImageSet, read_scores
from evaluation.statistics import Difference, Estimate, estimate, holm, paired
from llm4gen_core.files import read_json

from .dataset import SINGLE

METRIC = "miniature"
FINAL = "final"
SHORT_SETS = {"one object": SINGLE.name, "two objects": "color"}
"""Prompt sets whose words the base must bring into its images before anything is compared."""
ATTENTION_PROMPTS = (("color", 0), ("color", 1), ("color", 2), ("dense", 0))
"""Prompts (set, number) whose attention maps are drawn."""
MEASURES = {
    "score": "requested content present",
    "words": "requested words present",
    "binding": "binding among objects whose words are all present",
    "exact": "all content and nothing else present",
}
"""Numbers of the metric `miniature` and their titles."""

Key: TypeAlias = "tuple[str, str]"
"""Id and text of a prompt."""
Scores: TypeAlias = "Mapping[Key, Mapping[str, float | None]]"
"""Scores of an image set, by prompt and measure."""
Values: TypeAlias = "dict[int, dict[Key, float]]"
"""Values of a variant by training seed and prompt; NaN where a measure does not apply."""


@dataclass(frozen=True)
class Contrast:
    """Difference a - b of two variants in a measure, over some prompt sets."""

    a: str
    b: str
    measure: str
    sets: tuple[str, ...]


Differences: TypeAlias = "dict[Contrast, Difference]"


def read_scale(folder: Path) -> dict[str, Any]:
    """Return the sizes that a reproduction was begun with, fields of `experiment.Scale`."""
    scale = dict(read_json(folder / "reproduction.json", "Scale")["scale"])
    if "arm_steps" in scale:  # the name in folders of former versions
        scale["variant_steps"] = scale.pop("arm_steps")
    return scale


def attention_files(folder: Path, variant: str, seed: int) -> list[Path]:
    """Return the files of a variant's attention maps, one for each of `ATTENTION_PROMPTS`."""
    return [folder / "attention" / f"{variant}-{seed}-{number}.png" for number in range(len(ATTENTION_PROMPTS))]


def image_set(folder: Path, variant: str, seed: int, name: str = FINAL) -> ImageSet:
    """Return an image set of a variant, which need not exist."""
    return ImageSet(folder / "images" / variant / str(seed) / name)


def read_set(images: ImageSet) -> Scores:
    """Read the scores of an image set; empty if it is not there or not complete."""
    if not images.path.is_dir():
        return {}
    scores = read_scores(images, METRIC)
    found = {(row.prompt, row.text): scores.get((row.id, row.sha256)) for row in images.rows()}
    complete = {key: one for key, one in found.items() if one is not None}
    return complete if len(complete) == len(images.prompts) else {}


class Results:
    """Scores of a reproduction's image sets.

    Args:
        scores: by variant, training seed and name of the image set; only of complete image sets.
    """

    def __init__(self, scores: Mapping[tuple[str, int, str], Scores]) -> None:
        self.scores = scores

    @classmethod
    def read(cls, folder: Path) -> Results:
        """Read all image sets of a reproduction."""
        paths = sorted((folder / "images").glob("*/[0-9]*/*/"))
        found = {(path.parts[-3], int(path.parts[-2]), path.name): read_set(ImageSet(path)) for path in paths}
        return cls({place: scores for place, scores in found.items() if scores})

    def seeds(self, variant: str, name: str = FINAL) -> list[int]:
        """Training seeds of which there is an image set."""
        return sorted(seed for one, seed, found in self.scores if (one, found) == (variant, name))

    def values(self, variant: str, measure: str, sets: Collection[str], name: str = FINAL) -> Values:
        """Values of a measure on prompt sets; empty if one of the sets was not measured."""
        found: Values = {}
        for seed in self.seeds(variant, name):
            chosen = {key: one for key, one in self.scores[variant, seed, name].items() if _set_of(key) in sets}
            if {_set_of(key) for key in chosen} == set(sets):
                numbers = {key: one.get(measure) for key, one in chosen.items()}
                found[seed] = {key: np.nan if number is None else number for key, number in numbers.items()}
        return found

    def mean(self, measure: str, sets: Collection[str], variant: str, name: str = FINAL) -> Estimate | None:
        """Mean over seeds and prompts; None if there is nothing to average."""
        return mean_of(self.values(variant, measure, sets, name))

    def differences(self, contrasts: Iterable[Contrast]) -> Differences:
        """Differences of the contrasts that can be compared; p-values are adjusted for their number (Holm)."""
        found = {}
        for one in contrasts:
            a, b = (self.values(variant, one.measure, one.sets) for variant in (one.a, one.b))
            if difference := difference_of(a, b, b_is_fixed=one.b == "base"):
                found[one] = difference
        adjusted = holm([difference.p for difference in found.values()])
        return {key: replace(found[key], p=p) for key, p in zip(found, adjusted, strict=True)}

    def curve(self, variant: str, measure: str, prompt_set: str, last: int) -> dict[int, Values]:
        """Values during a training by step, on the prompts that all steps have; `last` is the step of the final ones.

        Empty if only the final values are there.
        """
        steps = {name for one, _, name in self.scores if one == variant and name.startswith("step-")}
        names = {step: f"step-{step}" for step in sorted(int(name.removeprefix("step-")) for name in steps)}
        names[last] = FINAL
        points = {step: self.values(variant, measure, (prompt_set,), name) for step, name in names.items()}
        points = {step: values for step, values in points.items() if values}
        if points.keys() <= {last}:
            return {}
        keys = prompts_of(*points.values())
        return {step: restricted(values, keys) for step, values in points.items()} if keys else {}


def _set_of(key: Key) -> str:
    """Prompt set of a prompt, whose id is NAME-NUMBER."""
    return key[0].rpartition("-")[0]


def restricted(values: Values, keys: Collection[Key]) -> Values:
    """Return values with some of the prompts only."""
    return {seed: {key: one[key] for key in one if key in keys} for seed, one in values.items()}


def mean_of(values: Values) -> Estimate | None:
    """Mean over seeds and prompts; None without two prompts that have a value."""
    array = _arrays(values)[0]
    return estimate(array) if _enough(array) else None


def difference_of(a: Values, b: Values, *, b_is_fixed: bool = False) -> Difference | None:
    """Mean of a - b, paired by training seed and prompt; None if they share too little.

    Args:
        a, b: values of two variants.
        b_is_fixed: b is one given model, such as the base that every seed of a started from, and is compared with each
            of a's seeds. The statement is then about this model, not about others of its kind.
    """
    if b_is_fixed and b:
        [fixed] = b.values()
        b = dict.fromkeys(a, fixed)
    left, right = _arrays(a, b)
    return paired(left, right) if _enough(left - right) else None


def prompts_of(*values: Values) -> set[Key]:
    """Prompts that all seeds have."""
    columns = [set(column) for one in values for column in one.values()]
    return set.intersection(*columns) if columns else set()


def _arrays(*values: Values) -> list[NDArray[np.float64]]:
    """Arrays [seeds, prompts] of the seeds and prompts that all have."""
    seeds = sorted(set.intersection(*(set(one) for one in values)))
    shared = [{seed: one[seed] for seed in seeds} for one in values]
    keys = sorted(prompts_of(*shared))
    return [np.array([[one[seed][key] for key in keys] for seed in seeds], float) for one in shared]


def _enough(array: NDArray[np.float64]) -> bool:
    return bool(array.size) and int(np.isfinite(array).any(0).sum()) > 1
