"""The generator's tools: draws, forms of words, marks, vocabulary files."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from evaluation.dense import grammar, markup
from evaluation.dense.draw import Draw
from evaluation.dense.things import is_possible
from evaluation.dense.vocabulary import Attribute
from evaluation.dense.vocabulary_files import FOLDER, load_vocabulary
from llm4gen_core import LLM4GENError


def test_draws_are_made_of_nothing_but_random() -> None:
    source = random.Random("seed").random
    values = [source() for _ in range(6)]
    draw = Draw("seed")
    assert draw.one("abcdefg") == "abcdefg"[int(values[0] * 7)]
    assert draw.between(3, 5) == 3 + int(values[1] * 3)
    assert draw.chance(0.5) == (values[2] < 0.5)
    assert draw.shuffled("xyz")[0] == "xyz"[int(values[3] * 3)]


def test_draws_keep_order_and_weights() -> None:
    draw = Draw("1")
    for _ in range(50):
        taken = draw.some("abcdef", 3)
        assert taken == sorted(taken) and len(set(taken)) == 3
    assert draw.some("ab", 5) == ["a", "b"]
    counts = [draw.weighted((("often", 9.0), ("never", 0.0), ("rarely", 1.0))) for _ in range(2000)]
    assert counts.count("never") == 0 and 0.86 < counts.count("often") / 2000 < 0.94


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("old dog", "an"), ("unicorn", "a"), ("umbrella", "an"), ("hourglass", "an"), ("one-eyed cat", "a"),
        ("used car", "a"), ("unlit lamp", "an"), ("uniform", "a"), ("horse", "a"), ("easel", "an"), ("European", "a"),
    ],
)  # fmt: skip
def test_article(words: str, expected: str) -> None:
    assert grammar.article(words) == expected


def test_forms() -> None:
    assert [grammar.plural(noun) for noun in ("box", "cherry", "day", "dish", "lamp")] == [
        "boxes", "cherries", "days", "dishes", "lamps",
    ]  # fmt: skip
    assert grammar.finite("lie on", False) == "lies on" and grammar.finite("lie on", True) == "lie on"
    assert grammar.finite("=parked beside", True) == "are parked beside"
    assert [grammar.reduced(verb) for verb in ("lie on", "sit beside", "face", "=curled up on", "see")] == [
        "lying on", "sitting beside", "facing", "curled up on", "seeing",
    ]  # fmt: skip
    assert grammar.listed(["a", "b"]) == "a and b" and grammar.listed(["a", "b", "c"]) == "a, b, and c"


def test_marks_become_spans_of_the_text() -> None:
    sentence = f"{markup.attribute(1, 'pale')} light falls on a {markup.attribute(2, 'red')} {markup.entity(2, 'cat')}"
    text, pairs = markup.resolve([f"{sentence} and a {markup.entity(1, 'cup')}.", "it is late."])
    assert text == "Pale light falls on a red cat and a cup. It is late."
    assert [(text[slice(*attribute)], text[slice(*entity)]) for attribute, entity in pairs] == [
        ("Pale", "cup"),
        ("red", "cat"),
    ]


def test_marks_without_a_counterpart_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="without it"):
        markup.resolve([markup.attribute(1, "red")])
    with pytest.raises(ValueError, match="twice"):
        markup.resolve([markup.entity(1, "cat"), markup.entity(1, "dog")])


def test_authored_sentences_bind_forwards_and_backwards() -> None:
    sentence, nouns = markup.from_authored("Soft* warm* light^ falls; the sky^ is deep_blue< and clear<.", 7)
    text, pairs = markup.resolve([sentence])
    assert nouns == ["light", "sky"]
    assert [(text[slice(*attribute)], text[slice(*entity)]) for attribute, entity in pairs] == [
        ("Soft", "light"), ("warm", "light"), ("deep blue", "sky"), ("clear", "sky"),
    ]  # fmt: skip


def test_attributes_that_contradict_each_other_do_not_meet() -> None:
    brass, rusty, shiny = Attribute("brass", "material"), Attribute("rusty", "state"), Attribute("shiny", "texture")
    assert not is_possible(Attribute("red", "color"), [brass])
    assert is_possible(Attribute("red", "color"), [Attribute("leather", "material")])
    assert not is_possible(shiny, [rusty]) and is_possible(shiny, [brass])
    assert not is_possible(Attribute("blue", "color"), [Attribute("red", "color")])
    assert not is_possible(rusty, [Attribute("wooden", "material")])


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("nouns.txt", "gizmo | reddish | | stand", "attribute 'reddish' is not in attributes.txt"),
        ("nouns.txt", "cat | black | | sit", "'cat' is described above already"),
        ("nouns.txt", "gizmo | $unknown | | stand", "not defined above"),
        ("attributes.txt", "color: red", "'red' is no new attribute"),
        ("scenes/food.txt", "near: gizmo", "'gizmo' is not in nouns.txt"),
        ("scenes/food.txt", "weather: hail", "'hail' is none of"),
        ("scenes/food.txt", "cat: sleep on rug", "expected VERB > OBJECT"),
        ("views.txt", "any; * | The view is wide. | Is it?", "expected 3 conditions"),
        ("styles.txt", "[film] | Is it? | a film of | It is a film.", "expected .photo. or .art."),
    ],
)
def test_mistakes_in_vocabulary_name_file_and_line(tmp_path: Path, file: str, line: str, message: str) -> None:
    folder = tmp_path / "vocabulary"
    shutil.copytree(FOLDER, folder)
    path = folder / file
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*lines, line]) + "\n", encoding="utf-8")
    with pytest.raises(LLM4GENError, match=rf"{Path(file).name}, line {len(lines) + 1}: .*{message}"):
        load_vocabulary(folder)
