"""Specification of an adapter's LLM: which model it is, and how prompts are prepared for it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Literal

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
