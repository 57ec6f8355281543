"""Noun chunks and adjectives of prompts, for T2I-CompBench's metrics: by spaCy, or by a template without it."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, TypeAlias

from llm4gen_core import LLM4GENError, entity_backend, parse_entities
from llm4gen_core.entities import lexicon
from llm4gen_core.entities.spacy import HOW_TO_INSTALL, PIPELINES
from llm4gen_core.errors import first_line

TEMPLATE = "template"

_UNUSED = ("ner", "lemmatizer")
_ENDS = frozenset({"and", "of"})
_ARTICLES = frozenset({"a", "an", "the"})
_NO_TEMPLATE = (
    lexicon.PREPOSITIONS
    | lexicon.CONJUNCTIONS
    | lexicon.VERBS
    | lexicon.COPULAS
    | lexicon.PRONOUNS
    | lexicon.RELATIVES
    | lexicon.NEGATIONS
) - _ENDS
_BETWEEN = re.compile(r" (?:and|of) ", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")


class SpacyChunker:
    """Noun chunks and adjectives of a trained English pipeline; the official scripts use en_core_web_sm.

    Args:
        package: name of an installed pipeline, or its folder.

    Attributes:
        name: name and version of what finds noun chunks.
        adjectives: name and version of what finds adjectives.
        note: a sentence to record with every score; "" for none.

    Raises:
        LLM4GENError: spaCy or the pipeline is not installed or cannot be loaded, or it does not parse English.
    """

    note = ""

    def __init__(self, package: str) -> None:
        try:
            import spacy

            self._pipeline: Any = spacy.load(package, exclude=list(_UNUSED))
        except (OSError, ImportError, ValueError, AttributeError, TypeError, KeyError) as error:
            raise LLM4GENError(
                f"spaCy pipeline {package!r} cannot be loaded ({first_line(error)}); install one with "
                f"{HOW_TO_INSTALL}, or set the option pipeline={TEMPLATE}, which needs none."
            ) from error
        meta = self._pipeline.meta
        given = {what for name in self._pipeline.pipe_names for what in self._pipeline.get_pipe_meta(name).assigns}
        if meta["lang"] != "en" or "token.dep" not in given or not {"token.tag", "token.pos"} & given:
            raise LLM4GENError(
                f"spaCy pipeline {package!r} (language {meta['lang']!r}, components {self._pipeline.pipe_names}) does "
                f"not parse English; expected a trained English pipeline, which {HOW_TO_INSTALL} installs."
            )
        self.name = f"spaCy {spacy.__version__}, {meta['lang']}_{meta['name']} {meta['version']}"
        self.adjectives = self.name

    def chunks(self, text: str) -> list[str]:
        """Noun chunks in order."""
        return [chunk.text for chunk in self._pipeline(text).noun_chunks]

    def without_adjectives(self, text: str) -> str:
        """Tokens that are no adjectives, joined by spaces as in the official script."""
        return " ".join(token.text for token in self._pipeline(text) if token.pos_ != "ADJ")


class TemplateChunker:
    """Noun chunks of prompts like "a red book and a yellow vase"; other prompts are left to spaCy.

    The template is "CHUNK and CHUNK", where "CHUNK of CHUNK" may stand for either. A chunk is an optional article and
    one to four words, none of them a verb, preposition, pronoun or the like. Most of T2I-CompBench's prompts of colour,
    shape and texture follow it. Adjectives are the attributes that the rule-based entity parser finds.
    """

    name = "template 1"
    note = (
        "Noun chunks were found by a template, because no spaCy pipeline was used; some differ from those of "
        "en_core_web_sm, which the official script uses."
    )

    def __init__(self) -> None:
        self.adjectives = entity_backend("rules")

    def chunks(self, text: str) -> list[str] | None:
        """Noun chunks in order; None for a text that does not follow the template."""
        words = text.strip().rstrip(".").split()
        if not words or not all(_WORD.fullmatch(word) and word.lower() not in _NO_TEMPLATE for word in words):
            return None
        chunks = [part.split() for part in _BETWEEN.split(" ".join(words))]
        if not all(_is_chunk(chunk) for chunk in chunks):
            return None
        if any(_lacks_noun(chunk, after) for chunk, after in zip(chunks, chunks[1:], strict=False)):
            return None  # "a black and white cat" is one chunk
        return [" ".join(chunk) for chunk in chunks]

    def without_adjectives(self, text: str) -> str:
        """The text without attributes."""
        attributes = {(pair.attribute.start, pair.attribute.end) for pair in parse_entities(text, "rules")}
        for start, end in sorted(attributes, reverse=True):
            text = text[:start] + text[end:]
        return " ".join(text.split())


Chunker: TypeAlias = SpacyChunker | TemplateChunker


@lru_cache(maxsize=1)
def find_chunker(package: str | None = None) -> Chunker:
    """Chunker for the option `pipeline`; metrics that ask for the same one share it.

    Args:
        package: name of a spaCy pipeline, its folder, or "template". None uses the first installed pipeline, starting
            with en_core_web_sm because published scores depend on it, and the template if there is none.

    Raises:
        LLM4GENError: see `SpacyChunker`.
    """
    if package == TEMPLATE:
        return TemplateChunker()
    if package is not None:
        return SpacyChunker(package)
    try:
        from spacy.util import is_package
    except ImportError:
        return TemplateChunker()
    installed = [name for name in reversed(PIPELINES) if is_package(name)]
    return SpacyChunker(installed[0]) if installed else TemplateChunker()


def _is_chunk(words: list[str]) -> bool:
    named = words[1:] if words and words[0].lower() in _ARTICLES else words
    return 1 <= len(named) <= 4 and not any(word.lower() in _ARTICLES | _ENDS for word in named)


def _lacks_noun(words: list[str], after: list[str]) -> bool:
    """Whether the words before "and" are adjectives of the noun after it, as in "a black and white cat"."""
    describes = words[-1].lower() in lexicon.COLORS | lexicon.ADJECTIVES | lexicon.MATERIALS
    return describes and after[0].lower() not in _ARTICLES
