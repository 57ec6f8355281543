"""Image sets with all of their scores, as the report reads them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from llm4gen_core import LLM4GENError
from llm4gen_core.errors import first_problem
from llm4gen_diffusers.machine import fingerprint

from ..benchmarks import METRICS
from ..image_set import ImageRow, ImageSet, ImageSettings, Prompt, image_id

Values: TypeAlias = "NDArray[np.float64]"
"""[P prompts, K seeds, Q answers], NaN where there is no value; Q is 1 for scores."""

_Model = TypeVar("_Model", bound=BaseModel)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


class ScoreRow(_Record):
    """A line of scores/METRIC.jsonl.

    Attributes:
        image: id of the image.
        sha256: hash of the image's file.
        scores: numbers by name; "score" is what tables show, None where the image could not be judged.
        judge: fingerprint of the judge model and its settings.
    """

    image: str
    sha256: str
    scores: dict[str, JsonValue]
    judge: str


class About(_Record):
    """scores/METRIC.about.json: the judge of a metric of single images.

    Attributes:
        judge: fingerprint of `describe`.
        describe: everything that changes a score: judge models with their hashes, thresholds, versions.
        title: title of the metric.
        share: whether scores lie from 0 to 1.
    """

    judge: str
    describe: dict[str, JsonValue]
    title: str = Field(min_length=1)
    share: bool


class SetNumber(_Record):
    """A number of a whole set, as `metrics.base.SetScore`; without an interval where one seed gives none."""

    model_config = ConfigDict(strict=False)

    value: float
    low: float | None
    high: float | None
    n: int = Field(ge=1)
    how: str = Field(min_length=1)
    details: dict[str, JsonValue] = Field(default_factory=dict)


class SetScores(_Record):
    """scores/METRIC.set.json: the numbers of a metric of whole sets.

    Attributes:
        judge, describe, title: as in `About`; the title may be missing.
        images: fingerprint of the images that were judged; "" if it was not recorded.
        scores: numbers by name.
    """

    judge: str
    describe: dict[str, JsonValue]
    title: str = ""
    images: str = ""
    scores: dict[str, SetNumber]


@dataclass(frozen=True)
class ImageScores:
    """Scores of single images by one metric.

    Attributes:
        about: the judge.
        values: scores by image id, of this judge and of the image as it is now.
        categories: categories of the prompts that have a row.
        left_out: rows of other judges, or of images that were generated again since.
    """

    about: About
    values: Mapping[str, Mapping[str, Any]] = field(repr=False)
    categories: frozenset[str]
    left_out: int

    @property
    def question_groups(self) -> frozenset[str]:
        """Kinds of questions that the metric asks, if it asks any: keys of "categories" of its rows."""
        groups = (row["categories"] for row in self.values.values() if isinstance(row.get("categories"), Mapping))
        return frozenset(name for group in groups for name in group)


@dataclass(frozen=True)
class EvaluatedSet:
    """An image set and its scores.

    Attributes:
        label: name of the model, with the folder's name where two sets have the same.
        images: the folder.
        settings, prompts: of the set.
        rows: manifest rows by image id, whether or not the file exists.
        missing: ids of images that were asked for and do not exist.
        metrics: scores of single images, by metric.
        set_metrics: numbers of the whole set, by metric.
    """

    label: str
    images: ImageSet
    settings: ImageSettings
    prompts: Sequence[Prompt]
    rows: Mapping[str, ImageRow]
    missing: Sequence[str]
    metrics: Mapping[str, ImageScores]
    set_metrics: Mapping[str, SetScores]

    @property
    def asked(self) -> int:
        """Number of images that were asked for."""
        return len(self.prompts) * len(self.settings.seeds)

    @cached_property
    def known(self) -> dict[str, Prompt]:
        """Prompts by id."""
        return {prompt.id: prompt for prompt in self.prompts}

    @cached_property
    def gone(self) -> frozenset[str]:
        """Missing images, for look-ups."""
        return frozenset(self.missing)

    @cached_property
    def images_hash(self) -> str:
        """Fingerprint of the images that exist, in the order of prompts and seeds: ids and contents."""
        return fingerprint([[row.id, row.sha256] for row in self.rows.values() if row.id not in self.gone])

    @property
    def made_by(self) -> dict[str, list[JsonValue]]:
        """Facts about the generation, such as the device: by name the different values, in order."""
        found: dict[str, dict[str, JsonValue]] = {}
        for row in self.rows.values():
            for name, value in row.made.items():
                found.setdefault(name, {}).setdefault(json.dumps(value, sort_keys=True), value)
        return {name: list(found[name].values()) for name in sorted(found)}

    def scored(self, metric: str, category: str = "") -> bool:
        """Whether any image of a category ("" is any) has a row of the metric."""
        categories = self.metrics[metric].categories if metric in self.metrics else frozenset()
        return category in categories if category else bool(categories)

    def values(
        self, metric: str, prompts: Sequence[str], seeds: Sequence[int], part: str = "score", group: str = ""
    ) -> Values:
        """Return scores, or the answers to the questions of a group, [P, K, Q].

        Answers are 1 for each yes, then 0 for each no. Their order does not matter: the sums of a prompt decide its
        mean and a paired difference.

        Args:
            metric: a metric that this set was scored by.
            prompts: ids.
            seeds: of the set.
            part: which of the scores.
            group: kind of question; "" for the score.
        """
        rows = self.metrics[metric].values
        images = [rows.get(image_id(prompt, seed)) for prompt in prompts for seed in seeds]
        if not group:
            scores = [number_of(row, part) for row in images]
            return np.array(scores, np.float64).reshape(len(prompts), len(seeds), 1)
        counts = [
            [int(number_of(row, f"categories.{group}.{answer}") or 0) for answer in ("asked", "yes")] for row in images
        ]
        table = np.array(counts, int).reshape(len(prompts), len(seeds), 2)
        asked, yes = table[..., :1], table[..., 1:]
        question = np.arange(asked.max(initial=0))
        return np.where(question < yes, 1.0, np.where(question < asked, 0.0, np.nan))


def read_sets(paths: Sequence[str | os.PathLike[str]]) -> list[EvaluatedSet]:
    """Return the sets of some folders, in the given order.

    Raises:
        LLM4GENError: a folder is not an image set or occurs twice, or a file in it is damaged.
    """
    folders = [Path(path) for path in paths]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise LLM4GENError(f"Image sets {', '.join(map(str, folders))}: a folder is given twice; give each once.")
    sets = [ImageSet(folder) for folder in folders]
    settings = [one.settings for one in sets]
    named = [(one.benchmark, one.name) for one in settings]
    labels = [
        one.name if named.count((one.benchmark, one.name)) == 1 else f"{one.name} ({folder.resolve().name})"
        for one, folder in zip(settings, folders, strict=True)
    ]
    if len({(one.benchmark, label) for one, label in zip(settings, labels, strict=True)}) < len(labels):
        raise LLM4GENError(
            f"Image sets {', '.join(map(str, folders))} have the same model names and folder names; rename a folder, "
            "so that tables can tell them apart."
        )
    return [_read_set(*one) for one in zip(sets, settings, labels, strict=True)]


def metric_title(metric: str, stored: str = "") -> str:
    """Return the title of a metric; one that is not in the registry has the title that its file stores, or its name."""
    return METRICS[metric].title if metric in METRICS else stored or metric


def number_of(scores: Mapping[str, Any] | None, part: str) -> float | None:
    """Return a number of a row, None if there is none; true is 1. "a.b" is key b of the object a."""
    value: Any = scores
    for key in part.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, (bool, int, float)) else None


def _read_set(images: ImageSet, settings: ImageSettings, label: str) -> EvaluatedSet:
    prompts = images.prompts
    rows = {row.id: row for row in images.rows()}
    here = {row.id for row in rows.values() if (images.path / row.file).is_file()}
    asked = [image_id(prompt.id, seed) for prompt in prompts for seed in settings.seeds]
    names = [file.name.removesuffix(".jsonl") for file in sorted(images.scores.glob("*.jsonl"))]
    whole = {file.name.removesuffix(".set.json"): file for file in sorted(images.scores.glob("*.set.json"))}
    return EvaluatedSet(
        label,
        images,
        settings,
        prompts,
        rows,
        [name for name in asked if name not in here],
        {name: _read_metric(images, name, rows) for name in names},
        {name: _parse(SetScores, file) for name, file in whole.items()},
    )


def _read_metric(images: ImageSet, metric: str, rows: Mapping[str, ImageRow]) -> ImageScores:
    file = images.score_file(metric)
    path = images.scores / f"{metric}.about.json"
    if not path.is_file():
        raise LLM4GENError(
            f"{file.path} has no {path.name} beside it, which says who judged; score the image set again."
        )
    about = _parse(About, path)
    values: dict[str, Mapping[str, Any]] = {}
    left_out = 0
    for line_number, line in file.lines():
        where = f"{file.path}, line {line_number},"
        try:
            row = ScoreRow.model_validate_json(line)
        except ValidationError as error:
            raise LLM4GENError(
                f"{where} is not a score ({first_problem(error)}); delete the line and score the image set again."
            ) from error
        if row.judge != about.judge or row.image not in rows or row.sha256 != rows[row.image].sha256:
            left_out += 1
            continue
        score = number_of(row.scores, "score")
        if about.share and score is not None and not 0 <= score <= 1:
            raise LLM4GENError(f"{where} has the score {score:g}; expected 0 to 1, as {about.title} is a share.")
        values[row.image] = row.scores
    return ImageScores(about, values, frozenset(rows[name].category for name in values), left_out)


def _parse(model: type[_Model], path: Path) -> _Model:
    try:
        return model.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise LLM4GENError(f"{path} is damaged ({first_problem(error)}); score the image set again.") from error
