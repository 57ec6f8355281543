"""Painting the sets of prompts with one model and letting the judge score the images."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm4gen_core import Span
from llm4gen_diffusers.attention_maps import attention_maps
from llm4gen_diffusers.options import GenerationOptions
from llm4gen_diffusers.provenance import fingerprint
from llm4gen_diffusers.sampling import Pipeline
from miniature import GUIDANCE, STEPS
from miniature.captions import Caption
from miniature.dataset import SETS
from miniature.judge import read, score

SAMPLING = GenerationOptions(steps=STEPS, guidance=GUIDANCE)
MEASURES = ("accuracy", "words", "binding", "exact")
"""Fields of `miniature.judge.Score` that are kept of every image."""


def prompt_set(name: str, number: int) -> tuple[list[Caption], str]:
    """The prompts of a set, and the fingerprint of everything that two models must share to be compared by pairs."""
    captions = SETS[name].prompts(number)
    content = {"captions": [asdict(caption) for caption in captions], "steps": STEPS, "guidance": GUIDANCE}
    return captions, fingerprint(content)


def one_chunk(pipeline: Pipeline, strength: float | None = None) -> Pipeline:
    """The same models with one chunk of CLIP tokens, as in training, and another strength if one is given."""
    same = copy.copy(pipeline)
    same.chunks = 1
    same.strength = pipeline.strength if strength is None else strength
    return same


def generate(pipeline: Pipeline, captions: Sequence[Caption], strength: float | None = None) -> NDArray[np.float32]:
    """One image of each caption, the first with the noise of seed 0, the second with that of 1, and so on.

    CLIP reads one chunk, as in training and in diffusers' pipelines.

    Returns:
        [N, 16, 16, 3], from 0 to 1.
    """
    images = one_chunk(pipeline, strength).generate_prompts(
        [caption.text for caption in captions],
        SAMPLING,
        seeds=range(len(captions)),
        batch=128,
        progress=False,
    )
    return images.permute(0, 2, 3, 1).numpy()


def to_bytes(images: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Pixels from 0 to 1 as uint8, rounded."""
    return np.rint(255 * images.clip(0, 1)).astype(np.uint8)


def scores(images: NDArray[np.float32], captions: Sequence[Caption]) -> dict[str, list[float | None]]:
    """`MEASURES` of every image."""
    found = [score(reading, caption) for reading, caption in zip(read(images), captions, strict=True)]
    return {measure: [getattr(one, measure) for one in found] for measure in MEASURES}


def sample_maps(pipeline: Pipeline, prompts: int = 3) -> dict[str, NDArray[Any]]:
    """Where images of short prompts looked at the words of their pairs, and where one of a dense prompt at one pair.

    Args:
        pipeline: with or without LLM4GEN.
        prompts: how many short ones; the images are those of `paint` with the same prompts.

    Returns:
        For each prompt n: "n.prompt", "n.words" [W], "n.image" uint8 [16, 16, 3] and "n.maps" [W, h, w].
    """
    chosen = [(number, caption, caption.pairs) for number, caption in enumerate(SETS["color"].prompts(prompts))]
    [dense] = SETS["dense"].prompts(1)
    chosen.append((0, dense, dense.pairs[:1]))  # CLIP has cut the later ones off
    arrays: dict[str, NDArray[Any]] = {}
    for index, (seed, caption, pairs) in enumerate(chosen):
        ends = [end for attribute, entity in pairs for end in (attribute, entity)]
        words = [Span(start, end, caption.text[start:end]) for start, end in ends]
        found = attention_maps(one_chunk(pipeline), caption.text, words, SAMPLING, seed=seed, progress=False)
        arrays[f"{index}.prompt"] = np.array(caption.text)
        arrays[f"{index}.words"] = np.array([word.text for word in words])
        arrays[f"{index}.image"] = to_bytes(found.image.permute(1, 2, 0).numpy())
        arrays[f"{index}.maps"] = found.maps.numpy()
    return arrays
