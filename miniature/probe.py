"""Linear probes of binding in encoders: from the hidden state of the word "circle" alone, which colour is the circle?

Fusion can only help if the LLM knows something that CLIP does not, so this is measured before any adapter is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from llm4gen_core import LLMEncoder
from llm4gen_core.llm_spec import prompt_offsets
from llm4gen_diffusers.families import family_class

from .captions import ADJECTIVES, Caption
from .dataset import SETS
from .scenes import COLORS

PROBES = {"short prompts": "color", "dense prompts": "dense"}
"""Prompt sets to probe, by their titles in the report."""
_COLORS = tuple(COLORS)
_SHAPES = {"thing", "object", *ADJECTIVES}

Features = Callable[[Sequence[str]], tuple[Tensor, list[list[tuple[int, int]]]]]
"""Maps texts to hidden states [B, L, d] and the characters (start, end) of every token."""


def probe_encoders(base: Path, llms: dict[str, Path], prompts: int = 2_000) -> dict[str, dict[str, float]]:
    """Measure how well a linear probe finds the colour of an object in the hidden state of its noun.

    Args:
        base: folder with the CLIP.
        llms: Hugging Face folders by name.
        prompts: training prompts of each set; the probe is tested on a quarter as many others.

    Returns:
        Accuracy by encoder ("clip", the names of `llms`, and "chance"), then by `PROBES`. A noun that an encoder has
        cut off counts as wrong.
    """
    encoders = {"clip": _clip(base), **{name: _llm(folder) for name, folder in llms.items()}}
    found: dict[str, dict[str, float]] = {name: {} for name in encoders}
    found["chance"] = {}
    for title, name in PROBES.items():
        asked = SETS[name].prompts(prompts + prompts // 4, seed=1)  # not those that images are generated from
        learned, asked = asked[:prompts], asked[prompts:]
        for encoder, features in encoders.items():
            found[encoder][title] = _probe(features, learned, asked)
        found["chance"][title] = 1 / len(_COLORS)
    return found


def _probe(features: Features, learned: Sequence[Caption], asked: Sequence[Caption]) -> float:
    states, colors, _ = _examples(features, learned)
    mean, deviation = states.mean(0), states.std(0) + 1e-6
    with torch.enable_grad():
        weight = torch.zeros(len(_COLORS), states.shape[1] + 1, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")
        inputs = F.pad((states - mean) / deviation, (0, 1), value=1.0)

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(inputs @ weight.T, colors) + 1e-4 * weight.square().sum()
            value.backward()
            return value

        optimizer.step(loss)
    states, colors, cut = _examples(features, asked)
    answers = (F.pad((states - mean) / deviation, (0, 1), value=1.0) @ weight.detach().T).argmax(1)
    return float(answers.eq(colors).sum() / (len(colors) + cut))


def _examples(features: Features, captions: Sequence[Caption]) -> tuple[Tensor, Tensor, int]:
    """Collect hidden states [N, d] of nouns, the indices [N] of their colours, and the number of nouns cut off."""
    states, colors, cut = [], [], 0
    for first in range(0, len(captions), 250):
        part = captions[first : first + 250]
        hidden, offsets = features([caption.text for caption in part])
        for row, caption in enumerate(part):
            for attribute, entity in caption.pairs:
                word = caption.text[slice(*attribute)]
                if word not in _COLORS or caption.text[slice(*entity)] not in _SHAPES:
                    continue
                tokens = [n for n, (start, end) in enumerate(offsets[row]) if start < entity[1] and entity[0] < end]
                if tokens:
                    states.append(hidden[row, tokens].mean(0))
                    colors.append(_COLORS.index(word))
                else:
                    cut += 1
    return torch.stack(states), torch.tensor(colors), cut


def _clip(base: Path) -> Features:
    family = family_class(None, base).open(base).load_parts(("text",))
    return lambda texts: (family.encode_text(texts, 1).hidden, [family.text_offsets(text, 1) for text in texts])


def _llm(folder: Path) -> Features:
    encoder = LLMEncoder.from_folder(folder)
    return lambda texts: (
        encoder.encode(texts).hidden,
        [prompt_offsets(encoder.tokenizer, text, encoder.spec) for text in texts],
    )
