"""Linear probes find what features contain, and nothing more."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from miniature.dataset import SETS
from miniature.probe import Features, _probe
from miniature.scenes import COLORS

CAPTIONS = SETS["color"].prompts(400)
TRUTH = {caption.text: caption for caption in CAPTIONS}


def features(known: bool, cut: bool = False) -> Features:
    """Features with one token a character; that of a noun has its colour if `known`."""
    rng = torch.Generator().manual_seed(0)

    def encode(texts: Sequence[str]) -> tuple[Tensor, list[list[tuple[int, int]]]]:
        length = max(map(len, texts))
        hidden = torch.randn(len(texts), length, 12, generator=rng)
        for row, text in enumerate(texts):
            for attribute, (start, end) in TRUTH[text].pairs if known else ():
                hidden[row, start:end, 3 + list(COLORS).index(text[slice(*attribute)]) % 8] += 30
        reach = length // 2 if cut else length
        return hidden, [
            [(at, at + 1) if at < min(reach, len(text)) else (0, 0) for at in range(length)] for text in texts
        ]

    return encode


def test_a_known_colour_is_found() -> None:
    assert _probe(features(known=True), CAPTIONS[:300], CAPTIONS[300:]) > 0.97


def test_an_unknown_colour_is_guessed() -> None:
    assert _probe(features(known=False), CAPTIONS[:300], CAPTIONS[300:]) == pytest.approx(1 / len(COLORS), abs=0.08)


def test_a_noun_that_is_cut_off_counts_as_wrong() -> None:
    seen = _probe(features(known=True, cut=True), CAPTIONS[:300], CAPTIONS[300:])
    assert 0.3 < seen < 0.7
