"""Entity-guidance loss, which pulls the attention maps of an attribute and of its entity together.

Paper, eq. 4 and 5::

    A_i   = softmax(Q K_iᵀ / sqrt(d))
    L_reg = 1 / (N L) Σ_pairs Σ_layers || A_attribute - A_entity ||²

The paper leaves several points open. Here a word's map is the mean over its tokens' columns of the UNet's attention
(softmax over all tokens), averaged over the heads, and the squared distance is the mean over the pixels. The variants
that recipes or published measurements use are options of `GuidanceOptions`. The defaults follow the paper literally,
or the cited SynGen (Rassin et al. 2024) and other work on attention maps if that is impossible.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from .attention import LLMTokens, attended_columns
from .entities import ContextSegment, EntityPair
from .errors import LLM4GENError

_CHOICES = {"tokens": ("both", "clip", "llm"), "normalize": ("none", "spatial")}
MAX_PAIRS = 16
"""Number of pairs of a caption that are guided, the first ones, counted before copies."""


@dataclass(frozen=True)
class GuidanceOptions:
    """Options for what eq. 4-6 leave open.

    Attributes:
        alpha: weight of L_reg in the training loss, eq. 6, which the paper does not give. 0 disables guidance and its
            computation. "balanced" calibrates it: both gradients are measured over the first `balance_steps` steps,
            without guidance, and then alpha is the constant for which alpha |grad L_reg| = balance |grad L_diff|.
        balance: gradient of guidance as a fraction of the diffusion loss's, with alpha "balanced".
        balance_steps: optimizer steps with pairs over which the ratio is averaged (geometric mean), with alpha
            "balanced".
        tokens: a word has two copies in the fused context, CLIP's tokens and the LLM's. "both" compares the two words
            of a pair within each copy, as two pairs; "clip" and "llm" use one copy.
        normalize: "spatial" divides each map by its sum over the pixels before comparing, as SynGen does.
        layers: "all" cross-attention layers, or a tuple of map sizes (16 is a layer of 16x16 queries) and name
            patterns ("mid_block*", "up_blocks.1.*").
        negative: weight of a term that pushes an attribute's map away from those of other entities, as in SynGen;
            0 is eq. 5.

    Raises:
        LLM4GENError: a value is invalid.
    """

    alpha: float | str = "balanced"
    balance: float = 0.1
    balance_steps: int = 10
    tokens: str = "both"
    normalize: str = "none"
    layers: str | tuple[int | str, ...] = "all"
    negative: float = 0.0

    def __post_init__(self) -> None:
        def require(name: str, ok: bool, expected: str) -> None:
            if not ok:
                raise LLM4GENError(f"{name} is {getattr(self, name)!r}; expected {expected}")

        for name, choices in _CHOICES.items():
            require(name, getattr(self, name) in choices, f"one of {', '.join(choices)}")
        alpha = self.alpha
        fixed = not isinstance(alpha, str) and math.isfinite(alpha) and alpha >= 0
        require("alpha", alpha == "balanced" or fixed, 'a number of at least 0, or "balanced"')
        require("balance", math.isfinite(self.balance) and self.balance > 0, "a number above 0")
        require("negative", math.isfinite(self.negative) and self.negative >= 0, "a number of at least 0")
        require("layers", self.layers == "all" or not isinstance(self.layers, str), '"all" or a list')
        require("layers", len(self.layers) > 0, "at least one layer")
        require("balance_steps", self.balance_steps >= 1, "an integer of at least 1")

    @property
    def is_on(self) -> bool:
        """Whether guidance is enabled."""
        return self.alpha != 0

    def selects(self, layer: str, rows: int) -> bool:
        """Whether a layer of that name with `rows` queries is guided."""
        if isinstance(self.layers, str):
            return True
        side = round(math.sqrt(rows))
        return any(
            choice == side if isinstance(choice, int) else fnmatch.fnmatchcase(layer, choice) for choice in self.layers
        )


@dataclass(frozen=True)
class PairPositions:
    """Positions in the context of the tokens of a pair's attribute and entity."""

    attribute: tuple[int, ...]
    entity: tuple[int, ...]


@dataclass(frozen=True)
class GuidanceTargets:
    """Pairs of a batch as tensors.

    Attributes:
        columns: [B, C] positions in the context of all words of a sample's pairs, padded with 0.
        attribute, entity: [B, P, C] weight of each column in a word's map, 0 for columns of other words.
        pairs: [B, P] True for a pair, False for padding.
        others: [B, P, P] True if the entities of two pairs differ.
    """

    columns: Tensor
    attribute: Tensor
    entity: Tensor
    pairs: Tensor
    others: Tensor

    @property
    def has_pairs(self) -> Tensor:
        """[B] True for samples with at least one pair; the loss of the others is exactly 0 and not averaged."""
        return self.pairs.any(1)

    def to(self, device: torch.device | str) -> GuidanceTargets:
        return GuidanceTargets(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def pair_positions(
    pairs: Sequence[EntityPair], segments: Sequence[ContextSegment], options: GuidanceOptions
) -> list[PairPositions]:
    """Return the positions of each pair in the context, once for each copy that `options.tokens` selects.

    A pair with a word that a text encoder truncated is left out of that encoder's copy.
    """
    copies = [segment for segment in segments if options.tokens in ("both", segment.kind)]
    found = [
        PairPositions(segment.positions(pair.attribute), segment.positions(pair.entity))
        for segment in copies
        for pair in pairs[:MAX_PAIRS]
    ]
    return [pair for pair in found if pair.attribute and pair.entity]


def guidance_targets(pairs: Sequence[Sequence[PairPositions]], multiple: int = 8) -> GuidanceTargets:
    """Convert the pairs of B samples to tensors.

    Args:
        pairs: pairs of each sample, from `pair_positions`.
        multiple: P and C are padded to a multiple of it, so that a compiled model sees few shapes.
    """
    batch = len(pairs)
    columns = [sorted({i for pair in sample for i in (*pair.attribute, *pair.entity)}) for sample in pairs]
    wide = _round_up(max((len(c) for c in columns), default=0), multiple)
    high = _round_up(max((len(sample) for sample in pairs), default=0), multiple)
    # NumPy, because setting single elements of tensors is slow and the accelerator waits for this.
    places = np.zeros((batch, wide), np.int64)
    attribute, entity = np.zeros((batch, high, wide), np.float32), np.zeros((batch, high, wide), np.float32)
    is_pair, others = np.zeros((batch, high), bool), np.zeros((batch, high, high), bool)
    for b, sample in enumerate(pairs):
        place = {position: column for column, position in enumerate(columns[b])}
        places[b, : len(place)] = columns[b]
        is_pair[b, : len(sample)] = True
        entities = {pair.entity: number for number, pair in enumerate(sample)}
        numbers = np.array([entities[pair.entity] for pair in sample])
        others[b, : len(sample), : len(sample)] = numbers[:, None] != numbers[None]
        for p, pair in enumerate(sample):
            for share, word in ((attribute, pair.attribute), (entity, pair.entity)):
                for position in word:
                    share[b, p, place[position]] += 1 / len(word)
    arrays = (places, attribute, entity, is_pair, others)
    return GuidanceTargets(*(torch.from_numpy(array) for array in arrays))


def layer_guidance(
    query: Tensor,
    key: Tensor,
    targets: GuidanceTargets,
    scale: float,
    options: GuidanceOptions,
    llm: LLMTokens | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute one layer's term of eq. 5 from its query and key.

    Args:
        query: [B, heads, N, d].
        key: [B, heads, T, d], or [B, 1, T, d] shared by all heads.
        targets: pairs, on the same device.
        scale: scale of the layer's logits.
        options: see `GuidanceOptions`.
        llm: see `attend`.

    Returns:
        The loss [B], and the attention mass of attribute and entity [B, 2] (mean over pixels, pairs and heads) without
        gradient, for monitoring: if it vanishes, the loss falls although no attribute is bound to its entity.
    """
    columns = attended_columns(query, key, targets.columns, scale, llm, mean_heads=True)
    return columns_guidance(columns, targets, options)


def columns_guidance(columns: Tensor, targets: GuidanceTargets, options: GuidanceOptions) -> tuple[Tensor, Tensor]:
    """Compute `layer_guidance` from the columns [B, N, C] of the layer's attention, averaged over the heads."""
    attribute, entity = (
        torch.matmul(columns, shares.to(columns.dtype).transpose(1, 2))
        for shares in (targets.attribute, targets.entity)
    )
    pairs = targets.pairs.to(columns.dtype)
    count = pairs.sum(1).clamp(min=1)
    with torch.no_grad():
        mass = torch.stack([(m.mean(1) * pairs).sum(1) / count for m in (attribute, entity)], dim=1)
    if options.normalize == "spatial":
        attribute, entity = (m / m.sum(1, keepdim=True).clamp(min=1e-12) for m in (attribute, entity))
    distance = (attribute - entity).square().mean(1)
    if options.negative:
        others = targets.others.to(columns.dtype)
        apart = _distances(attribute, entity)
        distance = distance - options.negative * (apart * others).sum(2) / others.sum(2).clamp(min=1)
    return (distance * pairs).sum(1) / count, mass


def entity_guidance_loss(
    layers: Mapping[str, Tensor] | Sequence[Tensor],
    targets: GuidanceTargets,
    options: GuidanceOptions,
) -> Tensor:
    """Compute L_reg of eq. 5 for each sample: the mean over layers and pairs.

    A sample without pairs has a loss of exactly 0 with a graph; average a batch over the samples of
    `targets.has_pairs`.

    Args:
        layers: columns `targets.columns` of the attention of every guided layer [B, N_l, C], averaged over the heads.
        targets, options: see `GuidanceTargets` and `GuidanceOptions`.

    Returns:
        [B].

    Raises:
        LLM4GENError: there are no layers.
    """
    maps = list(layers.values()) if isinstance(layers, Mapping) else list(layers)
    if not maps:
        raise LLM4GENError(
            "There are no attention maps; expected at least one. Let GuidanceOptions.layers select a layer of the UNet."
        )
    return torch.stack([columns_guidance(columns, targets, options)[0] for columns in maps]).mean(0)


def _distances(first: Tensor, second: Tensor) -> Tensor:
    """Mean squared distance [B, P, P] between the maps [B, N, P] of `first` and `second`."""
    products = torch.matmul(first.transpose(1, 2), second)
    squares = first.square().sum(1)[..., None] + second.square().sum(1)[..., None, :] - 2 * products
    return squares.clamp(min=0) / first.shape[1]


def _round_up(number: int, multiple: int) -> int:
    return max(multiple, -(-number // multiple) * multiple)
