"""A small set of the miniature's prompts and the shipped miniature that paints it."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.metrics.miniature import caption_prompt
from evaluation.models import ModelFiles, Painting
from evaluation.prompts import Prompt
from miniature.dataset import SETS

MODELS = Path(__file__).resolve().parents[2] / "miniature" / "models"


@pytest.fixture(scope="session")
def prompts() -> list[Prompt]:
    """Three prompts of two objects, and three dense ones."""
    return [
        caption_prompt(name, number, caption)
        for name in ("color", "dense")
        for number, caption in enumerate(SETS[name].prompts(3))
    ]


@pytest.fixture(scope="session")
def base() -> ModelFiles:
    return ModelFiles(base=str(MODELS / "base"), batch=4)


@pytest.fixture(scope="session")
def llm4gen() -> ModelFiles:
    arm = MODELS / "llm4gen"
    return ModelFiles(
        base=str(MODELS / "base"),
        unet=str(arm / "unet"),
        adapter=str(arm / "adapter.safetensors"),
        llm=str(MODELS / "t5"),
        batch=4,
    )


@pytest.fixture(scope="session")
def quick() -> Painting:
    """Two steps: an image, if no good one."""
    return Painting(steps=2, guidance=3.0)
