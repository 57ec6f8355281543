"""Positions of a prompt's words in the context that cross-attention reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from . import Offsets, Span


@dataclass(frozen=True)
class ContextSegment:
    """A run of the context that holds the words of the prompt.

    Attributes:
        kind: "clip" or "llm".
        start: position of its first token in the context.
        offsets: for each token the characters of the prompt that it stands for; (0, 0) for special tokens.
    """

    kind: str
    start: int
    offsets: Offsets
    _tokens: dict[int, list[int]] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        # A table of each character's tokens, made once for all words of the prompt.
        for index, (start, end) in enumerate(self.offsets):
            for character in range(start, end):
                self._tokens.setdefault(character, []).append(index)

    def positions(self, word: Span) -> tuple[int, ...]:
        """Positions of a word's tokens in the context; none if a visible part of it was cut off."""
        found: set[int] = set()
        for character, letter in enumerate(word.text, word.start):
            if not letter.isspace():
                tokens = self._tokens.get(character)
                if tokens is None:
                    return ()
                found.update(tokens)
        return tuple(self.start + index for index in sorted(found))


def context_segments(layout: Sequence[str], clip: Offsets, llm: Offsets | None) -> list[ContextSegment]:
    """The copies of a prompt in the context.

    Args:
        layout: `CrossAdapterConfig.context_layout`; ("text",) without an adapter.
        clip: offsets of CLIP's tokens, `Family.text_offsets`.
        llm: offsets of the LLM's tokens, `prompt_offsets`; None where the layout has none.
    """
    segments, start = [], 0
    for place, part in enumerate(layout):
        offsets = clip if part == "text" else llm
        assert offsets is not None
        # Of two parts the second is the adapter's; with CLIP as query it has CLIP's tokens.
        segments.append(ContextSegment("llm" if place == 1 or part == "llm" else "clip", start, offsets))
        start += len(offsets)
    return segments
