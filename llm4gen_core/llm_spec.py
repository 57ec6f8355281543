"""Specification of the LLM of an adapter, and the token ids of a prompt that follow from it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar

from .errors import LLM4GENError

Layer = int | Literal["last", "mean"]

_PADDING = "max_length"
"""Value of the stored field `padding`. Every prompt is padded to `max_length`, so that the record itself has no such
field; it is still written, because earlier versions read it and text caches are identified by the JSON."""


@dataclass(frozen=True)
class LLMSpec:
    """Everything that determines the hidden states of a given prompt. Stored with every adapter.

    Attributes:
        model: name of the weights, such as a Hugging Face id. Empty if a file does not say.
        architecture: transformers' `model_type` ("t5", "llama", ...).
        layers: number of transformer blocks of the encoder or decoder stack.
        width: d_llm, the size of a hidden state.
        prefix, suffix: text before and after every prompt, including the empty one; together a prompt template, such
            as a chat model's. A prompt that is truncated loses its suffix.
        max_length: tokens per prompt. Longer prompts are truncated, end token included (as in the release); shorter
            ones are padded.
        padding_side: "right" or "left".
        layer: "last" is the last hidden state after the final norm; an integer indexes transformers'
            `hidden_states` (0 is the embedding, negative counts from the end); "mean" is the mean over
            all blocks of the layer-normalised hidden states (arXiv 2506.08210).
        dtype: precision of the encoder when the adapter was trained.
        pad_id: id of the padding token; None is the tokenizer's own, or its end token. Hidden states of padding reach
            the adapter, and tokenizers of the same model do not always agree on it.

    Raises:
        LLM4GENError: a field has an invalid value.
    """

    model: str
    architecture: str
    layers: int
    width: int
    prefix: str = ""
    max_length: int = 256
    padding_side: str = "right"
    layer: Layer = "last"
    dtype: str = "float32"
    suffix: str = ""
    pad_id: int | None = None

    def __post_init__(self) -> None:
        def require(name: str, ok: bool, expected: str) -> None:
            if not ok:
                raise LLM4GENError(f"LLM specification: {name} is {getattr(self, name)!r}; expected {expected}.")

        for name in ("model", "architecture", "prefix", "suffix", "dtype"):
            require(name, isinstance(getattr(self, name), str), "text")
        for name in ("layers", "width", "max_length"):
            value = getattr(self, name)
            require(name, _is_integer(value) and value >= 1, "an integer of at least 1")
        pad = self.pad_id
        require("pad_id", pad is None or (_is_integer(pad) and pad >= 0), "a token id, or null for the tokenizer's own")
        require("padding_side", self.padding_side in ("right", "left"), '"right" or "left"')
        layer = self.layer
        known = layer in ("last", "mean") or (_is_integer(layer) and -self.layers - 1 <= int(layer) <= self.layers)
        require("layer", known, f'"last", "mean" or an integer from {-self.layers - 1} to {self.layers}')

    @property
    def label(self) -> str:
        """Name for people: the model if it is known, and its size."""
        size = f"{self.architecture}, {self.layers} layers, width {self.width}"
        return f"{self.model} ({size})" if self.model else size

    def mismatch(self, found: LLMSpec) -> str | None:
        """Return why hidden states of `found` cannot replace this LLM's, or None if nothing is known against it.

        Model names are compared only when both are known: a single file seldom contains its name.
        """
        if (self.architecture, self.layers, self.width) != (found.architecture, found.layers, found.width):
            return "it is another model"
        if self.model and found.model and self.model != found.model:
            return "it has other weights"
        return None

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "padding": _PADDING}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> LLMSpec:
        """Read what `to_json` wrote.

        Raises:
            LLM4GENError: not JSON, or a field is missing, unknown or has an invalid value.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise LLM4GENError(f"LLM specification: not valid JSON ({error}).") from error
        if not isinstance(values, dict):
            raise LLM4GENError(f"LLM specification: {values!r} is not a JSON object; expected the fields of LLMSpec.")
        padding = values.pop("padding", _PADDING)
        if padding != _PADDING:
            raise LLM4GENError(
                f'LLM specification: padding is {padding!r}; expected "{_PADDING}", since every prompt is padded to '
                "max_length as in the official release. Remove the field, or train the adapter again."
            )
        if unknown := sorted(set(values) - {field.name for field in fields(cls)}):
            raise LLM4GENError(
                f"LLM specification: fields {unknown} are unknown; update LLM4GEN if a newer version wrote them."
            )
        try:
            return cls(**values)
        except TypeError as error:
            raise LLM4GENError(f"LLM specification: {error}.") from error


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


RANKGEN_T5_XL = LLMSpec(
    model="kalpeshk2011/rankgen-t5-xl-all",
    architecture="t5",
    layers=24,
    width=2048,
    prefix="pre ",
    max_length=256,
)
"""LLM of the official SD1.5 release: RankGen's T5-v1.1-XL encoder, prefix "pre ", 256 tokens."""


def own_spec(architecture: str, layers: int, width: int, is_rankgen: bool) -> LLMSpec:
    """Return the `LLMSpec` of weights by themselves, without an adapter's.

    RankGen's key layout implies its prompt prefix, and at the size of the release its name too. Prompts of every
    model are padded to 256 tokens on the right, as in the release, so that both sides of guidance are equally long.
    """
    is_released = is_rankgen and (layers, width) == (RANKGEN_T5_XL.layers, RANKGEN_T5_XL.width)
    return LLMSpec(
        model=RANKGEN_T5_XL.model if is_released else "",
        architecture=architecture,
        layers=layers,
        width=width,
        prefix=RANKGEN_T5_XL.prefix if is_rankgen else "",
    )


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
