"""Small models of every family, made once a session; conftest.py of a folder imports the fixtures that it needs."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import pytest
from small_models import (
    make_diffusers_folder,
    make_miniature_folder,
    make_projector,
    make_sdxl_folder,
    make_t5_folder,
    make_unet_folder,
)

from llm4gen_diffusers.options import ModelFiles
from llm4gen_diffusers.sampling import Pipeline

D_TEXT, D_LLM = 64, 96


@dataclass(frozen=True)
class Models:
    """An SD1.5 with what fits to it and a UNet to put in the place of its own; bases of the other families."""

    base: Path
    sdxl: Path
    miniature: Path
    llm: Path
    adapter: Path
    unet: Path


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    return Models(
        base=make_diffusers_folder(folder / "sd15", D_TEXT),
        sdxl=make_sdxl_folder(folder / "sdxl"),
        miniature=make_miniature_folder(folder / "miniature"),
        llm=make_t5_folder(folder / "llm", D_LLM),
        adapter=make_projector(folder / "projector.pth", D_TEXT, D_LLM),
        unet=make_unet_folder(folder / "release" / "unet", D_TEXT, seed=1),
    )


@pytest.fixture(scope="session")
def sd15(models: Models) -> Pipeline:
    """With LLM4GEN."""
    return Pipeline.from_files(ModelFiles(base=models.base, adapter=models.adapter, llm=models.llm))


def with_strength(pipeline: Pipeline, strength: float) -> Pipeline:
    """The same modules with another λ."""
    other = copy.copy(pipeline)
    other.strength = strength
    return other


@pytest.fixture(scope="session")
def plain(models: Models) -> Pipeline:
    """Without."""
    return Pipeline.from_files(ModelFiles(base=models.base))
