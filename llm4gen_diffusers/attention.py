"""Cross-attention of a diffusers UNet with λ in it, which also computes the entity-guidance loss.

Key and value are projections of every token of the context, 333 with LLM4GEN, in every layer. Where a layer has only
a few pixels it is cheaper to project the queries back: q · (W_k c) = (W_kᵀ q) · c, and the mean of W_v c is W_v of
the mean of c. The context itself is then key and value, one for all heads (as in multi-query attention, Shazeer
2019), and the results are equal but for rounding. At usual resolutions no layer of SD1.5 and SDXL has so few pixels;
in models of small images nearly all have.

The term of eq. 5 is computed inside the layer, where query and key are, so that only one number a sample leaves it,
to a recorder, under the layer's name. Gradient checkpointing runs a layer a second time during the backward pass; the
recorder is closed by then and drops the second result, while the operations, and so the gradient, are the same.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from llm4gen_core import LLM4GENError
from llm4gen_core.attention import LLMTokens, attend
from llm4gen_core.entity_guidance import GuidanceOptions, GuidanceTargets, layer_guidance


class GuidanceRecorder:
    """Terms of the guidance loss from the layers of one UNet, for one forward pass.

    Args:
        options: options of the guidance loss.

    Attributes:
        llm: tokens of the context that the layers scale; None for all tokens alike. Set it before the forward pass.
    """

    def __init__(self, options: GuidanceOptions) -> None:
        self.options = options
        self.llm: LLMTokens | None = None
        self._targets: GuidanceTargets | None = None
        self._terms: dict[str, tuple[Tensor, Tensor]] | None = None

    def begin(self, targets: GuidanceTargets | None) -> None:
        """Start recording a forward pass; None switches guidance off for it and for its recomputation."""
        self._targets = targets
        self._terms = {}

    def finish(self, batch: int) -> tuple[Tensor, Tensor]:
        """Return the loss of the forward pass.

        Returns:
            L_reg [B], the mean over the layers, and the attention mass of attribute and entity [B, 2].

        Raises:
            LLM4GENError: guidance was on, but its options select no layer, or no gradient can flow.
        """
        targets, terms = self._targets, self._terms
        self._terms = None  # the targets stay: recomputation during the backward pass needs them
        if targets is None or terms is None:
            return torch.zeros(batch), torch.zeros(batch, 2)
        if not terms:
            raise LLM4GENError(
                f"guidance.layers is {self.options.layers!r}, which selects none of the UNet's cross-attention layers; "
                'expected "all", sides of its maps, or patterns of its layers\' names.'
            )
        losses, masses = zip(*terms.values(), strict=True)
        loss = torch.stack(losses).mean(0)
        if torch.is_grad_enabled() and not loss.requires_grad:
            raise LLM4GENError(
                "The entity-guidance loss has no gradient: a layer ran without one. Gradient checkpointing must be of "
                "the kind use_reentrant=False."
            )
        return loss, torch.stack(masses).mean(0)

    @property
    def is_on(self) -> bool:
        """Whether layers record in this forward pass, or in its recomputation."""
        return self._targets is not None

    # Dynamo would specialise on every layer's name, recompile for each and give up after a few.
    @torch.compiler.disable
    def record(self, layer: str, query: Tensor, key: Tensor, scale: float) -> None:
        """Add the term of a layer: query [B, heads, N, d], key [B, heads or 1, T, d]."""
        if self._targets is None or not self.options.selects(layer, query.shape[2]):
            return
        term = layer_guidance(query, key, self._targets, scale, self.options, self.llm)
        if self._terms is not None:
            self._terms.setdefault(layer, term)


class GuidedCrossAttention:
    """Attention processor of a layer `attn2` that computes with the recorder's λ and calls the recorder.

    Args:
        recorder: recorder of all layers of the UNet.
        layer: path of the layer inside the UNet.
    """

    def __init__(self, recorder: GuidanceRecorder, layer: str) -> None:
        self.recorder = recorder
        self.layer = layer

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Attend from [B, N, channels] to the context [B, T, d_text]; returns [B, N, channels]."""
        assert encoder_hidden_states is not None and attention_mask is None  # the trainer passes no mask
        context = encoder_hidden_states
        query = _by_heads(attn.to_q(hidden_states), attn.heads)
        projected_back = _is_cheaper_to_project_back(attn, query, context)
        if projected_back:
            # not torch.matmul, which would copy the weight for every sample
            query = torch.einsum("bhnd,hdc->bhnc", query, attn.to_k.weight.unflatten(0, (attn.heads, -1)))
            key = value = context.to(query.dtype).unsqueeze(1)
        else:
            key, value = _by_heads(attn.to_k(context), attn.heads), _by_heads(attn.to_v(context), attn.heads)
        attended = attend(query, key, value, attn.scale, self.recorder.llm)
        if self.recorder.is_on:
            self.recorder.record(self.layer, query, key, attn.scale)
        if projected_back:
            attended = torch.einsum("bhnc,hdc->bhnd", attended, attn.to_v.weight.unflatten(0, (attn.heads, -1)))
        linear, dropout = attn.to_out
        return dropout(linear(attended.transpose(1, 2).flatten(2)))


def _by_heads(projected: Tensor, heads: int) -> Tensor:
    """[B, L, heads · d] to [B, heads, L, d]."""
    return projected.unflatten(-1, (heads, -1)).transpose(1, 2)


def _is_cheaper_to_project_back(attn: Any, query: Tensor, context: Tensor) -> bool:
    """Whether a layer should attend to the context itself instead of to its projections.

    This counts multiplications. Only a third of them is a gain: attention with rows as wide as the context, and
    products with one head's weights, are slower than their number says.

    Args:
        query: [B, heads, N, d].
        context: [B, T, d_text].
    """
    for linear in (attn.to_k, attn.to_v):
        # LoRA layers compute more than a product with a weight, and hooks read the projections.
        if type(linear) is not nn.Linear or linear.bias is not None or linear._forward_hooks:
            return False
    (_, heads, pixels, width), (_, tokens, d_text) = query.shape, context.shape
    projecting = tokens * d_text * heads * width + pixels * tokens * heads * width
    projecting_back = pixels * d_text * heads * width + heads * pixels * tokens * d_text
    return 3 * projecting_back < projecting


def install_cross_attention(unet: UNet2DConditionModel, options: GuidanceOptions) -> GuidanceRecorder:
    """Install `GuidedCrossAttention` in every cross-attention layer (attn2) of a UNet.

    Returns:
        Recorder of all layers: set its `llm` for λ, and call `begin` for the guidance loss.

    Raises:
        LLM4GENError: the UNet's cross-attention is not plain.
    """
    if unknown := unknown_cross_attention(unet):
        raise LLM4GENError(
            f"The UNet's layer {unknown[0]} is not plain cross-attention as in SD1.5 and SDXL, which entity guidance "
            "and the λ modes other than `embedding` need. Set guidance.alpha to 0 and adapter.lambda_mode to embedding."
        )
    recorder = GuidanceRecorder(options)
    layers = cross_attention_layers(unet)
    processors: dict[str, Any] = dict(unet.attn_processors)
    for name in layers:
        processors[f"{name}.processor"] = GuidedCrossAttention(recorder, name)
    unet.set_attn_processor(processors)
    return recorder


def cross_attention_layers(unet: nn.Module) -> dict[str, Any]:
    """Path and module of every layer in which pixels attend to text."""
    return {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, Attention) and name.split(".")[-1] == "attn2"
    }


def unknown_cross_attention(unet: nn.Module) -> list[str]:
    """Paths of the cross-attention layers that compute more than softmax(q kᵀ) v between four linear layers."""
    return [name for name, layer in cross_attention_layers(unet).items() if not _is_plain(layer)]


def _is_plain(layer: Any) -> bool:
    extras = (layer.group_norm, layer.spatial_norm, layer.norm_q, layer.norm_k, layer.norm_cross, layer.add_k_proj)
    if any(extra is not None and extra is not False for extra in extras):
        return False
    return not layer.residual_connection and layer.rescale_output_factor == 1
