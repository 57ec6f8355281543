"""Which answers of a model become prompts."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.dense.filters import read_unsafe_words, reason_against
from evaluation.dense.writing import split_answer
from evaluation.prompts import Prompt
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
def test_reasons(text: str, reason: str | None) -> None:
    assert reason_against(text, read_unsafe_words()) == reason


def test_the_shipped_set_passes(shipped: list[Prompt]) -> None:
    unsafe = read_unsafe_words()
    assert [prompt.text for prompt in shipped if reason_against(prompt.text, unsafe)] == []


def test_words_of_the_users_own(tmp_path: Path) -> None:
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
def test_answers_are_split(answer: str, prompts: list[str]) -> None:
    assert split_answer(answer) == prompts
