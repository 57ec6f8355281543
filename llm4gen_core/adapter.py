"""The Cross-Adapter Module (CAM) of LLM4GEN and the fusion of its output with CLIP's.

Paper: Liu et al., "LLM4GEN: Leveraging Semantic Representation of LLMs for Text-to-Image
Generation", AAAI 2025, eq. 1-3. Where the paper and the released SD1.5 weights differ, this
module follows the weights.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import LLM4GENError

if TYPE_CHECKING:
    from .adapter_file import AdapterMetadata

FUSIONS = ("cross_adapter",)
"""Ways to combine LLM and CLIP features (Table 4); `cross_adapter` is the method."""


@dataclass(frozen=True)
class CrossAdapterConfig:
    """Sizes of a CAM.

    Attributes:
        d_text: width of the text context that the UNet reads (768 for SD1.5, 2048 for SDXL).
        d_llm: width of the LLM's hidden states (2048 for T5-XL).
        heads: attention heads; not stored in the released file, where it is 8.
        fusion: one of `FUSIONS`.
    """

    d_text: int
    d_llm: int
    heads: int = 8
    fusion: str = "cross_adapter"

    def __post_init__(self) -> None:
        for name in ("d_text", "d_llm", "heads"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise LLM4GENError(f"Adapter config: {name} is {value!r}; expected a whole number of at least 1.")
        if self.d_text % self.heads:
            raise LLM4GENError(
                f"Adapter config: d_text {self.d_text} cannot be split into {self.heads} heads; "
                "choose a number of heads that divides it."
            )
        if self.fusion not in FUSIONS:
            raise LLM4GENError(
                f"Adapter config: fusion {self.fusion!r} is not known; this version knows {', '.join(FUSIONS)}. "
                "Update LLM4GEN if the adapter was made by a newer one."
            )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the activation of CLIP and of the released CAM."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class CrossAdapter(nn.Module):
    """Adapts LLM tokens to the text space of the diffusion model (eq. 1 and 2).

    Query is the LLM, key and value are CLIP::

        l  = llm_proj(c_l)
        l' = out_proj(softmax(Q Kᵀ / sqrt(head_dim)) V) + l
        c'_l = FFN(norm(l')) + l'

    The released weights name the two input norms the wrong way round: `kv_norm` normalises the
    query and `q_norm` the key and value. Parameters keep those names, so that state dicts of the
    release load unchanged.

    Args:
        config: sizes.
        operations: namespace with `Linear` and `LayerNorm`; `torch.nn`, or a host's own casting layers.
        device, dtype: of the parameters.
    """

    metadata: AdapterMetadata | None
    """What the file said that this adapter was loaded from; None for a new one."""

    def __init__(
        self,
        config: CrossAdapterConfig,
        operations: Any = nn,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.metadata = None
        d = config.d_text
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.llm_proj = operations.Linear(config.d_llm, d, **factory)
        self.q_proj = operations.Linear(d, d, **factory)
        self.k_proj = operations.Linear(d, d, **factory)
        self.v_proj = operations.Linear(d, d, **factory)
        self.out_proj = operations.Linear(d, d, **factory)
        self.q_norm = operations.LayerNorm(d, **factory)
        self.kv_norm = operations.LayerNorm(d, **factory)
        self.norm = operations.LayerNorm(d, **factory)
        self.FFN = nn.Sequential(
            operations.Linear(d, 4 * d, **factory), QuickGELU(), operations.Linear(4 * d, d, **factory)
        )

    def forward(self, text: Tensor, llm: Tensor, llm_mask: Tensor | None = None) -> Tensor:
        """Adapted LLM tokens c'_l.

        Args:
            text: c_t [B, L_text, d_text], hidden states of the model's own text encoder.
            llm: c_l [B, L_llm, d_llm], hidden states of the LLM.
            llm_mask: [B, L_llm], 0 where a token is padding: its row of the result is zero. None, as in
                the release, lets padding take part.

        Returns:
            c'_l [B, L_llm, d_text].

        Raises:
            LLM4GENError: a width or batch size does not fit.
        """
        self._check("text", text, self.config.d_text)
        self._check("llm", llm, self.config.d_llm)
        if text.shape[0] != llm.shape[0]:
            raise LLM4GENError(
                f"text has batch size {text.shape[0]} and llm {llm.shape[0]}; encode the same prompts with both."
            )
        if llm_mask is not None and llm_mask.shape != llm.shape[:2]:
            raise LLM4GENError(
                f"llm_mask has shape {list(llm_mask.shape)}; expected {list(llm.shape[:2])}, one value a token of llm."
            )
        hidden = self.llm_proj(llm)
        context = self.q_norm(text)
        query = self._split_heads(self.q_proj(self.kv_norm(hidden)))
        key = self._split_heads(self.k_proj(context))
        value = self._split_heads(self.v_proj(context))
        attended = F.scaled_dot_product_attention(query, key, value)
        hidden = self.out_proj(attended.transpose(1, 2).flatten(2)) + hidden
        hidden = self.FFN(self.norm(hidden)) + hidden
        if llm_mask is not None:
            hidden = hidden * llm_mask.to(hidden.dtype).unsqueeze(-1)
        return hidden

    def _split_heads(self, x: Tensor) -> Tensor:
        """[B, L, d] to [B, heads, L, d / heads]."""
        return x.unflatten(-1, (self.config.heads, -1)).transpose(1, 2)

    @staticmethod
    def _check(name: str, tensor: Tensor, width: int) -> None:
        if tensor.ndim != 3 or tensor.shape[-1] != width:
            raise LLM4GENError(
                f"{name} has shape {list(tensor.shape)}; this adapter expects [batch, tokens, {width}]. "
                "Use the adapter that was trained for this encoder."
            )


def fuse(text: Tensor, adapted: Tensor, strength: float = 1.0) -> Tensor:
    """The context that cross-attention reads: concat(c_t, λ c'_l) along the sequence (left side of eq. 3).

    Args:
        text: c_t [B, L_text, d_text].
        adapted: c'_l [B, L_llm, d_text], from `CrossAdapter`.
        strength: λ. 0 leaves the LLM tokens out altogether, because under a joint softmax λ → 0 does
            not tend to plain CLIP: zero keys still take their share of the attention.

    Returns:
        [B, L_text + L_llm, d_text], or `text` itself when strength is 0.

    Raises:
        LLM4GENError: batch sizes or widths differ.
    """
    if text.shape[0] != adapted.shape[0] or text.shape[-1] != adapted.shape[-1]:
        raise LLM4GENError(
            f"Cannot concatenate text {list(text.shape)} and adapted LLM tokens {list(adapted.shape)}: "
            "batch size and width must be equal."
        )
    if strength == 0:
        return text
    if strength != 1:
        adapted = adapted * strength
    return torch.cat([text, adapted.to(text.dtype)], dim=1)
