"""Statistics: numbers by hand, real tokenizers, and a spaCy pipeline whose tags are known."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import spacy
from small_models import write_clip_tokenizer, write_t5_tokenizer

from evaluation.__main__ import main
from evaluation.dense import read_prompt_file
from evaluation.dense.statistics import Spread, count_statistics, table
from evaluation.image_set import Prompt
from llm4gen_core import LLM4GENError

CAT = "A red cat sits on a soft red rug."
DOG = "Two dogs run."
PAIRS = [
    {"attribute": [2, 5], "entity": [6, 9]},
    {"attribute": [20, 24], "entity": [29, 32]},
    {"attribute": [25, 28], "entity": [29, 32]},
]
PROMPTS = [
    Prompt(id="1", text=CAT, category="a", about={"pairs": PAIRS, "questions": [{}, {}]}),
    Prompt(id="2", text=DOG, category="b", about={"pairs": [], "questions": [{}]}),
]


def test_spread_by_hand() -> None:
    assert Spread.of([1, 2, 6]) == Spread(3.0, 7**0.5, 1, 2, 6)
    assert Spread.of([4]).deviation == 0


def test_counts_by_hand() -> None:
    found = count_statistics("two", PROMPTS)
    assert found.prompts == 2 and found.categories == {"a": 1, "b": 1}
    assert (found.words.mean, found.words.least, found.words.most) == (6, 3, 9)
    assert found.distinct_words == 10  # a red cat sits on soft rug, two dogs run
    attributes = found.attributes
    assert attributes.how == "gold" and attributes.pairs.mean == 1.5 and attributes.entities.mean == 1
    assert attributes.per_entity == 1.5 and attributes.share == 0.5
    more = count_statistics("three", [*PROMPTS, Prompt(id="3", text=DOG, about={"pairs": []})]).attributes
    assert more.per_entity == 1.5 and more.pairs.mean == 1 and more.share == pytest.approx(1 / 3)
    assert (attributes.distinct_attributes, attributes.distinct_entities) == (2, 2)
    assert found.questions is not None and found.questions.mean == 1.5
    assert found.clip is None and found.t5 is None


def test_without_gold_pairs_the_parser_is_named() -> None:
    found = count_statistics("one", [Prompt(id="1", text=CAT)])
    assert found.attributes.how.startswith(("rules/", "spacy/")) and found.attributes.pairs.mean == 3
    assert found.questions is None


def test_without_a_tagger_nouns_and_verbs_are_not_counted() -> None:
    found = count_statistics("two", PROMPTS)
    if found.speech is None or found.speech.distinct_nouns is not None:
        pytest.skip("a trained pipeline is installed")
    assert found.speech.how.startswith("no tagger")
    assert set(found.speech.counts) == {"adjectives", "prepositions"}
    assert found.speech.counts["prepositions"].mean == 0.5 and found.speech.counts["adjectives"].mean == 1.5
    assert "nouns per prompt" in table(found) and "not counted: no trained spaCy pipeline" in table(found)


def test_parts_of_speech_by_a_pipeline(tmp_path: Path) -> None:
    pipeline = spacy.blank("en")
    ruler = pipeline.add_pipe("attribute_ruler")
    tags = {
        "cat": "NOUN",
        "rug": "NOUN",
        "dogs": "NOUN",
        "red": "ADJ",
        "soft": "ADJ",
        "sits": "VERB",
        "run": "VERB",
        "on": "ADP",
    }
    for word, tag in tags.items():
        ruler.add([[{"LOWER": word}]], {"POS": tag, "LEMMA": "dog" if word == "dogs" else word})
    pipeline.to_disk(tmp_path / "pipeline")
    found = count_statistics("two", PROMPTS, pipeline=str(tmp_path / "pipeline"))
    assert found.speech is not None
    counts = {kind: (spread.least, spread.most) for kind, spread in found.speech.counts.items()}
    assert counts == {"nouns": (1, 2), "adjectives": (0, 3), "verbs": (1, 1), "prepositions": (0, 1)}
    assert found.speech.distinct_nouns == 3
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(LLM4GENError, match="assigns no parts of speech"):
        count_statistics("two", PROMPTS, pipeline=str(tmp_path / "blank"))
    with pytest.raises(LLM4GENError, match="cannot be loaded"):
        count_statistics("two", PROMPTS, pipeline=str(tmp_path / "none"))


def test_token_counts_include_begin_and_end_and_are_not_truncated(tmp_path: Path) -> None:
    write_clip_tokenizer(tmp_path / "clip", words=["red", "cat"])
    write_t5_tokenizer(tmp_path / "t5", words=("red", "cat"))
    texts = [" ".join(["red", "cat"] * 37), " ".join(["red", "cat"] * 38), " ".join(["cat"] * 75)]
    prompts = [Prompt(id=str(number), text=text) for number, text in enumerate(texts)]
    found = count_statistics("three", prompts, str(tmp_path / "clip"), str(tmp_path / "t5"))
    assert found.clip is not None and found.t5 is not None
    assert (found.clip.count.least, found.clip.count.most) == (76, 78)
    assert found.clip.truncated == 1 / 3  # 78; 77 are read whole
    assert (found.t5.count.least, found.t5.count.most) == (75, 77) and found.t5.truncated == 0
    shown = table(found)
    assert "longer than 77" in shown and "33.3%" in shown


def test_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(LLM4GENError, match="expected a folder with a tokenizer"):
            count_statistics("two", PROMPTS, clip_tokenizer=str(folder))


def test_measured_and_quoted_numbers_are_apart() -> None:
    found = count_statistics("two", PROMPTS)
    content = json.loads(json.dumps(found.as_json()))
    assert content["measured"]["words"]["mean"] == 6
    assert {one["source"] for one in content["quoted"]} == {"LLM4GEN", "ELLA"}
    measured, quoted = table(found).split("Quoted from papers, not measured here")
    assert "67.12" in quoted and "67.12" not in measured


@pytest.mark.parametrize("pairs", [[{"attribute": [0, 99], "entity": [1, 2]}], [[1, 2]], [{"attribute": [1, 2]}]])
def test_invalid_pairs_are_named(pairs: list) -> None:
    with pytest.raises(LLM4GENError, match="Prompt 'x' has an invalid pair"):
        count_statistics("one", [Prompt(id="x", text=CAT, about={"pairs": pairs})])


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "prompts.txt"
    source.write_text("a red cat\na blue dog on a chair\n", encoding="utf-8")
    assert main(["dense", "statistics", str(source), "--json", str(tmp_path / "found.json")]) == 0
    assert "4.50 (sd 2.12, 3 to 6)" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["measured"]["words"]["mean"] == 4.5 and found["measured"]["attributes"]["pairs"]["mean"] == 1


def test_damaged_prompt_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    with pytest.raises(LLM4GENError, match="does not exist"):
        read_prompt_file(path)
    path.write_bytes(gzip.compress(b'{"id": "1", "text": "a"}\n')[:-9])
    with pytest.raises(LLM4GENError, match="cannot be decompressed"):
        read_prompt_file(path)
    path.write_bytes(gzip.compress(b'{"id": "1", "text": "a"}\n{"id": 2}\n'))
    with pytest.raises(LLM4GENError, match="line 2, is not a prompt"):
        read_prompt_file(path)
    path.write_bytes(gzip.compress(b'{"id": "1", "text": "a"}\n{"id": "1", "text": "b"}\n'))
    with pytest.raises(LLM4GENError, match="more than once"):
        read_prompt_file(path)
