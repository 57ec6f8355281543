"""Which texts of a model are dense prompts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from llm4gen_core import LLM4GENError

SHORTEST, LONGEST = 30, 120
"""Words of a prompt."""

_REFUSAL = re.compile(
    r"\bas an? (?:ai|language model|assistant)\b|\bi(?:['’]m| am) (?:sorry|unable|not able)\b|"
    r"\bi (?:can(?:no|['’])t|can not|won['’]t) (?:help|assist|see|view|provide|describe|create|generate|comply)|"
    r"\bunable to (?:help|assist|see|provide)",
    re.IGNORECASE,
)
_REMARK = re.compile(
    r"^(?:sure|certainly|of course|absolutely|okay|ok|great)\b|^(?:here(?:['’]s| is| are)|below (?:is|are)|note:|"
    r"the following|prompts?\b|description\b)|\b(?:these|the|this|following|above|each|different|unique) prompts?\b|"
    r"\blet me know\b|\bi hope\b|\btext-to-image\b|```|https?://|\bthe (?:original )?description\b",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")

_COMMON = frozenset(
    "the a an and of in on with to is are at by from its it his her their that which while behind beside into over "
    "under near against as one two three has have there between through for across along this each".split()
)
_LEAST_COMMON = 0.15
"""Share of the words above from which a text is taken for English. The prompts of the shipped set have .20 and more,
.37 on average; paragraphs like them in German, Spanish, French, Italian, Dutch and Portuguese at most .09."""

UNSAFE = Path(__file__).parent / "unsafe_words.txt"


def read_unsafe_words(path: Path = UNSAFE) -> frozenset[str]:
    """The words that no prompt may hold, one a line, without lines that begin with #.

    Raises:
        LLM4GENError: the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LLM4GENError(f"Word list {path} cannot be read ({error}); expected one word a line.") from error
    return frozenset(line.strip().lower() for line in lines if line.strip() and not line.startswith("#"))


def reason_against(text: str, unsafe: Iterable[str]) -> str | None:
    """Why a text is no dense prompt, or None if it is one.

    Args:
        text: on one line.
        unsafe: words or phrases in lower case.
    """
    if _REFUSAL.search(text):
        return "refusal"
    if _REMARK.search(text):
        return "remark"
    number = len(text.split())
    if number < SHORTEST:
        return "too short"
    if number > LONGEST:
        return "too long"
    if not text.rstrip("\"”'’)").endswith((".", "!", "?")):
        return "cut off"
    words = [word.lower() for word in _WORD.findall(text)]
    if not is_english(words):
        return "not English"
    joined = f" {' '.join(words)} "
    return "unsafe" if any(f" {word} " in joined for word in unsafe) else None


def is_english(words: list[str]) -> bool:
    """Whether words in lower case look like an English text: Latin letters, and enough of its commonest words."""
    if not words or sum(word.isascii() for word in words) < 0.9 * len(words):
        return False
    return sum(word in _COMMON for word in words) >= _LEAST_COMMON * len(words)
