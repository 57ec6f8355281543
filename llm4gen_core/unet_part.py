"""Trained part of the UNet in an adapter file, stored as differences to the base UNet's weights.

A difference can be scaled, added to other differences (LoRAs) in any order, and applied to fine-tunes of the base
UNet; added to the base UNet itself it restores the trained weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from .errors import LLM4GENError

UNET_PARTS = ("cross_attention_kv", "lora")
"""Kinds of UNet training whose result is stored in the adapter file."""

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
        tensors: for "cross_attention_kv", `<module>.diff` [out, in] = W_trained - W_base of the key and value layers
            of every trained cross-attention; for "lora", `<module>.lora_A.weight` [rank, in],
            `<module>.lora_B.weight` [out, rank] and `<module>.alpha` [] of every layer, which is changed by
            (alpha / rank) B A.

    Raises:
        LLM4GENError: the kind is unknown, or a tensor is missing, unknown, of another shape or not floating-point.
    """

    kind: str
    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        if self.kind not in UNET_PARTS:
            raise LLM4GENError(
                f"UNet part: kind {self.kind!r} is unknown; expected one of {', '.join(UNET_PARTS)}. Update LLM4GEN if "
                "the adapter was made with a newer version."
            )
        if not self.tensors:
            raise LLM4GENError(f"UNet part: it holds no tensors; expected those of {self.kind!r}.")
        for name, tensor in self.tensors.items():
            if not tensor.is_floating_point():
                raise LLM4GENError(f"UNet part: {name} is {tensor.dtype}; expected floating-point numbers.")
        suffixes = _LORA if self.kind == "lora" else tuple(layer + _DIFF for layer in _KV)
        found = set(self.tensors)
        stems = {name.removesuffix(suffix) for name in found for suffix in suffixes if name.endswith(suffix)} - {""}
        expected = {stem + suffix for stem in stems for suffix in suffixes}
        if unknown := found - expected:
            raise LLM4GENError(
                f"UNet part: {len(unknown)} tensors do not belong to kind {self.kind!r} ({min(unknown)}, ...). "
                f"Expected {' and '.join(f'<module>{suffix}' for suffix in suffixes)}."
            )
        if missing := expected - found:
            raise LLM4GENError(
                f"UNet part: {len(missing)} tensors of kind {self.kind!r} are missing ({min(missing)}, ...); it is "
                "incomplete. Export or download it again."
            )
        for name, tensor in self.tensors.items():
            if not name.endswith(_LORA[2]) and (tensor.ndim != 2 or 0 in tensor.shape):
                raise LLM4GENError(f"UNet part: {name} has shape {list(tensor.shape)}; expected a matrix.")
        for module in stems if self.kind == "lora" else ():
            self._check_lora(module)

    @property
    def modules(self) -> tuple[str, ...]:
        """Paths of the changed layers, in the order of the tensors."""
        suffix = _LORA[0] if self.kind == "lora" else _DIFF
        return tuple(name.removesuffix(suffix) for name in self.tensors if name.endswith(suffix))

    def shape(self, module: str) -> tuple[int, int]:
        """Shape (out, in) of the layer at a path of `modules`."""
        if self.kind == "lora":
            down, up = (self.tensors[module + suffix] for suffix in _LORA[:2])
            return up.shape[0], down.shape[1]
        out_width, in_width = self.tensors[module + _DIFF].shape
        return out_width, in_width

    def deltas(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (module, W_trained - W_base [out, in] in float32) of every layer."""
        for module in self.modules:
            if self.kind == "lora":
                down, up, alpha = (self.tensors[module + suffix].float() for suffix in _LORA)
                yield module, alpha / down.shape[0] * (up @ down)
            else:
                yield module, self.tensors[module + _DIFF].float()

    def _check_lora(self, module: str) -> None:
        down, up, alpha = (self.tensors[module + suffix] for suffix in _LORA)
        if down.shape[0] != up.shape[1]:
            raise LLM4GENError(
                f"UNet part: {module} has lora_A {list(down.shape)} and lora_B {list(up.shape)}, whose ranks differ; "
                "expected [rank, in] and [out, rank]."
            )
        if alpha.shape != ():
            raise LLM4GENError(
                f"UNet part: {module}{_LORA[2]} has shape {list(alpha.shape)}; expected a single number []."
            )
