"""Cross-Adapter Module (CAM) of LLM4GEN, its ablations, and the fusion with CLIP's tokens.

Paper: Liu et al., "LLM4GEN: Leveraging Semantic Representation of LLMs for Text-to-Image Generation", AAAI 2025,
eq. 1-3 and Table 4. Where the paper and the released SD1.5 weights differ, this module follows the weights. The paper
names the ablations without defining them, and their code was not released: each is this project's interpretation.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import LLM4GENError

_LAYOUTS = {
    "cross_adapter": ("text", "llm"),
    "mlp": ("llm",),
    "cross_attention": ("llm",),
    "mlp_concat": ("text", "llm"),
    "cross_attention_concat": ("text", "llm"),
    "clip_query": ("text", "text"),
}
FUSIONS = tuple(_LAYOUTS)
"""Variants of combining LLM and CLIP features: `cross_adapter` is the method, the others are rows 3 to 6 of Table 4."""


@dataclass(frozen=True)
class CrossAdapterConfig:
    """Sizes and variant of an adapter.

    Attributes:
        d_text: width of the text context that the UNet reads (768 for SD1.5, 2048 for SDXL).
        d_llm: width of the LLM's hidden states (2048 for T5-XL).
        heads: number of attention heads; the released file does not store it, there it is 8. Unused by `mlp` and
            `mlp_concat`.
        fusion: one of `FUSIONS`; see `CrossAdapter`.

    Raises:
        LLM4GENError: a value is invalid.
    """

    d_text: int
    d_llm: int
    heads: int = 8
    fusion: str = "cross_adapter"

    def __post_init__(self) -> None:
        for name in ("d_text", "d_llm", "heads"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise LLM4GENError(f"Adapter config: {name} is {value!r}; expected an integer of at least 1.")
        if self.d_text % self.heads:
            raise LLM4GENError(
                f"Adapter config: d_text {self.d_text} is not divisible by {self.heads} heads; choose a number of "
                "heads that divides it."
            )
        if self.fusion not in FUSIONS:
            raise LLM4GENError(
                f"Adapter config: fusion {self.fusion!r} is unknown; expected one of {', '.join(FUSIONS)}. Update "
                "LLM4GEN if the adapter was made with a newer version."
            )

    @property
    def context_layout(self) -> tuple[str, ...]:
        """Parts of the context of `CrossAdapter.combine`, in order.

        "text" is a part of L_text tokens, "llm" one of L_llm tokens. Of two parts, the first is CLIP's own; all others
        are outputs of the adapter.
        """
        return _LAYOUTS[self.fusion]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class QuickGELU(nn.Module):
    """Activation x * sigmoid(1.702 x) of CLIP and of the released CAM."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class CrossAdapter(nn.Module):
    """Adapter of LLM tokens to the text space of the diffusion model (eq. 1 and 2), or one of Table 4's ablations.

    `cross_adapter`, the method: query is the LLM, key and value are CLIP::

        l  = llm_proj(c_l)
        l' = out_proj(softmax(Q Kᵀ / sqrt(head_dim)) V) + l
        c'_l = FFN(norm(l')) + l'

    The released weights swap the names of the two input norms: `kv_norm` normalises the LLM's tokens, which are the
    query, and `q_norm` CLIP's. Parameters keep those names, so that state dicts of the release load unchanged, and
    normalise the same tokens in every fusion.

    The ablations, with only the parameters that they use:

    * `mlp`, `mlp_concat`: c'_l = FFN(c_l), from d_llm over 4 d_text to d_text; LLM tokens attend neither to CLIP nor
      to each other. The paper calls it both "linear layer" and "MLP".
    * `cross_attention`, `cross_attention_concat`: c'_l = out_proj(softmax(Q Kᵀ / sqrt(head_dim)) V), the attention of
      the CAM with its norms, without residual and FFN.
    * `clip_query`: the CAM with the two inputs exchanged. Query is CLIP, key and value are llm_proj(c_l); the residual
      is c_t, so that the output has one token for each of CLIP's.

    `mlp` and `cross_attention` replace CLIP's tokens with the output, all others append it to them: see `combine`.

    Args:
        config: sizes and fusion.
        operations: namespace with `Linear` and `LayerNorm`: `torch.nn`, or a host's own casting layers.
        device, dtype: device and precision of the parameters.
    """

    def __init__(
        self,
        config: CrossAdapterConfig,
        operations: Any = nn,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        d = config.d_text
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self._attends = config.fusion not in ("mlp", "mlp_concat")
        self._refines = config.fusion in ("cross_adapter", "clip_query")
        if self._attends:
            self.llm_proj = operations.Linear(config.d_llm, d, **factory)
            self.q_proj = operations.Linear(d, d, **factory)
            self.k_proj = operations.Linear(d, d, **factory)
            self.v_proj = operations.Linear(d, d, **factory)
            self.out_proj = operations.Linear(d, d, **factory)
            self.q_norm = operations.LayerNorm(d, **factory)
            self.kv_norm = operations.LayerNorm(d, **factory)
        if self._refines:
            self.norm = operations.LayerNorm(d, **factory)
        if self._refines or not self._attends:
            d_in = d if self._attends else config.d_llm
            self.FFN = nn.Sequential(
                operations.Linear(d_in, 4 * d, **factory), QuickGELU(), operations.Linear(4 * d, d, **factory)
            )

    def forward(self, text: Tensor, llm: Tensor, llm_mask: Tensor | None = None) -> Tensor:
        """Return adapted tokens: c'_l, or c'_t with `clip_query`.

        Args:
            text: c_t [B, L_text, d_text], hidden states of the model's own text encoder.
            llm: c_l [B, L_llm, d_llm], hidden states of the LLM.
            llm_mask: [B, L_llm], 0 for padding. The output is zero there; `clip_query`, whose outputs are CLIP's
                tokens, does not attend to it. None, as in the release, treats padding like other tokens.

        Returns:
            [B, L_llm, d_text], or [B, L_text, d_text] with `clip_query`.

        Raises:
            LLM4GENError: widths or batch sizes do not match.
        """
        self._check("text", text, self.config.d_text)
        self._check("llm", llm, self.config.d_llm)
        if text.shape[0] != llm.shape[0]:
            raise LLM4GENError(
                f"text has batch size {text.shape[0]} and llm has {llm.shape[0]}; expected the same. Encode the same "
                "prompts with both."
            )
        if llm_mask is not None and llm_mask.shape != llm.shape[:2]:
            raise LLM4GENError(
                f"llm_mask has shape {list(llm_mask.shape)}; expected {list(llm.shape[:2])}, one value per LLM token."
            )
        if not self._attends:
            adapted = self.FFN(llm)
        else:
            hidden = self.llm_proj(llm)
            of_llm, of_text = self.kv_norm(hidden), self.q_norm(text)
            if self.config.fusion == "clip_query":
                key_mask = None if llm_mask is None else llm_mask.bool()[:, None, None, :]
                adapted, residual = self._attention(of_text, of_llm, key_mask), text
            else:
                adapted, residual = self._attention(of_llm, of_text), hidden
            if self._refines:
                adapted = adapted + residual
                adapted = self.FFN(self.norm(adapted)) + adapted
        if llm_mask is not None and self.config.fusion != "clip_query":
            adapted = adapted * llm_mask.to(adapted.dtype).unsqueeze(-1)
        return adapted

    def combine(self, text: Tensor, adapted: Tensor, strength: float = 1.0) -> Tensor:
        """Return the context that the UNet's cross-attention reads, according to this adapter's fusion.

        Args:
            text: c_t [B, L_text, d_text].
            adapted: output of this adapter.
            strength: λ, the scale of the adapted tokens; 0 returns `text` itself, plain CLIP.

        Returns:
            The parts that `CrossAdapterConfig.context_layout` names: `fuse` of both, or λ c'_l alone
            [B, L_llm, d_text] if the fusion replaces CLIP's tokens.

        Raises:
            LLM4GENError: batch sizes or widths differ.
        """
        if len(self.config.context_layout) == 2:
            return fuse(text, adapted, strength)
        _check_alike(text, adapted)
        if strength == 0:
            return text
        if strength != 1:
            adapted = adapted * strength
        return adapted.to(text.dtype)

    def _attention(self, query: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention of a query [B, L_query, d] to a context [B, L_context, d]; returns [B, L_query, d].

        `mask` broadcasts to [B, heads, L_query, L_context].
        """
        split_query = self._split_heads(self.q_proj(query))
        key = self._split_heads(self.k_proj(context))
        value = self._split_heads(self.v_proj(context))
        attended = F.scaled_dot_product_attention(split_query, key, value, attn_mask=mask)
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def _split_heads(self, x: Tensor) -> Tensor:
        """Reshape [B, L, d] to [B, heads, L, d / heads]."""
        return x.unflatten(-1, (self.config.heads, -1)).transpose(1, 2)

    @staticmethod
    def _check(name: str, tensor: Tensor, width: int) -> None:
        if tensor.ndim != 3 or tensor.shape[-1] != width:
            raise LLM4GENError(
                f"{name} has shape {list(tensor.shape)}; this adapter expects [batch, tokens, {width}]. "
                "Use the adapter that was trained for this encoder."
            )


def fuse(text: Tensor, adapted: Tensor, strength: float = 1.0) -> Tensor:
    """Concatenate c_t and λ c'_l along the sequence (left side of eq. 3).

    Args:
        text: c_t [B, L_text, d_text].
        adapted: c'_l [B, L_llm, d_text], from `CrossAdapter`.
        strength: λ. 0 leaves the LLM tokens out, because with a joint softmax λ → 0 does not converge to plain CLIP:
            zero keys still receive attention.

    Returns:
        [B, L_text + L_llm, d_text], or `text` itself if strength is 0.

    Raises:
        LLM4GENError: batch sizes or widths differ.
    """
    _check_alike(text, adapted)
    if strength == 0:
        return text
    if strength != 1:
        adapted = adapted * strength
    return torch.cat([text, adapted.to(text.dtype)], dim=1)


def _check_alike(text: Tensor, adapted: Tensor) -> None:
    if text.shape[0] != adapted.shape[0] or text.shape[-1] != adapted.shape[-1]:
        raise LLM4GENError(
            f"text {list(text.shape)} and adapted LLM tokens {list(adapted.shape)} cannot be concatenated: expected "
            "equal batch sizes and widths."
        )
