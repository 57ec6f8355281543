"""Heat maps of words, as in the paper's Fig. 9: where an image attended to them while it was generated.

The maps are those of DAAM (Tang et al. 2022, arXiv 2210.04885), which the paper cites: the columns that belong to a
word's tokens in the UNet's cross-attention, averaged over heads, layers and timesteps, on the side of guidance that
sees the prompt. `attended_columns` computes them exactly without holding the whole matrix. With LLM4GEN a word is in
the context twice, as CLIP's and as the LLM's tokens; the maps show either or both.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from llm4gen_core import GuidanceOptions, LLM4GENError, Span
from llm4gen_core.attention import LLMTokens, attended_columns
from llm4gen_core.entities import context_segments
from llm4gen_core.llm_spec import prompt_offsets

from .attention import cross_attention_layers, unknown_cross_attention
from .generate import sampling_record
from .machine import choose_device
from .options import AttentionSettings, GenerationOptions
from .sampling import DEFAULTS, Pipeline, check_output, save_png

PANEL = 256
"""Smallest side of a panel of `strip` in pixels; smaller images are enlarged by a whole number."""

_COLORS = np.array(
    [(0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (186, 54, 85), (227, 89, 51), (249, 140, 10)]
    + [(249, 201, 50), (252, 255, 164)]
)
"""RGB of low to high attention in equal steps (matplotlib's inferno): lightness rises evenly, readable for
colour-blind eyes and in print."""


@dataclass(frozen=True)
class AttentionMaps:
    """Attention of a generated image to each of W words.

    Attributes:
        words: words of the prompt.
        maps: [W, h, w], of the latents' size. 1 is the word's mean over the image, so that maps of frequent and of
            rare words, of one or of many tokens, and of contexts of any length can be compared.
        mass: [W], the share of all attention that goes to the word's tokens, from 0 to 1, mean over pixels and layers.
            `mass * maps` is the attention itself.
        image: [3, H, W] from 0 to 1, the image of `Pipeline.generate` with the same arguments.
    """

    words: tuple[Span, ...]
    maps: Tensor
    mass: Tensor
    image: Tensor


def attention_maps(
    pipeline: Pipeline,
    prompt: str,
    words: Sequence[Span],
    options: GenerationOptions = DEFAULTS,
    *,
    seed: int = 0,
    tokens: str = "both",
    layers: str | tuple[int | str, ...] = "all",
    progress: bool = True,
) -> AttentionMaps:
    """Generate an image and record where it attends to words.

    The image does not change, and nothing stays attached to the UNet.

    Args:
        pipeline: with or without LLM4GEN, of any family.
        prompt, options, seed, progress: see `Pipeline.generate`.
        words: words of the prompt, or several in a row.
        tokens: "clip", "llm" or "both", the tokens of a word that are looked at; the attention of both is added. A
            word that a text encoder has cut off adds nothing. Without an LLM there are CLIP's tokens only.
        layers: see `GuidanceOptions.layers`.

    Raises:
        LLM4GENError: there is no word, a word is not in the prompt or has none of these tokens, or no layer is
            selected.
    """
    chunks = pipeline.chunks_for([prompt, options.negative] if options.guidance > 1 else [prompt])
    selection = GuidanceOptions(tokens=tokens, layers=layers)
    columns, shares = _columns(pipeline, prompt, words, tokens, chunks)
    llm = pipeline.encode([prompt], chunks).llm
    with _recorded(pipeline.family.unet, columns.to(pipeline.device), selection, llm) as recorded:
        images = pipeline.generate(prompt, options, seed=seed, progress=progress)
    means = [shares @ layer.sum.float().cpu().T / layer.calls for layer in recorded if layer.calls]
    if not means:
        raise LLM4GENError(
            f'Layers is {layers!r}, which selects none of the UNet\'s cross-attention layers; expected "all", sides of '
            "its maps, or patterns of its layers' names."
        )
    scale = pipeline.family.pixels_per_latent
    size = (images.shape[2] // scale, images.shape[3] // scale)
    # As in DAAM, overshoot below 0 is cut off. Enlarging is linear before that, so that the steps' mean can come first.
    sized = [
        F.interpolate(mean.unflatten(1, _sides(mean.shape[1], size))[None], size, mode="bicubic").clamp(min=0)[0]
        for mean in means
    ]
    maps = torch.stack(sized).mean(0)
    maps = maps / maps.mean((1, 2), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)
    mass = torch.stack([mean.mean(1) for mean in means]).mean(0)
    return AttentionMaps(tuple(words), maps, mass, images[0])


def find_words(prompt: str, words: Sequence[str]) -> list[Span]:
    """Find words in a prompt, in upper or lower case; a word given a second time is its second occurrence.

    Args:
        prompt: text.
        words: one word or several in a row. In scripts with blanks between words only whole ones are found.

    Raises:
        LLM4GENError: a word is not in the prompt, or not that often.
    """
    found = []
    given: Counter[str] = Counter()
    for word in words:
        text = word.strip().lower()
        pattern = rf"(?<!\w){re.escape(text)}(?!\w)" if text.isascii() else re.escape(text)
        places = [match.span() for match in re.finditer(pattern, prompt, re.IGNORECASE)] if text else []
        if given[text] >= len(places):
            often = f" {given[text] + 1} times" if places else ""
            raise LLM4GENError(f"Word {word!r} does not occur{often} in prompt {prompt!r}; expected a word of it.")
        start, end = places[given[text]]
        found.append(Span(start, end, prompt[start:end]))
        given[text] += 1
    return found


def _columns(pipeline: Pipeline, prompt: str, words: Sequence[Span], tokens: str, chunks: int) -> tuple[Tensor, Tensor]:
    """Positions [C] in the context, and which of them [W, C] are tokens of each word, 1 or 0."""
    if not words:
        raise LLM4GENError("There is no word to look at; give at least one word of the prompt.")
    layout: tuple[str, ...] = ("text",)
    if pipeline.adapter is not None and pipeline.strength != 0:  # at 0 the context is plain CLIP's
        layout = pipeline.adapter.config.context_layout
    clip = pipeline.family.text_offsets(prompt, chunks)
    llm = prompt_offsets(pipeline.llm.tokenizer, prompt, pipeline.llm.spec) if pipeline.llm else None
    segments = [s for s in context_segments(layout, clip, llm) if tokens in ("both", s.kind)]
    columns, shares = [], []
    for word in words:
        if prompt[word.start : word.end] != word.text:
            raise LLM4GENError(
                f"Word {word.text!r} is said to be characters {word.start} to {word.end} of prompt {prompt!r}, where "
                f"{prompt[word.start : word.end]!r} stands; expected a word of this prompt."
            )
        positions = [position for segment in segments for position in segment.positions(word)]
        if not positions:
            source = {"both": "CLIP or the LLM", "clip": "CLIP", "llm": "the LLM"}[tokens]
            raise LLM4GENError(
                f"Word {word.text!r}, at character {word.start} of the prompt, is not in the part of the context that "
                f"comes from {source}: there is no such part, or the prompt is too long for it. Look at its other "
                "tokens, or use a shorter prompt."
            )
        columns.append(torch.tensor(positions))
        shares.append(torch.ones(1, len(positions)))
    return torch.cat(columns), torch.block_diag(*shares)


class _Layer:
    """Sum of a layer's attention to columns of the context.

    Hooks read the outputs of the query and key projections and change nothing, so the UNet predicts the same whatever
    its processor is, but for rounding where a layer would not have projected the key.

    Args:
        name: path of the layer inside the UNet.
        module: the layer.
        columns: [C] positions in the context.
        options: selects layers.
        llm: see `attend`.

    Attributes:
        sum: [N, C] attention of the last sample of a batch, mean over heads, over all calls.
        calls: number of calls; 0 for a layer that is not selected.
    """

    def __init__(
        self, name: str, module: Any, columns: Tensor, options: GuidanceOptions, llm: LLMTokens | None
    ) -> None:
        self.sum = torch.zeros((), device=columns.device)
        self.calls = 0
        self._name, self._columns, self._options, self._llm = name, columns, options, llm
        self._projected: dict[nn.Module, Tensor] = {}
        projections = (module.to_q, module.to_k)
        self.handles = [projection.register_forward_hook(self._keep) for projection in projections]
        self.handles.append(module.register_forward_hook(self._add))

    def _keep(self, projection: nn.Module, inputs: Any, output: Tensor) -> None:
        self._projected[projection] = output[-1:]  # the conditional side of guidance comes last

    def _add(self, module: Any, inputs: Any, output: Any) -> None:
        query, key = (
            self._projected.pop(projection).unflatten(-1, (module.heads, -1)).transpose(1, 2)
            for projection in (module.to_q, module.to_k)
        )
        if self._options.selects(self._name, query.shape[2]):
            found = attended_columns(query, key, self._columns, module.scale, self._llm, mean_heads=True)
            self.sum = self.sum + found[0]
            self.calls += 1


@contextmanager
def _recorded(
    unet: nn.Module, columns: Tensor, options: GuidanceOptions, llm: LLMTokens | None
) -> Iterator[list[_Layer]]:
    """Record all cross-attention layers of a UNet2DConditionModel."""
    if unknown := unknown_cross_attention(unet):
        raise LLM4GENError(
            f"The UNet's layer {unknown[0]} is not plain cross-attention as in SD1.5 and SDXL; its attention cannot be "
            "looked at. Use a base of these families."
        )
    layers = [_Layer(name, module, columns, options, llm) for name, module in cross_attention_layers(unet).items()]
    try:
        yield layers
    finally:
        for handle in (handle for layer in layers for handle in layer.handles):
            handle.remove()


def _sides(pixels: int, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a layer with that many pixels: each level of the UNet halves the sides, rounded up."""
    height, width = size
    while height * width > pixels:
        height, width = -(-height // 2), -(-width // 2)
    assert height * width == pixels
    return height, width


def overlay(image: Tensor, heat: Tensor) -> NDArray[np.uint8]:
    """Draw a map over its image, in colours from its lowest to its highest value.

    Args:
        image: [3, H, W] from 0 to 1.
        heat: [h, w], enlarged to the image's size.

    Returns:
        RGB [H, W, 3].
    """
    low, high = float(heat.min()), float(heat.max())
    size = (image.shape[1], image.shape[2])
    large = F.interpolate(heat[None, None].float(), size, mode="bicubic")[0, 0].numpy()
    level = ((large - low) / max(high - low, 1e-6)).clip(0, 1)
    steps = np.linspace(0, 1, len(_COLORS))
    color = np.stack([np.interp(level, steps, channel) for channel in _COLORS.T], axis=2) / 255
    gray = image.mean(0).numpy()[..., None]
    return ((0.4 * gray + 0.6 * color) * 255).round().astype(np.uint8)


def strip(found: AttentionMaps) -> NDArray[np.uint8]:
    """Draw the image and a map for each word side by side, each with its word and share of the attention, in RGB."""
    image = found.image
    factor = max(1, -(-PANEL // min(image.shape[1:])))
    panels = [("image", (image * 255).round().byte().permute(1, 2, 0).numpy())]
    for word, heat, mass in zip(found.words, found.maps, found.mass, strict=True):
        panels.append((f"{word.text}  {100 * mass:.2g} %", overlay(image, heat)))
    font = ImageFont.load_default(16)
    height, width = factor * image.shape[1], factor * image.shape[2]
    gap, line = 8, 28
    canvas = Image.new("RGB", (len(panels) * (width + gap) - gap, line + height), "white")
    draw = ImageDraw.Draw(canvas)
    for number, (label, pixels) in enumerate(panels):
        left = number * (width + gap)
        while draw.textlength(label, font) > width:
            label = label[:-2] + "…"
        draw.text((left, line / 2), label, "black", font, anchor="lm")
        canvas.paste(Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST), (left, line))
    return np.array(canvas)


def attention(settings: AttentionSettings) -> Path:
    """Generate an image, write the `strip` of its words, and print the file's name.

    Raises:
        LLM4GENError: see `Pipeline.from_files`, `find_words` and `attention_maps`.
    """
    check_output(settings.output)
    words = find_words(settings.prompt, settings.words)
    pipeline = Pipeline.from_files(settings, choose_device(settings.device))
    found = attention_maps(pipeline, settings.prompt, words, settings, seed=settings.seed, tokens=settings.tokens)
    # Half a step up, because the file truncates.
    panels = torch.from_numpy(strip(found)).permute(2, 0, 1).add(0.5) / 255
    record = sampling_record(settings, pipeline, settings.prompt)
    file = save_png(panels, settings.output, {**record, "words": settings.words, "tokens": settings.tokens})
    print(file, flush=True)
    return file
