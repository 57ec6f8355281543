"""Filters between a model's answers and a prompt set: split an answer, judge each text, find near-duplicates."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from llm4gen_core import LLM4GENError

SHORTEST, LONGEST = 30, 120
"""Words of a prompt."""

SHORTEST_DESCRIPTION = 40
"""Words of an image's description."""

SHINGLE = 3
"""Words of a shingle."""

UNSAFE = Path(__file__).parent / "unsafe_words.txt"

_NUMBER = re.compile(r"^\s*(?:[-*•]\s+|\(?\d{1,3}[.):]\s*)")
_FRAME = re.compile(r"^(?:\*\*|[\"“”'`])+|(?:\*\*|[\"“”'`])+$")
_THOUGHT = re.compile(r"<think>.*?(?:</think>|$)", re.DOTALL)
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
_WORD_OR_NUMBER = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")

_COMMON = frozenset(
    "the a an and of in on with to is are at by from its it his her their that which while behind beside into over "
    "under near against as one two three has have there between through for across along this each".split()
)
_LEAST_COMMON = 0.15
"""Share of `_COMMON` words from which a text counts as English. Prompts of the shipped set have .20 or more, .37 on
average; similar paragraphs in German, Spanish, French, Italian, Dutch and Portuguese have at most .09."""


def split_answer(answer: str) -> list[str]:
    """Split an answer into its prompts: its numbered paragraphs, or its lines if none has a number.

    Texts that are not prompts stay in the list for `reason_against` to name. A model's thoughts are removed.
    """
    lines = [line.strip() for line in _THOUGHT.sub("", answer).splitlines()]
    if any(_NUMBER.match(line) for line in lines):
        parts: list[str] = []
        for line in lines:
            if _NUMBER.match(line) or not parts:
                parts.append(_NUMBER.sub("", line))
            elif line:  # the model broke a paragraph into lines
                parts[-1] += f" {line}"
    else:
        parts = lines
    cleaned = (" ".join(_FRAME.sub("", part.strip()).split()) for part in parts)
    return [part for part in cleaned if part]


def read_unsafe_words(path: Path = UNSAFE) -> frozenset[str]:
    """Read the words that no prompt may contain: one a line, lines that begin with # are comments.

    Raises:
        LLM4GENError: the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LLM4GENError(f"Word list {path} cannot be read ({error}); expected one word a line.") from error
    return frozenset(line.strip().lower() for line in lines if line.strip() and not line.startswith("#"))


def reason_against(text: str, unsafe: Iterable[str]) -> str | None:
    """Return why a text is not a dense prompt, or None if it is one.

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
    if not _is_english(words):
        return "not English"
    joined = f" {' '.join(words)} "
    return "unsafe" if any(f" {word} " in joined for word in unsafe) else None


def is_useful(description: str) -> bool:
    """Whether prompts can be made from a description: it is long enough, English and not a refusal."""
    reason = reason_against(" ".join(description.split()), ())
    return len(description.split()) >= SHORTEST_DESCRIPTION and reason not in ("refusal", "not English")


def _is_english(words: list[str]) -> bool:
    """Whether words in lower case look English: Latin letters, and enough of the most common words."""
    if not words or sum(word.isascii() for word in words) < 0.9 * len(words):
        return False
    return sum(word in _COMMON for word in words) >= _LEAST_COMMON * len(words)


class NearDuplicates:
    """Texts of which no two are near-duplicates by the Jaccard similarity of their word shingles.

    Broder 1997, "On the resemblance and containment of documents": a text is the set of its runs of three words,
    without regard to case and punctuation; the similarity of two texts is the size of the sets' intersection over
    that of their union. An index from shingles to texts finds every text that shares one.

    Args:
        threshold: similarity from which two texts are near-duplicates, above 0.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._sizes: dict[str, int] = {}
        self._holders: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, name: str, text: str) -> str | None:
        """Remember a text under a unique name, unless it is a near-duplicate of a known one.

        Returns:
            Name of the most similar text if the new one is its near-duplicate and was not remembered; else None.
        """
        words = _WORD_OR_NUMBER.findall(text.lower())
        shingles = {" ".join(words[start : start + SHINGLE]) for start in range(max(1, len(words) - SHINGLE + 1))}
        common = Counter(known for shingle in shingles for known in self._holders.get(shingle, ()))
        similarities = ((n / (len(shingles) + self._sizes[known] - n), known) for known, n in common.items())
        similarity, nearest = max(similarities, default=(0.0, ""))
        if nearest and similarity >= self.threshold:
            return nearest
        self._sizes[name] = len(shingles)
        for shingle in shingles:
            self._holders[shingle].append(name)
        return None
