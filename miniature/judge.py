"""Judge: reads an image back into the objects that it shows and compares them with a caption.

It knows every pattern that a cell can show and takes the nearest one. There is nothing to learn and nothing to install;
`accuracy` measures its errors on noisy and blurred images.
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
"""A cell shows an object if the nearest pattern explains this share of its difference from the background.

The share is of squared pixel differences, less the part that white noise all over the image adds to them: no pattern
explains noise, and without that allowance noise of .2 would hide a quarter of all objects.
"""

_WORDS = ("shape", "color", "texture", "size")

Found = Sequence[tuple[tuple[int, int], Object]]


@dataclass(frozen=True)
class Reading:
    """Content of an image.

    Attributes:
        scene: the objects, each in its cell.
        unclear: cells that differ from the background but look like no object.
    """

    scene: Scene
    unclear: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Score:
    """Agreement of an image with a caption, as shares from 0 to 1.

    Attributes:
        accuracy: requested content present: share of the requested objects (with all attributes and in their place,
            each found once), relations and numbers.
        words: requested words present: share of the attribute words and nouns that fit something in the image, as a
            bag of words, whichever belong together.
        binding: attribute binding, among objects whose words are all present: of the objects described by two words or
            more, each of which fits something in the image, the share that is present with all of its words, in any
            place. The selection depends on the image, so that models are compared on different objects. Knowing the
            bag of words alone gives about a half for two objects of two words. None if there is no such object, or
            nothing to confuse it with, and for category "count", whose objects are alike.
        exact: 1 if all of the content is present and nothing else is.
    """

    accuracy: float
    words: float
    binding: float | None
    exact: float


@functools.cache
def _patterns() -> tuple[list[Object], Pixels]:
    """All objects, and their cells as rows of pixels from 0 to 1."""
    things = [Object(*values) for values in itertools.product(SHAPES, COLORS, TEXTURES, SIZES)]
    return things, _unit(np.stack([sprite(thing)[0].reshape(-1) for thing in things]))


def _unit(images: NDArray[Any]) -> Pixels:
    """Convert uint8 to numbers from 0 to 1."""
    return np.divide(images, 255, dtype=np.float32)


def read(images: NDArray[np.generic]) -> list[Reading]:
    """Find the objects in images.

    The nearest of all patterns is taken for a cell, which is the most likely one under white noise; `CLEAR` decides
    whether it is an object at all.

    Args:
        images: [N, 8 rows, 8 columns, 3]; uint8, or floating point from 0 to 1.

    Raises:
        ValueError: there is no image, they do not consist of whole cells, or the dtype is another one.
    """
    if images.ndim != 4 or images.shape[3] != 3 or not images.size or images.shape[1] % CELL or images.shape[2] % CELL:
        raise ValueError(
            f"images have shape {list(images.shape)}; expected [N, H, W, 3], at least one, with H and W multiples of "
            f"{CELL}"
        )
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"images have dtype {images.dtype}; expected uint8, or floating point from 0 to 1")
    pixels: Pixels = _unit(images) if images.dtype == np.uint8 else images.astype(np.float32)
    count, rows, columns = len(pixels), pixels.shape[1] // CELL, pixels.shape[2] // CELL
    cells = pixels.reshape(count, rows, CELL, columns, CELL, 3).transpose(0, 1, 3, 2, 4, 5)
    cells = cells.reshape(count, rows, columns, -1)
    things, patterns = _patterns()
    empty = np.tile(np.asarray(BACKGROUND, np.float32) / 255, CELL * CELL)
    # Squared distances to all patterns, without the term that they share.
    nearest = ((patterns**2).sum(1) - 2 * cells @ patterns.T).argmin(3)
    rest = cells - patterns[nearest]
    from_nearest = (rest**2).sum(3)
    from_empty = ((cells - empty) ** 2).sum(3)
    shows = from_nearest < from_empty
    noise = cells.shape[3] * _noise(np.where(shows[..., None], rest, cells - empty))
    clear = shows & (from_nearest - noise <= (1 - CLEAR) * (from_empty - noise))
    unclear = shows & ~clear
    readings = []
    for number in range(count):
        grid = list(np.ndindex(rows, columns))
        objects = tuple((cell, things[nearest[number][cell]]) for cell in grid if clear[number][cell])
        scene = Scene(objects, rows, columns)
        readings.append(Reading(scene, tuple(cell for cell in grid if unclear[number][cell])))
    return readings


def _noise(rest: Pixels) -> Pixels:
    """Estimate the variance of the white noise [N, 1, 1] from residuals [N, rows, columns, 8 * 8 * 3].

    It is taken from the median difference of neighbouring pixels, as Donoho and Johnstone (1994) do with wavelets:
    noise is everywhere, while errors of an object are smooth or in a few places.
    """
    steps = np.abs(np.diff(rest.reshape(*rest.shape[:3], CELL, CELL, 3), axis=4))
    # The median of |x| is .6745 standard deviations, and the difference of two has twice the variance of one.
    deviation = np.median(steps, axis=tuple(range(1, steps.ndim))) / (0.6745 * np.sqrt(2))
    return (deviation**2).reshape(-1, 1, 1)


def score(reading: Reading, caption: Caption) -> Score:
    """Compare an image with a caption."""
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
    """Whether an object matches each ask; an object counts for one ask, and as many asks as possible are matched."""
    misfits = np.array([[not _fits(ask, cell, thing) for cell, thing in found] for ask in asks], bool)
    served = [False] * len(asks)
    if found:
        for number, chosen in zip(*linear_sum_assignment(misfits), strict=True):
            served[number] = not misfits[number, chosen]
    return served


def _bound(asks: Sequence[Ask], found: Found) -> list[bool]:
    """Whether an object has all words together, for each ask of two words or more that are all in the image."""
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
    """Share of the words that fit something; an object counts once for a word."""
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


def accuracy(scenes: int, disturb: Callable[..., Pixels], deviation: float = 0.0, seed: int = 0) -> tuple[float, float]:
    """Measure the judge on images whose content is known.

    Args:
        scenes: number of images, of two to four objects.
        disturb: `noisy`, `blurred` or another change of the images [N, 16, 16, 3], from 0 to 1.
        deviation: strength of the change.
        seed: seed of scenes and disturbance.

    Returns:
        Share of the objects that are read with all of their attributes in their place, and share of the images that
        are read without any error.
    """
    rng = random.Random(seed)
    truths = [place(rng, draw_objects(rng, rng.randint(2, 4))) for _ in range(scenes)]
    images = np.stack([render(scene) for scene in truths])
    readings = read(disturb(_unit(images), np.random.default_rng(seed), deviation))
    right = total = perfect = 0
    for truth, reading in zip(truths, readings, strict=True):
        right += len(set(truth.objects) & set(reading.scene.objects))
        total += len(truth.objects)
        perfect += truth == reading.scene and not reading.unclear
    return right / total, perfect / scenes


def noisy(images: Pixels, rng: np.random.Generator, deviation: float) -> Pixels:
    """Add Gaussian noise of a standard deviation, for pixels from 0 to 1."""
    return images + rng.normal(0, deviation, images.shape).astype(np.float32)


def blurred(images: Pixels, rng: np.random.Generator, deviation: float) -> Pixels:
    """Blur images by a Gaussian of a standard deviation in pixels."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(images, (0, deviation, deviation, 0))
