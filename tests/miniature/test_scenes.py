"""Scenes: all objects look different, and drawn scenes obey their rules."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from miniature.scenes import (
    BACKGROUND,
    CELL,
    COLORS,
    GRID,
    HELD_OUT,
    SHAPES,
    SIZES,
    TEXTURES,
    Object,
    Scene,
    draw_objects,
    line_up,
    place,
    render,
    sprite,
)

EVERYTHING = [Object(*values) for values in itertools.product(SHAPES, COLORS, TEXTURES, SIZES)]


def test_no_two_objects_look_alike() -> None:
    images = {sprite(thing)[0].tobytes() for thing in EVERYTHING}
    assert len(images) == len(EVERYTHING) == 6 * 8 * 3 * 2
    assert np.full((CELL, CELL, 3), BACKGROUND, np.uint8).tobytes() not in images


@pytest.mark.parametrize("size", SIZES)
def test_shapes_of_a_size_have_outlines_of_their_own(size: str) -> None:
    """Without their textures, too."""
    masks = {shape: sprite(Object(shape, "red", "plain", size))[1] for shape in SHAPES}
    assert min(int((a ^ b).sum()) for a, b in itertools.combinations(masks.values(), 2)) >= 4


def test_an_object_has_its_colour_where_its_texture_is_bright_and_is_dark_elsewhere() -> None:
    for thing in EVERYTHING:
        pixels, mask = sprite(thing)
        found = {tuple(pixel) for pixel in pixels[mask].tolist()}
        dark = {tuple(round(0.3 * value) for value in COLORS[thing.color])}
        assert found == {COLORS[thing.color]} | (dark if thing.texture != "plain" else set()), thing
        assert (pixels[~mask] == BACKGROUND).all()


def test_textures_run_as_their_names_say() -> None:
    striped, checkered = (sprite(Object("square", "red", texture, "large"))[0][:7, :7, 0] for texture in TEXTURES[1:])
    assert (striped == striped[:, :1]).all() and (striped[0] != striped[1]).all()
    assert (checkered[1:, 1:] == checkered[:-1, :-1]).all() and (checkered[0, 1:] != checkered[0, :-1]).all()


def test_an_object_is_drawn_into_its_cell_and_nowhere_else() -> None:
    thing = Object("ring", "cyan", "striped", "small")
    image = render(Scene((((1, 3), thing),), rows=2, columns=4))
    assert image.shape == (16, 32, 3) and image.dtype == np.uint8
    assert np.array_equal(image[8:, 24:], sprite(thing)[0])
    image[8:, 24:] = BACKGROUND
    assert (image == BACKGROUND).all()


def test_one_shape_of_every_colour_is_held_out() -> None:
    assert sorted(color for color, _ in HELD_OUT) == sorted(COLORS)
    assert {shape for _, shape in HELD_OUT} <= set(SHAPES)


def test_training_objects_are_all_but_the_held_out_ones() -> None:
    rng = random.Random(0)
    drawn = [draw_objects(rng, rng.randint(1, 5)) for _ in range(1500)]
    for things in drawn:
        assert len({thing.shape for thing in things}) == len({thing.color for thing in things}) == len(things)
    pairs = {(thing.color, thing.shape) for things in drawn for thing in things}
    assert pairs == set(itertools.product(COLORS, SHAPES)) - HELD_OUT
    assert {thing.texture for things in drawn for thing in things} == set(TEXTURES)
    assert {thing.size for things in drawn for thing in things} == set(SIZES)


def test_the_first_of_held_out_objects_is_a_held_out_combination() -> None:
    rng = random.Random(0)
    firsts = set()
    for _ in range(500):
        first, *others = draw_objects(rng, rng.randint(1, 5), held_out=True)
        firsts.add((first.color, first.shape))
        assert all((thing.color, thing.shape) not in HELD_OUT for thing in others)
        assert len({thing.shape for thing in (first, *others)}) == 1 + len(others)
    assert firsts == HELD_OUT


def test_every_cell_is_used_and_none_twice() -> None:
    rng = random.Random(0)
    used = set()
    for _ in range(200):
        things = draw_objects(rng, 3)
        scene = place(rng, things)
        cells = [cell for cell, _ in scene.objects]
        assert sorted(set(cells)) == cells and {thing for _, thing in scene.objects} == set(things)
        used |= set(cells)
    assert used == set(itertools.product(range(GRID), range(GRID)))


def test_objects_are_placed_in_reading_order() -> None:
    things = draw_objects(random.Random(0), 4)
    assert line_up(things).objects == tuple(zip([(0, 0), (0, 1), (1, 0), (1, 1)], things, strict=True))
    assert line_up(things[:1]).objects == (((0, 0), things[0]),)


def test_the_second_object_may_be_below_the_first() -> None:
    a, b, c, d = draw_objects(random.Random(0), 4)
    assert line_up((a, b), below=True).objects == (((0, 0), a), ((1, 0), b))
    assert line_up((a, b, c, d), below=True).objects == (((0, 0), a), ((0, 1), c), ((1, 0), b), ((1, 1), d))


def test_the_same_seed_draws_the_same_scene() -> None:
    def draw(seed: int) -> Scene:
        rng = random.Random(seed)
        return place(rng, draw_objects(rng, 4))

    assert draw(5) == draw(5) != draw(6)
