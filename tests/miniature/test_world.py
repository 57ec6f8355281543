"""The folder of `python -m miniature world`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llm4gen_core import LLMEncoder
from llm4gen_diffusers.families import load_family
from miniature.__main__ import main
from miniature.captions import WORDS
from miniature.judge import read
from miniature.scenes import CELL, GRID
from miniature.world import make_world
from train.recipe_file import load_recipe


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world") / "mini", images=12, seed=3)


def captions(world: Path) -> list[str]:
    return [file.read_text() for file in sorted((world / "images").glob("*.txt"))]


def test_every_image_has_its_caption_beside_it(world: Path) -> None:
    images = sorted((world / "images").glob("*.png"))
    assert len(images) == 12
    for image, caption in zip(images, captions(world), strict=True):
        assert caption.endswith("\n") and {*caption.replace(",", " ").replace(".", " ").split()} <= {*WORDS}
        [reading] = read(np.asarray(Image.open(image))[None])
        shown = {thing.color for _, thing in reading.scene.objects}
        assert shown >= {word for word in ("red", "blue", "green", "purple") if word in caption.split()}


def test_the_same_seed_gives_the_same_images(world: Path, tmp_path: Path) -> None:
    again, other = make_world(tmp_path / "a", 12, seed=3), make_world(tmp_path / "b", 12, seed=4)
    for file in sorted((world / "images").iterdir()):
        assert (again / "images" / file.name).read_bytes() == file.read_bytes()
    assert captions(world) != captions(other)


def test_its_models_fit_together_and_to_the_recipe(world: Path) -> None:
    family, llm = load_family(None, world / "base"), LLMEncoder.from_folder(world / "llm")
    recipe = load_recipe("miniature")
    assert family.name == recipe.family == "miniature"
    assert recipe.data.resolution == family.native_size == GRID * CELL
    assert llm.encode(["a red circle"]).hidden.shape[-1] == llm.spec.width
    assert [recipe.model.base, recipe.model.llm] == ["miniature/base", "miniature/llm"]
    assert [source.path for source in recipe.data.sources] == ["miniature/images"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["world", str(tmp_path / "mini"), "--images", "2", "--seed", "1"]) == 0
    assert "2 images" in capsys.readouterr().out and len(list((tmp_path / "mini" / "images").glob("*.png"))) == 2


def test_an_existing_world_is_not_overwritten(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = captions(world)
    assert main(["world", str(world)]) == 2
    assert "holds a world already; choose another name" in capsys.readouterr().err and captions(world) == before


@pytest.mark.parametrize(("images", "message"), [("0", "Images is 0"), ("-1", "Images is -1")])
def test_too_few_images_are_refused(
    images: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["world", str(tmp_path / "mini"), "--images", images]) == 2
    assert message in capsys.readouterr().err


def test_a_file_is_not_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["world", str(tmp_path / "file")]) == 2
    assert "is a file; choose another name" in capsys.readouterr().err
