"""T2I-CompBench's spatial score, with an object detector of transformers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image
from pydantic import Field
from torchvision.ops import box_iou

from llm4gen_core import LLM4GENError, entity_backend, parse_entities

from ..image_set import Prompt
from .base import Context, ImageMetric, NoOptions, Scores
from .detectors import DETECTOR, Detections, Detector, load_detector

BESIDE = ("on side of", "next to", "near")
DIRECTIONS = {
    # Axis, and sign of the vector from the first object's centre to the second's.
    "on the left of": (0, 1),
    "on the right of": (0, -1),
    "on the top of": (1, 1),
    "on top of": (1, 1),
    "on the bottom of": (1, -1),
}
RELATIONS = (*DIRECTIONS, *BESIDE)
LARGEST_IOU = 0.1
"""IoU above which the position counts less."""
NEAR = 150 / 479
"""Distance of centres that counts as near, relative to the image's longer side: 150 of the 479 pixels to which
T2I-CompBench scales a square image."""

_RELATION = re.compile(rf"\b({'|'.join(RELATIONS)})\b")
_ARTICLE = re.compile(r"\b(?:an?|the|one|two|three|four|some|several)\s+")
_PARSER = "rules"  # not "auto": the same nouns on every machine


@dataclass(frozen=True)
class Relation:
    """A relation that a prompt asks for, such as "a dog on the left of a cat": noun, one of `RELATIONS`, noun."""

    first: str
    relation: str
    second: str


class SpatialOptions(NoOptions):
    """Options of `Spatial`."""

    threshold: float | None = Field(default=None, ge=0, le=1, alias="spatial.threshold")


class Spatial(ImageMetric):
    """T2I-CompBench's UniDet-based metric of 2D spatial relations (Huang et al., arXiv 2307.06350, section 4.2).

    score = s1 / 4 + s2 / 4 + p / 2, with the detector's confidences s1 and s2 of both objects (0 for one that is not
    found, and then p is 0 too) and the position p from 0 to 1, see `positions`. A score below 1/2 counts as 0: always
    if only one object is found, and if both are on the wrong sides unless both confidences are 1.

    What differs from the authors' script:
    - UniDet (NVIDIA's non-commercial licence, detectron2) is replaced by a detector of transformers. Its confidences
      differ, and so do the scores: compare them only with scores of the same `describe`.
    - "on top of" is treated as "on the top of"; the script always gives it position 0.
    - Of all detections the pair with the highest score counts, not the first of each noun, so an object that is there
      twice is scored by the one that fits. One box is never both objects.
    - Distances are relative to the image, not in pixels of an image scaled to 480.
    - Nouns come from `Prompt.about` or from a parser that needs no download (`read_relation`), and may have two words;
      the script takes single words by spaCy. A detector with an open vocabulary looks for a person by the prompt's word
      ("girl").
    - A prompt whose nouns or relation are not found, or whose nouns the detector does not know, has no score; there 0.

    A prompt can state its relation: about = {"first": "dog", "relation": "on the left of", "second": "cat"}.

    Scores beside "score": "first", "relation", "second", "position" (p; None if an object is missing), "confidences"
    and "boxes" of both objects (None for a missing one), and "reason" if there is something to explain.

    Options: `object-detector`, folder of another detector; `spatial.threshold`, confidence above which a detection
    counts (by default `Detector.default_threshold`).
    """

    name = "spatial"
    judges_needed = (DETECTOR,)
    Options = SpatialOptions

    def __init__(self, detector: Detector) -> None:
        self.detector = detector

    @classmethod
    def load(cls, context: Context) -> Spatial:
        threshold = cls.options(context).threshold
        return cls(load_detector(context.folder(DETECTOR), context.device, threshold))

    @classmethod
    def applies(cls, prompt: Prompt) -> bool:
        return prompt.category == "spatial"

    def describe(self) -> dict[str, Any]:
        return {
            "detector": self.detector.describe(),
            "parser": entity_backend(_PARSER),
            "largest_iou": LARGEST_IOU,
            "near": NEAR,
            "version": 1,
        }

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Scores]:
        wanted: list[Relation] = []
        places: list[int] = []
        scores: list[Scores] = [{} for _ in images]
        for place, prompt in enumerate(prompts):
            relation = read_relation(prompt)
            if isinstance(relation, str):
                scores[place] = {"score": None, "reason": relation}
            elif unknown := [noun for noun in (relation.first, relation.second) if not self.detector.knows(noun)]:
                scores[place] = {"score": None, "reason": f"The detector does not know the word {unknown[0]!r}."}
            else:
                places.append(place)
                wanted.append(relation)
        if places:
            found = self.detector.detect(
                [images[place] for place in places], [(one.first, one.second) for one in wanted]
            )
            for place, relation, detections in zip(places, wanted, found, strict=True):
                scores[place] = judge(relation, detections, max(images[place].size))
        return scores


def judge(relation: Relation, detections: Detections, side: int) -> Scores:
    """Highest score of any two detections of the nouns, as `Spatial` describes it; `side` as for `positions`."""
    nouns = (relation.first, relation.second)
    (first, first_sure), (second, second_sure) = (detections.of(noun) for noun in nouns)
    where = positions(relation.relation, first, second, side)
    # One box is not two objects, whatever the detector calls it.
    same = (first[:, None] == second[None]).all(dim=2)
    values = (first_sure[:, None] / 4 + second_sure[None] / 4 + where / 2).masked_fill(same, -1)
    chosen: list[int | None] = [0 if len(first) else None, 0 if len(second) else None]
    position: float | None = None
    if not same.all():  # so there is a pair of two boxes
        row, column = divmod(int(values.argmax()), values.shape[1])
        chosen, position = [row, column], float(where[row, column])
    elif None not in chosen:  # the less confident of two names for one box is missing
        chosen[int(second_sure[0] <= first_sure[0])] = None
    sure = [None if at is None else float(one[at]) for one, at in zip((first_sure, second_sure), chosen, strict=True)]
    score = sum(one or 0.0 for one in sure) / 4 + (position or 0.0) / 2
    found: dict[str, Any] = {
        "score": score if score >= 0.5 else 0.0,
        **asdict(relation),
        "position": position,
        "confidences": sure,
        "boxes": [
            None if at is None else [round(edge, 1) for edge in one[at].tolist()]
            for one, at in zip((first, second), chosen, strict=True)
        ],
    }
    if missing := [noun for noun, at in zip(nouns, chosen, strict=True) if at is None]:
        found["reason"] = f"Not found: {' and '.join(dict.fromkeys(missing))}."
    return found


def positions(relation: str, first: torch.Tensor, second: torch.Tensor, side: float) -> torch.Tensor:
    """Degree to which each pair of boxes satisfies a relation, [N, M] from 0 to 1.

    With d the vector from the first centre to the second:
    - beside ("next to", "near", "on side of"): 1 if |d_x| or |d_y| is less than `NEAR` * side, otherwise `NEAR` * side
      divided by the larger of the two;
    - left, right, top, bottom: 0 unless d has the sign of the direction and is longest along its axis; then 1 if the
      boxes' IoU is less than `LARGEST_IOU`, otherwise `LARGEST_IOU` / IoU.

    Args:
        relation: one of `RELATIONS`.
        first: boxes [N, 4] of the first noun.
        second: boxes [M, 4] of the second noun.
        side: length of the image's longer side in pixels.
    """
    centres = [(boxes[:, :2] + boxes[:, 2:]) / 2 for boxes in (first, second)]
    way = centres[1][None] - centres[0][:, None]
    far = way.abs()
    if relation in BESIDE:
        near = NEAR * side
        beside = (far < near).any(dim=2)
        return torch.where(beside, 1.0, near / far.amax(dim=2).clamp_min(near))
    axis, sign = DIRECTIONS[relation]
    right = (way[..., axis] * sign > 0) & (far[..., axis] > far[..., 1 - axis])
    return right * (LARGEST_IOU / box_iou(first, second).clamp_min(LARGEST_IOU))


def read_relation(prompt: Prompt) -> Relation | str:
    """Relation that a prompt asks for, from its `about` or else from its text; a sentence if none is found.

    The text is read as T2I-CompBench writes its prompts, "a NOUN RELATION a NOUN", with attributes and verbs as in its
    complex prompts: the first relation counts, with the last noun before it and the first one after it.

    Raises:
        LLM4GENError: `about` has only some of the keys, or an unknown relation.
    """
    keys = ("first", "relation", "second")
    if any(key in prompt.about for key in keys):
        values = [prompt.about.get(key) for key in keys]
        if not all(isinstance(value, str) and value.strip() for value in values) or values[1] not in RELATIONS:
            raise LLM4GENError(
                f"Prompt {prompt.id!r}: field `about` has {dict(zip(keys, values, strict=True))}; expected the nouns "
                f"'first' and 'second' and a 'relation', one of {', '.join(RELATIONS)}."
            )
        return Relation(*(str(value) for value in values))
    text = " ".join(prompt.text.lower().split())
    match = _RELATION.search(text)
    if match is None:
        return f"The prompt has none of the relations {', '.join(RELATIONS)}."
    before, after = _nouns(text[: match.start()]), _nouns(text[match.end() :])
    if not before or not after:
        return f"No noun was found {'after' if before else 'before'} {match[1]!r}."
    return Relation(before[-1], match[1], after[0])


def _nouns(text: str) -> list[str]:
    """Names of things, in order.

    The parser finds only things with attributes, so everything is called "big" first.
    """
    described, articles = _ARTICLE.subn("the big ", text)
    pairs = parse_entities(described if articles else f"the big {text.strip()}", _PARSER)
    return [text for _, text in sorted({(pair.entity.start, pair.entity.text) for pair in pairs})]
