"""The shipped set: what the generator makes, and as good as it is said to be."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from evaluation.dense.duplicates import jaccard, shingles
from evaluation.dense.generator import COUNT, QUESTIONS, SIMILAR, generate_prompts
from evaluation.metrics.questions import Question
from evaluation.prompts import Prompt
from llm4gen_core import EntityPair, LLM4GENError, parse_entities

ROOT = Path(__file__).resolve().parents[3]


def gold(prompt: Prompt) -> list[EntityPair]:
    pairs: Any = prompt.about["pairs"]
    return [EntityPair.from_offsets(prompt.text, *pair["attribute"], *pair["entity"]) for pair in pairs]


def test_the_shipped_set_is_what_the_generator_makes(shipped: list[Prompt]) -> None:
    by_name = {prompt.id: prompt for prompt in shipped}
    for prompt in generate_prompts(120):
        assert prompt == by_name[prompt.id]


@pytest.mark.slow
def test_the_whole_shipped_set_is_what_the_generator_makes(shipped: list[Prompt]) -> None:
    assert list(generate_prompts()) == shipped


def test_hashes_of_texts_decide_nothing() -> None:
    """Sets of texts have another order in every process."""
    code = "from evaluation.dense.generator import generate_prompts as g; print([p.model_dump() for p in g(24, 'x')])"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=ROOT,
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(outputs) == 1


def test_a_prompt_does_not_depend_on_the_count_but_on_the_seed() -> None:
    few = {prompt.id: prompt.text for prompt in generate_prompts(12, 5)}
    more = {prompt.id: prompt.text for prompt in generate_prompts(27, 5)}
    other = {prompt.id: prompt.text for prompt in generate_prompts(12, 6)}
    assert few.items() <= more.items()
    assert Counter(name.split("-")[0] for name in more).most_common()[-1][1] == 2
    assert not set(few.values()) & set(other.values())


def test_size_of_the_set(shipped: list[Prompt]) -> None:
    lengths = [len(prompt.text.split()) for prompt in shipped]
    assert len(shipped) == COUNT >= 7000
    assert len({prompt.text for prompt in shipped}) == len(shipped)
    assert sum(lengths) / len(lengths) > 40 and min(lengths) >= 30 and max(lengths) <= 120
    assert set(Counter(prompt.category for prompt in shipped).values()) == {COUNT // 12}


def test_pairs_are_whole_words(shipped: list[Prompt]) -> None:
    for prompt in shipped:
        pairs = gold(prompt)
        assert len(pairs) >= 3
        for span in (span for pair in pairs for span in (pair.attribute, pair.entity)):
            around = prompt.text[max(0, span.start - 1) : span.start] + prompt.text[span.end : span.end + 1]
            assert not re.search(r"[\w-]", around), (prompt.text, span)


def test_pairs_are_those_that_a_parser_finds(shipped: list[Prompt]) -> None:
    """The parser, which knows nothing of the generator, finds nine of ten; where it fails, it is the parser's fault."""
    found = missed = 0
    for prompt in shipped[::60]:
        parsed = {(pair.attribute.text, pair.entity.end) for pair in parse_entities(prompt.text, "rules")}
        mine = [(pair.attribute.text, pair.entity.end) in parsed for pair in gold(prompt)]
        found, missed = found + sum(mine), missed + len(mine) - sum(mine)
    assert found / (found + missed) > 0.85


def test_questions_are_a_graph_that_the_judge_of_dpg_reads(shipped: list[Prompt]) -> None:
    kinds: Counter[str] = Counter()
    for prompt in shipped:
        rows: Any = prompt.about["questions"]
        questions = [Question.model_validate(row) for row in rows]
        kinds.update(question.category for question in questions)
        assert 5 <= len(questions) <= QUESTIONS
        assert [question.id for question in questions] == list(range(1, len(questions) + 1))
        assert len({question.text for question in questions}) == len(questions)
        assert all(parent < question.id for question in questions for parent in question.parents)
        for question in questions:
            assert question.text.endswith("?") and (question.category in ("entity", "global") or question.parents)
    assert set(kinds) == {"entity", "attribute", "relation", "count", "global"}
    assert kinds["attribute"] + kinds["relation"] > sum(kinds.values()) / 2


def test_what_is_asked_for_is_said(shipped: list[Prompt]) -> None:
    """The attribute at the end of a question is in the text, as an adjective or behind "made of" or "with"."""
    nouns = {"wood": "wooden", "wool": "woolen"}
    patterns = {"striped": "stripes", "spotted": "spots", "checkered": "checks", "speckled": "speckles"}
    patterns |= {"dotted": "dots", "polka-dot": "polka dots"}
    for prompt in shipped[::7]:
        text = prompt.text.lower()
        rows: Any = prompt.about["questions"]
        for row in rows:
            if row["category"] == "attribute":
                word = row["text"].rstrip("?").split()[-1]
                assert any(form in text for form in (word, nouns.get(word, word), patterns.get(word, word))), row


@pytest.mark.parametrize(
    "mistake",
    [
        r"\b[Aa] [aeio]", r"\b[Aa]n [^aeiouhAEIOUH]", r"\b(?!can\b|stand\b)(\w+) \1\b", r" [,.;:]", r"\s\s",
        r"[{}<>^*_|\[\]]",
        r"\b[Aa]n? (?:several|two|three|four|five)\b(?!-)", r"[^\x20-\x7e]", r"\. [a-z]",
    ],
)  # fmt: skip
def test_no_slips_of_the_pen(shipped: list[Prompt], mistake: str) -> None:
    pattern = re.compile(mistake)
    exceptions = ("a one", "A one")
    slips = [
        match.group()
        for prompt in shipped
        for match in pattern.finditer(prompt.text)
        if not prompt.text[match.start() :].startswith(exceptions)
    ]
    assert slips == []


def test_sentences_and_openings_vary(shipped: list[Prompt]) -> None:
    skeletons = Counter(re.sub(r"\b(?!a\b|an\b|the\b|is\b|are\b|of\b|in\b|on\b)\w+", "w", p.text) for p in shipped)
    sentences = Counter(sentence for prompt in shipped for sentence in re.split(r"(?<=[.:]) ", prompt.text))
    openings = Counter(" ".join(prompt.text.split()[:4]) for prompt in shipped)
    assert max(skeletons.values()) <= 5
    assert max(sentences.values()) < 0.05 * len(shipped)
    assert len(openings) > 1500 and max(openings.values()) < 0.05 * len(shipped)


@pytest.mark.slow
def test_no_near_duplicates(shipped: list[Prompt]) -> None:
    """By counting common shingles of all pairs, and not by the MinHash that the generator uses."""
    sets = [shingles(prompt.text) for prompt in shipped]
    holders: dict[int, list[int]] = {}
    for number, mine in enumerate(sets):
        common: Counter[int] = Counter()
        for shingle in mine:
            common.update(holders.get(shingle, ()))
            holders.setdefault(shingle, []).append(number)
        for other, count in common.most_common(1):
            assert count < len(mine) / 3 or jaccard(mine, sets[other]) < SIMILAR, (shipped[number], shipped[other])


def test_a_count_below_one_is_refused() -> None:
    with pytest.raises(LLM4GENError, match="count of 0"):
        next(generate_prompts(0))


def test_the_file_is_small_and_plain_jsonl(shipped: list[Prompt]) -> None:
    from evaluation.dense import SHIPPED

    assert SHIPPED.stat().st_size < 2_000_000
    assert json.loads(json.dumps(shipped[0].model_dump())) == shipped[0].model_dump()
