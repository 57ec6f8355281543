"""The fallback parser: its accuracy, and that it accepts any text."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from gold_captions import HELD_OUT_ADJECTIVES, GoldCaption, gold_captions, score, table
from parses import PARSES

from llm4gen_core import parse_entities
from llm4gen_core.entities import lexicon, load_backend
from llm4gen_core.entities.rules import _KINDS

NATURAL = Path(__file__).resolve().parents[1] / "data" / "entities_natural.jsonl"


def found(caption: str) -> list[str]:
    return [f"{pair.attribute.text} > {pair.entity.text}" for pair in parse_entities(caption, "rules")]


def steps(captions: list[str]) -> int:
    """Number of lines of Python that the parser executes. Load on the machine does not change it, as it does time."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        for caption in captions:
            parse_entities(caption, "rules")
    finally:
        sys.settrace(before)
    return count


# Accuracy


@pytest.fixture(scope="module")
def gold() -> list[GoldCaption]:
    return gold_captions(100, seed=20)


def test_f1_on_the_generated_gold_set(gold: list[GoldCaption], capsys: pytest.CaptureFixture[str]) -> None:
    pairs = load_backend("rules").pipe(caption.text for caption in gold)
    scores = score(gold, ([pair.offsets for pair in found] for found in pairs))
    with capsys.disabled():
        sys.stdout.write(f"\n{table(scores)}\n")
    assert scores["all"].f1 >= 0.97
    assert {name: entry.f1 for name, entry in scores.items() if entry.f1 < 0.9} == {}


def test_the_gold_set_has_words_of_no_list(gold: list[GoldCaption]) -> None:
    """Some of its adjectives are in no list, and invented nouns are in most of its captions."""
    assert not set(HELD_OUT_ADJECTIVES) & set(_KINDS)
    entities = [caption.text[start:end].lower() for caption in gold for _, _, start, end in caption.pairs]
    attributes = [caption.text[start:end].lower() for caption in gold for start, end, _, _ in caption.pairs]
    assert sum(word in HELD_OUT_ADJECTIVES for word in attributes) > 0.1 * len(attributes)
    assert sum(word not in _KINDS for word in entities) > 0.3 * len(entities)


def test_spans_of_the_gold_set_are_words_of_its_captions(gold: list[GoldCaption]) -> None:
    """Check of the test data: every span of the gold set is a word of its caption."""
    for caption in gold:
        for a_start, a_end, e_start, e_end in caption.pairs:
            for start, end in ((a_start, a_end), (e_start, e_end)):
                assert caption.text[start:end].strip() == caption.text[start:end] != ""
                assert not caption.text[start - 1 : start].isalnum() and not caption.text[end : end + 1].isalnum()


def test_f1_on_natural_captions() -> None:
    """Written and labelled by hand for this test. The rules were tuned on them, so the score is optimistic."""
    right = total = 0
    for line in NATURAL.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        pairs = set(found(row["caption"]))
        right += len(pairs & set(row["pairs"]))
        total += len(pairs) + len(row["pairs"])
    assert 2 * right / total >= 0.93


@pytest.mark.parametrize("name", [name for name in PARSES if name != "proper noun"])
def test_agrees_with_the_dependency_rules(name: str) -> None:
    """Except "a Diamond truck", since unknown names are not recognised."""
    text, pairs = PARSES[name]
    words = [token.split("/", 1)[0] for token in text.split()]
    assert found(" ".join(words).replace(" ~", "")) == pairs


@pytest.mark.parametrize(
    ("caption", "pairs"),
    [
        ("a zorp glinks on a crumbly floop", ["crumbly > floop"]),
        ("the dog is svelte", ["svelte > dog"]),
        ("running dog on grass", []),
        ("a person wearing red shoes", ["red > shoes"]),
        ("1girl, red hair, smiling, blue eyes, best quality", ["red > hair", "blue > eyes"]),
        ("the ball is red and green cubes lie there", ["red > ball", "green > cubes"]),
        ("a view of the White House", []),
        ("A Red Cat On A Blue Chair", ["Red > Cat", "Blue > Chair"]),
        ("A RED CAT. THE DOG'S COLLAR IS BLUE!", ["RED > CAT", "BLUE > COLLAR"]),
        ("an orange on an orange plate", ["orange > plate"]),
        ("a dog. It is red", []),
        ("the cat isn’t red", []),
        ("the dog’s red collar", ["red > collar"]),
        ("a pebbly beach and a brightly painted boat", ["pebbly > beach", "painted > boat"]),
    ],
)
def test_particular_captions(caption: str, pairs: list[str]) -> None:
    assert found(caption) == pairs


def test_each_mention_has_its_own_span() -> None:
    pairs = parse_entities("a red cat, a blue cat and a red dog", "rules")
    assert [pair.offsets for pair in pairs] == [[2, 5, 6, 9], [13, 17, 18, 21], [28, 31, 32, 35]]


# Robustness


@pytest.mark.parametrize(
    "caption",
    [
        "赤い猫と青い犬",
        "красная кошка и синяя собака",
        "قطة حمراء وكلب أزرق",
        "लाल बिल्ली",
        "🐈‍⬛ 👩🏽‍🚀 🟥",
        "",
        "   \n\t ",
        "\x00\x01\x1b[31m",
        "\ud800\udfff",
        "'''’’’---&&&",
        "!?.,;:()[]{}",
        "1 2 3 4.5",
    ],
)
def test_no_pairs_without_english(caption: str) -> None:
    assert parse_entities(caption, "rules") == []


def test_english_among_other_scripts_is_found() -> None:
    assert found("赤い猫 a red cat 🐈 and\x00 a blue dog") == ["red > cat", "blue > dog"]


def test_any_text_is_parsed_to_spans_of_itself() -> None:
    random_ = random.Random(5)
    words = [*_KINDS, "zorp", "glinks", ",", ".", "'s", "-", "&", "\n", "🐈", "猫", "\x00", "\ud800", "'", "’", "n't"]
    for _ in range(2000):
        caption = "".join(
            random_.choice(words) + random_.choice([" ", " ", " ", "", "  "]) for _ in range(random_.randint(1, 25))
        )
        for pair in parse_entities(caption, "rules"):
            for span in (pair.attribute, pair.entity):
                assert caption[span.start : span.end] == span.text
            assert pair.attribute.end <= pair.entity.start or pair.entity.end <= pair.attribute.start


@pytest.mark.parametrize(
    "unit",
    ["red ", "very ", "and ", "red and ", "a ", "not ", ", ", "the cat is red and ", "cat", "-a", "'", "'s ", "red, ",
     "a cat with ", "cat and cat and are red and red and ", "painted ", "running ", "of ", "is ",
     "dog's ", "no red cats or "],
)  # fmt: skip
def test_work_is_linear_in_the_length(unit: str) -> None:
    """Twice the text takes about twice as many steps."""
    short, long = (steps([unit * (characters // len(unit))]) for characters in (3000, 6000))
    assert long < 2.3 * short


def test_long_coordination() -> None:
    caption = "the cat and " * 500 + "the cat are " + "red and " * 500 + "red"
    assert len(parse_entities(caption, "rules")) < 501 * 20


def test_work_for_captions_is_small(gold: list[GoldCaption]) -> None:
    """Seen are 58 steps a word, which allow several thousand captions a second on one core."""
    captions = [caption.text for caption in gold]
    assert steps(captions) < 90 * sum(len(caption.split()) for caption in captions)


def test_the_version_is_in_the_name() -> None:
    assert load_backend("rules").name == f"rules/{lexicon.VERSION}"
