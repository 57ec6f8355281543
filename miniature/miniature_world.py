"""`python -m miniature world`: a base, an LLM and captioned images, small enough to train with on a CPU.

The images show one to three coloured shapes, and each caption says which: attributes and their entities by
construction. The same seed makes the same files.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PathLike = str | os.PathLike[str]

COLORS = {
    "black": (0, 0, 0),
    "blue": (30, 60, 220),
    "gray": (128, 128, 128),
    "green": (20, 150, 50),
    "orange": (250, 140, 0),
    "purple": (140, 30, 170),
    "red": (220, 20, 30),
    "white": (255, 255, 255),
    "yellow": (245, 220, 0),
}
"""RGB of the words for colours."""
SHAPES = ("circle", "cross", "square", "triangle")
BACKGROUNDS = ("black", "gray", "white")
SIZES = ((32, 32), (32, 24), (24, 32), (16, 16))
"""(width, height) in pixels, so that aspect-ratio buckets have something to do."""


@dataclass(frozen=True)
class Scene:
    """What an image shows.

    Attributes:
        shapes: (colour, shape) from left to right.
        background: colour.
        size: (width, height) in pixels.
    """

    shapes: Sequence[tuple[str, str]]
    background: str
    size: tuple[int, int]

    @property
    def caption(self) -> str:
        """Such as "a red circle, a blue square and a green cross on gray"."""
        *rest, last = (f"{'an' if color == 'orange' else 'a'} {color} {shape}" for color, shape in self.shapes)
        listed = f"{', '.join(rest)} and {last}" if rest else last
        return f"{listed} on {self.background}"


def make_world(folder: PathLike, images: int = 64, seed: int = 0) -> Path:
    """Write `base` (diffusers layout), `llm` (Hugging Face layout) and `images` (PNG, each with a caption in .txt).

    Args:
        folder: made if it does not exist.
        images: how many; three of four are 32 pixels on their longer side, the others 16.
        seed: of weights and images.

    Returns:
        `folder`.

    Raises:
        LLM4GENError: `images` is not at least 1, or the folder is a file or holds a world already.
    """
    from llm4gen_core import LLM4GENError

    from .small_models import make_miniature_folder, make_t5_folder

    folder = Path(folder)
    if images < 1:
        raise LLM4GENError(f"Images is {images}; expected a whole number of at least 1.")
    if folder.is_file():
        raise LLM4GENError(f"Folder {folder} is a file; choose another name.")
    if (folder / "images").exists() or (folder / "base").exists():
        raise LLM4GENError(f"Folder {folder} holds a world already; choose another name, or delete it first.")
    make_miniature_folder(folder / "base", seed=seed)
    make_t5_folder(folder / "llm", seed=seed)
    (folder / "images").mkdir()
    draws = random.Random(seed)
    for number in range(images):
        scene = draw_scene(draws)
        path = folder / "images" / f"{number:05}.png"
        render(scene, path)
        path.with_suffix(".txt").write_text(scene.caption + "\n", encoding="utf-8")
    return folder


def draw_scene(draws: random.Random) -> Scene:
    """A random scene; no two shapes of it have the same colour, and none that of the background."""
    background = draws.choice(BACKGROUNDS)
    size = draws.choice(SIZES)
    number = draws.choice((1, 1, 2, 2, 3)) if size[0] == 32 else draws.choice((1, 2))
    colors = draws.sample(sorted(set(COLORS) - {background}), number)
    return Scene([(color, draws.choice(SHAPES)) for color in colors], background, size)


def render(scene: Scene, path: Path) -> None:
    """Write a scene as PNG: shapes side by side in columns of equal width, each as large as its column lets it be."""
    from PIL import Image, ImageDraw

    width, height = scene.size
    image = Image.new("RGB", scene.size, COLORS[scene.background])
    draw = ImageDraw.Draw(image)
    column = width / len(scene.shapes)
    radius = min(column, height) * 0.4
    for index, (color, shape) in enumerate(scene.shapes):
        x, y = column * (index + 0.5), height / 2
        left, top, right, bottom = x - radius, y - radius, x + radius - 1, y + radius - 1
        fill, arm = COLORS[color], radius * 0.35
        if shape == "circle":
            draw.ellipse((left, top, right, bottom), fill=fill)
        elif shape == "square":
            draw.rectangle((left, top, right, bottom), fill=fill)
        elif shape == "triangle":
            draw.polygon(((x - 0.5, top), (right, bottom), (left, bottom)), fill=fill)
        else:
            draw.rectangle((x - arm, top, x + arm - 1, bottom), fill=fill)
            draw.rectangle((left, y - arm, right, y + arm - 1), fill=fill)
    image.save(path)


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command, and what it does."""
    parser.add_argument("folder", metavar="DIR", help="folder to make")
    parser.add_argument("--images", type=int, default=64, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and images (default: %(default)s)")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    folder = make_world(args.folder, args.images, args.seed)
    print(f"{args.images} images with captions, a base and an LLM with random weights are in {folder}.")
