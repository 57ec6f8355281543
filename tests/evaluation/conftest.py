"""A small set of the miniature's prompts, and the shipped models."""

from __future__ import annotations

import pytest

from evaluation.image_set import Prompt
from evaluation.models import Model, ModelFiles, PresetOptions, open_model
from miniature.benchmark import caption_prompt, models
from miniature.dataset import SETS


def miniature(name: str) -> ModelFiles:
    files = models()[name]
    assert isinstance(files, ModelFiles)
    return files.model_copy(update={"batch": 4})


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
    return miniature("base")


@pytest.fixture(scope="session")
def llm4gen() -> ModelFiles:
    return miniature("LLM4GEN")


@pytest.fixture(scope="session")
def quick() -> PresetOptions:
    """Two steps: an image, if not a good one."""
    return PresetOptions(steps=2, guidance=3.0)


@pytest.fixture(scope="session")
def base_model(base: ModelFiles, quick: PresetOptions) -> Model:
    return open_model(base, quick, "cpu")
