"""A small set of the miniature's prompts and the shipped miniature that paints it."""

from __future__ import annotations

import pytest

from evaluation.model_files import GenerationOptions, ModelFiles
from evaluation.prompts import Prompt
from miniature.benchmark import caption_prompt, models
from miniature.dataset import SETS


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
    return models()["base"].model_copy(update={"batch": 4})


@pytest.fixture(scope="session")
def llm4gen() -> ModelFiles:
    return models()["LLM4GEN"].model_copy(update={"batch": 4})


@pytest.fixture(scope="session")
def quick() -> GenerationOptions:
    """Two steps: an image, if no good one."""
    return GenerationOptions(steps=2, guidance=3.0)
