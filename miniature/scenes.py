"""Scenes: the content that an image can have, and their rendering.

An image is a grid of cells of 8 x 8 pixels; an object fills one cell. An object has a shape, a colour, a texture and a
size. Nothing else varies, so that the scene can be read exactly from an image (`miniature.judge`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CELL = 8
"""Side of a cell in pixels."""

GRID = 2
"""Side of an image in cells, unless a scene says otherwise."""

BACKGROUND = (30, 30, 38)
"""RGB."""

COLORS = {
    "red": (226, 40, 44),
    "orange": (250, 140, 20),
    "yellow": (250, 232, 60),
    "green": (36, 168, 60),
    "cyan": (70, 220, 232),
    "blue": (44, 80, 236),
    "purple": (164, 56, 204),
    "white": (246, 246, 246),
}
"""RGB of the colour words."""

TEXTURES = ("plain", "striped", "checkered")
SIZES = ("small", "large")

_SHADE = 0.3
"""Relative brightness of the dark pixels of a texture."""

_LARGE = {
    "circle": ("..###..", ".#####.", "#######", "#######", "#######", ".#####.", "..###.."),
    "square": ("#######", "#######", "#######", "#######", "#######", "#######", "#######"),
    "triangle": ("...#...", "...#...", "..###..", "..###..", ".#####.", ".#####.", "#######"),
    "cross": ("..###..", "..###..", "#######", "#######", "#######", "..###..", "..###.."),
    "diamond": ("...#...", "..###..", ".#####.", "#######", ".#####.", "..###..", "...#..."),
    "ring": ("#######", "#######", "##...##", "##...##", "##...##", "#######", "#######"),
}
_SMALL = {
    "circle": (".###.", "#####", "#####", "#####", ".###."),
    "square": ("#####", "#####", "#####", "#####", "#####"),
    "triangle": ("..#..", "..#..", ".###.", ".###.", "#####"),
    "cross": ("..#..", "..#..", "#####", "..#..", "..#.."),
    "diamond": ("..#..", ".###.", "#####", ".###.", "..#.."),
    "ring": ("#####", "#...#", "#...#", "#...#", "#####"),
}
SHAPES = tuple(_LARGE)


@dataclass(frozen=True)
class Object:
    """An object of a scene: a member of each of `SHAPES`, `COLORS`, `TEXTURES` and `SIZES`."""

    shape: str
    color: str
    texture: str
    size: str


@dataclass(frozen=True)
class Scene:
    """Content of an image.

    Attributes:
        objects: ((row, column), object) from the top left.
        rows, columns: size of the grid.
    """

    objects: tuple[tuple[tuple[int, int], Object], ...]
    rows: int = GRID
    columns: int = GRID


def sprite(thing: Object) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Render an object: RGB of its cell [8, 8, 3], and the mask of the object [8, 8]."""
    rows = (_LARGE if thing.size == "large" else _SMALL)[thing.shape]
    start = (CELL - len(rows)) // 2
    mask = np.zeros((CELL, CELL), bool)
    mask[start : start + len(rows), start : start + len(rows)] = [[dot == "#" for dot in row] for row in rows]
    row, column = np.indices(mask.shape) - start
    dark = {"plain": np.zeros_like(mask), "striped": row % 2 == 1, "checkered": (row + column) % 2 == 1}[thing.texture]
    pixels = np.empty((CELL, CELL, 3))
    pixels[:] = BACKGROUND
    pixels[mask] = COLORS[thing.color]
    pixels[mask & dark] *= _SHADE
    return pixels.round().astype(np.uint8), mask


def render(scene: Scene) -> NDArray[np.uint8]:
    """Render a scene as RGB [8 rows, 8 columns, 3]."""
    image = np.empty((CELL * scene.rows, CELL * scene.columns, 3), np.uint8)
    image[:] = BACKGROUND
    for (row, column), thing in scene.objects:
        image[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = sprite(thing)[0]
    return image


HELD_OUT = frozenset((color, SHAPES[(3 * index + 1) % len(SHAPES)]) for index, color in enumerate(COLORS))
"""Combinations (colour, shape) that no training image shows: one shape of every colour."""


def draw_objects(rng: random.Random, count: int, held_out: bool = False) -> list[Object]:
    """Draw objects, no two of the same shape or colour.

    Args:
        rng: random number generator.
        count: how many, at most as many as there are shapes.
        held_out: the first has a combination of `HELD_OUT`; otherwise none has.
    """
    while True:
        shapes = rng.sample(SHAPES, count)
        colors = rng.sample(list(COLORS), count)
        if held_out:
            colors[0], shapes[0] = rng.choice(sorted(HELD_OUT))
            if len(set(shapes)) < count or len(set(colors)) < count:
                continue
        pairs = list(zip(colors, shapes, strict=True))
        if any(pair in HELD_OUT for pair in pairs[held_out:]):
            continue
        # Half of all objects are plain, so that a texture is worth mentioning.
        return [
            Object(shape, color, rng.choice(("plain", "plain", "striped", "checkered")), rng.choice(SIZES))
            for color, shape in pairs
        ]


def reading_order(rows: int = GRID, columns: int = GRID) -> list[tuple[int, int]]:
    """List all cells row by row."""
    return [(row, column) for row in range(rows) for column in range(columns)]


def line_up(things: Sequence[Object], below: bool = False) -> Scene:
    """Place objects in reading order from the top left, as a caption without places means them.

    Args:
        things: at most as many as there are cells, and two or more with `below`.
        below: the second stands below the first instead of beside it, and the others take the next free cells.
    """
    cells = reading_order()
    if below:
        cells.insert(1, cells.pop(GRID))
    return Scene(tuple(sorted(zip(cells, things, strict=False), key=lambda item: item[0])))


def place(rng: random.Random, things: Sequence[Object], rows: int = GRID, columns: int = GRID) -> Scene:
    """Place objects in random cells."""
    chosen = rng.sample(reading_order(rows, columns), len(things))
    return Scene(tuple(sorted(zip(chosen, things, strict=True), key=lambda item: item[0])), rows, columns)
