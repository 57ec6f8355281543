"""Eq. 5 against a slow, literal implementation, and the options that the paper leaves open."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from llm4gen_core import LLM4GENError, attention_columns, entity_guidance_loss
from llm4gen_core.entities import ContextSegment, EntityPair, Span, covers, token_indices
from llm4gen_core.entity_guidance import (
    MAX_PAIRS,
    GuidanceOptions,
    GuidanceTargets,
    PairPositions,
    columns_guidance,
    guidance_targets,
    layer_guidance,
    pair_positions,
)

B, HEADS, T, D = 3, 2, 12, 4
SCALE = D**-0.5
OPTIONS = GuidanceOptions()
PAIRS = [
    [PairPositions((1,), (2, 3)), PairPositions((5, 6), (7,)), PairPositions((1, 8), (7,))],
    [],
    [PairPositions((10,), (11,))],
]


def make_layers(sizes: tuple[int, ...] = (16, 4)) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(B, HEADS, size, D, generator=generator, dtype=torch.float64).requires_grad_(),
            torch.randn(B, HEADS, T, D, generator=generator, dtype=torch.float64).requires_grad_(),
        )
        for size in sizes
    ]


def literal_loss(layers: list[tuple[Tensor, Tensor]], pairs: list[PairPositions], b: int, o: GuidanceOptions) -> Tensor:
    """L_reg of one sample as in the paper: a sum over layers and pairs."""
    total = torch.zeros((), dtype=torch.float64)

    def word_map(probabilities: Tensor, positions: tuple[int, ...]) -> Tensor:
        found = probabilities[:, list(positions)].mean(-1)
        return found / found.sum() if o.normalize == "spatial" else found

    for query, key in layers:
        probabilities = (query[b] @ key[b].transpose(-1, -2) * SCALE).softmax(-1).mean(0)
        for pair in pairs:
            attribute, entity = word_map(probabilities, pair.attribute), word_map(probabilities, pair.entity)
            distance = ((attribute - entity) ** 2).mean()
            others = [word_map(probabilities, other.entity) for other in pairs if other.entity != pair.entity]
            if o.negative and others:
                apart = torch.stack([((attribute - foreign) ** 2).mean() for foreign in others])
                distance = distance - o.negative * apart.mean()
            total = total + distance
    return total / (len(pairs) * len(layers)) if pairs else total * 0


def fast_loss(layers: list[tuple[Tensor, Tensor]], targets: GuidanceTargets, options: GuidanceOptions) -> Tensor:
    return torch.stack([layer_guidance(q, k, targets, SCALE, options)[0] for q, k in layers]).mean(0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"normalize": "spatial"},
        {"negative": 0.5},
        {"negative": 0.5, "normalize": "spatial"},
    ],
    ids=str,
)
def test_loss_and_gradient_equal_the_literal_formula(changes: dict) -> None:
    options = replace(OPTIONS, **changes)
    layers = make_layers()
    tensors = [tensor for layer in layers for tensor in layer]
    targets = guidance_targets(PAIRS)
    found = fast_loss(layers, targets, options)
    expected = torch.stack([literal_loss(layers, PAIRS[b], b, options) for b in range(B)])
    assert (found - expected).abs().max() < 1e-7  # shares of 1/3 and the like are kept in float32
    ours = torch.autograd.grad(found.sum(), tensors)
    theirs = torch.autograd.grad(expected.sum(), tensors)
    assert max((a - b).abs().max() for a, b in zip(ours, theirs, strict=True)) < 1e-7


def test_the_public_loss_is_the_mean_over_layers() -> None:
    layers = make_layers()
    targets = guidance_targets(PAIRS)
    columns = {
        str(i): attention_columns(q, k, targets.columns, SCALE, mean_heads=True) for i, (q, k) in enumerate(layers)
    }
    torch.testing.assert_close(entity_guidance_loss(columns, targets, OPTIONS), fast_loss(layers, targets, OPTIONS))


def test_no_layers_is_an_error() -> None:
    with pytest.raises(LLM4GENError, match="Let GuidanceOptions.layers select"):
        entity_guidance_loss([], guidance_targets(PAIRS), OPTIONS)


def test_a_pair_of_the_same_tokens_has_no_loss() -> None:
    targets = guidance_targets([[PairPositions((4,), (4,))]] * B)
    assert fast_loss(make_layers(), targets, OPTIONS).abs().max() == 0


def test_a_sample_without_pairs_is_exactly_zero_and_has_a_graph() -> None:
    layers = make_layers()
    targets = guidance_targets([[], [], []])
    assert targets.has_pairs.tolist() == [False] * B
    loss = fast_loss(layers, targets, OPTIONS)
    assert loss.tolist() == [0.0] * B
    gradients = torch.autograd.grad(loss.sum(), [tensor for layer in layers for tensor in layer])
    assert all(bool((gradient == 0).all()) for gradient in gradients)


def test_samples_of_a_batch_are_independent() -> None:
    layers = make_layers()
    whole = fast_loss(layers, guidance_targets(PAIRS), OPTIONS)
    alone = guidance_targets([PAIRS[2]], multiple=1)
    single = fast_loss([(q[2:], k[2:]) for q, k in layers], alone, OPTIONS)
    torch.testing.assert_close(whole[2:], single)


def test_maximum_number_of_pairs() -> None:
    pair = EntityPair.from_offsets("red dog", 0, 3, 4, 7)
    segment = ContextSegment("clip", 0, [(0, 3), (4, 7)])
    assert len(pair_positions([pair] * (MAX_PAIRS + 1), [segment], OPTIONS)) == MAX_PAIRS


@pytest.mark.parametrize(
    ("tokens", "expected"), [("both", [(1, 2), (7, 8)]), ("clip", [(1, 2)]), ("llm", [(7, 8)])], ids=str
)
def test_copies_of_a_word(tokens: str, expected: list[tuple[int, int]]) -> None:
    caption = "red dog"
    segments = [
        ContextSegment("clip", 0, [(0, 0), (0, 3), (4, 7), (0, 0)]),
        ContextSegment("llm", 6, [(0, 0), (0, 3), (4, 7)]),
    ]
    pairs = [EntityPair.from_offsets(caption, 0, 3, 4, 7)]
    found = pair_positions(pairs, segments, replace(OPTIONS, tokens=tokens))
    assert found == [PairPositions((a,), (e,)) for a, e in expected]


def test_word_truncated_by_one_encoder() -> None:
    caption = "red dog"
    segments = [ContextSegment("clip", 0, [(0, 3), (4, 6)]), ContextSegment("llm", 2, [(0, 3), (4, 6), (6, 7)])]
    pairs = [EntityPair.from_offsets(caption, 0, 3, 4, 7)]
    assert pair_positions(pairs, segments, OPTIONS) == [PairPositions((2,), (3, 4))]


def test_positions_agree_with_token_indices() -> None:
    """Random captions, with tokens that overlap, contain spaces or are missing."""
    generator = random.Random(0)
    complete = 0
    for _ in range(300):
        caption = "".join(generator.choice("ab  é") for _ in range(generator.randint(2, 12)))
        offsets = [(0, 0)]
        for _ in range(generator.randint(0, 9)):
            start = generator.randint(0, len(caption) - 1)
            offsets.append((start, generator.randint(start, len(caption))))
        inked = [i for i, letter in enumerate(caption) if letter != " "]
        if not inked:
            continue
        start, end = sorted((generator.choice(inked), generator.choice(inked)))
        span = Span(start, end + 1, caption[start : end + 1])
        [found] = pair_positions([EntityPair(span, span)], [ContextSegment("clip", 3, offsets)], OPTIONS) or [None]
        if covers(span, offsets):
            complete += 1
            assert found is not None and found.entity == tuple(3 + i for i in token_indices(span, offsets))
        else:
            assert found is None
    assert 50 < complete < 250


def test_mass_is_the_mean_attention_of_the_words() -> None:
    ((query, key),) = make_layers((16,))
    targets = guidance_targets([[PairPositions((1,), (2, 3))]] * B)
    probabilities = (query @ key.transpose(-1, -2) * SCALE).softmax(-1).mean((1, 2))
    _, mass = layer_guidance(query, key, targets, SCALE, OPTIONS)
    expected = torch.stack([probabilities[:, 1], probabilities[:, 2:4].mean(1)], dim=1)
    torch.testing.assert_close(mass, expected, rtol=1e-6, atol=1e-9)
    assert not mass.requires_grad


def test_float32_is_close_to_float64() -> None:
    targets = guidance_targets(PAIRS)
    layers = make_layers()
    exact = fast_loss(layers, targets, OPTIONS)
    rounded = fast_loss([(q.float(), k.float()) for q, k in layers], targets, OPTIONS)
    torch.testing.assert_close(rounded.double(), exact, rtol=1e-4, atol=1e-8)


def test_padded_shapes() -> None:
    targets = guidance_targets(PAIRS)
    assert targets.columns.shape == (B, 8)
    assert targets.attribute.shape == (B, 8, 8)
    columns = torch.rand(B, 5, 8)
    assert columns_guidance(columns, targets, OPTIONS)[0].shape == (B,)


def test_layers_are_selected_by_size_or_name() -> None:
    assert OPTIONS.selects("mid_block.attentions.0", 64)
    chosen = replace(OPTIONS, layers=(16, "mid_block*"))
    assert chosen.selects("down_blocks.1", 256)
    assert chosen.selects("mid_block.attentions.0", 64)
    assert not chosen.selects("down_blocks.1", 1024)


@pytest.mark.parametrize(
    "changes",
    [
        {"alpha": -1.0},
        {"alpha": math.nan},
        {"tokens": "t5"},
        {"layers": "some"},
        {"layers": ()},
        {"negative": math.inf},
    ],
    ids=str,
)
def test_invalid_options_are_refused_by_name(changes: dict) -> None:
    with pytest.raises(LLM4GENError, match=f"^{next(iter(changes))} is"):
        replace(OPTIONS, **changes)
