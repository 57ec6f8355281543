"""Noun chunks by spaCy and by the template."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest

from evaluation.metrics import noun_chunks
from evaluation.metrics.noun_chunks import SpacyChunker, TemplateChunker, find_chunker
from llm4gen_core import LLM4GENError

spacy = pytest.importorskip("spacy")


@pytest.mark.parametrize(
    ("prompt", "chunks"),
    [
        ("a green bench and a blue bowl", ["a green bench", "a blue bowl"]),
        ("An oval sink and a rectangular mirror.", ["An oval sink", "a rectangular mirror"]),
        ("rubber gloves and a metallic door knob", ["rubber gloves", "a metallic door knob"]),
        ("a canary and a yellow bluebird", ["a canary", "a yellow bluebird"]),
        ("a cubic block and a tube of toothpaste", ["a cubic block", "a tube", "toothpaste"]),
        ("a cubic Rubik's cube and a star-shaped box", ["a cubic Rubik's cube", "a star-shaped box"]),
        ("a red orange and a brown sheep", ["a red orange", "a brown sheep"]),
        ("a green bench", ["a green bench"]),
    ],
)
def test_template(prompt: str, chunks: list[str]) -> None:
    assert TemplateChunker().chunks(prompt) == chunks


@pytest.mark.parametrize(
    "prompt",
    [
        "a black and white cat",
        "a man in a red coat and a dog",
        "The fluffy cat sits and the dog runs",
        "a cat, a dog and a bird",
        "a very long row of words that is none",
        "a red cup and",
        "and a red cup",
        "2 cats and a dog",
        "a cat that is red and a dog",
        "",
    ],
)
def test_other_prompts_do_not_follow_the_template(prompt: str) -> None:
    assert TemplateChunker().chunks(prompt) is None


@pytest.fixture(autouse=True)
def _no_shared_chunker() -> None:
    find_chunker.cache_clear()


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """Pipeline that parses "DET ADJ NOUN" and "ADJ NOUN" by rules; spaCy finds noun chunks in its parse."""
    from spacy.language import Language

    @Language.component("parse_by_rule", assigns=["token.dep", "token.head", "token.pos", "token.tag"])
    def parse(doc: Any) -> Any:
        kinds = {"a": ("DET", "det"), "the": ("DET", "det"), "red": ("ADJ", "amod"), "green": ("ADJ", "amod")}
        heads, root = [], None
        for token in doc:
            pos, dep = kinds.get(token.text, ("CCONJ", "cc") if token.text == "and" else ("NOUN", "conj"))
            if pos == "NOUN" and root is None:
                root, dep = token.i, "ROOT"
            token.pos_, token.dep_ = pos, dep
        nouns = [token.i for token in doc if token.pos_ == "NOUN"]
        for token in doc:
            behind = [noun for noun in nouns if noun > token.i]
            head = behind[0] if token.dep_ in ("det", "amod") else root
            heads.append(doc[token.i if head is None else head])
        for token, head in zip(doc, heads, strict=True):
            token.head = head
        return doc

    language = spacy.blank("en")
    language.add_pipe("parse_by_rule")
    language.meta["name"], language.meta["version"] = "ruled", "1.2.3"
    language.to_disk(tmp_path / "ruled")
    return tmp_path / "ruled"


def test_chunks_of_a_pipeline(pipeline: Path) -> None:
    chunker = SpacyChunker(str(pipeline))
    assert chunker.chunks("a red bench and the green bowl") == ["a red bench", "the green bowl"]
    assert chunker.chunks("") == []
    assert chunker.name == f"spaCy {importlib.metadata.version('spacy')}, en_ruled 1.2.3" and not chunker.note


def test_a_pipeline_that_does_not_parse_is_refused(tmp_path: Path) -> None:
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(LLM4GENError, match="does not parse English"):
        SpacyChunker(str(tmp_path / "blank"))
    with pytest.raises(LLM4GENError, match="pipeline=template"):
        SpacyChunker(str(tmp_path / "nothing"))


def test_the_official_pipeline_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    class Loaded:
        def __init__(self, package: str) -> None:
            loaded.append(package)

    monkeypatch.setattr(noun_chunks, "SpacyChunker", Loaded)
    monkeypatch.setattr("spacy.util.is_package", lambda name: name in ("en_core_web_trf", "en_core_web_sm"))
    find_chunker()
    find_chunker("en_core_web_trf")
    assert loaded == ["en_core_web_sm", "en_core_web_trf"]


def test_the_template_is_used_without_a_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spacy.util.is_package", lambda name: False)
    assert isinstance(find_chunker(), TemplateChunker)
    assert isinstance(find_chunker("template"), TemplateChunker)
    assert "en_core_web_sm" in find_chunker().note
