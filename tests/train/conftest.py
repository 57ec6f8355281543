"""Miniature models, made once for all tests of this folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from train.sd15 import SD15
from train.small_models import make_diffusers_folder, make_projector, make_t5_folder, make_unet_folder

D_TEXT, D_LLM = 64, 96


@dataclass(frozen=True)
class Models:
    """Files that fit together, and a UNet to put in the place of the base's."""

    base: Path
    llm: Path
    adapter: Path
    unet: Path


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    return Models(
        base=make_diffusers_folder(folder / "sd15", D_TEXT),
        llm=make_t5_folder(folder / "llm", D_LLM),
        adapter=make_projector(folder / "projector.pth", D_TEXT, D_LLM),
        unet=make_unet_folder(folder / "release" / "unet", D_TEXT, seed=1),
    )


@pytest.fixture(scope="session")
def sd15(models: Models) -> SD15:
    """With LLM4GEN."""
    return SD15.from_folders(models.base, adapter=models.adapter, llm=models.llm)


@pytest.fixture(scope="session")
def plain(models: Models) -> SD15:
    """Without."""
    return SD15.from_folders(models.base)
