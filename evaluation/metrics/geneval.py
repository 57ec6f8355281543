"""GenEval with an object detector and a CLIP of transformers (Ghosh et al., arXiv 2310.11513)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torchvision.ops import nms

from llm4gen_core import LLM4GENError
from llm4gen_core.errors import first_problem

from ..image_set import Prompt
from .base import Context, ImageMetric, JudgeOptions, Scores
from .clip import CLIP_L, ClipJudge
from .detectors import MASK2FORMER, MOST_PAIRS, Box, Instance, InstanceSegmenter

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")
BACKGROUND = "#999"
POSITIONS = ("left of", "right of", "above", "below")


class Unwanted(BaseModel):
    """Entry of "exclude": fewer than `count` objects of a class."""

    model_config = ConfigDict(frozen=True, strict=True)

    name: str = Field(alias="class")
    count: int = Field(ge=1)


class Wanted(Unwanted):
    """Entry of "include": at least `count` objects of a class, of a colour, on a side of another entry's objects."""

    color: Literal[COLORS] | None = None  # type: ignore[valid-type]
    position: tuple[Literal[POSITIONS], int] | None = None  # type: ignore[valid-type]


class Row(BaseModel):
    """Row of GenEval's `evaluation_metadata.jsonl`, for one prompt."""

    model_config = ConfigDict(frozen=True)

    tag: str
    include: list[Wanted] = Field(default_factory=list)
    exclude: list[Unwanted] = Field(default_factory=list)


class Settings(JudgeOptions):
    """Settings of GenEval's script.

    Attributes:
        threshold: confidence above which an object counts.
        counting_threshold: the same for prompts with the tag "counting".
        position_threshold: distance of two objects' centres, relative to the sum of their sizes, that counts as apart.
        max_objects: number of objects of a class that count, the most confident ones.
        max_overlap: IoU above which the less confident of two objects of a class is dropped; 1 keeps all.
    """

    model_config = ConfigDict(
        populate_by_name=True, alias_generator=lambda name: name if name == "dtype" else f"geneval.{name}"
    )

    threshold: float = Field(default=0.3, ge=0, le=1)
    counting_threshold: float = Field(default=0.9, ge=0, le=1)
    position_threshold: float = Field(default=0.1, ge=0, le=1)
    max_objects: int = Field(default=16, ge=1, le=MOST_PAIRS)
    max_overlap: float = Field(default=1.0, ge=0, le=1)


class ColorJudge:
    """Zero-shot colour classification of objects by CLIP: the colour whose descriptions are most similar.

    An object is cut out of its image, with everything outside its mask in the grey `BACKGROUND`. A colour is the mean
    of the embeddings of `TEMPLATES`.
    """

    def __init__(self, clip: ClipJudge) -> None:
        self.clip = clip
        self._embeddings: dict[str, torch.Tensor] = {}

    def __call__(self, image: Image.Image, objects: Sequence[Instance], name: str) -> list[str]:
        """One of `COLORS` for each object; all objects are of the class `name`."""
        crops = [cut_out(image, one) for one in objects]
        likeness = self.clip.embed_images(crops) @ self._colors(name).T
        return [COLORS[place] for place in likeness.argmax(dim=1).tolist()]

    def _colors(self, name: str) -> torch.Tensor:
        """Embeddings [colours, d]."""
        if name not in self._embeddings:
            texts = [template.format(color=color, name=name) for color in COLORS for template in TEMPLATES]
            vectors = self.clip.embed_texts(texts)[0].unflatten(0, (len(COLORS), len(TEMPLATES)))
            self._embeddings[name] = F.normalize(vectors.mean(dim=1), dim=-1)
        return self._embeddings[name]


class GenEval(ImageMetric):
    """1 for an image that shows what its prompt asks for, otherwise 0.

    `Prompt.about` is the prompt's row of GenEval's `evaluation_metadata.jsonl`, and `Prompt.category` its tag. The
    overall score is the mean of the six tags' means.

    Rules, thresholds and templates are those of the authors' `evaluate_images.py`. What differs:
    - The detector is Mask2Former with Swin-S, as there, but with the weights that its authors trained with detectron2
      and released for non-commercial use, not mmdet's. Some confidences are on the other side of a threshold.
    - Images are scaled by transformers (with antialiasing; to multiples of 32 instead of padding).
    - CLIP is OpenAI's ViT-L/14, as there, but in float32 and not in half precision.

    Scores beside "score": "reason" (why the score is 0, otherwise ""), and "objects": for each class that was found its
    objects as [left, top, right, bottom, confidence].

    Options: geneval.threshold, geneval.counting_threshold, geneval.position_threshold, geneval.max_objects and
    geneval.max_overlap, see `Settings`; mask2former and clip, folders of other judges; dtype, precision of CLIP.
    """

    name = "geneval"
    judges_needed = (MASK2FORMER, CLIP_L)
    Options = Settings

    def __init__(self, segmenter: InstanceSegmenter, colors: ColorJudge, settings: Settings) -> None:
        self._segmenter, self._colors, self._settings = segmenter, colors, settings

    @classmethod
    def load(cls, context: Context) -> GenEval:
        segmenter = InstanceSegmenter(context.folder(MASK2FORMER), context.device)
        return cls(segmenter, ColorJudge(ClipJudge.from_context(context, CLIP_L)), cls.options(context))

    @classmethod
    def applies(cls, prompt: Prompt) -> bool:
        return "tag" in prompt.about and ("include" in prompt.about or "exclude" in prompt.about)

    def describe(self) -> dict[str, Any]:
        return {
            "detector": self._segmenter.describe(),
            "clip": self._colors.clip.describe(),
            "settings": self._settings.model_dump(exclude={"dtype"}),
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
            reasons = check(row, kept, partial(self._colors, image), self._settings.position_threshold)
            objects = {name: [[*one.box, round(one.score, 4)] for one in ones] for name, ones in kept.items()}
            scores.append({"score": float(not reasons), "reason": " ".join(reasons), "objects": objects})
        return scores


def read_row(prompt: Prompt, names: set[str]) -> Row:
    """Row of GenEval in a prompt's `about`.

    Raises:
        LLM4GENError: `about` is not such a row, or asks for a class that is not among `names`.
    """
    try:
        row = Row.model_validate_json(json.dumps(prompt.about))
    except ValidationError as error:
        raise LLM4GENError(
            f"Prompt {prompt.id!r}: field `about` is not a GenEval metadata row ({first_problem(error)}); expected "
            "tag, include and exclude as in evaluation_metadata.jsonl."
        ) from error
    for place, wanted in enumerate(row.include):
        if wanted.position is not None and not 0 <= wanted.position[1] < place:
            raise LLM4GENError(
                f"Prompt {prompt.id!r}: entry {place} of include is {wanted.position[0]} entry {wanted.position[1]}; "
                "expected the number of an earlier entry."
            )
    if unknown := [entry.name for entry in (*row.include, *row.exclude) if entry.name not in names]:
        raise LLM4GENError(
            f"Prompt {prompt.id!r} asks for the class {unknown[0]!r}; expected one of GenEval's 80, such as 'bench' or "
            "'computer keyboard'."
        )
    return row


def keep(objects: Sequence[Instance], settings: Settings) -> list[Instance]:
    """The most confident objects of a class, without those that overlap a more confident one.

    Args:
        objects: objects of one class above the threshold, in order of confidence.
    """
    objects = objects[: settings.max_objects]
    # GenEval's boxes include their last pixel, so they are one pixel wider and higher.
    boxes = torch.tensor([one.box for one in objects], dtype=torch.float64).reshape(-1, 4) + torch.tensor([0, 0, 1, 1])
    scores = torch.tensor([one.score for one in objects], dtype=torch.float64)
    return [objects[at] for at in sorted(nms(boxes, scores, settings.max_overlap).tolist())]


def check(
    row: Row,
    found: Mapping[str, Sequence[Instance]],
    colors: Callable[[Sequence[Instance], str], list[str]],
    position_threshold: float = 0.1,
) -> list[str]:
    """Reasons why an image does not show what its prompt asks for; none if it does.

    Colour and position are checked for the most confident objects alone, as many as there should be; position only if
    number and colour are right.

    Args:
        row: the request.
        found: objects by class, in order of confidence.
        colors: returns the colour of each object of a class.
        position_threshold: see `Settings`.
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
    """Reason why objects are misplaced, or ""; each must be on the given side of every target."""
    if targets is None:
        return f"There is no target that {name} could be {side}."
    for one in objects:
        for target in targets:
            if side not in (sides := relative_position(one.box, target.box, threshold)):
                return f"Expected {name} {side} its target, found {' and '.join(sorted(sides)) or 'no side'}."
    return ""


def relative_position(box: Box, target: Box, threshold: float = 0.1) -> set[str]:
    """Sides of a target on which a box is: up to two of `POSITIONS`, or none.

    With d the vector from the target's centre to the box's, each component is shortened towards 0 by `threshold` times
    the sum of both boxes' extents; a side counts if its component, divided by the length of d, is more than 1/2.
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
    """Crop of an object, with everything outside its mask in grey."""
    mask = Image.fromarray(one.mask.numpy().astype("uint8") * 255)
    left, top, right, bottom = (round(edge) for edge in one.box)
    return Image.composite(image, Image.new("RGB", image.size, BACKGROUND), mask).crop((left, top, right, bottom))
