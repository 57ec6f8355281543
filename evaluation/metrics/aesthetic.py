"""LAION's aesthetic score: a small head over CLIP's image embedding that was fitted to people's ratings from 1 to 10.

Heads are told apart by the names of their weights:
    v2, `sac+logos+ava1-l14-linearMSE.pth` (github.com/christophschuhmann/improved-aesthetic-predictor): layers
        768-1024-128-64-16-1 with dropout between them in training and nothing else, so that for an image it is one
        affine map.
    v1, `sa_0_4_vit_l_14_linear.pth` (github.com/LAION-AI/aesthetic-predictor): one layer 768-1.
Both read the embedding of OpenAI's CLIP ViT-L/14, projected and of unit length. The paper says neither which head nor
which version it used; the scores of both are not comparable.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from llm4gen_core import LLM4GENError

from ..judges import Judge
from ..prompts import Prompt
from .base import Context, ImageMetric, Scores
from .clip_score import CLIP_L, ClipJudge
from .judge_model import chosen_dtype, chosen_folder

HEADS = ("sac+logos+ava1-l14-linearMSE.pth", "sa_0_4_vit_l_14_linear.pth")
"""Files of v2 and v1; the first that is there is taken."""

HEAD = Judge(
    "aesthetic",
    "sac+logos+ava1-l14-linearMSE.pth of https://github.com/christophschuhmann/improved-aesthetic-predictor",
    ("|".join(HEADS),),
    "Apache-2.0",
    "4 MB",
)

_LAYERS = {"v2": ("layers.0", "layers.2", "layers.4", "layers.6", "layers.7"), "v1": ("",)}
"""Prefixes of the linear layers' weights, from the embedding to the score."""


class AestheticHead:
    """Linear layers, one behind the other.

    Args:
        state: weights by name, as either version of the head has them.
        name: of the file, for errors.

    Attributes:
        version: "v1" or "v2".
        width: of the embedding.

    Raises:
        LLM4GENError: the weights are those of neither, or do not fit each other.
    """

    def __init__(self, state: Mapping[str, Tensor], name: str) -> None:
        for self.version, prefixes in _LAYERS.items():
            names = [(f"{prefix}.weight".lstrip("."), f"{prefix}.bias".lstrip(".")) for prefix in prefixes]
            if set(state) == {key for pair in names for key in pair}:
                break
        else:
            raise LLM4GENError(
                f"Aesthetic head {name} has the weights {', '.join(sorted(state))}; expected those of v2 "
                "(layers.0.weight to layers.7.bias) or of v1 (weight, bias). Download the file again."
            )
        self._layers = [(state[weight].float(), state[bias].float()) for weight, bias in names]
        shapes = [tuple(weight.shape) for weight, _ in self._layers]
        widths = [shapes[0][1], *(shape[0] for shape in shapes)] if all(len(shape) == 2 for shape in shapes) else []
        if widths[-1:] != [1] or [shape[1] for shape in shapes] != widths[:-1]:
            raise LLM4GENError(
                f"Aesthetic head {name} has layers of the shapes {shapes}; expected ones that follow each other and "
                "end in one number. Download the file again."
            )
        self.width = widths[0]

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Scores [B] of embeddings [B, width] of unit length."""
        for weight, bias in self._layers:
            embeddings = F.linear(embeddings, weight, bias)
        return embeddings.squeeze(-1)


class Aesthetic(ImageMetric):
    """The score of one head; the prompt does not matter.

    Args:
        judge: CLIP ViT-L/14 by OpenAI.
        head: over its embeddings.
        digest: of the head's file.
    """

    name = "aesthetic"
    title = "Aesthetic score"
    share = False
    judges_needed = (CLIP_L, HEAD)

    def __init__(self, judge: ClipJudge, head: AestheticHead, digest: str) -> None:
        self._judge, self._head, self._digest = judge, head, digest

    @classmethod
    def load(cls, context: Context) -> Aesthetic:
        folder = chosen_folder(context, HEAD)
        clip = chosen_folder(context, CLIP_L)
        file = next(folder / name for name in HEADS if (folder / name).is_file())
        head = AestheticHead(_state(file), str(file))
        judge = ClipJudge(clip, context.device, chosen_dtype(context, on_gpu=torch.float32))
        if judge.width != head.width:
            raise LLM4GENError(
                f"Judge {judge.folder} embeds images into {judge.width} numbers, and {file} reads {head.width}; "
                f"expected {CLIP_L.repository}, on which it was trained."
            )
        return cls(judge, head, hashlib.sha256(file.read_bytes()).hexdigest()[:16])

    def describe(self) -> dict[str, Any]:
        return {"head": self._head.version, "head_hash": self._digest, **self._judge.describe()}

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Scores]:
        return [{"score": score} for score in self._head(self._judge.embed_images(images)).tolist()]


def _state(file: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise LLM4GENError(
            f"Aesthetic head {file} cannot be read as weights ({str(error).splitlines()[0]}); download it again."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise LLM4GENError(f"Aesthetic head {file} holds no weights by name; download it again.")
    return state
