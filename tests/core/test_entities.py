"""Spans, pairs, and the tokens of spans."""

from __future__ import annotations

import dataclasses
import json
import pickle
from typing import Any

import pytest

from llm4gen_core import EntityPair, LLM4GENError, Span, covers, entity_backend, parse_entities, token_indices
from llm4gen_core.entities import load_backend

CAPTION = "a red cat and a red car"


def span(text: str, word: str, occurrence: int = 0) -> Span:
    start = -1
    for _ in range(occurrence + 1):
        start = text.index(word, start + 1)
    return Span(start, start + len(word), word)


# Spans and pairs


def test_a_pair_survives_json() -> None:
    pair = EntityPair.from_offsets(CAPTION, 16, 19, 20, 23)
    assert (pair.attribute.text, pair.entity.text) == ("red", "car")
    assert EntityPair.from_offsets(CAPTION, *json.loads(json.dumps(pair.offsets))) == pair


def test_pairs_are_values() -> None:
    pair = EntityPair.from_offsets(CAPTION, 2, 5, 6, 9)
    assert len({pair, EntityPair.from_offsets(CAPTION, 2, 5, 6, 9)}) == 1
    assert pickle.loads(pickle.dumps(pair)) == pair
    with pytest.raises(dataclasses.FrozenInstanceError):
        pair.attribute = pair.entity  # type: ignore[misc]


@pytest.mark.parametrize(
    ("offsets", "problem"),
    [
        ((-1, 3, 6, 9), "attribute span -1-3 is empty or outside of it"),
        ((2, 5, 20, 24), "entity span 20-24 is empty or outside of it"),
        ((2, 2, 6, 9), "attribute span 2-2 is empty or outside of it"),
        ((5, 2, 6, 9), "attribute span 5-2 is empty or outside of it"),
        ((1, 5, 6, 9), r"attribute span 1-5 \(' red'\) begins or ends with white space"),
        ((2, 5, 6, 10), r"entity span 6-10 \('cat '\) begins or ends with white space"),
        ((2.0, 5, 6, 9), "attribute span 2.0-5 is empty or outside"),
        ((2, 5, None, 9), "entity span None-9 is empty or outside"),
        ((True, 5, 6, 9), "attribute span True-5 is empty or outside"),
    ],
)
def test_invalid_pairs_are_refused(offsets: tuple[Any, ...], problem: str) -> None:
    with pytest.raises(LLM4GENError, match=rf"Caption 'a red cat.*\(23 characters\): the {problem}.*remove it"):
        EntityPair.from_offsets(CAPTION, *offsets)


@pytest.mark.parametrize("fields", [(-1, 2, "red"), (0, 4, "red"), (0, 0, ""), (0, 4, "red "), (0, 4, " red")])
def test_invalid_spans_are_refused(fields: tuple[int, int, str]) -> None:
    with pytest.raises(LLM4GENError, match="is invalid"):
        Span(*fields)


# Tokens


def words_of(tokenizer: Any, text: str, found: list[int], prefix: str = "") -> list[str]:
    return [tokenizer.convert_ids_to_tokens(tokenizer(prefix + text)["input_ids"])[i] for i in found]


def offsets_of(tokenizer: Any, text: str, prefix: str = "", **options: Any) -> list[tuple[int, int]]:
    """Offsets in the caption behind the prefix."""
    offsets = tokenizer(prefix + text, return_offsets_mapping=True, **options)["offset_mapping"]
    return [(start - len(prefix), end - len(prefix)) for start, end in offsets]


@pytest.fixture(scope="module")
def clip_like() -> Any:
    """Tokenizer of CLIP's kind: lower case, byte-level BPE with `</w>`, start and end tokens, end as padding."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary: dict[str, int] = {}
    for byte in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[byte] = len(vocabulary)
        vocabulary[byte + "</w>"] = len(vocabulary)
    merges = [("c", "a"), ("ca", "t</w>"), ("ca", "t"), ("r", "e"), ("re", "d</w>"), ("d", "o"), ("do", "g</w>")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    vocabulary |= {"<|startoftext|>": len(vocabulary), "<|endoftext|>": len(vocabulary) + 1}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>", continuing_subword_prefix=""))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[a-z]+|[0-9]|[^\s\w]+|[^\sa-z0-9]+"), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    ends = {name: vocabulary[name] for name in ("<|startoftext|>", "<|endoftext|>")}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>", special_tokens=list(ends.items())
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|endoftext|>", bos_token="<|startoftext|>"
    )


KINDS = ["clip_like", "t5_tokenizer", "gpt_tokenizer"]


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize(
    ("text", "word", "occurrence"),
    [
        ("a red cat and a red cat", "red", 0),
        ("a red cat and a red cat", "red", 1),
        ("a cat in a catalog of cats", "cat", 0),
        ("a CAT and a Cat", "Cat", 0),
        ("a teddy-bear, red-haired", "teddy-bear", 0),
        ("a teddy-bear, red-haired", "red-haired", 0),
        ("the   red\tcat", "cat", 0),
        ("the coffee  table is red", "coffee  table", 0),
        ("a 3d cat (red)", "red", 0),
        ("café cat", "café", 0),
        ("red", "red", 0),
    ],
)
def test_the_tokens_of_a_span_are_its_characters(tokenizer: Any, text: str, word: str, occurrence: int) -> None:
    """Exactly the returned tokens are in the span."""
    wanted, offsets = span(text, word, occurrence), offsets_of(tokenizer, text)
    found = token_indices(wanted, offsets)
    visible = {i for i in range(wanted.start, wanted.end) if not text[i].isspace()}
    held = {i for t in found for i in range(*offsets[t]) if not text[i].isspace()}
    assert held == visible and covers(wanted, offsets)
    others = {i for t in range(len(offsets)) if t not in found for i in range(*offsets[t])}
    assert not others & visible


@pytest.mark.parametrize("kind", KINDS)
def test_each_mention_has_its_own_tokens(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(kind)
    text = "red cat red cat"
    offsets = offsets_of(tokenizer, text)
    tokens = [token_indices(span(text, "cat", i), offsets) for i in (0, 1)]
    assert len(tokens[0]) == len(tokens[1]) and tokens[0][-1] < tokens[1][0]
    assert "".join(words_of(tokenizer, text, tokens[1])).strip("▁Ġ").removesuffix("</w>") == "cat"


def test_token_that_begins_with_a_space(gpt_tokenizer: Any) -> None:
    """GPT's token "Ġcat" begins at the space before the cat."""
    text = "a cat"
    assert words_of(gpt_tokenizer, text, token_indices(span(text, "cat"), [(0, 1), (1, 5)])) == ["Ġcat"]


def test_token_of_white_space_only_does_not_count() -> None:
    assert token_indices(Span(2, 9, "hot dog"), [(0, 1), (1, 2), (2, 5), (5, 6), (6, 9)]) == [2, 4]


def test_special_and_padding_tokens_never_count() -> None:
    """Also for a word at the start of the caption, where (0, 0) is."""
    assert token_indices(Span(0, 3, "red"), [(0, 0), (0, 3), (4, 7), (0, 0), (0, 0)]) == [1]


def test_a_prefix_is_skipped(t5_tokenizer: Any) -> None:
    text = "pre red cat"  # the caption begins like the prefix
    offsets = offsets_of(t5_tokenizer, text, prefix="pre ")
    found = token_indices(span(text, "pre"), offsets)
    assert found == [1] and words_of(t5_tokenizer, text, found, "pre ") == ["▁pre"]


def test_all_bytes_of_a_character_belong_to_it(gpt_tokenizer: Any) -> None:
    text = "a é cat"
    found = token_indices(Span(2, 3, "é"), offsets_of(gpt_tokenizer, text))
    assert len(found) >= 2


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side(side: str, t5_tokenizer: Any) -> None:
    bare = token_indices(span(CAPTION, "cat"), offsets_of(t5_tokenizer, CAPTION))
    length = len(offsets_of(t5_tokenizer, CAPTION))
    padded = offsets_of(t5_tokenizer, CAPTION, padding="max_length", max_length=20, padding_side=side)
    shift = 20 - length if side == "left" else 0
    assert token_indices(span(CAPTION, "cat"), padded) == [i + shift for i in bare]


def test_truncated_span(t5_tokenizer: Any) -> None:
    text, wanted = "a red teddy-bear", Span(6, 16, "teddy-bear")
    whole = offsets_of(t5_tokenizer, text)
    tokens = token_indices(wanted, whole)
    assert len(tokens) > 3 and covers(wanted, whole)
    cut = whole[: tokens[2]]
    assert token_indices(wanted, cut) == tokens[:2] and not covers(wanted, cut)
    gone = whole[: tokens[0]]
    assert token_indices(wanted, gone) == [] and not covers(wanted, gone)


# Backends


def test_auto_without_a_pipeline_is_the_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm4gen_core.entities.spacy.PIPELINES", ())
    load_backend.cache_clear()
    try:
        assert entity_backend("auto") == entity_backend("rules") and entity_backend().startswith("rules/")
        assert [pair.offsets for pair in parse_entities("a red cat")] == [[2, 5, 6, 9]]
        with pytest.raises(LLM4GENError, match=r"no trained English pipeline.*spacy download en_core_web_sm.*'rules'"):
            parse_entities("a red cat", "spacy")
    finally:
        load_backend.cache_clear()


@pytest.mark.parametrize("name", ["", "spacy:", "stanza", "RULES"])
def test_unknown_backends_are_refused(name: str) -> None:
    with pytest.raises(LLM4GENError, match=r"is unknown; expected 'auto', 'spacy', 'spacy:PACKAGE'"):
        parse_entities("a red cat", name)
