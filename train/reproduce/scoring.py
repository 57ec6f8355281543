"""Painting the sets of prompts with one model and letting the judge score the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from miniature.captions import Caption
from miniature.dataset import SETS
from miniature.judge import read, score

from ..painter import Painter
from .results import fingerprint

STEPS, GUIDANCE = 20, 3.0
"""Of DDIM. More steps change nothing that the judge sees, and a higher scale burns these images out."""

MEASURES = ("accuracy", "words", "binding", "exact")
"""Fields of `miniature.judge.Score` that are kept of every image."""


def prompt_set(name: str, number: int) -> tuple[list[Caption], str]:
    """The prompts of a set, and the fingerprint of everything that two models must share to be compared by pairs."""
    captions = SETS[name].prompts(number)
    content = {"captions": [asdict(caption) for caption in captions], "steps": STEPS, "guidance": GUIDANCE}
    return captions, fingerprint(content)


def paint(painter: Painter, captions: Sequence[Caption], strength: float | None = None) -> NDArray[np.float32]:
    """One image of each caption, the first with the noise of seed 0, the second with that of 1, and so on.

    CLIP reads one chunk, as in training and in diffusers' pipelines.

    Returns:
        [N, 24, 24, 3], from 0 to 1.
    """
    images = painter.paint_prompts(
        [caption.text for caption in captions],
        seeds=range(len(captions)),
        steps=STEPS,
        guidance=GUIDANCE,
        strength=strength,
        chunks=1,
        progress=False,
    )
    return images.permute(0, 2, 3, 1).numpy()


def scores(images: NDArray[np.float32], captions: Sequence[Caption]) -> dict[str, list[float | None]]:
    """`MEASURES` of every image."""
    found = [score(reading, caption) for reading, caption in zip(read(images), captions, strict=True)]
    return {measure: [getattr(one, measure) for one in found] for measure in MEASURES}
