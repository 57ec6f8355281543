"""Attribute-entity pairs of a prompt, as spans of its characters (section 3.4 of the paper: "entity-guided").

The parsers are `spacy` (dependency parse) and `rules` (no download). Taking pairs from a dependency parse follows
Rassin et al. (arXiv 2306.08877). `ContextSegment` finds the tokens of words in the context of cross-attention.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
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


Offsets = Sequence[tuple[int, int]]
"""Characters (start, end) of each token, as fast tokenizers return them; (0, 0) for special and padding tokens."""


def token_indices(span: Span, offsets: Offsets) -> list[int]:
    """Return the indices of the tokens that contain characters of a span other than white space.

    Only characters are compared: each mention of a repeated word has its own tokens, and a token that includes the
    space before a word counts, but not a token of white space only. If truncation removed a part of the span, the
    remaining tokens are returned; see `covers`.

    Args:
        span: span of the caption.
        offsets: tokens' characters in the same caption. If the tokenized text has a prefix, subtract its length from
            the offsets; those of the prefix are then negative and never match.
    """
    tokens = _tokens_by_character(offsets)
    return sorted({index for character in _visible(span) for index in tokens.get(character, ())})


def covers(span: Span, offsets: Offsets) -> bool:
    """Whether every character of a span except white space is in some token; False if a part was truncated."""
    tokens = _tokens_by_character(offsets)
    return all(character in tokens for character in _visible(span))


def _tokens_by_character(offsets: Offsets) -> dict[int, list[int]]:
    tokens: dict[int, list[int]] = {}
    for index, (start, end) in enumerate(offsets):
        for character in range(start, end):
            tokens.setdefault(character, []).append(index)
    return tokens


def _visible(span: Span) -> list[int]:
    return [place for place, letter in enumerate(span.text, span.start) if not letter.isspace()]


@dataclass(frozen=True)
class ContextSegment:
    """Part of the context that holds one copy of the prompt.

    Attributes:
        kind: "clip" or "llm".
        start: position of its first token in the context.
        offsets: characters of the prompt that each token covers; (0, 0) for special tokens.
    """

    kind: str
    start: int
    offsets: Offsets
    _tokens: dict[int, list[int]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Computed once for all words of the prompt.
        object.__setattr__(self, "_tokens", _tokens_by_character(self.offsets))

    def positions(self, word: Span) -> tuple[int, ...]:
        """Positions of a word's tokens in the context; empty if a part of the word was truncated."""
        found = [self._tokens.get(character) for character in _visible(word)]
        return () if None in found else tuple(sorted({self.start + i for tokens in found if tokens for i in tokens}))


def context_segments(layout: Sequence[str], clip: Offsets, llm: Offsets | None) -> list[ContextSegment]:
    """Return the copies of a prompt in the context.

    Args:
        layout: `CrossAdapterConfig.context_layout`, or ("text",) without an adapter.
        clip: offsets of CLIP's tokens, `Family.text_offsets`.
        llm: offsets of the LLM's tokens, `prompt_offsets`; may be None if the layout has no "llm".
    """
    segments, start = [], 0
    for place, part in enumerate(layout):
        offsets = clip if part == "text" else llm
        assert offsets is not None
        # The second of two parts is the adapter's output; with CLIP as query it has CLIP's tokens.
        segments.append(ContextSegment("llm" if place == 1 or part == "llm" else "clip", start, offsets))
        start += len(offsets)
    return segments
