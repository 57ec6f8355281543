"""Noun chunks of prompts, which T2I-CompBench asks its judge for: by spaCy's parse, or by a template without it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from llm4gen_core import LLM4GENError
from llm4gen_core.entities import lexicon
from llm4gen_core.entities.spacy import HOW_TO_INSTALL, PIPELINES

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
_WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")


class Chunker(Protocol):
    """Finds noun chunks.

    Attributes:
        name: with versions, since the chunks depend on them.
        note: what is worth knowing of it beside every score; "" for nothing.
    """

    name: str
    note: str

    def chunks(self, text: str) -> list[str] | None:
        """Noun chunks in their order; None where the text is none that can be cut."""


class SpacyChunker:
    """`Doc.noun_chunks` of a trained English pipeline, as the official script takes them of en_core_web_sm.

    Args:
        package: name of an installed pipeline, or the folder of one.

    Raises:
        LLM4GENError: spaCy or the pipeline is not installed or cannot be loaded, or it does not parse English.
    """

    note = ""

    def __init__(self, package: str) -> None:
        try:
            import spacy

            self._pipeline: Any = spacy.load(package, exclude=list(_UNUSED))
        except (OSError, ImportError, ValueError, AttributeError, TypeError, KeyError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise LLM4GENError(
                f"spaCy pipeline {package!r} cannot be loaded ({reason}); install one with {HOW_TO_INSTALL}, or "
                f"choose pipeline={TEMPLATE}, which needs none."
            ) from error
        meta = self._pipeline.meta
        given = {what for name in self._pipeline.pipe_names for what in self._pipeline.get_pipe_meta(name).assigns}
        if meta["lang"] != "en" or "token.dep" not in given or not {"token.tag", "token.pos"} & given:
            raise LLM4GENError(
                f"spaCy pipeline {package!r} (language {meta['lang']!r}, components {self._pipeline.pipe_names}) does "
                f"not parse English; expected a trained English pipeline, which {HOW_TO_INSTALL} installs."
            )
        self.name = f"spaCy {spacy.__version__}, {meta['lang']}_{meta['name']} {meta['version']}"

    def chunks(self, text: str) -> list[str]:
        return [chunk.text for chunk in self._pipeline(text).noun_chunks]


class TemplateChunker:
    """The chunks of "a red book and a yellow vase", and of no other kind of prompt.

    Takes "CHUNK and CHUNK", with "CHUNK of CHUNK" in place of either, where a chunk is one to four words behind an
    article if there is one, and all words are such as name or describe. That is how T2I-CompBench's prompts of colour,
    shape and texture are made for the most part; what is a sentence is left to spaCy.
    """

    name = "template 1"
    note = (
        "Noun chunks were cut by a template, because no spaCy pipeline was used; with en_core_web_sm, as the official "
        "script has it, some differ."
    )

    def chunks(self, text: str) -> list[str] | None:
        words = text.strip().rstrip(".").split()
        if not words or not all(_WORD.fullmatch(word) and word.lower() not in _NO_TEMPLATE for word in words):
            return None
        chunks = list(_cut(words))
        if not all(_is_chunk(chunk) for chunk in chunks):
            return None
        if any(_lacks_noun(chunk, behind) for chunk, behind in zip(chunks, chunks[1:], strict=False)):
            return None  # "a black and white cat" is one chunk
        return [" ".join(chunk) for chunk in chunks]


def find_chunker(package: str | None = None) -> Chunker:
    """The chunker of that name.

    Args:
        package: of a spaCy pipeline, its folder, or "template"; None for the first installed pipeline, en_core_web_sm
            before all others since published scores depend on it, and the template if there is none.

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


def _cut(words: Iterable[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    for word in words:
        if word.lower() in _ENDS:
            yield chunk
            chunk = []
        else:
            chunk.append(word)
    yield chunk


def _is_chunk(words: list[str]) -> bool:
    named = words[1:] if words and words[0].lower() in _ARTICLES else words
    return 1 <= len(named) <= 4 and not any(word.lower() in _ARTICLES for word in named)


def _lacks_noun(words: list[str], behind: list[str]) -> bool:
    """Whether what stands before "and" is an adjective of the noun behind it, as in "a black and white cat"."""
    describes = words[-1].lower() in lexicon.COLORS | lexicon.ADJECTIVES | lexicon.MATERIALS
    return describes and behind[0].lower() not in _ARTICLES
