"""The rules over dependency parses, on real spaCy Docs, and the loading of pipelines.

No trained pipeline can be downloaded here. The rules are tested on parses written by hand (`parses.py`); loading and
parsing on a small pipeline that is trained on those very parses, saved, and installed as a package would be.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from parses import PARSES, build_parse

from llm4gen_core import LLM4GENError, entity_backend, parse_entities
from llm4gen_core.entities import load_backend
from llm4gen_core.entities.spacy import LONGEST, pairs_of_parse

spacy = pytest.importorskip("spacy")


@pytest.fixture(scope="module")
def vocab() -> Any:
    return spacy.blank("en").vocab


@pytest.fixture(autouse=True)
def forget_backends() -> Iterator[None]:
    load_backend.cache_clear()
    yield
    load_backend.cache_clear()


@pytest.mark.parametrize("name", list(PARSES))
def test_pairs_of_a_parse(name: str, vocab: Any) -> None:
    text, expected = PARSES[name]
    doc = build_parse(vocab, text)
    assert [f"{pair.attribute.text} > {pair.entity.text}" for pair in pairs_of_parse(doc, doc.text)] == expected


def test_each_mention_has_its_own_span(vocab: Any) -> None:
    doc = build_parse(
        vocab,
        "red/JJ/amod/1 cat/NN/ROOT/1 ~,/,/punct/1 cat/NN/conj/1 and/CC/cc/3 red/JJ/amod/6 cat/NN/conj/3",
    )
    assert [pair.offsets for pair in pairs_of_parse(doc, doc.text)] == [[0, 3, 4, 7], [17, 20, 21, 24]]


def test_a_doc_of_one_hyphen(vocab: Any) -> None:
    assert pairs_of_parse(build_parse(vocab, "-/NN/ROOT/0"), "-") == []


def test_long_coordination(vocab: Any) -> None:
    """Thousands of conjuncts must exhaust neither the stack nor the memory."""
    chain = " ".join(f"red/JJ/conj/{i + 2}" for i in range(3000))
    doc = build_parse(vocab, f"dogs/NNS/nsubj/1 are/VBP/ROOT/1 red/JJ/acomp/1 {chain}")
    assert 2 <= len(pairs_of_parse(doc, doc.text)) <= 20
    nouns = " ".join(f"dogs/NNS/conj/{i}" for i in range(3000))
    doc = build_parse(vocab, f"dogs/NNS/nsubj/3001 {nouns} are/VBP/ROOT/3001 red/JJ/acomp/3001")
    assert 2 <= len(pairs_of_parse(doc, doc.text)) <= 20


# Pipelines


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tagger and a parser that are trained to reproduce the parses of `parses.py`."""
    from spacy.training import Example

    random.seed(0)
    spacy.util.fix_random_seed(0)
    nlp = spacy.blank("en")
    nlp.add_pipe("tagger")
    nlp.add_pipe("parser", config={"learn_tokens": False, "min_action_freq": 1})
    examples = []
    for text, _ in PARSES.values():
        gold = build_parse(nlp.vocab, text)
        examples.append(Example(nlp.make_doc(gold.text), gold))
    optimizer = nlp.initialize(lambda: examples)
    for _ in range(20):
        random.shuffle(examples)
        for start in range(0, len(examples), 16):
            nlp.update(examples[start : start + 16], sgd=optimizer, drop=0.0)
    nlp.meta.update(name="tiny", version="1.2.3")
    folder = tmp_path_factory.mktemp("pipelines") / "en_tiny"
    nlp.to_disk(folder)
    return folder


@pytest.fixture
def installed(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The trained pipeline as the package en_core_web_sm, the way `spacy package` lays it out."""
    package = tmp_path / "en_core_web_sm"
    inner = package / "en_core_web_sm-1.2.3"
    inner.parent.mkdir()
    inner.symlink_to(trained)
    meta = (trained / "meta.json").read_text().replace('"name":"tiny"', '"name":"core_web_sm"')
    (package / "meta.json").write_text(meta)
    (package / "__init__.py").write_text(
        "from spacy.util import load_model_from_init_py\n"
        "def load(**overrides):\n    return load_model_from_init_py(__file__, **overrides)\n"
    )
    info = tmp_path / "en_core_web_sm-1.2.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: en_core_web_sm\nVersion: 1.2.3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [name for name in sys.modules if name.startswith("en_core_web_sm")]:
        del sys.modules[name]


def test_pipeline_from_disk(trained: Path) -> None:
    """Pairs of a caption, with spaCy's own tokens, tags and labels."""
    right = total = 0
    for text, expected in PARSES.values():
        words = [token.rsplit("/", 3)[0] for token in text.split()]
        caption = " ".join(words).replace(" ~", "")
        pairs = [f"{p.attribute.text} > {p.entity.text}" for p in parse_entities(caption, f"spacy:{trained}")]
        right += len(set(pairs) & set(expected))
        total += len(pairs) + len(expected)
    assert 2 * right / total > 0.9
    assert entity_backend(f"spacy:{trained}") == "spacy/1 en_tiny 1.2.3"


def test_an_installed_pipeline_is_preferred(installed: None) -> None:
    assert entity_backend("auto") == entity_backend("spacy") == entity_backend("spacy:en_core_web_sm")
    assert entity_backend("auto").startswith("spacy/1 en_") and entity_backend("auto").endswith(" 1.2.3")
    assert [pair.offsets for pair in parse_entities("a red cat")] == [[2, 5, 6, 9]]


def test_a_broken_pipeline_falls_back_with_a_warning(
    installed: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "en_core_web_sm" / "__init__.py").write_text("raise ImportError('no module named curated')\n")
    assert entity_backend("auto").startswith("rules/")
    assert "'en_core_web_sm' cannot be loaded (no module named curated)" in caplog.text


@pytest.mark.parametrize(
    "caption",
    [
        "",
        " \n\t ",
        "赤い猫",
        "🐈‍⬛ 👩🏽‍🚀",
        "\x00\x1b",
        "\ud800 red \udfff cat",
        "- - -",
        "red-" * 50,
        "a red cat " * 5000,
    ],
)
def test_any_text_is_accepted(trained: Path, caption: str) -> None:
    for pair in parse_entities(caption, f"spacy:{trained}"):
        assert caption[pair.entity.start : pair.entity.end] == pair.entity.text
        assert pair.entity.end <= LONGEST and "\ufffd" not in pair.attribute.text


def test_a_pipeline_without_a_parser_is_refused(tmp_path: Path) -> None:
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(LLM4GENError, match=r"blank'.*no English tagger and no parser; expected a trained English"):
        parse_entities("a red cat", f"spacy:{tmp_path / 'blank'}")


def test_a_pipeline_of_another_language_is_refused(tmp_path: Path) -> None:
    nlp = spacy.blank("de")
    nlp.add_pipe("tagger").add_label("X")
    nlp.add_pipe("parser").add_label("ROOT")
    nlp.initialize()
    nlp.to_disk(tmp_path / "german")
    with pytest.raises(LLM4GENError, match=r"language 'de'.*no English grammar"):
        parse_entities("a red cat", f"spacy:{tmp_path / 'german'}")


def test_a_missing_pipeline_is_refused() -> None:
    with pytest.raises(LLM4GENError, match=r"'en_core_web_xxl' cannot be loaded .*spacy download en_core_web_sm"):
        parse_entities("a red cat", "spacy:en_core_web_xxl")


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LLM4GENError, match="cannot be loaded"):
        parse_entities("a red cat", f"spacy:{tmp_path}")


def test_without_spacy_the_message_names_its_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    monkeypatch.setitem(sys.modules, "spacy.util", None)
    assert entity_backend("auto").startswith("rules/")
    with pytest.raises(LLM4GENError, match=r"needs spaCy, which is not installed; install it with `pip install spacy`"):
        parse_entities("a red cat", "spacy:en_core_web_sm")
