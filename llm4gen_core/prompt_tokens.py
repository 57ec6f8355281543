"""From a prompt to an LLM's token ids, as its `LLMSpec` says, with a weight for every token."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .errors import LLM4GENError
from .llm_spec import LLMSpec

Segment = tuple[str, float]
"""A stretch of the prompt and its weight, as in `(word:1.3)`."""

_TEXTUAL_INVERSION = re.compile(r"(?:(?<=\s)|^)embedding:\S+ ?")
_BREAK = re.compile(r"\s*(?<![^\s,])BREAK(?![^\s,])\s*")


@dataclass(frozen=True)
class PromptTokens:
    """One prompt, ready for the LLM.

    Attributes:
        ids: token ids, padded.
        mask: 1 for a token of the prompt, 0 for padding.
        weights: 1.0, or the weight that the prompt gives to a token.
        length: tokens of the prompt before it was cut, prefix and special tokens included.
    """

    ids: list[int]
    mask: list[int]
    weights: list[float]
    length: int


def tokenize_prompt(
    tokenizer: Any, prompt: str | Sequence[Segment], spec: LLMSpec, pad_to: int | None = None
) -> PromptTokens:
    """Token ids of prefix + prompt + suffix.

    The text is tokenized once as a whole, and weights are laid over its tokens by their character
    offsets, so that weighting a word never changes how it, or its neighbours, are split. A token that
    spans several segments takes the mean weight of its characters. Names of textual inversions
    (`embedding:name`) mean nothing to an LLM and are left out.

    Args:
        tokenizer: a transformers tokenizer.
        prompt: text, or text with weights. The empty prompt keeps the prefix; where nothing at all is left
            (no prefix, and a tokenizer that adds no special tokens), one start or end token stands for it.
        spec: prefix, length, padding.
        pad_to: pad to this many tokens instead of what `spec.padding` says; for "longest" in a batch.

    Raises:
        LLM4GENError: weights are used with a tokenizer that gives no offsets.
    """
    segments = [(prompt, 1.0)] if isinstance(prompt, str) else list(prompt)
    segments = [(_TEXTUAL_INVERSION.sub("", text), weight) for text, weight in segments]
    text = spec.prefix + "".join(segment for segment, _ in segments) + spec.suffix
    weighted = any(weight != 1.0 for _, weight in segments)
    if weighted and not getattr(tokenizer, "is_fast", False):
        raise LLM4GENError(
            "This LLM's tokenizer gives no character offsets, so (word:1.3) cannot be mapped to its tokens; "
            "remove the weights, or use a model folder with a tokenizer.json."
        )
    encoded = tokenizer(text, return_offsets_mapping=weighted, verbose=False)
    ids = list(encoded["input_ids"])
    weights = _token_weights(text, spec, segments, encoded["offset_mapping"]) if weighted else [1.0] * len(ids)
    if not ids:
        bos = tokenizer.bos_token_id
        ids, weights = [pad_id(tokenizer, spec) if bos is None else int(bos)], [1.0]
    length = len(ids)
    ids, weights = ids[: spec.max_length], weights[: spec.max_length]
    target = spec.max_length if spec.padding == "max_length" else len(ids)
    padding = max(0, (target if pad_to is None else pad_to) - len(ids))
    mask = [1] * len(ids)
    fill = pad_id(tokenizer, spec)
    if spec.padding_side == "right":
        return PromptTokens(ids + [fill] * padding, mask + [0] * padding, weights + [1.0] * padding, length)
    return PromptTokens([fill] * padding + ids, [0] * padding + mask, [1.0] * padding + weights, length)


def prompt_offsets(tokenizer: Any, prompt: str, spec: LLMSpec) -> list[tuple[int, int]]:
    """For every token of `tokenize_prompt` the characters of the prompt that it stands for.

    Args:
        tokenizer: a fast transformers tokenizer.
        prompt: text, without weights.
        spec: as for `tokenize_prompt`, with padding "max_length".

    Returns:
        (start, end) of each of `spec.max_length` tokens; (0, 0) for those of prefix and suffix, special ones and
        padding.

    Raises:
        LLM4GENError: the tokenizer gives no offsets.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise LLM4GENError(
            "This LLM's tokenizer gives no character offsets, so words cannot be mapped to its tokens; use a model "
            "folder with a tokenizer.json."
        )
    left_out = [range(*match.span()) for match in _TEXTUAL_INVERSION.finditer(prompt)]
    kept = (
        [i for i in range(len(prompt)) if not any(i in span for span in left_out)] if left_out else range(len(prompt))
    )
    start = len(spec.prefix)
    text = "".join(prompt[i] for i in kept) if left_out else prompt
    encoded = tokenizer(spec.prefix + text + spec.suffix, return_offsets_mapping=True, verbose=False)
    offsets = []
    for begin, end in encoded["offset_mapping"][: spec.max_length]:
        begin, end = max(begin - start, 0), min(end - start, len(text))
        offsets.append((kept[begin], kept[end - 1] + 1) if begin < end else (0, 0))
    padding = [(0, 0)] * (spec.max_length - len(offsets))
    return offsets + padding if spec.padding_side == "right" else padding + offsets


def split_at_break(segments: Sequence[Segment]) -> list[list[Segment]]:
    """The parts of a prompt between its BREAKs.

    BREAK is a word of its own in capitals, between spaces, commas or the ends of a segment. It goes with the white
    space around it, and a part that holds nothing else goes too.

    Args:
        segments: the prompt with its weights; a weight that spans a BREAK holds on both sides.

    Returns:
        At least one part; if there is no BREAK, the segments as they are.
    """
    parts: list[list[Segment]] = [[]]
    for text, weight in segments:
        first, *rest = _BREAK.split(text)
        parts[-1].append((first, weight))
        parts.extend([(piece, weight)] for piece in rest)
    if len(parts) == 1:
        return parts
    return [part for part in map(_trimmed, parts) if part] or [[]]


def _trimmed(part: list[Segment]) -> list[Segment]:
    """Without white space at both ends, and without segments of nothing else there."""
    while part and not part[0][0].strip():
        part = part[1:]
    while part and not part[-1][0].strip():
        part = part[:-1]
    if part:
        part = [(part[0][0].lstrip(), part[0][1]), *part[1:]]
        part = [*part[:-1], (part[-1][0].rstrip(), part[-1][1])]
    return part


def pad_id(tokenizer: Any, spec: LLMSpec | None = None) -> int:
    """Id of the padding token: the specification's, or the tokenizer's own; models without one are padded with their
    end token, which the mask hides."""
    if spec is not None and spec.pad_id is not None:
        return spec.pad_id
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    return 0


def _token_weights(
    text: str, spec: LLMSpec, segments: Sequence[Segment], offsets: Sequence[tuple[int, int]]
) -> list[float]:
    """Weight of each token: the mean over its characters, white space aside."""
    characters = [1.0] * len(spec.prefix)
    for segment, weight in segments:
        characters += [weight] * len(segment)
    characters += [1.0] * len(spec.suffix)
    weights = []
    for begin, end in offsets:
        own = [characters[i] for i in range(begin, end) if not text[i].isspace()]
        weights.append(sum(own) / len(own) if own else 1.0)
    return weights
