"""The judge reads scenes back from their images, also through noise, and scores hand-made cases correctly."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from numpy.typing import NDArray

from miniature.captions import Ask, Caption, counted, listing, paragraph, related, shapes_told
from miniature.judge import Score, accuracy, blurred, noisy, read, score
from miniature.scenes import (
    BACKGROUND,
    COLORS,
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

RED = Object("circle", "red", "plain", "large")
BLUE = Object("square", "blue", "plain", "large")
GREEN = Object("ring", "green", "striped", "small")
LEFT, MIDDLE, RIGHT, BELOW = (0, 0), (1, 1), (0, 2), (2, 0)
TWO = Scene(((LEFT, RED), (RIGHT, BLUE)), 3, 3)


def scene(*objects: tuple[tuple[int, int], Object]) -> Scene:
    return Scene(tuple(sorted(objects, key=lambda item: item[0])), 3, 3)


def judged(caption: Caption, *objects: tuple[tuple[int, int], Object]) -> Score:
    """Score of the image of these objects."""
    return score(read(render(scene(*objects))[None])[0], caption)


def cell(pixels: NDArray[np.generic]) -> NDArray[np.float64]:
    """An image [1, 24, 24, 3] from 0 to 1 with one cell's pixels from 0 to 255 in the middle."""
    image = render(scene()).astype(np.float64)
    image[8:16, 8:16] = pixels
    return image[None] / 255


def colors(held_out: bool = False) -> Caption:
    return listing(TWO, random.Random(1), "color", ("color",), held_out)


# Reading


def test_two_thousand_scenes_are_read_without_an_error() -> None:
    rng = random.Random(0)
    scenes = [place(rng, draw_objects(rng, rng.randint(1, 4), rng.random() < 0.3)) for _ in range(2000)]
    readings = read(np.stack([render(one) for one in scenes]))
    assert [reading.scene for reading in readings] == scenes
    assert not any(reading.unclear for reading in readings)


def test_every_object_is_read_in_a_grid_of_another_size() -> None:
    things = [Object(*values) for values in itertools.product(SHAPES, COLORS, TEXTURES, SIZES)]
    cells = itertools.product(range(12), range(24))
    whole = Scene(tuple(zip(cells, things, strict=True)), rows=12, columns=24)
    assert read(render(whole)[None])[0].scene == whole


def test_bytes_and_numbers_from_0_to_1_are_the_same_image() -> None:
    image = render(TWO)[None]
    assert read(image)[0].scene == read(image / 255)[0].scene == read((image / 255).astype(np.float16))[0].scene == TWO


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((24, 24, 3), np.uint8), "expected"),
        (np.zeros((0, 24, 24, 3), np.uint8), "at least one"),
        (np.zeros((1, 20, 24, 3), np.uint8), "multiples of 8"),
        (np.zeros((1, 3, 24, 24), np.uint8), "multiples of 8"),
        (np.zeros((1, 24, 24, 3), np.int64), "int64"),
    ],
)
def test_arrays_that_are_not_images_of_scenes_are_refused(images: NDArray[np.generic], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(images)


def test_the_mean_of_two_objects_is_not_an_object() -> None:
    [reading] = read(cell(sprite(RED)[0] / 2.0 + sprite(Object("cross", "green", "plain", "large"))[0] / 2.0))
    assert reading.scene.objects == () and reading.unclear == (MIDDLE,)


@pytest.mark.parametrize("noise", [0, 0.1])
def test_half_an_object_is_not_an_object(noise: float) -> None:
    pixels = sprite(Object("square", "white", "plain", "large"))[0].copy()
    pixels[:, 4:] = BACKGROUND
    [reading] = read(cell(pixels) + np.random.default_rng(0).normal(0, noise, (1, 24, 24, 3)))
    assert reading.scene.objects == () and reading.unclear == (MIDDLE,)


def test_a_faint_object_is_not_an_object_even_with_noise() -> None:
    """The allowance is for noise in the whole image: the noise of one bad cell does not make it clear."""
    faint = 0.45 * sprite(GREEN)[0] + 0.55 * np.array(BACKGROUND)
    rng = np.random.default_rng(0)
    assert read(cell(faint))[0].scene.objects == ()
    assert read(cell(faint) + rng.normal(0, 0.05, (1, 24, 24, 3)))[0].scene.objects == ()
    patch = cell(rng.uniform(0, 255, (8, 8, 3)))
    assert read(patch)[0].scene.objects == () and read(patch)[0].unclear in ((), (MIDDLE,))


def test_noise_alone_shows_nothing() -> None:
    images = render(scene())[None] / 255 + np.random.default_rng(0).normal(0, 0.15, (300, 24, 24, 3))
    assert not any(reading.scene.objects for reading in read(images))


@pytest.mark.parametrize(
    ("deviation", "objects", "images"), [(0.0, 1.0, 1.0), (0.05, 0.999, 0.995), (0.1, 0.99, 0.97), (0.15, 0.97, 0.92)]
)
def test_objects_are_read_through_noise(deviation: float, objects: float, images: float) -> None:
    found = accuracy(600, noisy, deviation)
    assert found[0] >= objects and found[1] >= images


def test_objects_are_read_through_light_blur_and_not_through_heavy() -> None:
    """Neighbouring pixels of a texture then have one colour, so that naming it would be a guess."""
    assert accuracy(300, blurred, 0.4) == (1, 1)
    assert 0.3 < accuracy(300, blurred, 0.6)[0] < 0.8
    assert accuracy(300, blurred, 1.0)[0] < 0.4


def test_accuracy_counts_what_is_lost() -> None:
    """An image without its left half has lost the objects there."""

    def cut(images: NDArray[np.float32], rng: np.random.Generator, deviation: float) -> NDArray[np.float32]:
        images = images.copy()
        images[:, :, :8] = np.array(BACKGROUND) / 255
        return images

    objects, images = accuracy(600, cut)
    assert objects == pytest.approx(1 / 2, abs=0.03)
    assert 0.02 < images < 0.2


# Scores: two objects with a colour each


def test_all_requested_content_is_present() -> None:
    assert judged(colors(), (LEFT, RED), (RIGHT, BLUE)) == Score(1, 1, 1, 1)


def test_place_size_and_texture_do_not_matter_unless_requested() -> None:
    others = [Object(t.shape, t.color, "checkered", "small") for t in (RED, BLUE)]
    assert judged(colors(), (RIGHT, others[0]), (MIDDLE, others[1])) == Score(1, 1, 1, 1)


def test_swapped_colours_have_all_words_and_no_binding() -> None:
    swapped = [Object(t.shape, color, t.texture, t.size) for t, color in ((RED, "blue"), (BLUE, "red"))]
    assert judged(colors(), (LEFT, swapped[0]), (RIGHT, swapped[1])) == Score(0, 1, 0, 0)


def test_a_missing_object() -> None:
    assert judged(colors(), (LEFT, RED)) == Score(0.5, 0.5, 1, 0)


def test_an_extra_object_takes_only_exactness() -> None:
    assert judged(colors(), (LEFT, RED), (RIGHT, BLUE), (MIDDLE, GREEN)) == Score(1, 1, 1, 0)


def test_an_unclear_cell_takes_only_exactness() -> None:
    image = render(TWO)
    image[8:16, 8:12] = 200
    [reading] = read(image[None])
    assert reading.unclear == (MIDDLE,)
    assert score(reading, colors()) == Score(1, 1, 1, 0)


def test_a_wrong_colour_is_a_word_less_and_says_nothing_of_binding() -> None:
    """The image has no blue at all: that is not an error of binding."""
    yellow = Object("square", "yellow", "plain", "large")
    assert judged(colors(), (LEFT, RED), (RIGHT, yellow)) == Score(0.5, 0.75, 1, 0)


def test_one_object_matches_one_ask_only() -> None:
    caption = Caption("two red circles", "color", (), (Ask("circle", "red"), Ask("circle", "red")))
    assert judged(caption, (LEFT, RED)) == Score(0.5, 0.5, 0.5, 0)


def test_as_many_asks_as_possible_are_matched() -> None:
    """The first ask would take either; the second only the red one."""
    caption = Caption("a circle and a red circle", "color", (), (Ask("circle"), Ask("circle", "red")))
    assert judged(caption, (LEFT, RED), (RIGHT, Object("circle", "blue", "plain", "large"))) == Score(1, 1, 1, 1)


def test_an_empty_image() -> None:
    assert judged(colors()) == Score(0, 0, None, 0)


def test_held_out_wordings_are_judged_alike() -> None:
    assert " in " in colors(held_out=True).text
    assert judged(colors(held_out=True), (LEFT, RED), (RIGHT, BLUE)) == Score(1, 1, 1, 1)


def test_a_single_object_has_nothing_to_be_confused_with() -> None:
    caption = listing(scene((LEFT, RED)), random.Random(0), "color", ("color",))
    assert judged(caption, (LEFT, RED)) == Score(1, 1, None, 1)


# Scores: the other categories


def test_shapes_told_by_adjectives() -> None:
    caption = shapes_told(TWO, random.Random(0))
    assert "round red" in caption.text
    assert judged(caption, (LEFT, RED), (RIGHT, BLUE)) == Score(1, 1, 1, 1)
    exchanged = [Object(shape, t.color, t.texture, t.size) for t, shape in ((RED, "square"), (BLUE, "circle"))]
    assert judged(caption, (LEFT, exchanged[0]), (RIGHT, exchanged[1])) == Score(0, 1, 0, 0)


def test_textures() -> None:
    striped, checked = Object("circle", "red", "striped", "large"), Object("square", "blue", "checkered", "large")
    caption = listing(scene((LEFT, striped), (RIGHT, checked)), random.Random(0), "texture", ("texture",))
    assert judged(caption, (LEFT, striped), (RIGHT, checked)) == Score(1, 1, 1, 1)
    assert judged(caption, (LEFT, striped), (RIGHT, BLUE)) == Score(0.5, 0.75, 1, 0)


def spatial() -> Caption:
    """Score of a circle to the left of a square, in either order."""
    caption = related(line_up((RED, BLUE)), random.Random(0))
    assert ("left" in caption.text) == caption.text.startswith("a circle")
    return caption


def test_a_relation_that_holds() -> None:
    assert judged(spatial(), (LEFT, RED), (RIGHT, BLUE)) == Score(1, 1, None, 1)


def test_a_relation_that_is_violated_is_one_of_three_things() -> None:
    found = judged(spatial(), (RIGHT, RED), (LEFT, BLUE))
    assert (found.accuracy, found.words, found.binding, found.exact) == (pytest.approx(2 / 3), 1, None, 0)
    above = judged(spatial(), (LEFT, RED), (BELOW, BLUE))
    assert above.accuracy == pytest.approx(2 / 3)


def test_a_relation_to_what_is_missing_does_not_hold() -> None:
    assert judged(spatial(), (LEFT, RED)).accuracy == pytest.approx(1 / 3)


def test_of_several_candidates_any_may_stand_in_the_relation() -> None:
    """A second circle on the wrong side does not undo the first; it is one object too many."""
    other = Object("circle", "green", "plain", "large")
    assert judged(spatial(), (LEFT, RED), (MIDDLE, BLUE), (RIGHT, other)) == Score(1, 1, None, 0)


@pytest.mark.parametrize(("relation", "cells"), [("above", (LEFT, BELOW)), ("below", (BELOW, LEFT))])
def test_relations_of_rows(relation: str, cells: tuple[tuple[int, int], tuple[int, int]]) -> None:
    caption = Caption("", "spatial", (), (Ask("circle"), Ask("square")), ((0, relation, 1),))
    assert judged(caption, (cells[0], RED), (cells[1], BLUE)).exact == 1
    assert judged(caption, (cells[1], RED), (cells[0], BLUE)).accuracy == pytest.approx(2 / 3)


def test_numbers() -> None:
    caption = counted([(RED, 3), (BLUE, 1)])
    assert caption.text == "three red circles and a blue square"
    three = [((0, column), RED) for column in range(3)]
    assert judged(caption, *three, (MIDDLE, BLUE)) == Score(1, 1, None, 1)
    assert judged(caption, *three[:2], (MIDDLE, BLUE)) == Score(0.5, 6 / 8, None, 0)
    assert judged(caption, *three, (BELOW, RED), (MIDDLE, BLUE)) == Score(0.5, 1, None, 0)
    assert judged(caption, *three, (MIDDLE, BLUE), (BELOW, BLUE)) == Score(0.5, 1, None, 0)


def test_places_count_for_accuracy_and_not_for_binding() -> None:
    other = (0, 1)
    caption = listing(scene((LEFT, RED), (other, BLUE)), random.Random(0), told=("color",), cells=True)
    assert judged(caption, (LEFT, RED), (other, BLUE)) == Score(1, 1, 1, 1)
    assert judged(caption, (LEFT, RED), (MIDDLE, BLUE)) == Score(0.5, 1, 1, 0)
    assert judged(caption, (other, RED), (LEFT, BLUE)) == Score(0, 1, 1, 0)


def test_binding_is_over_objects_with_words_to_bind() -> None:
    """A ring of which only the shape is requested cannot be bound wrongly; counting it would hide errors of others."""
    asks = (Ask("circle", "red"), Ask("square", "blue"), Ask("ring"))
    caption = Caption("a red circle, a blue square and a ring", "complex", (), asks)
    swapped = [Object(t.shape, color, t.texture, t.size) for t, color in ((RED, "blue"), (BLUE, "red"))]
    found = judged(caption, (LEFT, swapped[0]), (RIGHT, swapped[1]), (MIDDLE, GREEN))
    assert (found.accuracy, found.words, found.binding) == (pytest.approx(1 / 3), 1, 0)


def test_a_paragraph_requests_everything() -> None:
    other = (0, 1)
    things = (LEFT, RED), (other, BLUE), (MIDDLE, GREEN)
    caption = paragraph(scene(*things), random.Random(0))
    assert judged(caption, *things) == Score(1, 1, 1, 1)
    plain = Object("ring", "green", "plain", "small")
    found = judged(caption, (LEFT, RED), (other, BLUE), (MIDDLE, plain))
    assert (found.accuracy, found.words, found.exact) == (pytest.approx(2 / 3), pytest.approx(11 / 12), 0)


def test_a_bag_of_words_binds_half_of_two_objects() -> None:
    """Colours dealt to the right shapes at random: the chance level that the docstring names."""
    rng = random.Random(0)
    found = []
    for _ in range(1000):
        first, second = draw_objects(rng, 2)
        drawn = place(rng, (first, second))
        caption = listing(drawn, rng, "color", ("color",))
        if rng.random() < 0.5:
            first, second = (Object(a.shape, b.color, a.texture, a.size) for a, b in ((first, second), (second, first)))
        binding = judged(caption, (LEFT, first), (RIGHT, second)).binding
        assert binding is not None
        found.append(binding)
    assert sum(found) / len(found) == pytest.approx(0.5, abs=0.05)
