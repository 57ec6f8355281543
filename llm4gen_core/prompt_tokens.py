"""Token ids of a prompt for an LLM, as its `LLMSpec` says, with a weight for every token."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from .errors import LLM4GENError
from .llm_spec import LLMSpec

Segment = tuple[str, float]
"""Part of a prompt and its weight, as in `(word:1.3)`."""

_TEXTUAL_INVERSION = re.compile(r"(?:(?<=\s)|^)embedding:\S+ ?")
_BREAK = re.compile(r"\s*(?<![^\s,])BREAK(?![^\s,])\s*")
_T = TypeVar("_T")


@dataclass(frozen=True)
class PromptTokens:
    """A tokenized prompt, truncated and padded to `LLMSpec.max_length` tokens.

    Attributes:
        ids: token ids.
        mask: 1 for a token of the prompt, 0 for padding.
        weights: 1.0, or the weight that the prompt gives to a token.
        length: number of tokens before truncation, including prefix and special tokens.
    """

    ids: list[int]
    mask: list[int]
    weights: list[float]
    length: int


def tokenize_prompt(tokenizer: Any, prompt: str | Sequence[Segment], spec: LLMSpec) -> PromptTokens:
    """Tokenize prefix + prompt + suffix.

    The text is tokenized once as a whole, and weights are assigned to its tokens by their character offsets, so that
    weighting a word never changes how it, or its neighbours, are split. A token that spans several segments takes the
    mean weight of its characters. Names of textual inversions (`embedding:name`) mean nothing to an LLM and are
    removed.

    Args:
        tokenizer: a transformers tokenizer.
        prompt: text, or text with weights. The empty prompt keeps the prefix; if no token remains (no prefix, and a
            tokenizer that adds no special tokens), one start or padding token replaces it.
        spec: prefix, suffix, length and padding.

    Raises:
        LLM4GENError: weights are used with a tokenizer that has no offsets.
    """
    segments = [(prompt, 1.0)] if isinstance(prompt, str) else list(prompt)
    segments = [(_TEXTUAL_INVERSION.sub("", text), weight) for text, weight in segments]
    text = spec.prefix + "".join(segment for segment, _ in segments) + spec.suffix
    weighted = any(weight != 1.0 for _, weight in segments)
    if weighted and not getattr(tokenizer, "is_fast", False):
        raise LLM4GENError(
            "This LLM's tokenizer has no character offsets, so (word:1.3) cannot be mapped to its tokens; "
            "remove the weights, or use a model folder with a tokenizer.json."
        )
    encoded = tokenizer(text, return_offsets_mapping=weighted, verbose=False)
    ids = list(encoded["input_ids"])
    weights = _token_weights(text, spec, segments, encoded["offset_mapping"]) if weighted else [1.0] * len(ids)
    fill = pad_id(tokenizer, spec)
    if not ids:
        ids, weights = [fill if tokenizer.bos_token_id is None else int(tokenizer.bos_token_id)], [1.0]
    return PromptTokens(
        _to_length(ids, fill, spec), _to_length([1] * len(ids), 0, spec), _to_length(weights, 1.0, spec), len(ids)
    )


def prompt_offsets(tokenizer: Any, prompt: str, spec: LLMSpec) -> list[tuple[int, int]]:
    """Return the characters of the prompt that each token of `tokenize_prompt` covers.

    Args:
        tokenizer: a fast transformers tokenizer.
        prompt: text, without weights.
        spec: as for `tokenize_prompt`.

    Returns:
        (start, end) of each of `spec.max_length` tokens; (0, 0) for prefix, suffix, special tokens and padding.

    Raises:
        LLM4GENError: the tokenizer has no offsets.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise LLM4GENError(
            "This LLM's tokenizer has no character offsets, so words cannot be mapped to its tokens; use a model "
            "folder with a tokenizer.json."
        )
    removed = {i for match in _TEXTUAL_INVERSION.finditer(prompt) for i in range(*match.span())}
    kept = [i for i in range(len(prompt)) if i not in removed]
    text = spec.prefix + "".join(prompt[i] for i in kept) + spec.suffix
    encoded = tokenizer(text, return_offsets_mapping=True, verbose=False)
    offsets = []
    for begin, end in encoded["offset_mapping"]:
        begin, end = max(begin - len(spec.prefix), 0), min(end - len(spec.prefix), len(kept))
        offsets.append((kept[begin], kept[end - 1] + 1) if begin < end else (0, 0))
    return _to_length(offsets, (0, 0), spec)


def _to_length(values: list[_T], fill: _T, spec: LLMSpec) -> list[_T]:
    """Truncate or pad to `spec.max_length` values."""
    padding = [fill] * (spec.max_length - len(values))
    values = values[: spec.max_length]
    return values + padding if spec.padding_side == "right" else padding + values


def split_at_break(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Split a prompt at each BREAK.

    BREAK is a separate word in capitals, between spaces, commas or the ends of a segment. It is removed together with
    the white space around it, and so are parts that hold nothing else.

    Args:
        segments: the prompt with its weights; a weight that spans a BREAK applies to both sides.

    Returns:
        At least one part; without a BREAK, the segments unchanged.
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
    """Remove white space at both ends, and segments there that hold nothing else."""
    while part and not part[0][0].strip():
        part = part[1:]
    while part and not part[-1][0].strip():
        part = part[:-1]
    if part:
        part = [(part[0][0].lstrip(), part[0][1]), *part[1:]]
        part = [*part[:-1], (part[-1][0].rstrip(), part[-1][1])]
    return part


def pad_id(tokenizer: Any, spec: LLMSpec | None = None) -> int:
    """Id of the padding token: the specification's, the tokenizer's own, its end token's (hidden by the mask), or 0."""
    ids = (spec.pad_id if spec is not None else None, tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(int(token_id) for token_id in ids if token_id is not None)


def _token_weights(
    text: str, spec: LLMSpec, segments: Sequence[Segment], offsets: Sequence[tuple[int, int]]
) -> list[float]:
    """Weight of each token: the mean over its characters except white space."""
    characters = [1.0] * len(spec.prefix)
    for segment, weight in segments:
        characters += [weight] * len(segment)
    characters += [1.0] * len(spec.suffix)
    weights = []
    for begin, end in offsets:
        own = [characters[i] for i in range(begin, end) if not text[i].isspace()]
        weights.append(sum(own) / len(own) if own else 1.0)
    return weights
