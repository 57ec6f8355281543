"""What the demo shows: the shipped miniature, base and LLM4GEN side by side, and where both looked."""

from __future__ import annotations

import random
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from llm4gen_core import LLM4GENError, Span
from llm4gen_diffusers.attention_maps import attention_maps, strip
from llm4gen_diffusers.images import save_png
from llm4gen_diffusers.options import ModelFiles
from llm4gen_diffusers.sampling import Pipeline
from miniature import MODELS
from miniature.captions import Caption
from miniature.dataset import draw_pair
from miniature.judge import Score, read, score
from miniature.scenes import COLORS, Scene, render

from .scoring import SAMPLING, generate, one_chunk, to_bytes
from .ship import ARM, LLM

SEED = 2025
"""Of the demo's scenes, which are drawn apart from the sets of prompts that the report measures."""
_SIDE, _TEXT, _GAP, _LINE = 192, 470, 16, 20
"""Pixels: of an image, of the column of prompts, between them, and of a line of text."""


@dataclass(frozen=True)
class Shown:
    """One prompt: what it describes, and what two models painted with the same noise."""

    scene: Scene
    caption: Caption
    base: NDArray[np.float32]
    llm4gen: NDArray[np.float32]

    def scores(self) -> tuple[Score, Score]:
        """Of base and LLM4GEN."""
        first, second = (score(reading, self.caption) for reading in read(np.stack((self.base, self.llm4gen))))
        return first, second


def painters(models: Path = MODELS) -> tuple[Pipeline, Pipeline]:
    """The base alone, and with LLM4GEN.

    Raises:
        LLM4GENError: the models are not there.
    """
    if not models.is_dir():
        raise LLM4GENError(f"The shipped models are not in {models}; was the clone or the package cut short?")
    base, arm = models / "base", models / ARM
    files = ModelFiles(base=base, unet=arm / "unet", adapter=arm / "adapter.safetensors", llm=models / LLM)
    return Pipeline.from_files(ModelFiles(base=base)), Pipeline.from_files(files)


def compare(base: Pipeline, llm4gen: Pipeline, prompts: int = 4) -> list[Shown]:
    """Paint dense prompts with both; the first ones that come, not chosen ones."""
    draws = random.Random(f"demo {SEED}")
    drawn = [draw_pair(draws, dense=True) for _ in range(prompts)]
    captions = [caption for _, caption in drawn]
    images = [generate(pipeline, captions) for pipeline in (base, llm4gen)]
    return [Shown(scene, caption, images[0][n], images[1][n]) for n, (scene, caption) in enumerate(drawn)]


def sheet(shown: Sequence[Shown]) -> NDArray[np.uint8]:
    """A row for each prompt: the text, what it describes, the base's image and LLM4GEN's; RGB [H, W, 3]."""
    font = ImageFont.load_default(14)
    titles = ("what it describes", "base", "base with LLM4GEN")
    width = _TEXT + 3 * (_SIDE + _GAP) + _GAP
    height = 2 * _LINE + len(shown) * (_SIDE + 2 * _LINE + _GAP)
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    lefts = [_TEXT + _GAP + n * (_SIDE + _GAP) for n in range(3)]
    for left, title in zip(lefts, titles, strict=True):
        draw.text((left + _SIDE / 2, _LINE), title, "black", font, anchor="mm")
    for row, one in enumerate(shown):
        top = 2 * _LINE + row * (_SIDE + 2 * _LINE + _GAP)
        lines = textwrap.wrap(one.caption.text, 62)
        draw.multiline_text((_GAP, top), "\n".join(lines), "black", font, spacing=5)
        pixels = (render(one.scene), to_bytes(one.base), to_bytes(one.llm4gen))
        for left, image in zip(lefts, pixels, strict=True):
            large = Image.fromarray(image).resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
            canvas.paste(large, (left, top))
        for left, found in zip(lefts[1:], one.scores(), strict=True):
            bound = "" if found.binding is None else f"{found.binding:.0%} of objects bound as told"
            text = f"{found.words:.0%} of the words are there\n{bound}"
            draw.multiline_text((left, top + _SIDE + 3), text, "black", font, spacing=3)
    return np.asarray(canvas)


def looks(base: Pipeline, llm4gen: Pipeline, shown: Shown, seed: int) -> NDArray[np.uint8]:
    """Where both looked at an attribute and its entity: a `strip` of maps each, RGB [H, W, 3]."""
    words = [Span(start, end, shown.caption.text[start:end]) for start, end in _told(base, shown.caption)]
    rows = []
    for pipeline in (base, llm4gen):
        found = attention_maps(one_chunk(pipeline), shown.caption.text, words, SAMPLING, seed=seed, progress=False)
        rows.append(strip(found))
    return np.concatenate(rows)


def _told(base: Pipeline, caption: Caption) -> tuple[tuple[int, int], tuple[int, int]]:
    """A colour and its entity, of those that CLIP has not cut off; another attribute where there is none."""
    read_until = max(end for _, end in base.family.text_offsets(caption.text, 1))
    pairs = [pair for pair in caption.pairs if max(end for _, end in pair) <= read_until] or list(caption.pairs)
    return next((pair for pair in pairs if caption.text[slice(*pair[0])] in COLORS), pairs[0])


def save(pixels: NDArray[np.uint8], path: Path, prompt: str) -> Path:
    """As PNG under a free name."""
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).add(0.5) / 255
    return save_png(image, path, {"prompt": prompt})
