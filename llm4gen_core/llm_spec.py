"""What identifies the LLM of an adapter, and how its prompts are prepared."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Literal

from .errors import LLM4GENError

Layer = int | Literal["last", "mean"]


@dataclass(frozen=True)
class LLMSpec:
    """One record for everything that changes the hidden states of a given prompt.

    Attributes:
        model: name of the weights, such as a Hugging Face id. Empty when a file does not tell.
        architecture: transformers' `model_type` ("t5", "llama", ...).
        layers: transformer blocks of the encoder or decoder stack.
        width: d_llm, the size of a hidden state.
        prefix, suffix: text put before and behind every prompt, the empty one too; together a prompt template, such
            as a chat model's. A prompt that is cut loses its suffix.
        max_length: tokens that are read; what exceeds it is cut, the end token included (as the release does).
        padding: "max_length" pads every prompt to `max_length`; "longest" pads to the longest of a batch.
        padding_side: "right" or "left".
        layer: "last" is the last hidden state after the final norm; an integer indexes transformers'
            `hidden_states` (0 is the embedding, negative counts from the end); "mean" is the mean over
            all blocks of the layer-normalised hidden states (arXiv 2506.08210).
        dtype: precision of the encoder when the adapter was trained.
        pad_id: id of the padding token; None is the tokenizer's own, or its end token. Hidden states of padding reach
            the adapter, and tokenizers of the same model do not always agree on it.
    """

    model: str
    architecture: str
    layers: int
    width: int
    prefix: str = ""
    max_length: int = 256
    padding: str = "max_length"
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
            whole = isinstance(value, int) and not isinstance(value, bool)
            require(name, whole and value >= 1, "a whole number of at least 1")
        pad = self.pad_id
        id_or_none = pad is None or (isinstance(pad, int) and not isinstance(pad, bool) and pad >= 0)
        require("pad_id", id_or_none, "a token id, or null for the tokenizer's own")
        require("padding", self.padding in ("max_length", "longest"), '"max_length" or "longest"')
        require("padding_side", self.padding_side in ("right", "left"), '"right" or "left"')
        layer = self.layer
        whole = isinstance(layer, int) and not isinstance(layer, bool) and -self.layers - 1 <= layer <= self.layers
        expected = f'"last", "mean" or a whole number from {-self.layers - 1} to {self.layers}'
        require("layer", whole or layer in ("last", "mean"), expected)

    @property
    def label(self) -> str:
        """A name for people: the model if it is known, and its size."""
        size = f"{self.architecture}, {self.layers} layers, width {self.width}"
        return f"{self.model} ({size})" if self.model else size

    def mismatch(self, found: LLMSpec) -> str | None:
        """Why hidden states of `found` cannot stand in for this LLM's; None if nothing speaks against it.

        Model names are compared only when both are known: a single file seldom tells its name.
        """
        if (self.architecture, self.layers, self.width) != (found.architecture, found.layers, found.width):
            return "it is another model"
        if self.model and found.model and self.model != found.model:
            return "it has other weights"
        return None

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> LLMSpec:
        """Read what `to_json` wrote.

        Raises:
            LLM4GENError: not JSON, a field is missing, unknown or has an impossible value.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise LLM4GENError(f"LLM specification: not valid JSON ({error}).") from error
        known = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or set(values) - known:
            unknown = sorted(set(values) - known) if isinstance(values, dict) else values
            raise LLM4GENError(
                f"LLM specification: unknown content {unknown!r}; update LLM4GEN if a newer version wrote it."
            )
        try:
            return cls(**values)
        except TypeError as error:
            raise LLM4GENError(f"LLM specification: {error}.") from error


RANKGEN_T5_XL = LLMSpec(
    model="kalpeshk2011/rankgen-t5-xl-all",
    architecture="t5",
    layers=24,
    width=2048,
    prefix="pre ",
    max_length=256,
)
"""The LLM of the official SD1.5 release: RankGen's T5-v1.1-XL encoder, prefix "pre ", 256 tokens."""


def own_spec(architecture: str, layers: int, width: int, is_rankgen: bool) -> LLMSpec:
    """The `LLMSpec` that weights stand for by themselves, without an adapter's.

    RankGen's key layout brings its prompt prefix, and at the size of the release its name too. Every model is
    padded to 256 tokens on the right, as in the release, so that both sides of guidance are equally long.
    """
    is_released = is_rankgen and (layers, width) == (RANKGEN_T5_XL.layers, RANKGEN_T5_XL.width)
    return LLMSpec(
        model=RANKGEN_T5_XL.model if is_released else "",
        architecture=architecture,
        layers=layers,
        width=width,
        prefix=RANKGEN_T5_XL.prefix if is_rankgen else "",
    )
