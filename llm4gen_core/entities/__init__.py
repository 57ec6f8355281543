"""Attribute-entity pairs of a prompt, as spans of its characters (section 3.4 of the paper: "entity-guided").

The parsers are `spacy` (dependency parse) and `rules` (no download); `positions` finds the tokens of words.
Taking pairs from a dependency parse follows Rassin et al. (arXiv 2306.08877).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from ..errors import LLM4GENError


@dataclass(frozen=True)
class Span:
    """Characters `start` to `end` (exclusive) of a caption, and their text.

    Raises:
        LLM4GENError: the span is empty, does not match its text, or begins or ends with white space.
    """

    start: int
    end: int
    text: str

    def __post_init__(self) -> None:
        if self.start < 0 or self.end - self.start != len(self.text) or not self.text or self.text != self.text.strip():
            raise LLM4GENError(
                f"Span {self.start}-{self.end} with text {self.text!r} is invalid; expected a start of at least 0, a "
                "text of end - start characters, at least one, and no white space at either end. Correct the span."
            )


@dataclass(frozen=True)
class EntityPair:
    """Attribute word and the entity that it describes: `red` and `cat` in "a red cat"."""

    attribute: Span
    entity: Span

    @property
    def offsets(self) -> list[int]:
        """[a_start, a_end, e_start, e_end], the form in which JSON files store a pair."""
        return [self.attribute.start, self.attribute.end, self.entity.start, self.entity.end]

    @classmethod
    def from_offsets(cls, caption: str, a_start: int, a_end: int, e_start: int, e_end: int) -> EntityPair:
        """Return the pair of a caption from its stored `offsets`.

        Raises:
            LLM4GENError: a span is outside the caption, is empty, or begins or ends with white space.
        """
        return cls(_cut(caption, "attribute", a_start, a_end), _cut(caption, "entity", e_start, e_end))


def _cut(caption: str, role: str, start: Any, end: Any) -> Span:
    whole = all(isinstance(value, int) and not isinstance(value, bool) for value in (start, end))
    if not whole or not 0 <= start < end <= len(caption):
        problem = "is empty or outside of it"
    elif caption[start].isspace() or caption[end - 1].isspace():
        problem = f"({caption[start:end]!r}) begins or ends with white space"
    else:
        return Span(start, end, caption[start:end])
    shown = caption if len(caption) <= 60 else caption[:57] + "..."
    raise LLM4GENError(
        f"Caption {shown!r} ({len(caption)} characters): the {role} span {start!r}-{end!r} {problem}; expected the "
        "characters of a word, [start, end) with 0 <= start < end <= length. Correct the pair, or remove it."
    )


class Backend(Protocol):
    """Parser of prompts.

    Attributes:
        name: parser with its version, such as "rules/1" or "spacy/1 en_core_web_sm 3.8.0". Parsers of the same name
            return the same pairs. A name that starts with "rules/" is the fallback.
        spec: `backend` argument that selects exactly this parser, also in another process.
    """

    name: str
    spec: str

    def pipe(self, prompts: Iterable[str]) -> Iterator[list[EntityPair]]:
        """Yield the pairs of every prompt, in order."""


def parse_entities(prompt: str, backend: str = "auto") -> list[EntityPair]:
    """Return the attribute-entity pairs of a prompt, in the order of their attributes.

    An attribute is an adjective, a participle, or a colour, material or pattern ("leather sofa", "made of wood", "in
    red", "with stripes"), before its noun, after it, or in a predicate ("the dog is red"). Numerals, "very", positions
    and negated words are not attributes. An entity is a noun with the words that make up its name ("coffee table").
    Each mention has its own span. In "red cats and dogs" only the cats are red: binding an attribute to too many
    entities is the error that the entity-guidance loss is meant to reduce. A prompt that is not English has no pairs,
    or only those that look like English.

    Args:
        prompt: any text.
        backend: "auto" (spaCy if a trained pipeline is installed, else the rules), "spacy", "spacy:PACKAGE" (or the
            folder of a pipeline), or "rules".

    Raises:
        LLM4GENError: the backend is unknown or not installed.
    """
    return next(load_backend(backend).pipe([prompt]))


def entity_backend(backend: str = "auto") -> str:
    """Return the parser that `parse_entities` uses for `backend`, with its version (see `Backend.name`).

    Raises:
        LLM4GENError: the backend is unknown or not installed.
    """
    return load_backend(backend).name


@lru_cache(maxsize=8)
def load_backend(backend: str) -> Backend:
    """Load the parser of a name; loaded parsers are cached.

    Raises:
        LLM4GENError: the backend is unknown or not installed.
    """
    from . import rules, spacy

    if backend == "auto":
        return spacy.find() or rules.RulesBackend()
    if backend == "rules":
        return rules.RulesBackend()
    if backend == "spacy":
        found = spacy.find()
        if found is None:
            raise LLM4GENError(
                "Entity parser 'spacy' found no trained English pipeline with a dependency parser; install one with "
                f"{spacy.HOW_TO_INSTALL}, or use 'rules', which needs none."
            )
        return found
    if backend.startswith("spacy:") and len(backend) > len("spacy:"):
        return spacy.SpacyBackend(backend.removeprefix("spacy:"))
    raise LLM4GENError(
        f"Entity parser {backend!r} is unknown; expected 'auto', 'spacy', 'spacy:PACKAGE' (such as "
        "'spacy:en_core_web_sm') or 'rules'."
    )
