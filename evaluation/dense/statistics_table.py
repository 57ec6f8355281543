"""Statistics of prompts for people, beside what papers say of their sets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from .statistics import TAGS, Spread, Statistics

_UNTAGGED = "not counted: no trained spaCy pipeline"


@dataclass(frozen=True)
class Quoted:
    """What a paper says of a set; None where it says nothing."""

    name: str
    source: str
    prompts: str | None = None
    words: str | None = None
    tokens: str | None = None


QUOTED = (
    Quoted("DensePrompts", "LLM4GEN", "> 7,000", "> 40"),
    Quoted("DPG-Bench", "ELLA", "1,065", "67.12", "83.91"),
    Quoted("DSG-1k", "ELLA", words="17.13"),
    Quoted("T2I-CompBench", "ELLA", words="9.60", tokens="12.65"),
    Quoted("PartiPrompts", "ELLA", words="9.11"),
)
"""Yardsticks: the LLM4GEN paper's own words, and the statistics of ELLA (Hu et al. 2024, arXiv 2403.05135)."""


def as_json(found: Statistics) -> dict[str, Any]:
    """JSON values: what was measured, and apart from it the yardsticks."""
    return {"measured": found.as_json(), "quoted": [asdict(one) for one in QUOTED]}


def table(found: Statistics) -> str:
    """For people: what was measured, and beside it what papers say."""
    rows = [*_measured(found)]
    left = max(len(label) for label, _ in rows)
    lines = [f"{found.name}", "", "Measured"]
    lines += [f"  {label:<{left}}  {value}" for label, value in rows]
    lines += ["", "Quoted from papers, not measured here", f"  {'':<14}{'prompts':>9}{'words':>8}{'tokens':>8}  from"]
    for one in QUOTED:
        shown = (one.prompts or "-", one.words or "-", one.tokens or "-")
        lines.append(f"  {one.name:<14}{shown[0]:>9}{shown[1]:>8}{shown[2]:>8}  {one.source}")
    return "\n".join(lines)


def _measured(found: Statistics) -> Iterable[tuple[str, str]]:
    yield "prompts", f"{found.prompts:,}"
    yield "words a prompt", _shown(found.words)
    yield "distinct words", f"{found.distinct_words:,}"
    for title, tokens in (("CLIP", found.clip), ("T5", found.t5)):
        if tokens is None:
            yield f"{title} tokens a prompt", f"not counted: no tokenizer was named (--{title.lower()}-tokenizer)"
        else:
            yield f"{title} tokens a prompt", _shown(tokens.count)
            yield f"longer than {tokens.limit}", f"{tokens.truncated:.1%}"
    counts = found.speech.counts if found.speech else {}
    for kind in TAGS:
        yield f"{kind} a prompt", _shown(counts[kind]) if kind in counts else _UNTAGGED
    nouns = found.speech.distinct_nouns if found.speech else None
    yield "distinct nouns", _UNTAGGED if nouns is None else f"{nouns:,}"
    yield "parts of speech by", found.speech.how if found.speech else "nothing: not wanted"
    attributes = found.attributes
    how = "gold pairs" if attributes.how == "gold" else f"parsed by {attributes.how}"
    yield "attribute pairs a prompt", f"{_shown(attributes.pairs)} ({how})"
    yield "described entities a prompt", _shown(attributes.entities)
    yield "attributes an entity", f"{attributes.per_entity:.2f}, where it has any"
    yield "distinct attributes", f"{attributes.distinct_attributes:,}"
    yield "distinct entities", f"{attributes.distinct_entities:,}, among those described"
    if found.questions:
        yield "questions a prompt", _shown(found.questions)


def _shown(spread: Spread) -> str:
    return f"{spread.mean:.2f} (sd {spread.deviation:.2f}, {spread.least:g} to {spread.most:g})"
