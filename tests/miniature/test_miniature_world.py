"""The images, captions and models of `python -m miniature world`."""

import argparse
import random

import numpy as np
import pytest
from miniature.miniature_world import COLORS, SHAPES, Scene, configure, draw_scene, make_world, render
from PIL import Image
from transformers import AutoTokenizer, CLIPTokenizer

from llm4gen_core import LLM4GENError, LLMEncoder
from llm4gen_diffusers.families import load_family


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world") / "mini", images=12, seed=3)


def test_every_image_has_its_caption_beside_it(world):
    images = sorted((world / "images").glob("*.png"))
    assert len(images) == 12
    assert all(image.with_suffix(".txt").read_text().endswith("\n") for image in images)
    assert len({image.with_suffix(".txt").read_text() for image in images}) > 8


def test_a_caption_says_what_is_in_the_image(tmp_path):
    """Every colour that it names covers pixels from left to right in its order, and nothing else does."""
    draws = random.Random(0)
    for number in range(40):
        scene = draw_scene(draws)
        render(scene, tmp_path / f"{number}.png")
        pixels = np.asarray(Image.open(tmp_path / f"{number}.png"))
        assert pixels.shape == (*scene.size[::-1], 3)
        found = {tuple(color) for color in pixels.reshape(-1, 3)}
        assert found == {COLORS[color] for color, _ in scene.shapes} | {COLORS[scene.background]}
        centres = [np.argwhere((pixels == COLORS[color]).all(-1))[:, 1].mean() for color, _ in scene.shapes]
        assert centres == sorted(centres)
        words = scene.caption.replace(",", "").split()
        assert [w for w in words if w in COLORS] == [color for color, _ in scene.shapes] + [scene.background]
        assert [w for w in words if w in SHAPES] == [shape for _, shape in scene.shapes]


@pytest.mark.parametrize(
    ("shapes", "caption"),
    [
        ([("red", "circle")], "a red circle on gray"),
        ([("red", "circle"), ("blue", "square")], "a red circle and a blue square on gray"),
        (
            [("red", "circle"), ("orange", "square"), ("green", "cross")],
            "a red circle, an orange square and a green cross on gray",
        ),
    ],
)
def test_captions(shapes, caption):
    assert Scene(shapes, "gray", (32, 32)).caption == caption


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_differ(tmp_path, shape):
    for name in {shape, *SHAPES}:
        render(Scene([("red", name)], "white", (32, 32)), tmp_path / f"{name}.png")
    own = np.asarray(Image.open(tmp_path / f"{shape}.png")).astype(int)
    others = [np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int) for name in SHAPES if name != shape]
    assert all((np.abs(own - other).max(-1) > 0).mean() > 0.03 for other in others)


def test_the_same_seed_makes_the_same_world(world, tmp_path):
    again, other = make_world(tmp_path / "a", 12, seed=3), make_world(tmp_path / "b", 12, seed=4)
    for file in sorted(path for path in world.rglob("*") if path.is_file()):
        assert (again / file.relative_to(world)).read_bytes() == file.read_bytes()
    captions = [[p.read_text() for p in sorted((w / "images").glob("*.txt"))] for w in (world, other)]
    assert captions[0] != captions[1]


def test_both_tokenizers_know_every_word(world):
    clip = CLIPTokenizer.from_pretrained(world / "base" / "tokenizer")
    t5 = AutoTokenizer.from_pretrained(world / "llm")
    for word in [*COLORS, *SHAPES, "and", "on", "an"]:
        assert len(clip(word, add_special_tokens=False)["input_ids"]) == 1
        assert len(t5(word, add_special_tokens=False)["input_ids"]) == 1


def test_its_models_fit_together(world):
    family, llm = load_family(None, world / "base"), LLMEncoder.from_folder(world / "llm")
    assert family.name == "miniature" and family.native_size == 32
    assert llm.encode(["a red circle"]).hidden.shape[-1] == llm.spec.width
    cross_attention = [n for n, _ in family.unet.named_modules() if n.endswith("attn2")]
    assert {name.split(".")[0] for name in cross_attention} == {"down_blocks", "mid_block", "up_blocks"}


def test_the_command(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    configure(parser)
    args = parser.parse_args([str(tmp_path / "mini"), "--images", "2", "--seed", "1"])
    args.run(args)
    assert "2 images" in capsys.readouterr().out and len(list((tmp_path / "mini" / "images").glob("*.png"))) == 2


def test_a_world_is_not_overwritten(world):
    with pytest.raises(LLM4GENError, match="holds a world already"):
        make_world(world)


@pytest.mark.parametrize("images", [0, -3])
def test_a_world_without_images(tmp_path, images):
    with pytest.raises(LLM4GENError, match="at least 1"):
        make_world(tmp_path / "mini", images)
