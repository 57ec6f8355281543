"""Token ids and weights of prompts, with tokenizers of T5's and GPT's kinds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llm4gen_core import LLM4GENError, LLMSpec
from llm4gen_core.llm_spec import pad_id, prompt_offsets, split_at_break, tokenize_prompt

SPEC = LLMSpec(model="", architecture="t5", layers=2, width=8, prefix="pre ", max_length=16)
BARE = replace(SPEC, prefix="", max_length=64)
PAD, END = 0, 1


def pieces(tokenizer: Any, ids: list[int]) -> list[str]:
    return tokenizer.convert_ids_to_tokens(ids)


def unpadded(tokenizer: Any, segments: list[Any]) -> tuple[list[str], list[float]]:
    """Pieces and weights of a prompt without prefix and padding."""
    tokens = tokenize_prompt(tokenizer, segments, BARE)
    return pieces(tokenizer, tokens.ids[: tokens.length]), tokens.weights[: tokens.length]


def test_prefix_prompt_end_and_padding(t5_tokenizer: Any) -> None:
    tokens = tokenize_prompt(t5_tokenizer, "a red cat", SPEC)
    assert pieces(t5_tokenizer, tokens.ids) == ["▁pre", "▁a", "▁red", "▁cat", "</s>"] + ["<pad>"] * 11
    assert tokens.mask == [1] * 5 + [0] * 11
    assert tokens.weights == [1.0] * 16
    assert tokens.length == 5


def test_prefix_and_suffix_are_a_template(t5_tokenizer: Any) -> None:
    template = replace(SPEC, prefix="a red ", suffix=" on a mat")
    tokens = tokenize_prompt(t5_tokenizer, "cat", template)
    plain = tokenize_prompt(t5_tokenizer, "a red cat on a mat", replace(SPEC, prefix=""))
    assert tokens == plain
    weighted = tokenize_prompt(t5_tokenizer, [("cat", 2.0)], template)
    assert weighted.ids == plain.ids
    assert [i for i, weight in enumerate(weighted.weights) if weight != 1] == [2]


def test_offsets_leave_the_template_out(t5_tokenizer: Any) -> None:
    template = replace(SPEC, prefix="a red ", suffix=" on a mat", max_length=8)
    assert prompt_offsets(t5_tokenizer, "cat", template)[:4] == [(0, 0), (0, 0), (0, 3), (0, 0)]
    assert {*prompt_offsets(t5_tokenizer, "cat", template)[4:]} == {(0, 0)}


def test_padding_id_of_the_specification(t5_tokenizer: Any) -> None:
    tokens = tokenize_prompt(t5_tokenizer, "a cat", replace(SPEC, pad_id=7, max_length=6))
    assert tokens.ids[-2:] == [7, 7] and tokens.mask[-2:] == [0, 0]


def test_left_padding(t5_tokenizer: Any) -> None:
    right = tokenize_prompt(t5_tokenizer, [("a red ", 1.0), ("cat", 2.0)], SPEC)
    left = tokenize_prompt(t5_tokenizer, [("a red ", 1.0), ("cat", 2.0)], replace(SPEC, padding_side="left"))
    assert left.ids == [PAD] * 11 + right.ids[:5]
    assert left.mask == [0] * 11 + [1] * 5
    assert left.weights == [1.0] * 14 + [2.0, 1.0]


def test_a_model_without_padding_token_is_padded_with_its_end(gpt_tokenizer: Any) -> None:
    tokens = tokenize_prompt(gpt_tokenizer, "a cat", replace(SPEC, prefix="", max_length=4))
    assert pieces(gpt_tokenizer, tokens.ids) == ["a", "Ġcat", "<|endoftext|>", "<|endoftext|>"]
    assert tokens.mask == [1, 1, 0, 0]


def test_a_model_without_any_special_token_is_padded_with_0() -> None:
    class Bare:
        pad_token_id = None
        eos_token_id = None

    assert pad_id(Bare()) == 0


def test_padding_with_id_0_is_padding(t5_tokenizer: Any) -> None:
    """Id 0 is falsy; it must not be replaced by the end token."""
    assert pad_id(t5_tokenizer) == PAD


@pytest.mark.parametrize("prompt", ["", []])
def test_the_empty_prompt_keeps_the_prefix(prompt: Any, t5_tokenizer: Any) -> None:
    tokens = tokenize_prompt(t5_tokenizer, prompt, SPEC)
    assert pieces(t5_tokenizer, tokens.ids[:2]) == ["▁pre", "</s>"]
    assert sum(tokens.mask) == 2


def test_an_empty_sequence_is_replaced_by_one_token(gpt_tokenizer: Any) -> None:
    """An LLM cannot encode zero tokens, and the negative prompt is often empty."""
    tokens = tokenize_prompt(gpt_tokenizer, "", replace(BARE, max_length=4))
    assert (tokens.ids[0], tokens.mask[0], sum(tokens.mask), tokens.length) == (0, 1, 1, 1)
    assert len(tokens.ids) == len(tokens.weights) == 4


def test_a_prompt_of_spaces_is_an_empty_prompt_to_t5(t5_tokenizer: Any) -> None:
    assert tokenize_prompt(t5_tokenizer, "   ", SPEC) == tokenize_prompt(t5_tokenizer, "", SPEC)
    assert tokenize_prompt(t5_tokenizer, [("  ", 1.5), (" ", 1.0)], SPEC).weights == [1.0] * 16


def test_a_long_prompt_is_cut_and_loses_its_end_token(t5_tokenizer: Any) -> None:
    tokens = tokenize_prompt(t5_tokenizer, "cat " * 30, SPEC)
    assert len(tokens.ids) == 16 and END not in tokens.ids
    assert pieces(t5_tokenizer, tokens.ids) == ["▁pre"] + ["▁cat"] * 15
    assert tokens.mask == [1] * 16


@pytest.mark.parametrize(("words", "has_end"), [(13, True), (14, True), (15, False)])
def test_the_end_token_is_kept_up_to_the_very_last_place(words: int, has_end: bool, t5_tokenizer: Any) -> None:
    tokens = tokenize_prompt(t5_tokenizer, " ".join(["cat"] * words), SPEC)
    assert (END in tokens.ids) is has_end
    assert tokens.length == words + 2


def test_ten_thousand_words(t5_tokenizer: Any) -> None:
    tokens = tokenize_prompt(t5_tokenizer, [("red cat " * 4999, 1.0), ("red cat", 1.3)], replace(SPEC, max_length=256))
    assert tokens.length == 10_002
    assert len(tokens.ids) == len(tokens.mask) == len(tokens.weights) == 256
    assert set(tokens.weights) == {1.0}  # the weighted words lie behind the cut


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_long_prompt_keeps_its_beginning(side: str, t5_tokenizer: Any) -> None:
    tokens = tokenize_prompt(t5_tokenizer, "dog " + "cat " * 30, replace(SPEC, padding_side=side))
    assert pieces(t5_tokenizer, tokens.ids[:3]) == ["▁pre", "▁dog", "▁cat"]


# Weights

TEXTS = [
    ("a ", "red", " cat"),
    ("a big r", "ed ca", "t"),
    ("", "a cat", ""),
    ("a ", "  ", "cat"),
    ("caf", "é", " is red"),
    ("cafe", "\u0301", " is red"),
    ("ein ", "🐈‍⬛ 👩🏽‍🚀", " cat"),
    ("赤い", "猫", "が好き"),
    ("a cat\n", "\ton the\n", "mat"),
    ("ﬁne ", "½ ①", " cat"),
    ("a (cat:", "1.3", ")"),
]


@pytest.mark.parametrize("parts", TEXTS)
@pytest.mark.parametrize("kind", ["t5_tokenizer", "gpt_tokenizer"])
def test_weights_never_change_the_tokens(
    parts: tuple[str, str, str], kind: str, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(kind)
    spec = replace(SPEC, max_length=64)
    weighted = tokenize_prompt(tokenizer, list(zip(parts, (1.0, 1.4, 0.7), strict=True)), spec)
    plain = tokenize_prompt(tokenizer, "".join(parts), spec)
    assert (weighted.ids, weighted.mask, weighted.length) == (plain.ids, plain.mask, plain.length)
    assert len(weighted.weights) == len(weighted.ids)
    assert all(0.7 - 1e-9 <= weight <= 1.4 + 1e-9 for weight in weighted.weights)


@pytest.mark.parametrize("kind", ["t5_tokenizer", "gpt_tokenizer"])
def test_a_weight_lies_on_the_tokens_of_its_word(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(kind)
    weight_of = dict(zip(*unpadded(tokenizer, [("a", 1.0), (" red", 1.3), (" cat", 1.0)]), strict=True))
    weighted = {piece for piece, weight in weight_of.items() if weight != 1.0}
    assert weighted <= {"▁red", "Ġred"} and len(weighted) == 1
    assert weight_of[weighted.pop()] == 1.3


def test_the_space_before_a_word_does_not_dilute_its_weight(t5_tokenizer: Any, gpt_tokenizer: Any) -> None:
    for tokenizer in (t5_tokenizer, gpt_tokenizer):
        tokens = tokenize_prompt(tokenizer, [("a ", 1.0), ("cat", 2.0)], BARE)
        assert tokens.weights[1] == 2.0


def test_a_token_of_several_segments_has_the_mean_weight_of_its_characters(t5_tokenizer: Any) -> None:
    found, weights = unpadded(t5_tokenizer, [("a c", 1.0), ("at", 1.6)])
    assert found == ["▁a", "▁cat", "</s>"]
    assert weights == pytest.approx([1.0, (1.0 + 1.6 + 1.6) / 3, 1.0])


def test_weights_do_not_affect_prefix_and_end_token(t5_tokenizer: Any) -> None:
    tokens = tokenize_prompt(t5_tokenizer, [("a cat", 1.5)], SPEC)
    assert tokens.weights == [1.0, 1.5, 1.5, 1.0] + [1.0] * 12


def test_every_byte_of_a_character_has_its_weight(gpt_tokenizer: Any) -> None:
    assert unpadded(gpt_tokenizer, [("b", 1.0), ("é🐈", 1.5), ("b", 1.0)])[1] == [1.0] + [1.5] * 6 + [1.0]


def test_a_character_that_the_tokenizer_rewrites_keeps_its_weight(t5_tokenizer: Any) -> None:
    """Two characters in the prompt, one after normalisation: offsets must be those of the prompt."""
    found, weights = unpadded(t5_tokenizer, [("caf", 1.0), ("e\u0301", 1.5), (" cat", 1.0)])
    assert found == ["▁caf", "é", "▁cat", "</s>"]
    assert weights == [1.0, 1.5, 1.0, 1.0]


def test_weights_need_a_tokenizer_with_offsets() -> None:
    from transformers import ByT5Tokenizer

    slow = ByT5Tokenizer()
    assert tokenize_prompt(slow, "a cat", BARE).length == 6
    with pytest.raises(LLM4GENError, match=r"\(word:1.3\) cannot be mapped.*remove the weights, or use"):
        tokenize_prompt(slow, [("a ", 1.0), ("cat", 1.3)], BARE)


# Textual inversions


@pytest.mark.parametrize(
    ("prompt", "same_as"),
    [
        ("a embedding:bad-hands cat", "a cat"),
        ("embedding:x.pt a cat", "a cat"),
        ("embedding:x embedding:y a cat", "a cat"),
        ("a cat\nembedding:x", "a cat\n"),
        ("a cat embedding:x\nred", "a cat \nred"),
        ("embedding:x", ""),
        ("a embedding: cat", "a embedding: cat"),
        ("re-embedding:x cat", "re-embedding:x cat"),
    ],
)
@pytest.mark.parametrize("kind", ["t5_tokenizer", "gpt_tokenizer"])
def test_names_of_textual_inversions_are_removed(
    prompt: str, same_as: str, kind: str, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(kind)
    spec = replace(SPEC, max_length=64)
    assert tokenize_prompt(tokenizer, prompt, spec) == tokenize_prompt(tokenizer, same_as, spec)


def test_weights_stay_on_their_words_beside_a_textual_inversion(t5_tokenizer: Any) -> None:
    found, weights = unpadded(t5_tokenizer, [("embedding:bad ", 1.2), ("a ", 1.0), ("cat", 1.3)])
    assert found == ["▁a", "▁cat", "</s>"]
    assert weights == [1.0, 1.3, 1.0]


# BREAK


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a cat BREAK a dog", ["a cat", "a dog"]),
        ("a cat\nBREAK\n\ta dog", ["a cat", "a dog"]),
        ("a cat,BREAK, a dog", ["a cat,", ", a dog"]),
        ("a BREAK b BREAK c", ["a", "b", "c"]),
        ("BREAK a BREAK BREAK b BREAK", ["a", "b"]),
        ("a break BREAKFAST, TEA-BREAK 'BREAK' BREAK. LUNCHBREAK", None),
        ("", None),
    ],
)
def test_break_splits_a_prompt_if_it_is_a_separate_word(prompt: str, parts: list[str] | None) -> None:
    expected = [[(prompt, 1.0)]] if parts is None else [[(part, 1.0)] for part in parts]
    assert split_at_break([(prompt, 1.0)]) == expected


@pytest.mark.parametrize("prompt", ["BREAK", " BREAK\nBREAK "])
def test_nothing_but_breaks_is_one_empty_part(prompt: str) -> None:
    assert split_at_break([(prompt, 1.0)]) == [[]]


def test_a_weight_applies_to_both_sides_of_a_break() -> None:
    segments = [("a ", 1.0), ("red cat BREAK blue", 1.3), (" dog", 1.0)]
    assert split_at_break(segments) == [[("a ", 1.0), ("red cat", 1.3)], [("blue", 1.3), (" dog", 1.0)]]


def test_white_space_around_a_break_is_removed_from_its_neighbours() -> None:
    segments = [("cat", 1.2), (" ", 1.0), ("BREAK", 1.1), (" ", 1.0), (" dog ", 0.8)]
    assert split_at_break(segments) == [[("cat", 1.2)], [("dog", 0.8)]]


def test_segments_without_break_are_unchanged() -> None:
    segments = [("  a ", 1.0), ("", 1.1), (" cat ", 1.3), (" ", 1.0)]
    assert split_at_break(segments) == [segments]
