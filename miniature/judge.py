"""The judge: reads an image back into the objects that it shows, and says how much of a caption they fulfil.

It knows every picture that a cell can hold, and takes the nearest one. There is nothing to learn and nothing to
install; what it gets wrong on noisy and blurred images is measured by `miniature.judge.accuracy`.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from .captions import Ask, Caption, holds
from .scenes import (
    BACKGROUND,
    CELL,
    COLORS,
    SHAPES,
    SIZES,
    TEXTURES,
    Object,
    Scene,
    draw_objects,
    place,
    render,
    sprite,
)

Pixels = NDArray[np.float32]

CLEAR = 0.7
"""A cell shows an object if the nearest picture explains this share of what makes it differ from the background.

Shares are of squared pixel differences, less what white noise all over the image adds to them: a picture explains no
noise, and without that allowance noise of .2 would hide a quarter of all objects.
"""

_WORDS = ("shape", "color", "texture", "size")

Found = Sequence[tuple[tuple[int, int], Object]]


@dataclass(frozen=True)
class Reading:
    """What an image shows.

    Attributes:
        scene: the objects, each in its cell.
        unclear: cells that differ from the background, but look like no object.
        error: root mean square distance of the pixels, from 0 to 1, from those of `scene`.
    """

    scene: Scene
    unclear: tuple[tuple[int, int], ...]
    error: float


@dataclass(frozen=True)
class Score:
    """How an image fulfils a caption; all from 0 to 1, None where the caption does not ask for it.

    Attributes:
        accuracy: share of what is asked for that is there: every object with all of its attributes and in its place,
            each found once; every relation; every number.
        words: share of the attribute words and nouns that fit something in the image, as a bag: which belongs to which
            does not count.
        binding: of the objects that are told by two words or more, each of which fits something in the image, the
            share that is there with all of its words, wherever it is. A system that knows the bag of words alone gets
            about a half with two objects of two words. None if there is no such object, or nothing to confuse it with,
            and for category "count", where equal objects are asked for.
        exact: 1 if all is there and nothing else is.
    """

    accuracy: float
    words: float
    binding: float | None
    exact: float


@functools.cache
def _pictures() -> tuple[list[Object], Pixels]:
    """Every object, and its cell as a row of pixels from 0 to 1."""
    things = [Object(*values) for values in itertools.product(SHAPES, COLORS, TEXTURES, SIZES)]
    return things, _unit(np.stack([sprite(thing)[0].reshape(-1) for thing in things]))


def _unit(images: NDArray[Any]) -> Pixels:
    """uint8 to numbers from 0 to 1."""
    return np.divide(images, 255, dtype=np.float32)


def read(images: NDArray[np.generic]) -> list[Reading]:
    """Find the objects in images.

    Of all pictures that a cell can hold the nearest is taken, which is the likeliest one under white noise. Whether it
    is an object at all is decided by `CLEAR`.

    Args:
        images: [N, 8 rows, 8 columns, 3]; uint8, or floating from 0 to 1.

    Raises:
        ValueError: there is no image, they do not consist of whole cells, or they hold other numbers.
    """
    if images.ndim != 4 or images.shape[3] != 3 or not images.size or images.shape[1] % CELL or images.shape[2] % CELL:
        raise ValueError(
            f"images have shape {list(images.shape)}; expected [N, H, W, 3], at least one, with H and W multiples of "
            f"{CELL}"
        )
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"images are of {images.dtype}; expected uint8, or floating numbers from 0 to 1")
    pixels: Pixels = _unit(images) if images.dtype == np.uint8 else images.astype(np.float32)
    count, rows, columns = len(pixels), pixels.shape[1] // CELL, pixels.shape[2] // CELL
    cells = pixels.reshape(count, rows, CELL, columns, CELL, 3).transpose(0, 1, 3, 2, 4, 5)
    cells = cells.reshape(count, rows, columns, -1)
    things, pictures = _pictures()
    empty = np.tile(np.asarray(BACKGROUND, np.float32) / 255, CELL * CELL)
    # Squared distances from all pictures, without the term that all share.
    nearest = ((pictures**2).sum(1) - 2 * cells @ pictures.T).argmin(3)
    rest = cells - pictures[nearest]
    from_nearest = (rest**2).sum(3)
    from_empty = ((cells - empty) ** 2).sum(3)
    shows = from_nearest < from_empty
    noise = cells.shape[3] * _noise(np.where(shows[..., None], rest, cells - empty))
    clear = shows & (from_nearest - noise <= (1 - CLEAR) * (from_empty - noise))
    readings = []
    for number in range(count):
        found = [
            ((row, column), things[nearest[number, row, column]])
            for row, column in np.ndindex(rows, columns)
            if clear[number, row, column]
        ]
        unclear = [
            (row, column)
            for row, column in np.ndindex(rows, columns)
            if shows[number, row, column] and not clear[number, row, column]
        ]
        squares = np.where(clear[number], from_nearest[number], from_empty[number])
        error = float(np.sqrt(squares.mean() / cells.shape[3]))
        readings.append(Reading(Scene(tuple(found), rows, columns), tuple(unclear), error))
    return readings


def _noise(rest: Pixels) -> Pixels:
    """Variance of the white noise in images, from what the nearest pictures leave of them.

    Of the differences of neighbouring pixels the median is taken, as Donoho and Johnstone (1994) do with wavelets:
    noise is everywhere, what is wrong with an object is smooth or in a few places.

    Args:
        rest: [N, rows, columns, 8 * 8 * 3].

    Returns:
        [N, 1, 1].
    """
    steps = np.abs(np.diff(rest.reshape(*rest.shape[:3], CELL, CELL, 3), axis=4))
    # The median of |x| is .6745 standard deviations, and the difference of two has twice the variance of one.
    deviation = np.median(steps, axis=tuple(range(1, steps.ndim))) / (0.6745 * np.sqrt(2))
    return (deviation**2).reshape(-1, 1, 1)


def score(reading: Reading, caption: Caption) -> Score:
    """How an image fulfils a caption."""
    asks, found = caption.asks, reading.scene.objects
    fulfilled = [
        float(len(_cells(found, ask)) == ask.count) if ask.count > 1 or caption.category == "count" else float(is_there)
        for ask, is_there in zip(asks, _matched(asks, found), strict=True)
    ]
    fulfilled += [
        float(any(holds(relation, a, b) for a in _cells(found, asks[i]) for b in _cells(found, asks[j])))
        for i, relation, j in caption.relations
    ]
    accuracy = sum(fulfilled) / len(fulfilled)
    expected = sum(ask.count for ask in asks)
    complete = accuracy == 1 and len(found) == expected and not reading.unclear
    bound = _bound(asks, found) if caption.category != "count" else []
    return Score(accuracy, _words(asks, found), sum(bound) / len(bound) if bound else None, float(complete))


def _matched(asks: Sequence[Ask], found: Found) -> list[bool]:
    """For each ask whether an object fits it; an object counts for one of them, and as many as possible are served."""
    misfits = np.array([[not _fits(ask, cell, thing) for cell, thing in found] for ask in asks], bool)
    served = [False] * len(asks)
    if found:
        for number, chosen in zip(*linear_sum_assignment(misfits), strict=True):
            served[number] = not misfits[number, chosen]
    return served


def _bound(asks: Sequence[Ask], found: Found) -> list[bool]:
    """Of each ask with words to bind, all of which are in the image, whether an object has them together."""
    if len(asks) < 2:
        return []
    placeless = [replace(ask, cell=None) for ask in asks]
    return [
        is_there
        for ask, is_there in zip(asks, _matched(placeless, found), strict=True)
        if len(told := _told(ask)) > 1
        and all(any(getattr(thing, name) == value for _, thing in found) for name, value in told)
    ]


def _words(asks: Sequence[Ask], found: Found) -> float:
    """Share of the words that fit something, each thing once for a word."""
    wanted = Counter(word for ask in asks for word in _told(ask) * ask.count)
    there = Counter((name, getattr(thing, name)) for _, thing in found for name in _WORDS)
    return (wanted & there).total() / wanted.total()


def _told(ask: Ask) -> list[tuple[str, str]]:
    """(attribute of `Object`, value) of every word."""
    return [(name, value) for name in _WORDS if (value := getattr(ask, name)) is not None]


def _fits(ask: Ask, cell: tuple[int, int], thing: Object) -> bool:
    return ask.cell in (None, cell) and all(getattr(thing, name) == value for name, value in _told(ask))


def _cells(found: Found, ask: Ask) -> list[tuple[int, int]]:
    return [cell for cell, thing in found if _fits(ask, cell, thing)]


def accuracy(
    scenes: int, disturb: Callable[[Pixels, np.random.Generator], Pixels], seed: int = 0
) -> tuple[float, float]:
    """How often the judge is right on images of which the truth is known.

    Args:
        scenes: how many images, of two to four objects.
        disturb: what happens to the images [N, 16, 16, 3], from 0 to 1, before the judge sees them.
        seed: of scenes and disturbance.

    Returns:
        Share of all objects that are read with all of their attributes in their place, and share of all images that
        are read without any error.
    """
    draws = random.Random(seed)
    truths = [place(draws, draw_objects(draws, draws.randint(2, 4))) for _ in range(scenes)]
    images = np.stack([render(scene) for scene in truths])
    readings = read(disturb(_unit(images), np.random.default_rng(seed)))
    right = total = perfect = 0
    for truth, reading in zip(truths, readings, strict=True):
        right += len(set(truth.objects) & set(reading.scene.objects))
        total += len(truth.objects)
        perfect += truth == reading.scene and not reading.unclear
    return right / total, perfect / scenes


def noisy(deviation: float) -> Callable[[Pixels, np.random.Generator], Pixels]:
    """Gaussian noise of a standard deviation, pixels from 0 to 1."""

    def disturb(images: Pixels, draws: np.random.Generator) -> Pixels:
        return images + draws.normal(0, deviation, images.shape).astype(np.float32)

    return disturb


def blurred(deviation: float) -> Callable[[Pixels, np.random.Generator], Pixels]:
    """Gaussian blur of a standard deviation in pixels."""

    def disturb(images: Pixels, draws: np.random.Generator) -> Pixels:
        from scipy.ndimage import gaussian_filter

        return gaussian_filter(images, (0, deviation, deviation, 0))

    return disturb
