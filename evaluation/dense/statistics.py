"""How long, dense and varied prompts are: what Fig. 4 of the paper shows of DensePrompts, for any set.

The paper gives the figure without numbers, apart from "more than 7,000" prompts and an "average word length" (words of
a prompt) of "more than 40"; see `statistics_table` for these.

Words are what blanks separate. Tokens are counted with those that begin and end a text, so that CLIP takes prompts of
up to 77 whole. Parts of speech need a trained spaCy pipeline. Without one, adjectives are the attributes of the pairs
and prepositions the words of a list, which is said beside them, and nouns and verbs are left open. Attributes of an
entity are those of gold pairs where every prompt has them, else of `llm4gen_core.parse_entities`; an entity is a
mention with at least one attribute.
"""

from __future__ import annotations

import statistics as st
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm4gen_core import EntityPair, LLM4GENError
from llm4gen_core.entities import load_backend
from llm4gen_core.entities.lexicon import PREPOSITIONS

from ..prompts import Prompt
from .markup import Pair

CLIP_LIMIT = 77
"""Tokens that CLIP's text encoder reads, those of begin and end among them."""

T5_LIMIT = 128
"""Tokens of the LLM that the paper reads."""

TAGS = {"nouns": ("NOUN", "PROPN"), "adjectives": ("ADJ",), "verbs": ("VERB",), "prepositions": ("ADP",)}
"""Universal part-of-speech tags that are counted."""


_MARKS = ".,;:!?\"'()"


@dataclass(frozen=True)
class Spread:
    """Of a number that every prompt has."""

    mean: float
    deviation: float
    least: float
    median: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        deviation = st.stdev(values) if len(values) > 1 else 0.0
        return cls(st.fmean(values), deviation, min(values), st.median(values), max(values))


@dataclass(frozen=True)
class Tokens:
    """Of one tokenizer.

    Attributes:
        tokenizer: its folder.
        count: tokens of a prompt.
        limit: that the encoder reads.
        truncated: share of the prompts that are longer.
    """

    tokenizer: str
    count: Spread
    limit: int
    truncated: float


@dataclass(frozen=True)
class Attributes:
    """Which attributes belong to which entities.

    Attributes:
        how: "gold", or name and version of the parser.
        pairs: of a prompt.
        entities: mentions of a prompt that have an attribute.
        per_entity: attributes of such a mention, over all prompts.
        share: of the prompts that have a pair.
        distinct_attributes, distinct_entities: texts in lower case, over all prompts.
    """

    how: str
    pairs: Spread
    entities: Spread
    per_entity: float
    share: float
    distinct_attributes: int
    distinct_entities: int


@dataclass(frozen=True)
class Speech:
    """Parts of speech.

    Attributes:
        how: name and version of the spaCy pipeline, or what took its place.
        counts: of a prompt, by keys of `TAGS`; what could not be counted is not there.
        distinct_nouns: lemmas, over all prompts; word forms where the pipeline has no lemmatizer. None without one.
    """

    how: str
    counts: dict[str, Spread]
    distinct_nouns: int | None = None


@dataclass(frozen=True)
class Statistics:
    """Of one set of prompts; None for what could not be counted."""

    name: str
    prompts: int
    categories: dict[str, int]
    words: Spread
    distinct_words: int
    attributes: Attributes
    questions: Spread | None = None
    clip: Tokens | None = None
    t5: Tokens | None = None
    speech: Speech | None = None

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def count_statistics(
    name: str,
    prompts: Sequence[Prompt],
    clip_tokenizer: str | None = None,
    t5_tokenizer: str | None = None,
    pipeline: str | None = "auto",
) -> Statistics:
    """What there is to count.

    Args:
        name: of the set, for tables.
        prompts: at least one.
        clip_tokenizer, t5_tokenizer: folders with a tokenizer of transformers; None counts no such tokens.
        pipeline: spaCy's, a name or folder; "auto" takes what is installed, if anything is; None counts no parts of
            speech.

    Raises:
        LLM4GENError: there is no prompt, a folder holds no tokenizer, a pipeline that was named cannot be loaded, or
            gold pairs are impossible.
    """
    if not prompts:
        raise LLM4GENError(f"Statistics of {name}: there is no prompt.")
    texts = [prompt.text for prompt in prompts]
    asked = [prompt.about.get("questions") for prompt in prompts]
    questions = [len(one) for one in asked if isinstance(one, list)]
    how, pairs = _pairs(prompts)
    return Statistics(
        name,
        len(prompts),
        dict(sorted(Counter(prompt.category for prompt in prompts).items())),
        Spread.of([len(text.split()) for text in texts]),
        len({word.strip(_MARKS).lower() for text in texts for word in text.split()}),
        _attributes(prompts, pairs, how),
        Spread.of(questions) if len(questions) == len(prompts) else None,
        _tokens(clip_tokenizer, texts, CLIP_LIMIT) if clip_tokenizer else None,
        _tokens(t5_tokenizer, texts, T5_LIMIT) if t5_tokenizer else None,
        (_speech(pipeline, texts) or _by_lists(texts, pairs)) if pipeline else None,
    )


def _tokens(folder: str, texts: Sequence[str], limit: int) -> Tokens:
    from transformers import AutoTokenizer

    if not Path(folder).is_dir():
        raise LLM4GENError(f"Tokenizer {folder} does not exist; expected a folder with a tokenizer of transformers.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        counts = [len(ids) for ids in tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]]
    except (OSError, ValueError, LookupError, ImportError, TypeError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise LLM4GENError(
            f"Tokenizer {folder} cannot be read ({reason}); expected a folder with a tokenizer of transformers."
        ) from error
    return Tokens(folder, Spread.of(counts), limit, sum(count > limit for count in counts) / len(counts))


def _pairs(prompts: Sequence[Prompt]) -> tuple[str, list[list[Pair]]]:
    """Where the pairs come from, and those of each prompt."""
    if all(isinstance(prompt.about.get("pairs"), list) for prompt in prompts):
        return "gold", [list(_gold(prompt)) for prompt in prompts]
    parser = load_backend("auto")
    return parser.name, [[_spans(pair) for pair in found] for found in parser.pipe([one.text for one in prompts])]


def _attributes(prompts: Sequence[Prompt], pairs: Sequence[Sequence[Pair]], how: str) -> Attributes:
    texts = [prompt.text.lower() for prompt in prompts]
    counts = [len(found) for found in pairs]
    entities = [len({entity for _, entity in found}) for found in pairs]
    named = [
        (text[slice(*attribute)], text[slice(*entity)])
        for text, found in zip(texts, pairs, strict=True)
        for attribute, entity in found
    ]
    return Attributes(
        how,
        Spread.of(counts),
        Spread.of(entities),
        sum(counts) / max(1, sum(entities)),
        sum(count > 0 for count in counts) / len(counts),
        len({attribute for attribute, _ in named}),
        len({entity for _, entity in named}),
    )


def _gold(prompt: Prompt) -> Iterator[Pair]:
    pairs: Any = prompt.about["pairs"]
    for pair in pairs:
        try:
            spans = tuple((int(start), int(end)) for start, end in (pair["attribute"], pair["entity"]))
        except (TypeError, ValueError, LookupError) as error:
            raise LLM4GENError(
                f'Prompt {prompt.id!r}: the pair {pair!r} is none; expected {{"attribute": [start, end], "entity": '
                "[start, end]}."
            ) from error
        if not all(0 <= start < end <= len(prompt.text) for start, end in spans):
            raise LLM4GENError(
                f"Prompt {prompt.id!r}: the pair {pair!r} lies outside of its {len(prompt.text)} characters."
            )
        yield spans[0], spans[1]


def _spans(pair: EntityPair) -> Pair:
    return (pair.attribute.start, pair.attribute.end), (pair.entity.start, pair.entity.end)


def _speech(package: str, texts: Sequence[str]) -> Speech | None:
    """None if nothing is installed and nothing was named."""
    if package == "auto":
        found = load_backend("auto")
        if not found.spec.startswith("spacy:"):
            return None
        package = found.spec.removeprefix("spacy:")
    try:
        import spacy

        pipeline: Any = spacy.load(package, exclude=["ner"])
    except (ImportError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise LLM4GENError(
            f"spaCy pipeline {package!r} cannot be loaded ({reason}); name one that is installed, such as "
            "en_core_web_sm, or leave parts of speech out (--no-spacy)."
        ) from error
    counts: dict[str, list[int]] = {kind: [] for kind in TAGS}
    nouns: set[str] = set()
    for doc in pipeline.pipe(texts, batch_size=256):
        tags = Counter(token.pos_ for token in doc)
        if not set(tags) - {"", "SPACE", "X"}:
            raise LLM4GENError(f"spaCy pipeline {package!r} tells no parts of speech; expected a trained one.")
        for kind, names in TAGS.items():
            counts[kind].append(sum(tags[name] for name in names))
        nouns.update((token.lemma_ or token.text).lower() for token in doc if token.pos_ in TAGS["nouns"])
    meta = pipeline.meta
    spreads = {kind: Spread.of(values) for kind, values in counts.items()}
    return Speech(f"spaCy {meta['lang']}_{meta['name']} {meta['version']}", spreads, len(nouns))


def _by_lists(texts: Sequence[str], pairs: Sequence[Sequence[Pair]]) -> Speech:
    """What can be said without a tagger."""
    adjectives = [len({attribute for attribute, _ in found}) for found in pairs]
    prepositions = [sum(word.strip(_MARKS).lower() in PREPOSITIONS for word in text.split()) for text in texts]
    counts = {"adjectives": Spread.of(adjectives), "prepositions": Spread.of(prepositions)}
    return Speech("no tagger: attributes of the pairs, and a list of prepositions", counts)
