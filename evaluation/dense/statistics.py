"""Statistics of a prompt set: length, density and variety, which Fig. 4 of the paper shows of DensePrompts.

The paper gives the figure without numbers, apart from "more than 7,000" prompts and an "average word length" (words of
a prompt) of "more than 40"; see `QUOTED`.

Words are separated by spaces. Tokens include those that begin and end a text, so that CLIP reads prompts of up to 77
whole. Parts of speech need a trained spaCy pipeline. Without one, adjectives are the attributes of the pairs and
prepositions are counted by a word list, which the output says; nouns and verbs are not counted. Attribute-entity pairs
are gold pairs if every prompt has them, else those of `llm4gen_core.parse_entities`; an entity is a mention with at
least one attribute.
"""

from __future__ import annotations

import statistics as st
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm4gen_core import EntityPair, LLM4GENError
from llm4gen_core.entities import load_backend
from llm4gen_core.entities.lexicon import PREPOSITIONS
from llm4gen_core.errors import first_line

from ..image_set import Prompt

CLIP_LIMIT = 77
"""Tokens that CLIP's text encoder reads, including those that begin and end a text."""

T5_LIMIT = 128
"""Tokens that the paper's LLM reads."""

TAGS = {"nouns": ("NOUN", "PROPN"), "adjectives": ("ADJ",), "verbs": ("VERB",), "prepositions": ("ADP",)}
"""Universal part-of-speech tags to count."""

_MARKS = ".,;:!?\"'()"


@dataclass(frozen=True)
class Spread:
    """Distribution of a number over the prompts."""

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
    """Token counts by one tokenizer.

    Attributes:
        tokenizer: its folder.
        count: tokens per prompt.
        limit: tokens that the encoder reads.
        truncated: share of the prompts with more.
    """

    tokenizer: str
    count: Spread
    limit: int
    truncated: float


@dataclass(frozen=True)
class Attributes:
    """Attribute-entity pairs.

    Attributes:
        how: "gold", or name and version of the parser.
        pairs: per prompt.
        entities: mentions with an attribute, per prompt.
        per_entity: mean number of attributes of such a mention.
        share: of the prompts that have a pair.
        distinct_attributes, distinct_entities: different texts in lower case, over all prompts.
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
        how: name and version of the spaCy pipeline, or what replaced it.
        counts: per prompt, by keys of `TAGS`; a part of speech that was not counted is missing.
        distinct_nouns: different lemmas over all prompts, or word forms if the pipeline has no lemmatizer; None
            without a pipeline.
    """

    how: str
    counts: dict[str, Spread]
    distinct_nouns: int | None = None


QUOTED = (
    {"name": "DensePrompts", "source": "LLM4GEN", "prompts": "> 7,000", "words": "> 40", "tokens": None},
    {"name": "DPG-Bench", "source": "ELLA", "prompts": "1,065", "words": "67.12", "tokens": "83.91"},
    {"name": "DSG-1k", "source": "ELLA", "prompts": None, "words": "17.13", "tokens": None},
    {"name": "T2I-CompBench", "source": "ELLA", "prompts": None, "words": "9.60", "tokens": "12.65"},
    {"name": "PartiPrompts", "source": "ELLA", "prompts": None, "words": "9.11", "tokens": None},
)
"""Numbers that papers state: LLM4GEN of its own set, ELLA (Hu et al. 2024, arXiv 2403.05135) of others."""


@dataclass(frozen=True)
class Statistics:
    """Statistics of a prompt set; None for what was not counted."""

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
        """JSON values: what was measured, and apart from it the numbers that papers state."""
        return {"measured": asdict(self), "quoted": [*QUOTED]}


def count_statistics(
    name: str,
    prompts: Sequence[Prompt],
    clip_tokenizer: str | None = None,
    t5_tokenizer: str | None = None,
    pipeline: str | None = "auto",
) -> Statistics:
    """Count the statistics of a prompt set.

    Args:
        name: of the set, for tables.
        prompts: at least one.
        clip_tokenizer, t5_tokenizer: folders with a tokenizer of transformers; None counts no such tokens.
        pipeline: name or folder of a spaCy pipeline; "auto" takes an installed one if there is one; None counts no
            parts of speech.

    Raises:
        LLM4GENError: there is no prompt, a folder holds no tokenizer, a named pipeline cannot be loaded, or gold pairs
            lie outside of their prompt.
    """
    if not prompts:
        raise LLM4GENError(f"Statistics of {name}: there is no prompt; expected at least one.")
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
        _attributes(pairs, how),
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
        raise LLM4GENError(
            f"Tokenizer {folder} cannot be read ({first_line(error)}); expected a folder with a tokenizer of "
            "transformers."
        ) from error
    return Tokens(folder, Spread.of(counts), limit, sum(count > limit for count in counts) / len(counts))


def _pairs(prompts: Sequence[Prompt]) -> tuple[str, list[list[EntityPair]]]:
    """Return the source of the pairs, and the pairs of each prompt."""
    if not all(isinstance(prompt.about.get("pairs"), list) for prompt in prompts):
        parser = load_backend("auto")
        return parser.name, list(parser.pipe([one.text for one in prompts]))
    gold = []
    for prompt in prompts:
        pairs: Any = prompt.about["pairs"]
        try:
            gold.append([EntityPair.from_offsets(prompt.text, *one["attribute"], *one["entity"]) for one in pairs])
        except (LLM4GENError, TypeError, LookupError) as error:
            raise LLM4GENError(
                f"Prompt {prompt.id!r} has an invalid pair ({first_line(error)}); expected pairs such as "
                '{"attribute": [start, end], "entity": [start, end]}, characters of the prompt.'
            ) from error
    return "gold", gold


def _attributes(pairs: Sequence[Sequence[EntityPair]], how: str) -> Attributes:
    counts = [len(found) for found in pairs]
    entities = [len({pair.entity for pair in found}) for found in pairs]
    return Attributes(
        how,
        Spread.of(counts),
        Spread.of(entities),
        sum(counts) / max(1, sum(entities)),
        sum(count > 0 for count in counts) / len(counts),
        len({pair.attribute.text.lower() for found in pairs for pair in found}),
        len({pair.entity.text.lower() for found in pairs for pair in found}),
    )


def _speech(package: str, texts: Sequence[str]) -> Speech | None:
    """Tag the texts; None if no pipeline is installed and none was named."""
    if package == "auto":
        found = load_backend("auto")
        if not found.spec.startswith("spacy:"):
            return None
        package = found.spec.removeprefix("spacy:")
    try:
        import spacy

        pipeline: Any = spacy.load(package, exclude=["ner"])
    except (ImportError, OSError, ValueError) as error:
        raise LLM4GENError(
            f"spaCy pipeline {package!r} cannot be loaded ({first_line(error)}); name one that is installed, such as "
            "en_core_web_sm, or skip parts of speech (--no-spacy)."
        ) from error
    counts: dict[str, list[int]] = {kind: [] for kind in TAGS}
    nouns: set[str] = set()
    for doc in pipeline.pipe(texts, batch_size=256):
        tags = Counter(token.pos_ for token in doc)
        if not set(tags) - {"", "SPACE", "X"}:
            raise LLM4GENError(f"spaCy pipeline {package!r} assigns no parts of speech; expected a trained one.")
        for kind, names in TAGS.items():
            counts[kind].append(sum(tags[name] for name in names))
        nouns.update((token.lemma_ or token.text).lower() for token in doc if token.pos_ in TAGS["nouns"])
    meta = pipeline.meta
    spreads = {kind: Spread.of(values) for kind, values in counts.items()}
    return Speech(f"spaCy {meta['lang']}_{meta['name']} {meta['version']}", spreads, len(nouns))


def _by_lists(texts: Sequence[str], pairs: Sequence[Sequence[EntityPair]]) -> Speech:
    """Count without a tagger."""
    adjectives = [len({pair.attribute for pair in found}) for found in pairs]
    prepositions = [sum(word.strip(_MARKS).lower() in PREPOSITIONS for word in text.split()) for text in texts]
    counts = {"adjectives": Spread.of(adjectives), "prepositions": Spread.of(prepositions)}
    return Speech("no tagger: attributes of the pairs, and a list of prepositions", counts)


def table(found: Statistics) -> str:
    """Return the statistics as text: what was measured, and below it the numbers that papers state."""
    rows = list(_rows(found))
    left = max(len(label) for label, _ in rows)
    lines = [f"{found.name}", "", "Measured"]
    lines += [f"  {label:<{left}}  {value}" for label, value in rows]
    lines += ["", "Quoted from papers, not measured here", f"  {'':<14}{'prompts':>9}{'words':>8}{'tokens':>8}  from"]
    for one in QUOTED:
        prompts, words, tokens = (one[name] or "-" for name in ("prompts", "words", "tokens"))
        lines.append(f"  {one['name']:<14}{prompts:>9}{words:>8}{tokens:>8}  {one['source']}")
    return "\n".join(lines)


def _rows(found: Statistics) -> Iterable[tuple[str, str]]:
    untagged = "not counted: no trained spaCy pipeline"
    yield "prompts", f"{found.prompts:,}"
    yield "words per prompt", _shown(found.words)
    yield "distinct words", f"{found.distinct_words:,}"
    for title, tokens in (("CLIP", found.clip), ("T5", found.t5)):
        if tokens is None:
            yield f"{title} tokens per prompt", f"not counted: no tokenizer was given (--{title.lower()}-tokenizer)"
        else:
            yield f"{title} tokens per prompt", _shown(tokens.count)
            yield f"longer than {tokens.limit}", f"{tokens.truncated:.1%}"
    counts = found.speech.counts if found.speech else {}
    for kind in TAGS:
        yield f"{kind} per prompt", _shown(counts[kind]) if kind in counts else untagged
    nouns = found.speech.distinct_nouns if found.speech else None
    yield "distinct nouns", untagged if nouns is None else f"{nouns:,}"
    yield "parts of speech by", found.speech.how if found.speech else "not counted (--no-spacy)"
    attributes = found.attributes
    how = "gold pairs" if attributes.how == "gold" else f"parsed by {attributes.how}"
    yield "attribute-entity pairs per prompt", f"{_shown(attributes.pairs)} ({how})"
    yield "entities with an attribute per prompt", _shown(attributes.entities)
    yield "attributes per such entity", f"{attributes.per_entity:.2f}"
    yield "distinct attributes", f"{attributes.distinct_attributes:,}"
    yield "distinct entities", f"{attributes.distinct_entities:,}, of those with an attribute"
    if found.questions:
        yield "questions per prompt", _shown(found.questions)


def _shown(spread: Spread) -> str:
    return f"{spread.mean:.2f} (sd {spread.deviation:.2f}, {spread.least:g} to {spread.most:g})"
