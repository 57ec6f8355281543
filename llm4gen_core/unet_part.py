"""What an adapter file stores of the UNet beside its Cross-Adapter: changes of weights, not weights.

A change can be scaled, added to other changes (LoRAs) in any order, and applied to fine-tunes of the UNet that it was
trained on; added to that UNet itself it gives the trained weights back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from .errors import LLM4GENError

UNET_PARTS = ("cross_attention_kv", "lora")
"""What a recipe may train of the UNet so that it fits into the adapter file."""

_DIFF = ".diff"
_LORA = (".lora_A.weight", ".lora_B.weight", ".alpha")
_KV = (".attn2.to_k", ".attn2.to_v")


@dataclass(frozen=True)
class UNetPart:
    """Changes of a UNet's linear layers.

    A `<module>` is a layer's path inside diffusers' UNet2DConditionModel, such as
    `down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k`.

    Attributes:
        kind: one of `UNET_PARTS`.
        tensors: of "cross_attention_kv", for the key and value layer of every cross-attention that was trained,
            `<module>.diff` [out, in] = W_trained - W_base; of "lora", `<module>.lora_A.weight` [rank, in],
            `<module>.lora_B.weight` [out, rank] and `<module>.alpha` [], which together change the layer by
            (alpha / rank) B A.

    Raises:
        LLM4GENError: the kind is unknown, a tensor is missing, unknown, of another shape or not floating point.
    """

    kind: str
    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        if self.kind not in UNET_PARTS:
            raise LLM4GENError(
                f"UNet part: kind {self.kind!r} is not known; this version knows {', '.join(UNET_PARTS)}. Update "
                "LLM4GEN if the adapter was made by a newer one."
            )
        if not self.tensors:
            raise LLM4GENError(f"UNet part: it holds no tensors; expected those of {self.kind!r}.")
        for name, tensor in self.tensors.items():
            if not tensor.is_floating_point():
                raise LLM4GENError(f"UNet part: {name} is {tensor.dtype}; expected floating point numbers.")
        if self.kind == "lora":
            self._check_lora()
        else:
            self._check_kv()

    @property
    def modules(self) -> tuple[str, ...]:
        """Paths of the layers that it changes, in the order of its tensors."""
        suffix = _LORA[0] if self.kind == "lora" else _DIFF
        return tuple(name.removesuffix(suffix) for name in self.tensors if name.endswith(suffix))

    def shape(self, module: str) -> tuple[int, int]:
        """(out, in) of the layer at a path of `modules`."""
        if self.kind == "lora":
            down, up = (self.tensors[module + suffix] for suffix in _LORA[:2])
            return up.shape[0], down.shape[1]
        out_width, in_width = self.tensors[module + _DIFF].shape
        return out_width, in_width

    def deltas(self) -> Iterator[tuple[str, Tensor]]:
        """(module, W_trained - W_base [out, in] in float32) of every layer, each computed when it is asked for."""
        for module in self.modules:
            if self.kind == "lora":
                down, up, alpha = (self.tensors[module + suffix].float() for suffix in _LORA)
                yield module, alpha / down.shape[0] * (up @ down)
            else:
                yield module, self.tensors[module + _DIFF].float()

    def _check_kv(self) -> None:
        found = set(self.tensors)
        endings = tuple(layer + _DIFF for layer in _KV)
        blocks = {name.removesuffix(ending) for name in found for ending in endings if name.endswith(ending)} - {""}
        expected = {block + ending for block in blocks for ending in endings}
        self._refuse_unknown(found - expected)
        self._refuse_missing(expected - found)
        for name, tensor in self.tensors.items():
            _check_matrix(name, tensor)

    def _check_lora(self) -> None:
        found = set(self.tensors)
        modules = {name.removesuffix(suffix) for name in found for suffix in _LORA if name.endswith(suffix)} - {""}
        expected = {module + suffix for module in modules for suffix in _LORA}
        self._refuse_unknown(found - expected)
        self._refuse_missing(expected - found)
        for module in modules:
            down, up, alpha = (self.tensors[module + suffix] for suffix in _LORA)
            _check_matrix(module + _LORA[0], down)
            _check_matrix(module + _LORA[1], up)
            if down.shape[0] != up.shape[1]:
                raise LLM4GENError(
                    f"UNet part: {module} has lora_A {list(down.shape)} and lora_B {list(up.shape)}, which cannot be "
                    "multiplied; expected [rank, in] and [out, rank]."
                )
            if alpha.shape != ():
                raise LLM4GENError(
                    f"UNet part: {module}{_LORA[2]} has shape {list(alpha.shape)}; expected a single number []."
                )

    def _refuse_unknown(self, names: set[str]) -> None:
        if names:
            raise LLM4GENError(
                f"UNet part: {len(names)} tensors do not belong to kind {self.kind!r} ({min(names)}, ...). Expected "
                f"{_expected_names(self.kind)}."
            )

    def _refuse_missing(self, names: set[str]) -> None:
        if names:
            raise LLM4GENError(
                f"UNet part: {len(names)} tensors of kind {self.kind!r} are missing ({min(names)}, ...); it is "
                "incomplete. Make or download it again."
            )


def _check_matrix(name: str, tensor: Tensor) -> None:
    if tensor.ndim != 2 or 0 in tensor.shape:
        raise LLM4GENError(f"UNet part: {name} has shape {list(tensor.shape)}; expected a matrix.")


def _expected_names(kind: str) -> str:
    if kind == "lora":
        return " and ".join(f"<module>{suffix}" for suffix in _LORA)
    return " and ".join(f"<module>{layer}{_DIFF}" for layer in _KV)
