"""T2I-CompBench's score of complex prompts: the mean of those of attributes, spatial relations and other relations."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from llm4gen_core import LLM4GENError, entity_backend, parse_entities
from llm4gen_core.entities.spacy import PIPELINES

from ..prompts import Prompt
from .base import Context, ImageMetric, Scores
from .blip_vqa import BlipVQA
from .clip_score import NonSpatial
from .noun_chunks import SpacyChunker, find_chunker
from .spatial import RELATIONS, Spatial

PARTS = {
    "spatial": (BlipVQA.name, Spatial.name),
    "action": (BlipVQA.name, NonSpatial.name),
    "spatialaction": (BlipVQA.name, Spatial.name, NonSpatial.name),
}
"""Kind of a prompt -> metrics whose mean is its score. The kinds are those of T2I-CompBench's files
`complex_val_KIND.txt`."""

_RELATION = re.compile(rf"\b(?:{'|'.join(RELATIONS)})\b")
_IS = re.compile(r"\b(?:is|are|was|were)\s*$")


class ThreeInOne(ImageMetric):
    """The 3-in-1 metric of T2I-CompBench (Huang et al., arXiv 2307.06350, section 4.4), after the authors' `3_in_1.py`.

    Which parts count depends on the prompt. One that says where something is ("The red hat was on top of the brown coat
    rack.") has the mean of BLIP-VQA and the spatial score; one with another relation ("The brown dog was lying on the
    green mat.") that of BLIP-VQA and the CLIP cosine; one with both ("The sleek black cat sat next to the fluffy white
    pillow.") that of all three. CLIP reads the prompt without its adjectives, for attributes are BLIP-VQA's part.

    What differs from the script:
    - It counts on exactly ten images a prompt, of a fixed list of prompts. Here every image is scored by itself, and
      the kind of a prompt is `Prompt.about["kind"]`, else read from its text (`kind_of`).
    - The parts are this package's, see `BlipVQA`, `Spatial` and `NonSpatial` for how they differ. "on top of", the
      relation of 32 of the 58 prompts of the kind "spatial", has position 0 in the authors' script.
    - An image that one of its parts cannot judge has no score; there the part counts as 0.
    - Adjectives are spaCy's, as there, if a trained pipeline is installed, else attributes by a parser without one.

    Scores beside "score": "kind", what each part says under its name ("blip_vqa", "spatial", "non_spatial"), and
    "reason" where there is no score.

    Options: those of the parts.
    """

    name = "three_in_one"
    title = "3-in-1 (T2I-CompBench)"
    share = False  # a cosine can fall below 0
    judges_needed = (*BlipVQA.judges_needed, *Spatial.judges_needed, *NonSpatial.judges_needed)

    def __init__(self, parts: Mapping[str, ImageMetric], adjectives: Adjectives) -> None:
        self._parts, self._adjectives = parts, adjectives

    @classmethod
    def load(cls, context: Context) -> ThreeInOne:
        parts = {part.name: part.load(context) for part in (BlipVQA, Spatial, NonSpatial)}
        return cls(parts, Adjectives(context.options.get("pipeline")))

    @classmethod
    def applies(cls, prompt: Prompt) -> bool:
        return prompt.category == "complex"

    def describe(self) -> dict[str, Any]:
        parts = {name: part.describe() for name, part in self._parts.items()}
        return {**parts, "adjectives": self._adjectives.name, "version": 1}

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Scores]:
        kinds = [kind_of(prompt) for prompt in prompts]
        found: list[dict[str, Any]] = [{} for _ in images]
        for name, part in self._parts.items():
            places = [place for place, kind in enumerate(kinds) if name in PARTS[kind]]
            if places:
                asked = [self._ask(name, prompts[place]) for place in places]
                scores = part.score([images[place] for place in places], asked)
                for place, one in zip(places, scores, strict=True):
                    found[place][name] = dict(one)
        return [_mean(kind, values) for kind, values in zip(kinds, found, strict=True)]

    def _ask(self, name: str, prompt: Prompt) -> Prompt:
        """The prompt as a part has it in its own category."""
        if name == Spatial.name:
            return prompt.model_copy(update={"category": "spatial"})
        if name == NonSpatial.name:
            return prompt.model_copy(update={"category": "non-spatial", "text": self._adjectives.without(prompt.text)})
        return prompt


class Adjectives:
    """Takes adjectives out of texts.

    Args:
        package: see `find_chunker`.

    Attributes:
        name: of the parser, with its version.

    Raises:
        LLM4GENError: see `find_chunker`.
    """

    def __init__(self, package: str | None = None) -> None:
        chunker = find_chunker(package)
        spacy = isinstance(chunker, SpacyChunker)
        self.name = chunker.name if spacy else entity_backend("rules")
        self.without: Callable[[str], str] = _by_spacy(package) if spacy else _by_rules


def kind_of(prompt: Prompt) -> str:
    """Which parts judge a prompt, a key of `PARTS`.

    Read from the text it is "action" without one of `RELATIONS`, "spatial" with "is", "are", "was" or "were" before
    the first of them, else "spatialaction". Of T2I-CompBench's 300 validation prompts that is the authors' kind for all
    but one, whose sun "sank below the horizon".

    Raises:
        LLM4GENError: `about` names another kind.
    """
    if "kind" in prompt.about:
        kind = prompt.about["kind"]
        if kind not in PARTS:
            raise LLM4GENError(f"Prompt {prompt.id!r} is of the kind {kind!r}; expected one of {', '.join(PARTS)}.")
        return str(kind)
    text = prompt.text.lower()
    match = _RELATION.search(text)
    if match is None:
        return "action"
    return "spatial" if _IS.search(text[: match.start()]) else "spatialaction"


def _mean(kind: str, parts: Mapping[str, Scores]) -> Scores:
    values = [part["score"] for part in parts.values()]
    silent = [f"{name}: {part.get('reason')}" for name, part in parts.items() if part["score"] is None]
    if silent:
        return {"score": None, "reason": " ".join(silent), "kind": kind, **parts}
    return {"score": sum(values) / len(values), "kind": kind, **parts}


def _by_spacy(package: str | None) -> Callable[[str], str]:
    import spacy
    from spacy.util import is_package

    pipeline = spacy.load(package or next(name for name in reversed(PIPELINES) if is_package(name)))
    return lambda text: " ".join(token.text for token in pipeline(text) if token.pos_ != "ADJ")


def _by_rules(text: str) -> str:
    attributes = {(pair.attribute.start, pair.attribute.end) for pair in parse_entities(text, "rules")}
    for start, end in sorted(attributes, reverse=True):
        text = text[:start] + text[end:]
    return " ".join(text.split())
