"""Attribute-entity pairs of a prompt, as spans of its characters (section 3.4 of the paper: "entity-guided").

The parsers are in `spacy` (dependency parse) and `rules` (no download); what a pair is stands here,
and how it finds its tokens. The idea of pairs from a dependency parse is that of Rassin et al. (arXiv 2306.08877).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from ..errors import LLM4GENError

Offsets = Sequence[tuple[int, int]]
"""(start, end) in characters of each token; (0, 0) for special and padding tokens. Fast tokenizers give it."""


@dataclass(frozen=True)
class Span:
    """A stretch of a caption.

    Attributes:
        start, end: characters of the caption; `end` is the first one behind the span.
        text: those characters.
    """

    start: int
    end: int
    text: str

    def __post_init__(self) -> None:
        if self.start < 0 or self.end - self.start != len(self.text) or not self.text or self.text != self.text.strip():
            raise LLM4GENError(
                f"Span {self.start}-{self.end} of text {self.text!r} is impossible; expected a start of at least 0, as "
                "many characters as lie between start and end, at least one of them, and no blank at either end."
            )


@dataclass(frozen=True)
class EntityPair:
    """An attribute word and the entity that it describes: `red` and `cat` of "a red cat"."""

    attribute: Span
    entity: Span

    @property
    def offsets(self) -> list[int]:
        """[a_start, a_end, e_start, e_end]: how a pair is stored in JSON."""
        return [self.attribute.start, self.attribute.end, self.entity.start, self.entity.end]

    @classmethod
    def from_offsets(cls, caption: str, a_start: int, a_end: int, e_start: int, e_end: int) -> EntityPair:
        """The pair of a caption that `offsets` stored.

        Raises:
            LLM4GENError: a span lies outside the caption, is empty, or begins or ends with a blank.
        """
        return cls(_cut(caption, "attribute", a_start, a_end), _cut(caption, "entity", e_start, e_end))


def _cut(caption: str, role: str, start: Any, end: Any) -> Span:
    whole = all(isinstance(value, int) and not isinstance(value, bool) for value in (start, end))
    if not whole or not 0 <= start < end <= len(caption):
        problem = "lies outside of it or is empty"
    elif caption[start].isspace() or caption[end - 1].isspace():
        problem = f"({caption[start:end]!r}) begins or ends with a blank"
    else:
        return Span(start, end, caption[start:end])
    shown = caption if len(caption) <= 60 else caption[:57] + "..."
    raise LLM4GENError(
        f"Caption {shown!r} ({len(caption)} characters): the {role} span {start!r}-{end!r} {problem}; expected the "
        "characters of a word, [start, end) with 0 <= start < end <= length. Correct the pair, or leave it out."
    )


class Backend(Protocol):
    """A parser of prompts.

    Attributes:
        name: what was used and in which version, such as "rules/1" or "spacy/1 en_core_web_sm 3.8.0". Pairs of equal
            captions and names are equal. A name that starts with "rules/" is the fallback.
        spec: the `backend` argument that names exactly this one, in another process too.
    """

    name: str
    spec: str

    def pipe(self, prompts: Iterable[str]) -> Iterator[list[EntityPair]]:
        """Pairs of every prompt, in order."""


def parse_entities(prompt: str, backend: str = "auto") -> list[EntityPair]:
    """The attribute-entity pairs of a prompt, in the order of their attributes.

    An attribute is an adjective, a participle, or a colour, material or pattern ("leather sofa", "made of wood", "in
    red", "with stripes"), before its noun, behind it, or said of it ("the dog is red"). Numerals, "very", positions
    and what is negated are none. An entity is a noun with the words that make up its name ("coffee table"). Each
    mention has its own span. In "red cats and dogs" only the cats are red: binding too much is the error that the
    entity-guidance loss is there to cure. A prompt that is not English gives none, or only what looks like English.

    Args:
        prompt: any text.
        backend: "auto" (spaCy if a trained pipeline is installed, else the rules), "spacy", "spacy:PACKAGE" (or the
            folder of a pipeline), or "rules".

    Raises:
        LLM4GENError: the backend is unknown or not installed.
    """
    return next(load_backend(backend).pipe([prompt]))


def entity_backend(backend: str = "auto") -> str:
    """What `parse_entities` uses for `backend`, with its version (see `Backend.name`).

    Raises:
        LLM4GENError: the backend is unknown or not installed.
    """
    return load_backend(backend).name


@lru_cache(maxsize=8)
def load_backend(backend: str) -> Backend:
    """The parser that a name stands for; loaded once.

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
                "Entity parser 'spacy' found no trained English pipeline with a dependency parser on this machine; "
                f"install one with {spacy.HOW_TO_INSTALL}, or use 'rules', which needs none."
            )
        return found
    if backend.startswith("spacy:") and len(backend) > len("spacy:"):
        return spacy.SpacyBackend(backend.removeprefix("spacy:"))
    raise LLM4GENError(
        f"Entity parser {backend!r} is unknown; expected 'auto', 'spacy', 'spacy:PACKAGE' (such as "
        "'spacy:en_core_web_sm') or 'rules'."
    )


def token_indices(span: Span, offsets: Offsets) -> list[int]:
    """Indices of the tokens that hold characters of a span, blanks aside.

    Works by characters alone: a repeated word finds the tokens of its own mention, and a token whose offsets take in
    the blank before the word counts, but not one that holds only a blank. Of a span that truncation cut, the surviving
    tokens are returned; `covers` tells whether all of it is there.

    Args:
        span: of the caption.
        offsets: of the tokens, in characters of the same caption. For a text with a prefix, subtract its length from
            all of them; tokens of the prefix are then negative and never match.
    """
    return [
        index
        for index, (start, end) in enumerate(offsets)
        if start < span.end and end > span.start and _visible(span, start, end)
    ]


def covers(span: Span, offsets: Offsets) -> bool:
    """Whether every visible character of a span lies in some token: False if truncation took part of it."""
    held: set[int] = set()
    for start, end in offsets:
        held.update(range(max(start, span.start), min(end, span.end)))
    return all(span.start + i in held for i, character in enumerate(span.text) if not character.isspace())


def _visible(span: Span, start: int, end: int) -> bool:
    part = span.text[max(start, span.start) - span.start : min(end, span.end) - span.start]
    return bool(part) and not part.isspace()
