"""GenEval with an object detector and a CLIP of transformers (Ghosh et al., arXiv 2310.11513)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llm4gen_core import LLM4GENError

from ..prompts import Prompt
from .base import Context, ImageMetric, Scores
from .clip_score import CLIP_L, ClipJudge
from .detector import number_option
from .instances import MASK2FORMER, MOST_PAIRS, Box, Instance, InstanceSegmenter
from .judge_model import chosen_dtype, chosen_folder

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")
BACKGROUND = "#999"
POSITIONS = ("left of", "right of", "above", "below")


class Wanted(BaseModel):
    """An entry of "include": at least `count` objects of a class, of a colour, on a side of those of another entry."""

    model_config = ConfigDict(frozen=True, strict=True)

    name: str = Field(alias="class")
    count: int = Field(ge=1)
    color: Literal[COLORS] | None = None  # type: ignore[valid-type]
    position: tuple[Literal[POSITIONS], int] | None = None  # type: ignore[valid-type]


class Unwanted(BaseModel):
    """An entry of "exclude": fewer than `count` objects of a class."""

    model_config = ConfigDict(frozen=True, strict=True)

    name: str = Field(alias="class")
    count: int = Field(ge=1)


class Row(BaseModel):
    """What GenEval's `evaluation_metadata.jsonl` says of a prompt."""

    model_config = ConfigDict(frozen=True)

    tag: str
    include: list[Wanted] = Field(default_factory=list)
    exclude: list[Unwanted] = Field(default_factory=list)


@dataclass(frozen=True)
class Settings:
    """The numbers of GenEval's script.

    Attributes:
        threshold: confidence above which an object counts.
        counting_threshold: the same for prompts with the tag "counting".
        position_threshold: share of both objects' sizes that their centres have to be apart to count as apart.
        max_objects: of a class, the surest ones.
        max_overlap: IoU from which the less sure of two objects of a class goes; 1 keeps all.
    """

    threshold: float = 0.3
    counting_threshold: float = 0.9
    position_threshold: float = 0.1
    max_objects: int = 16
    max_overlap: float = 1.0


class ColorJudge:
    """The colour of objects, by CLIP without training: the colour whose descriptions are most like the object.

    An object is cut out of its image with everything outside of its mask in the grey `BACKGROUND`. A colour is the mean
    of the embeddings of `TEMPLATES`.
    """

    def __init__(self, clip: ClipJudge) -> None:
        self.clip = clip
        self._embeddings: dict[str, torch.Tensor] = {}

    def __call__(self, image: Image.Image, objects: Sequence[Instance], name: str) -> list[str]:
        """One of `COLORS` for each object, all of them of the class `name`."""
        crops = [cut_out(image, one) for one in objects]
        likeness = self.clip.embed_images(crops) @ self._colors(name).T
        return [COLORS[place] for place in likeness.argmax(dim=1).tolist()]

    def _colors(self, name: str) -> torch.Tensor:
        """Embeddings of all colours, one a row."""
        if name not in self._embeddings:
            texts = [template.format(color=color, name=name) for color in COLORS for template in TEMPLATES]
            vectors = self.clip.embed_texts(texts).vectors.unflatten(0, (len(COLORS), len(TEMPLATES)))
            self._embeddings[name] = F.normalize(vectors.mean(dim=1), dim=-1)
        return self._embeddings[name]


class GenEval(ImageMetric):
    """1 for an image that shows what its prompt asks for, else 0.

    `Prompt.about` is the prompt's row of GenEval's `evaluation_metadata.jsonl`, and `Prompt.category` its tag. The
    overall score is the mean of the six tags' means.

    Rules, thresholds and templates are those of the authors' `evaluate_images.py`; what differs:
    - The detector is Mask2Former with Swin-S, as there, but the weights are those that its authors trained with
      detectron2 and gave away for non-commercial use, not mmdet's. Some confidences lie on the other side of a
      threshold.
    - Images are scaled by transformers (with antialiasing; to multiples of 32 instead of padding).
    - CLIP is OpenAI's ViT-L/14, as there, but in float32 and not in half precision.

    Scores beside "score": "reason" (why it is 0, else ""), and "objects": for each class that was found its objects as
    [left, top, right, bottom, confidence].

    Options: geneval.threshold, geneval.counting_threshold, geneval.position_threshold, geneval.max_objects and
    geneval.max_overlap, see `Settings`; mask2former and clip, the folders of other judges.
    """

    name = "geneval"
    title = "GenEval (judges of transformers)"
    share = True
    judges_needed = (MASK2FORMER, CLIP_L)

    def __init__(self, segmenter: InstanceSegmenter, colors: ColorJudge, settings: Settings) -> None:
        self._segmenter, self._colors, self._settings = segmenter, colors, settings

    @classmethod
    def load(cls, context: Context) -> GenEval:
        usual = Settings()
        settings = Settings(
            threshold=number_option(context, "geneval.threshold", usual.threshold, 0, 1),
            counting_threshold=number_option(context, "geneval.counting_threshold", usual.counting_threshold, 0, 1),
            position_threshold=number_option(context, "geneval.position_threshold", usual.position_threshold, 0, 1),
            max_objects=int(number_option(context, "geneval.max_objects", usual.max_objects, 1, MOST_PAIRS)),
            max_overlap=number_option(context, "geneval.max_overlap", usual.max_overlap, 0, 1),
        )
        segmenter = InstanceSegmenter(chosen_folder(context, MASK2FORMER), context.device)
        clip = ClipJudge(chosen_folder(context, CLIP_L), context.device, chosen_dtype(context, on_gpu=torch.float32))
        return cls(segmenter, ColorJudge(clip), settings)

    @classmethod
    def applies(cls, prompt: Prompt) -> bool:
        return "tag" in prompt.about and ("include" in prompt.about or "exclude" in prompt.about)

    def describe(self) -> dict[str, Any]:
        return {
            "detector": self._segmenter.describe(),
            "clip": self._colors.clip.describe(),
            "settings": asdict(self._settings),
            "colors": list(COLORS),
            "templates": list(TEMPLATES),
            "background": BACKGROUND,
            "version": 1,
        }

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Scores]:
        rows = [read_row(prompt, {*self._segmenter.names.values()}) for prompt in prompts]
        thresholds = [
            self._settings.counting_threshold if row.tag == "counting" else self._settings.threshold for row in rows
        ]
        scores: list[Scores] = []
        for image, row, found in zip(images, rows, self._segmenter.segment(images, thresholds), strict=True):
            kept = {name: keep(ones, self._settings) for name, ones in found.items()}
            reasons = check(
                row,
                kept,
                partial(self._colors, image),
                self._settings.position_threshold,
            )
            objects = {name: [[*one.box, round(one.score, 4)] for one in ones] for name, ones in kept.items()}
            scores.append({"score": float(not reasons), "reason": " ".join(reasons), "objects": objects})
        return scores


def read_row(prompt: Prompt, names: set[str]) -> Row:
    """What a prompt asks for.

    Args:
        prompt: with GenEval's row in `about`.
        names: classes that the detector knows.

    Raises:
        LLM4GENError: the row is none of GenEval's, or names a class that is unknown.
    """
    try:
        row = Row.model_validate_json(json.dumps(prompt.about))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise LLM4GENError(
            f"Prompt {prompt.id!r}: its about is no row of GenEval ({where}: {first['msg']}); expected tag, include "
            "and exclude as in evaluation_metadata.jsonl."
        ) from error
    for place, wanted in enumerate(row.include):
        if wanted.position is not None and not 0 <= wanted.position[1] < place:
            raise LLM4GENError(
                f"Prompt {prompt.id!r}: entry {place} of include stands {wanted.position[0]} entry "
                f"{wanted.position[1]}; expected an entry before it."
            )
    entries: list[Wanted | Unwanted] = [*row.include, *row.exclude]
    if unknown := [entry.name for entry in entries if entry.name not in names]:
        raise LLM4GENError(
            f"Prompt {prompt.id!r} asks for the class {unknown[0]!r}; expected one of GenEval's 80, such as 'bench' or "
            "'computer keyboard'."
        )
    return row


def keep(objects: Sequence[Instance], settings: Settings) -> list[Instance]:
    """The surest objects of a class, without those that overlap a surer one.

    Args:
        objects: of one class, above the threshold, the surest first.
    """
    kept: list[Instance] = []
    for one in objects[: settings.max_objects]:
        if settings.max_overlap == 1 or all(_iou(one.box, other.box) < settings.max_overlap for other in kept):
            kept.append(one)
    return kept


def check(
    row: Row,
    found: Mapping[str, Sequence[Instance]],
    colors: Callable[[Sequence[Instance], str], list[str]],
    position_threshold: float = Settings.position_threshold,
) -> list[str]:
    """Why an image does not show what is asked for.

    Colour and position are asked of the surest objects alone, as many as there should be; position only where number
    and colour are right.

    Args:
        row: what is asked for.
        found: objects by class, the surest first.
        colors: gives the colour of each object of a class.
        position_threshold: see `Settings`.

    Returns:
        Sentences; none for an image that is right.
    """
    reasons: list[str] = []
    groups: list[Sequence[Instance] | None] = []
    for wanted in row.include:
        objects = list(found.get(wanted.name, ()))[: wanted.count]
        problem = ""
        if len(objects) < wanted.count:
            problem = f"Expected {wanted.count} of {wanted.name}, found {len(objects)}."
        elif wanted.color is not None and (seen := colors(objects, wanted.name)).count(wanted.color) < wanted.count:
            problem = f"Expected {wanted.count} of {wanted.name} in {wanted.color}, found {', '.join(seen)}."
        elif wanted.position is not None:
            side, target = wanted.position
            problem = _misplaced(wanted.name, objects, side, groups[target], position_threshold)
        groups.append(None if problem else objects)
        reasons += [problem] if problem else []
    for unwanted in row.exclude:
        if (number := len(found.get(unwanted.name, ()))) >= unwanted.count:
            reasons.append(f"Expected fewer than {unwanted.count} of {unwanted.name}, found {number}.")
    return reasons


def _misplaced(
    name: str, objects: Sequence[Instance], side: str, targets: Sequence[Instance] | None, threshold: float
) -> str:
    """What is wrong about where objects stand; every one has to be on that side of every target."""
    if targets is None:
        return f"There is nothing that {name} could be {side}."
    for one in objects:
        for target in targets:
            if side not in (sides := relative_position(one.box, target.box, threshold)):
                return f"Expected {name} {side} its target, found {' and '.join(sorted(sides)) or 'no side'}."
    return ""


def relative_position(box: Box, target: Box, threshold: float = Settings.position_threshold) -> set[str]:
    """On which sides of a target a box lies; up to two of `POSITIONS`, or none.

    With the way d from the target's centre to the box's, each component is shortened towards 0 by `threshold` times the
    sum of both boxes' extents; a side counts if its component, divided by the length of d, is more than 1/2.
    """
    way = [(box[axis] + box[axis + 2] - target[axis] - target[axis + 2]) / 2 for axis in (0, 1)]
    extents = [box[axis + 2] - box[axis] + target[axis + 2] - target[axis] for axis in (0, 1)]
    apart = [max(abs(one) - threshold * extent, 0.0) for one, extent in zip(way, extents, strict=True)]
    if max(apart) < 1e-3:
        return set()
    length = (way[0] ** 2 + way[1] ** 2) ** 0.5
    sides = (("left of", "right of"), ("above", "below"))
    return {sides[axis][way[axis] > 0] for axis in (0, 1) if apart[axis] / length > 0.5}


def cut_out(image: Image.Image, one: Instance) -> Image.Image:
    """An object alone, on grey."""
    mask = Image.fromarray(one.mask.numpy().astype("uint8") * 255)
    left, top, right, bottom = (round(edge) for edge in one.box)
    return Image.composite(image, Image.new("RGB", image.size, BACKGROUND), mask).crop((left, top, right, bottom))


def _iou(first: Box, second: Box) -> float:
    """Intersection over union, in GenEval's way: of boxes that are one pixel wider and higher."""

    def area(left: float, top: float, right: float, bottom: float) -> float:
        return max(right - left + 1, 0.0) * max(bottom - top + 1, 0.0)

    common = area(*(max(first[at], second[at]) for at in (0, 1)), *(min(first[at], second[at]) for at in (2, 3)))
    return common / (area(*first) + area(*second) - common)
