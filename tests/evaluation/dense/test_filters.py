"""Filters: which answers become prompts, and near-duplicates."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.dense.filters import NearDuplicates, read_unsafe_words, reason_against, split_answer
from evaluation.image_set import Prompt
from llm4gen_core import LLM4GENError

GOOD = (
    "A small red fishing boat with a white cabin rests on the wet sand beside two yellow crates, while an old man in a "
    "blue sweater mends a green net on the stone quay behind it, under a pale gray sky."
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD, None),
        ("A red cat sits on a blue chair.", "too short"),
        (" ".join([GOOD] * 4), "too long"),
        (f"Here is a dense prompt: {GOOD}", "remark"),
        (f"Sure! {GOOD}", "remark"),
        (f"{GOOD} Let me know if you want more.", "remark"),
        (f"Prompt 3: {GOOD}", "remark"),
        (f"I'm sorry, but I cannot describe people. {GOOD}", "refusal"),
        (f"As an AI language model I see this: {GOOD}", "refusal"),
        (GOOD.removesuffix(".") + " and a", "cut off"),
        (GOOD.replace("old man", "naked man"), "unsafe"),
        (GOOD.replace("wet sand", "blood"), "unsafe"),
        (GOOD.replace("red fishing", "blood-red fishing"), None),
        (
            "Eine alte Frau sitzt auf einer roten Bank in einem kleinen Park und liest eine Zeitung, während neben ihr "
            "zwei graue Tauben stehen und im Hintergrund ein hoher Turm aus Stein in den hellblauen Himmel ragt.",
            "not English",
        ),
        ("小さな赤い船が 濡れた砂の上に 停まっていて 老人が 緑の網を 直しています " * 8 + ".", "not English"),
    ],
)
def test_reason_against(text: str, reason: str | None) -> None:
    assert reason_against(text, read_unsafe_words()) == reason


def test_shipped_set_passes_the_filters(shipped: list[Prompt]) -> None:
    unsafe = read_unsafe_words()
    assert [prompt.text for prompt in shipped if reason_against(prompt.text, unsafe)] == []


def test_own_word_list(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("# ours\nFishing boat\n", encoding="utf-8")
    assert reason_against(GOOD, read_unsafe_words(path)) == "unsafe"
    with pytest.raises(LLM4GENError, match="cannot be read"):
        read_unsafe_words(tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("answer", "prompts"),
    [
        ("1. One cat.\n2. Two cats.\n\n3) Three cats.", ["One cat.", "Two cats.", "Three cats."]),
        ('- "One cat."\n- **Two cats.**', ["One cat.", "Two cats."]),
        (
            "Here you go:\n1. One cat\n   on a chair.\n2. Two cats.",
            ["Here you go:", "One cat on a chair.", "Two cats."],
        ),
        ("One cat.\n\nTwo cats.", ["One cat.", "Two cats."]),
        ("<think>1. hmm\n2. well</think>\n1. One cat.", ["One cat."]),
        ("  \n", []),
    ],
)
def test_split_answer(answer: str, prompts: list[str]) -> None:
    assert split_answer(answer) == prompts


def test_similarity_by_hand() -> None:
    """Shingles 123 234 345 and 123 234 346: 2 of 4 in common. Case and punctuation do not count."""
    for threshold, expected in ((0.5, "first"), (0.51, None)):
        known = NearDuplicates(threshold)
        known.add("first", "one two three four five")
        assert known.add("second", "One, two three; four six!") == expected


def test_near_duplicates() -> None:
    text = "A red cat sleeps on a blue chair in a small kitchen while soft light falls on the old wooden floor."
    other = "Two gray horses graze beside a stone wall at dusk, and far behind them rises a barn."
    known = NearDuplicates(0.5)
    assert known.add("first", text) is None
    assert known.add("copy", text.upper().replace(".", "!")) == "first"
    assert known.add("changed", text.replace("kitchen", "garage")) == "first"
    assert known.add("other", other) is None
    assert known.add("again", other.replace("dusk", "dawn")) == "other"
    assert known.add("empty", "") is None and known.add("empty again", "...") == "empty"
