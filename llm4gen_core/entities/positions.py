"""Tokens of a prompt's words, and their positions in the context that cross-attention reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from . import Span

Offsets = Sequence[tuple[int, int]]
"""Characters (start, end) of each token, as fast tokenizers return them; (0, 0) for special and padding tokens."""


def token_indices(span: Span, offsets: Offsets) -> list[int]:
    """Return the indices of the tokens that contain characters of a span other than white space.

    Only characters are compared: each mention of a repeated word has its own tokens, and a token that includes the
    space before a word counts, but not a token of white space only. If truncation removed a part of the span, the
    remaining tokens are returned; see `covers`.

    Args:
        span: span of the caption.
        offsets: tokens' characters in the same caption. If the tokenized text has a prefix, subtract its length from
            the offsets; those of the prefix are then negative and never match.
    """
    tokens = _tokens_by_character(offsets)
    return sorted({index for character in _visible(span) for index in tokens.get(character, ())})


def covers(span: Span, offsets: Offsets) -> bool:
    """Whether every character of a span except white space is in some token; False if a part was truncated."""
    tokens = _tokens_by_character(offsets)
    return all(character in tokens for character in _visible(span))


def _tokens_by_character(offsets: Offsets) -> dict[int, list[int]]:
    tokens: dict[int, list[int]] = {}
    for index, (start, end) in enumerate(offsets):
        for character in range(start, end):
            tokens.setdefault(character, []).append(index)
    return tokens


def _visible(span: Span) -> list[int]:
    return [place for place, letter in enumerate(span.text, span.start) if not letter.isspace()]


@dataclass(frozen=True)
class ContextSegment:
    """Part of the context that holds one copy of the prompt.

    Attributes:
        kind: "clip" or "llm".
        start: position of its first token in the context.
        offsets: characters of the prompt that each token covers; (0, 0) for special tokens.
    """

    kind: str
    start: int
    offsets: Offsets
    _tokens: dict[int, list[int]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Computed once for all words of the prompt.
        object.__setattr__(self, "_tokens", _tokens_by_character(self.offsets))

    def positions(self, word: Span) -> tuple[int, ...]:
        """Positions of a word's tokens in the context; empty if a part of the word was truncated."""
        found = [self._tokens.get(character) for character in _visible(word)]
        return () if None in found else tuple(sorted({self.start + i for tokens in found if tokens for i in tokens}))


def context_segments(layout: Sequence[str], clip: Offsets, llm: Offsets | None) -> list[ContextSegment]:
    """Return the copies of a prompt in the context.

    Args:
        layout: `CrossAdapterConfig.context_layout`, or ("text",) without an adapter.
        clip: offsets of CLIP's tokens, `Family.text_offsets`.
        llm: offsets of the LLM's tokens, `prompt_offsets`; may be None if the layout has no "llm".
    """
    segments, start = [], 0
    for place, part in enumerate(layout):
        offsets = clip if part == "text" else llm
        assert offsets is not None
        # The second of two parts is the adapter's output; with CLIP as query it has CLIP's tokens.
        segments.append(ContextSegment("llm" if place == 1 or part == "llm" else "clip", start, offsets))
        start += len(offsets)
    return segments
