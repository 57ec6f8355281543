"""Captions are true of their scenes: bindings and requested content, parsed again from the text alone."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter

import pytest

from miniature.captions import Ask, Caption, cell_name, paragraph
from miniature.dataset import SETS, Drawn, documents, draw_pair, pairs
from miniature.judge import Score, read, score
from miniature.scenes import COLORS, HELD_OUT, SHAPES, SIZES, TEXTURES, Object, Scene, draw_objects, place, render

SHAPE_WORDS = {shape: shape for shape in SHAPES} | {
    "round": "circle",
    "triangular": "triangle",
    "cross-shaped": "cross",
    "diamond-shaped": "diamond",
    "ring-shaped": "ring",
    "crosses": "cross",
    **{f"{shape}s": shape for shape in SHAPES if shape != "cross"},
}
TEXTURE_WORDS = {texture: texture for texture in TEXTURES} | {
    "stripes": "striped",
    "checks": "checkered",
}
SIDES = {
    "to the left of": "left",
    "on the left side of": "left",
    "to the right of": "right",
    "on the right side of": "right",
    "above": "above",
    "over": "above",
    "below": "below",
    "under": "below",
}
NUMBERS = {"two": 2, "three": 3, "four": 4}
HELD_OUT_WORDS = re.compile(
    r"\b(bearing|exactly|upper|lower|something|together|figures|sits|lies|over|under|side"
    rf"|in (?:{'|'.join(COLORS)}))\b"
)


def training(number: int, dense: float = 0.35) -> list[Drawn]:
    return list(itertools.islice(pairs(1, dense), number))


def everything(number: int) -> list[Drawn]:
    """Captions with held-out combinations, wordings and numbers."""
    rng = random.Random("all")
    return [draw_pair(rng, rng.random() < 0.35, everything=True) for _ in range(number)]


def read_short(text: str) -> tuple[tuple[Ask, ...], tuple[tuple[int, str, int], ...]]:
    """Content of a caption of one sentence, from its words alone."""
    asks, relations = [], []
    for part in re.split(r"(?:^|(?<=[ ,]))(?<!exactly )(?=(?:an?|exactly|two|three|something) )", text):
        words = re.findall(r"[\w-]+", part)
        if not words:
            continue
        place_name = re.search(r"in the ((?:top|bottom|upper|lower) \w+)", part)
        asks.append(
            Ask(
                *(
                    next((known[word] for word in words if word in known), None)
                    for known in (SHAPE_WORDS, {color: color for color in COLORS}, TEXTURE_WORDS)
                ),
                size=next((word for word in words if word in SIZES), None),
                cell=cell_of(place_name[1]) if place_name else None,
                count=next((NUMBERS[word] for word in words if word in NUMBERS), 1),
            )
        )
        relations += [(len(asks) - 1, side, len(asks)) for words, side in SIDES.items() if f" {words} " in part]
    return tuple(asks), tuple(relations)


def cell_of(name: str) -> tuple[int, int]:
    row, column = name.split()
    return {"top": 0, "upper": 0, "bottom": 1, "lower": 1}[row], {"left": 0, "right": 1}[column]


def described(caption: Caption, entity: tuple[int, int], scene: Scene) -> Object:
    """Object that an entity names; no scene here has two different objects of the same shape."""
    word = caption.text[slice(*entity)]
    if word in ("thing", "object"):  # of a "triangular blue thing"; the shape is its attribute
        word = caption.text[: entity[0]].split()[-2]
    if word == "something":  # "something triangular in blue"
        word = caption.text[entity[1] :].split()[0]
    [thing] = {thing for _, thing in scene.objects if thing.shape == SHAPE_WORDS[word]}
    return thing


def test_paired_words_are_words_of_the_text() -> None:
    words = {*COLORS, *SIZES, *SHAPE_WORDS, *TEXTURE_WORDS, "thing", "object", "something"}
    for _, caption in everything(1500):
        for start, end in itertools.chain.from_iterable(caption.pairs):
            assert caption.text[start:end] in words
            assert not caption.text[:start][-1:].isalnum() and not caption.text[end:][:1].isalnum()


def test_every_pair_is_true_of_the_scene() -> None:
    for scene, caption in everything(1500):
        for attribute, entity in caption.pairs:
            thing, word = described(caption, entity, scene), caption.text[slice(*attribute)]
            truths = {thing.color, thing.size, thing.texture}
            assert TEXTURE_WORDS.get(word, SHAPE_WORDS.get(word, word)) in truths | {thing.shape}, caption.text


def test_every_requested_attribute_is_bound() -> None:
    """An object has as many pairs as words beside its shape; a shape given by an adjective is one of them."""
    for scene, caption in everything(1500):
        bound = Counter(described(caption, entity, scene).shape for _, entity in caption.pairs)
        for ask in caption.asks:
            told = sum(value is not None for value in (ask.color, ask.texture, ask.size))
            assert bound[str(ask.shape)] == told + (caption.category == "shape"), caption.text


def test_short_captions_request_what_they_say() -> None:
    short = [caption for _, caption in everything(2000) if caption.category != "dense"]
    assert {caption.category for caption in short} == {"complex", "count", "shape", "spatial"}
    for caption in [*short, *SETS["color"].prompts(100), *SETS["texture"].prompts(100)]:
        assert read_short(caption.text) == (caption.asks, caption.relations), caption.text


def test_a_short_caption_without_places_determines_the_image() -> None:
    """No place has to be guessed: objects are in the order of the words, from the top left."""
    order = [(0, 0), (0, 1), (1, 0), (1, 1)]
    for scene, caption in everything(2000):
        if caption.category == "dense" or any(ask.cell for ask in caption.asks):
            continue
        named = [ask.shape for ask in caption.asks for _ in range(ask.count)]
        if caption.relations:
            [(_, relation, _)] = caption.relations
            pair = named[:2] if relation in ("left", "above") else named[1::-1]
            cells = order if relation in ("left", "right") else [order[0], order[2], order[1], order[3]]
            named = [*pair, *named[2:]]
        else:
            cells = order
        expected = dict(zip(cells, named, strict=False))
        assert {cell: thing.shape for cell, thing in scene.objects} == expected, caption.text


def test_paragraphs_say_everything_once_for_each_object() -> None:
    for scene, caption in everything(1500):
        if caption.category != "dense":
            continue
        assert caption.asks == tuple(sorted(caption.asks, key=lambda a: caption.text.index(str(a.shape))))
        sentences = caption.text.split(". ")
        for ask in caption.asks:
            names = {cell_name(ask.cell, held_out) for held_out in (False, True) if ask.cell is not None}
            # the first sentence that names it says where it is; the second goes on about it
            first = next(number for number, text in enumerate(sentences) if f" {ask.shape}" in text)
            assert any(f"in the {name}" in sentences[first] for name in names), caption.text
            both = re.findall(r"\w+", f"{sentences[first]} {sentences[first + 1]}")
            assert {ask.color, ask.texture, ask.size} <= set(both), caption.text
        cells = {thing.shape: cell for cell, thing in scene.objects}
        for first_shape, words, second_shape in re.findall(
            rf"the (\w+) is ({'|'.join(SIDES)}) the (\w+)\.", caption.text
        ):
            (row, column), (other_row, other_column) = cells[first_shape], cells[second_shape]
            assert {
                "left": column < other_column,
                "right": column > other_column,
                "above": row < other_row,
                "below": row > other_row,
            }[SIDES[words]], caption.text


def test_the_image_of_a_scene_matches_its_caption() -> None:
    for scene, caption in everything(600):
        found = score(read(render(scene)[None])[0], caption)
        assert found in (Score(1, 1, 1, 1), Score(1, 1, None, 1)), caption.text


@pytest.mark.parametrize("held_out", [False, True])
def test_paragraphs_have_forty_words(held_out: bool) -> None:
    rng = random.Random(0)
    lengths = [len(paragraph(place(rng, draw_objects(rng, 2)), rng, held_out).text.split()) for _ in range(1000)]
    assert min(lengths) >= 40 and max(lengths) < 80


def test_the_training_set_contains_nothing_held_out() -> None:
    for scene, caption in training(3000):
        assert not any((thing.color, thing.shape) in HELD_OUT for _, thing in scene.objects)
        assert len({thing for _, thing in scene.objects}) < 4
        assert not HELD_OUT_WORDS.search(caption.text), caption.text


def test_held_out_sets_contain_what_is_held_out() -> None:
    def rare(caption: Caption) -> bool:
        return any((ask.color, ask.shape) in HELD_OUT for ask in caption.asks)

    for name, one in SETS.items():
        prompts = one.prompts(100)
        assert all(bool(HELD_OUT_WORDS.search(p.text)) == (name in ("wordings", "dense_wordings")) for p in prompts), (
            name
        )
        assert all(rare(p) == (name == "combinations") for p in prompts), name
        assert all((len(p.asks) == 4) == (name == "four") for p in prompts), name


@pytest.mark.parametrize("name", SETS)
def test_prompts_are_of_their_category_and_always_the_same(name: str) -> None:
    prompts = SETS[name].prompts(60)
    assert SETS[name].prompts(20) == prompts[:20] != SETS[name].prompts(20, seed=1)
    category = {"combinations": "color", "wordings": "color", "four": "dense", "dense_wordings": "dense"}.get(
        name, name
    )
    assert {caption.category for caption in prompts} == {category}


def test_the_same_seed_makes_the_same_training_set() -> None:
    assert training(50) == training(50) != list(itertools.islice(pairs(2), 50))
    assert list(itertools.islice(documents(3), 50)) == list(itertools.islice(documents(3), 50))


def test_held_out_names_of_cells_are_other_words_for_the_same_cells() -> None:
    cells = list(itertools.product(range(2), range(2)))
    for held_out in (False, True):
        assert [cell_of(cell_name(cell, held_out)) for cell in cells] == cells
