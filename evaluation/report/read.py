"""A set of images with all of its scores, as the report reads it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from llm4gen_core import LLM4GENError
from llm4gen_diffusers.provenance import fingerprint

from ..image_set import ImageRow, ImageSet, ImageSettings, image_id
from ..prompts import Prompt
from .numbers import Values

_Model = TypeVar("_Model", bound=BaseModel)


class ScoreRow(BaseModel):
    """A line of scores/METRIC.jsonl.

    Attributes:
        image: id.
        sha256: of the image's file; "" counts for any.
        scores: "score" is what tables show, None where the image cannot be judged.
        judge: fingerprint of the judge and its settings.
    """

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    image: str
    sha256: str = ""
    scores: dict[str, JsonValue]
    judge: str


class About(BaseModel):
    """scores/METRIC.about.json: who judged.

    Attributes:
        judge: fingerprint of `describe`.
        describe: everything that changes a score: judges with their hashes, thresholds, versions.
        title: of the metric in tables.
        share: scores lie from 0 to 1.
    """

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    judge: str
    describe: dict[str, JsonValue]
    title: str = Field(min_length=1)
    share: bool


class SetNumber(BaseModel):
    """A number of a whole set, as `metrics.base.SetScore`."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    value: float
    low: float
    high: float
    n: int = Field(ge=1)
    how: str = Field(min_length=1)
    details: dict[str, JsonValue] = Field(default_factory=dict)


class SetScores(BaseModel):
    """scores/METRIC.set.json: numbers that no single image has.

    Attributes:
        judge, describe, title: as of `About`; a title that is not given is the metric's name.
        images: fingerprint of the images that were judged; "" where it is not said.
        scores: by name of the number.
    """

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    judge: str
    describe: dict[str, JsonValue]
    title: str = ""
    images: str = ""
    scores: dict[str, SetNumber]


@dataclass(frozen=True)
class ImageScores:
    """What one metric says of the images of a set.

    Attributes:
        about: the judge.
        values: by id of the image, of this judge and of the image as it is now.
        categories: of the prompts that have a row.
        left_out: rows of other judges, or of images that have been painted anew.
    """

    about: About
    values: Mapping[str, Mapping[str, Any]] = field(repr=False)
    categories: frozenset[str]
    left_out: int


@dataclass(frozen=True)
class EvaluatedSet:
    """A set of images and its scores.

    Attributes:
        label: the model's name; with the folder's where two sets have the same.
        images: the folder.
        settings, prompts: of it.
        rows: of the manifest by id, whether or not the file is there.
        missing: ids of images that are asked for and not there.
        metrics: of single images, by name.
        set_metrics: of the whole set, by name.
    """

    label: str
    images: ImageSet
    settings: ImageSettings
    prompts: Sequence[Prompt]
    rows: Mapping[str, ImageRow]
    missing: Sequence[str]
    metrics: Mapping[str, ImageScores]
    set_metrics: Mapping[str, SetScores]
    known: Mapping[str, Prompt] = field(repr=False)

    @property
    def asked(self) -> int:
        """Images."""
        return len(self.prompts) * len(self.settings.seeds)

    @cached_property
    def images_hash(self) -> str:
        """Of the images that are there, in the order of prompts and seeds: ids and contents."""
        return fingerprint([[row.id, row.sha256] for row in self.rows.values() if row.id not in self.gone])

    @property
    def painted_by(self) -> dict[str, list[JsonValue]]:
        """What the rows say made them: by name the different values, in the order of the images."""
        found: dict[str, dict[str, JsonValue]] = {}
        for row in self.rows.values():
            for name, value in row.made.items():
                found.setdefault(name, {}).setdefault(json.dumps(value, sort_keys=True), value)
        return {name: list(found[name].values()) for name in sorted(found)}

    @cached_property
    def gone(self) -> frozenset[str]:
        """`missing`, to look up."""
        return frozenset(self.missing)

    def categories(self) -> list[str]:
        """Of the prompts, in their order; without ""."""
        return [name for name in dict.fromkeys(prompt.category for prompt in self.prompts) if name]

    def values(self, metric: str, part: str, prompts: Sequence[str], seeds: Sequence[int]) -> Values:
        """Scores [P, K] of prompts (ids) and seeds, NaN where there is none.

        Args:
            metric: that this set was scored by.
            part: which of the scores.
        """
        scores = self.metrics[metric].values
        cells = [[number_of(scores.get(image_id(prompt, seed)), part) for seed in seeds] for prompt in prompts]
        return np.array(cells, np.float64).reshape(len(prompts), len(seeds))

    def answers(self, metric: str, group: str, prompts: Sequence[str], seeds: Sequence[int], most: int) -> Values:
        """Answers [P, K, most] to the questions of a group: 1 for each yes, then 0 for each no, then NaN.

        Which question it was is not kept: sums of a prompt are all that its mean and a paired difference need.
        """
        found = np.full((len(prompts), len(seeds), most), np.nan)
        for place, prompt in enumerate(prompts):
            for column, seed in enumerate(seeds):
                asked, yes = self.asked_questions(metric, group, image_id(prompt, seed))
                found[place, column, :asked] = 0
                found[place, column, :yes] = 1
        return found

    def asked_questions(self, metric: str, group: str, image: str) -> tuple[int, int]:
        """How many questions of a group an image was asked, and how many answers were yes."""
        row = self.metrics[metric].values.get(image)
        asked, yes = number_of(row, f"categories.{group}.asked"), number_of(row, f"categories.{group}.yes")
        return int(asked or 0), int(yes or 0)


def read_sets(paths: Sequence[str | os.PathLike[str]]) -> list[EvaluatedSet]:
    """The sets, in the given order.

    Raises:
        LLM4GENError: a folder is no set of images or occurs twice, or a file in it is damaged.
    """
    folders = [Path(path) for path in paths]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise LLM4GENError(f"Sets of images {', '.join(map(str, folders))}: one is given twice; give each once.")
    sets = [ImageSet(folder) for folder in folders]
    settings = [one.settings for one in sets]
    named = [(one.benchmark, one.name) for one in settings]
    labels = [
        one.name if named.count((one.benchmark, one.name)) == 1 else f"{one.name} ({folder.resolve().name})"
        for one, folder in zip(settings, folders, strict=True)
    ]
    tagged = [(one.benchmark, label) for one, label in zip(settings, labels, strict=True)]
    if len(set(tagged)) < len(tagged):
        raise LLM4GENError(
            f"Sets of images {', '.join(map(str, folders))} have the same model names and folder names; rename a "
            "folder, so that the tables can tell them apart."
        )
    return [_read_set(one, about, label) for one, about, label in zip(sets, settings, labels, strict=True)]


def _read_set(images: ImageSet, settings: ImageSettings, label: str) -> EvaluatedSet:
    prompts = images.prompts
    rows = {row.id: row for row in images.rows()}
    gone = {row.id for row in rows.values() if not (images.path / row.file).is_file()}
    missing = [
        name
        for prompt in prompts
        for seed in settings.seeds
        if (name := image_id(prompt.id, seed)) not in rows or name in gone
    ]
    metrics = {
        file.name.removesuffix(".jsonl"): _read_metric(images, file.name.removesuffix(".jsonl"), rows)
        for file in sorted(images.scores.glob("*.jsonl"))
    }
    set_metrics = {
        file.name.removesuffix(".set.json"): _parse(SetScores, file)
        for file in sorted(images.scores.glob("*.set.json"))
    }
    return EvaluatedSet(
        label, images, settings, prompts, rows, missing, metrics, set_metrics, {one.id: one for one in prompts}
    )


def _read_metric(images: ImageSet, metric: str, rows: Mapping[str, ImageRow]) -> ImageScores:
    path = images.scores / f"{metric}.about.json"
    if not path.is_file():
        raise LLM4GENError(
            f"{images.score_file(metric).path} has no {path.name} beside it, so that nobody knows who judged; score "
            "the set again."
        )
    about = _parse(About, path)
    values: dict[str, Mapping[str, Any]] = {}
    left_out = 0
    file = images.score_file(metric)
    for number, line in file.lines():
        where = f"{file.path}, line {number},"
        try:
            row = ScoreRow.model_validate_json(line)
        except ValidationError as error:
            raise LLM4GENError(
                f"{where} is no score ({error.errors(include_url=False)[0]['msg']}); delete the line and score the set "
                "again."
            ) from error
        image = rows.get(row.image)
        if row.judge != about.judge or image is None or row.sha256 not in ("", image.sha256):
            left_out += 1
            continue
        score = number_of(row.scores, "score")
        if about.share and score is not None and not 0 <= score <= 1:
            raise LLM4GENError(f"{where} has the score {score:g}; {about.title} is a share, from 0 to 1.")
        values[row.image] = row.scores
    return ImageScores(about, values, frozenset(rows[name].category for name in values), left_out)


def _parse(model: type[_Model], path: Path) -> _Model:
    try:
        return model.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        at = ".".join(map(str, problem["loc"]))
        raise LLM4GENError(f"{path} is damaged ({at}: {problem['msg']}); score the set again.") from error


def number_of(scores: Mapping[str, Any] | None, part: str) -> float | None:
    """A number of a row, None where there is none; true is 1. "a.b" is key b of the object a."""
    value: Any = scores
    for key in part.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, (bool, int, float)) else None


def says(scores: ImageScores | None, part: str) -> bool:
    """Whether any row has this number."""
    return scores is not None and any(number_of(row, part) is not None for row in scores.values.values())


def question_groups(scores: ImageScores | None) -> frozenset[str]:
    """Kinds of questions that a metric has asked, if it asks any: keys of "categories" of its rows."""
    rows = scores.values.values() if scores is not None else ()
    return frozenset(name for row in rows if isinstance(row.get("categories"), Mapping) for name in row["categories"])
