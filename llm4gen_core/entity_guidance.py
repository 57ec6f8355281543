"""Entity-guidance regularisation: the attention maps of an attribute and of its entity are pulled together.

Paper, eq. 4 and 5::

    A_i   = softmax(Q K_iᵀ / sqrt(d))
    L_reg = 1 / (N L) Σ_pairs Σ_layers || A_attribute - A_entity ||²

Much is left open there. Every open point is an option of `GuidanceOptions`; its default is the literal reading, or
where that is impossible what the cited SynGen (Rassin et al. 2024) and other work on attention maps do.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from .entities import EntityPair, Span
from .errors import LLM4GENError
from .lambda_modes import LLMTokens, attended_columns

_CHOICES = {
    "tokens": ("both", "clip", "llm"),
    "wordpieces": ("mean", "first", "max", "sum"),
    "heads": ("mean", "each"),
    "axis": ("tokens", "pixels"),
    "support": ("full", "real"),
    "reduction": ("mean", "sum"),
    "normalize": ("none", "spatial"),
    "attributes": ("each", "averaged"),
    "stop_gradient": ("none", "entity"),
    "time_weight": ("none", "linear"),
}


@dataclass(frozen=True)
class GuidanceOptions:
    """What eq. 4-6 leave open.

    Attributes:
        alpha: weight of L_reg in the objective, eq. 6. 0 switches guidance off; then nothing of it is computed. The
            paper does not give it, and its size means nothing without the other options: the same maps give
            values thousands of times apart with `reduction` "mean" or "sum". "balanced" therefore sets it by its
            effect: over the first `balance_steps` steps, which are not guided, both gradients are measured, and
            from then on alpha is the constant for which alpha |grad L_reg| = balance |grad L_diff|.
        balance: for alpha "balanced": the gradient that guidance adds, as a share of the diffusion loss's.
        balance_steps: for alpha "balanced": optimizer steps with pairs over which the ratio is averaged
            (geometric mean).
        tokens: every word stands twice in the fused context, once as CLIP's and once as the LLM's tokens.
            "both" pulls the two words together within each copy, as two pairs; "clip" and "llm" take one copy.
        wordpieces: map of a word of several tokens: "mean", "first", "max" or "sum" of their columns.
        heads: "mean" compares maps that are averaged over the heads; "each" compares head by head.
        axis: "tokens" is the column of the attention that the UNet computes (softmax over tokens); "pixels" takes
            eq. 4 literally, one key and a softmax over the pixels, so that attention cannot vanish.
        support: tokens in the softmax: "full" as in the UNet, or "real" without start, end and padding.
        reduction: over pixels, "mean" or "sum". With the sum a 64x64 layer weighs 64 times an 8x8 layer.
        normalize: "spatial" divides each map by its sum over the pixels before comparing, as SynGen does.
        layers: "all" cross-attention layers, or a tuple of map sides (16 is a layer of 16x16 queries) and name
            patterns ("mid_block*", "up_blocks.1.*").
        attributes: several attributes of one entity: "each" is a pair of its own, or "averaged" to one map.
        stop_gradient: "entity" lets the attribute's map follow the entity's, and not the other way round.
        negative: weight of a term that pushes an attribute's map away from the other entities' (SynGen's idea);
            0 is eq. 5.
        time_weight: "linear" weights a sample by t / T, so that early, noisy steps count (CTCal); "none" is eq. 5.
        time_window: (low, high) of t / T, outside of which a sample is not guided.
        max_pairs: of one caption, counted before copies; the first ones are taken.
    """

    alpha: float | str = "balanced"
    balance: float = 0.1
    balance_steps: int = 10
    tokens: str = "both"
    wordpieces: str = "mean"
    heads: str = "mean"
    axis: str = "tokens"
    support: str = "full"
    reduction: str = "mean"
    normalize: str = "none"
    layers: str | tuple[int | str, ...] = "all"
    attributes: str = "each"
    stop_gradient: str = "none"
    negative: float = 0.0
    time_weight: str = "none"
    time_window: tuple[float, float] = (0.0, 1.0)
    max_pairs: int = 16

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
        low, high = self.time_window
        require("time_window", 0 <= low < high <= 1, "two rising numbers from 0 to 1")
        require("balance_steps", self.balance_steps >= 1, "a whole number of at least 1")
        require("max_pairs", self.max_pairs >= 1, "a whole number of at least 1")

    @property
    def is_on(self) -> bool:
        return self.alpha != 0

    def selects(self, layer: str, rows: int) -> bool:
        """Whether a layer of that name with that many queries is guided."""
        if isinstance(self.layers, str):
            return True
        side = round(math.sqrt(rows))
        return any(
            choice == side if isinstance(choice, int) else fnmatch.fnmatchcase(layer, choice) for choice in self.layers
        )


@dataclass(frozen=True)
class PairPositions:
    """A pair as positions in the context; several attributes where they are averaged."""

    attributes: tuple[tuple[int, ...], ...]
    entity: tuple[int, ...]


@dataclass(frozen=True)
class GuidanceTargets:
    """The pairs of a batch, in the form that the loss computes with.

    Attributes:
        columns: [B, C] positions in the context that any pair needs; filled up with 0.
        attribute, entity: [B, P, C] share of each column in a word's map; 0 where it has none.
        pairs: [B, P] True for a pair, False for filling.
        others: [B, P, P] True where the second pair's entity is another one than the first's.
        bias: [B, T] -inf for the tokens that `support` leaves out of the softmax, else 0; None for all.
    """

    columns: Tensor
    attribute: Tensor
    entity: Tensor
    pairs: Tensor
    others: Tensor
    bias: Tensor | None = None

    @property
    def has_pairs(self) -> Tensor:
        """[B] True for samples with at least one pair; the others' loss is exactly 0 and they count nowhere."""
        return self.pairs.any(1)

    def to(self, device: torch.device | str) -> GuidanceTargets:
        moved = {f.name: value.to(device) for f in fields(self) if (value := getattr(self, f.name)) is not None}
        return replace(self, **moved)


@dataclass(frozen=True)
class ContextSegment:
    """A run of the context that holds the words of the prompt.

    Attributes:
        kind: "clip" or "llm".
        start: position of its first token in the context.
        offsets: for each token the characters of the prompt that it stands for; (0, 0) for special tokens.
    """

    kind: str
    start: int
    offsets: Sequence[tuple[int, int]]


def pair_positions(
    pairs: Sequence[EntityPair], segments: Sequence[ContextSegment], options: GuidanceOptions
) -> list[PairPositions]:
    """Where the words of each pair stand in the context, once for each copy that `options.tokens` asks for.

    A pair of which a word was cut off by the length of a text encoder is left out of that copy.
    """
    found = []
    for segment in segments:
        if options.tokens not in ("both", segment.kind):
            continue
        tokens = _CharacterTokens(segment.offsets)
        words = [
            (tokens.positions(p.attribute, segment.start), tokens.positions(p.entity, segment.start))
            for p in pairs[: options.max_pairs]
        ]
        words = [(attribute, entity) for attribute, entity in words if attribute and entity]
        if options.attributes == "each":
            found += [PairPositions((attribute,), entity) for attribute, entity in words]
        else:
            by_entity: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
            for attribute, entity in words:
                by_entity.setdefault(entity, []).append(attribute)
            found += [PairPositions(tuple(attributes), entity) for entity, attributes in by_entity.items()]
    return found


class _CharacterTokens:
    """`token_indices` and `covers` for many spans of one caption: a table of each character's tokens, made once."""

    def __init__(self, offsets: Sequence[tuple[int, int]]) -> None:
        self._of_character: dict[int, list[int]] = {}
        for index, (start, end) in enumerate(offsets):
            for character in range(start, end):
                self._of_character.setdefault(character, []).append(index)

    def positions(self, span: Span, first: int) -> tuple[int, ...]:
        """Tokens of a word, counted from `first`; none if a visible part of it was cut off."""
        found: set[int] = set()
        for character, letter in enumerate(span.text, span.start):
            if not letter.isspace():
                tokens = self._of_character.get(character)
                if tokens is None:
                    return ()
                found.update(tokens)
        return tuple(first + index for index in sorted(found))


def guidance_targets(
    pairs: Sequence[Sequence[PairPositions]],
    options: GuidanceOptions,
    real_tokens: Sequence[Sequence[int]] | None = None,
    length: int = 0,
    multiple: int = 8,
) -> GuidanceTargets:
    """Bring the pairs of B samples into tensors.

    Args:
        pairs: of each sample, from `pair_positions`.
        options: see there.
        real_tokens: of each sample, the positions that stand for characters; needed for `support` "real".
        length: T, of the context; for `support` "real".
        multiple: P and C are filled up to a multiple of it, so that a compiled model sees few shapes.
    """
    batch = len(pairs)
    columns = [sorted({i for p in sample for w in (*p.attributes, p.entity) for i in w}) for sample in pairs]
    wide = _round_up(max((len(c) for c in columns), default=0), multiple)
    high = _round_up(max((len(sample) for sample in pairs), default=0), multiple)
    # In NumPy: single elements of tensors are slow to set, and this runs between two steps of an accelerator.
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
            for word in pair.attributes:
                for position, share in _shares(word, options.wordpieces):
                    attribute[b, p, place[position]] += share / len(pair.attributes)
            for position, share in _shares(pair.entity, options.wordpieces):
                entity[b, p, place[position]] += share
    arrays = (places, attribute, entity, is_pair, others)
    targets = GuidanceTargets(*(torch.from_numpy(array) for array in arrays))
    if options.support == "full":
        return targets
    if real_tokens is None:
        raise LLM4GENError('support is "real", but the real tokens of the samples are not given.')
    bias = torch.full((batch, length), -math.inf)
    for b, positions in enumerate(real_tokens):
        if not positions:  # nothing real at all: a softmax over nothing would be NaN
            bias[b] = 0
        bias[b, list(positions)] = 0
    return replace(targets, bias=bias)


def layer_guidance(
    query: Tensor,
    key: Tensor,
    targets: GuidanceTargets,
    scale: float,
    options: GuidanceOptions,
    llm: LLMTokens | None = None,
) -> tuple[Tensor, Tensor]:
    """One layer's term of eq. 5 from its query and key.

    Args:
        query: [B, heads, N, d]; key: [B, heads, T, d], or [B, 1, T, d] for all heads.
        targets: on the same device.
        scale: of the layer's attention.
        llm: see `attend`.

    Returns:
        loss [B], and the attention mass of attribute and entity [B, 2] (mean over pixels, pairs and heads), which
        has no gradient: where it goes to zero, the loss falls without binding anything.
    """
    if options.axis == "tokens":
        mean_heads = options.heads == "mean"
        columns = attended_columns(query, key, targets.columns, scale, llm, bias=targets.bias, mean_heads=mean_heads)
        columns = columns.unsqueeze(1) if mean_heads else columns
    else:
        index = targets.columns[:, None, :, None].expand(-1, key.shape[1], -1, key.shape[3])
        logits = torch.matmul(query, key.gather(2, index).transpose(-1, -2)) * scale
        columns = torch.softmax(logits.float() if logits.dtype != torch.float64 else logits, dim=2)
        columns = columns.mean(1, keepdim=True) if options.heads == "mean" else columns
    return columns_guidance(columns, targets, options)


def columns_guidance(columns: Tensor, targets: GuidanceTargets, options: GuidanceOptions) -> tuple[Tensor, Tensor]:
    """One layer's term of eq. 5 from the columns [B, heads or 1, N, C] of its attention; returns as above."""
    attribute = _word_maps(columns, targets.attribute, options.wordpieces)
    entity = _word_maps(columns, targets.entity, options.wordpieces)
    pairs = targets.pairs.to(columns.dtype)
    count = pairs.sum(1).clamp(min=1)
    with torch.no_grad():
        mass = torch.stack([(m.mean((1, 2)) * pairs).sum(1) / count for m in (attribute, entity)], dim=1)
    if options.normalize == "spatial":
        attribute, entity = (m / m.sum(2, keepdim=True).clamp(min=1e-12) for m in (attribute, entity))
    if options.stop_gradient == "entity":
        entity = entity.detach()
    over_pixels = torch.mean if options.reduction == "mean" else torch.sum
    distance = over_pixels((attribute - entity).square(), dim=2).mean(1)
    if options.negative:
        others = targets.others.to(columns.dtype)
        apart = _distances(attribute, entity, options.reduction).mean(1)
        distance = distance - options.negative * (apart * others).sum(2) / others.sum(2).clamp(min=1)
    return (distance * pairs).sum(1) / count, mass


def entity_guidance_loss(
    layers: Mapping[str, Tensor] | Sequence[Tensor],
    targets: GuidanceTargets,
    options: GuidanceOptions,
    time: Tensor | None = None,
) -> Tensor:
    """L_reg of eq. 5 for each sample: mean over layers and pairs.

    A sample without pairs gives exactly 0, with a graph; the mean over a batch is to be taken over the samples
    of `targets.has_pairs`.

    Args:
        layers: of every guided layer the columns `targets.columns` of its attention [B, heads or 1, N_l, C].
        targets, options: see there.
        time: t / T [B], for `time_weight` and `time_window`.

    Returns:
        [B].
    """
    maps = list(layers.values()) if isinstance(layers, Mapping) else list(layers)
    if not maps:
        raise LLM4GENError("There are no attention maps to guide; `layers` selects none of the UNet's layers.")
    loss = torch.stack([columns_guidance(columns, targets, options)[0] for columns in maps]).mean(0)
    return loss if time is None else loss * time_weights(time, options)


def time_weights(time: Tensor, options: GuidanceOptions) -> Tensor:
    """Weight of a sample's L_reg [B] by its time t / T [B]."""
    low, high = options.time_window
    inside = ((time >= low) & (time <= high)).to(time.dtype)
    return inside * time if options.time_weight == "linear" else inside


def _word_maps(columns: Tensor, shares: Tensor, wordpieces: str) -> Tensor:
    """[B, heads, N, C] and [B, P, C] to the maps of P words [B, heads, N, P]."""
    if wordpieces == "max":
        inside = (shares > 0)[:, None, None]
        return columns.unsqueeze(3).masked_fill(~inside, 0).amax(-1)
    return torch.matmul(columns, shares.to(columns.dtype).transpose(1, 2).unsqueeze(1))


def _distances(first: Tensor, second: Tensor, reduction: str) -> Tensor:
    """Squared distance of every map of `first` to every one of `second`, [B, heads, N, P] to [B, heads, P, P]."""
    products = torch.matmul(first.transpose(2, 3), second)
    squares = first.square().sum(2)[..., None] + second.square().sum(2)[..., None, :] - 2 * products
    return squares.clamp(min=0) / (first.shape[2] if reduction == "mean" else 1)


def _shares(word: tuple[int, ...], wordpieces: str) -> list[tuple[int, float]]:
    if wordpieces == "first":
        return [(word[0], 1.0)]
    return [(position, 1 / len(word) if wordpieces == "mean" else 1.0) for position in word]


def _round_up(number: int, multiple: int) -> int:
    return max(multiple, -(-number // multiple) * multiple)
