"""Pairs of images of a user study, chosen once and stored with their hashes, and the schedule of each rater."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llm4gen_core import LLM4GENError
from llm4gen_core.errors import first_problem
from llm4gen_core.files import JSONLines, write_json
from llm4gen_diffusers.machine import fingerprint

from ..image_set import ImageRow, ImageSet

QUESTIONS = {"quality": "Which image looks better?", "alignment": "Which image shows the text better?"}
"""The paper's two criteria, sample quality and image-text alignment, as questions to a rater."""

GAP = 10
"""Other pairs between a pair and its repetition, if a study has enough."""


class Record(BaseModel):
    """Base of what is stored or received; unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class StudyModel(Record):
    """One of the compared models.

    Attributes:
        name: shown in the results; raters never see it.
        path: of the image set, relative to the study's folder.
        settings: `ImageSettings.fingerprint` of the set.
        images: fingerprint of the ids and hashes of all images of the set when the study was created.
    """

    name: str = Field(min_length=1)
    path: str
    settings: str
    images: str


class PairImage(Record):
    """One image of a pair.

    Attributes:
        model: name of its `StudyModel`.
        file: path below the set's folder.
        sha256: of the file.
        width, height: pixels.
    """

    model: str
    file: str
    sha256: str
    width: int
    height: int

    @property
    def id(self) -> str:
        """Opaque name for addresses. It is a hash of the file's hash, which the page does not reveal."""
        return fingerprint(["image", self.model, self.file, self.sha256])


class Pair(Record):
    """Images of two models for the same prompt and the same seed.

    Attributes:
        id: opaque, unique in the study.
        prompt, text, category: id, text and category of the prompt.
        seed: of the initial noise of both images.
        first, second: in the order of the study's models; their sides are drawn for each rater.
    """

    id: str
    prompt: str
    text: str
    category: str
    seed: int
    first: PairImage
    second: PairImage

    @property
    def models(self) -> tuple[str, str]:
        return self.first.model, self.second.model


class Question(Record):
    """Question about every pair: a name for files, and the text."""

    id: str
    text: str


class Study(Record):
    """A user study.

    Attributes:
        seed: of the choice of pairs, and together with a rater's name of order and sides.
        questions: about every pair, in this order.
        repeat: share of the pairs that each rater sees twice, with sides swapped.
        models: two or more.
        pairs: of all comparisons.
    """

    seed: int
    questions: list[Question] = Field(min_length=1)
    repeat: float = Field(ge=0, le=0.5)
    models: list[StudyModel] = Field(min_length=2)
    pairs: list[Pair] = Field(min_length=1)

    @property
    def id(self) -> str:
        """Hash of everything but the folders of the image sets."""
        return fingerprint(self.model_dump(exclude={"models": {"__all__": {"path"}}}))

    @property
    def comparisons(self) -> list[tuple[str, str]]:
        """Names of every two models."""
        return list(itertools.combinations([model.name for model in self.models], 2))


class StudyFolder:
    """Folder of a study: `study.json`, `votes.jsonl`, and the results.

    Args:
        path: the folder; need not exist yet.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.votes = JSONLines(self.path / "votes.jsonl", "Votes")
        self._study = self.path / "study.json"

    def create(self, study: Study) -> bool:
        """Write the study.

        Returns:
            False if the folder holds the same study already; its votes are kept.

        Raises:
            LLM4GENError: the folder holds another study.
        """
        if self._study.exists():
            if self.study.id != study.id:
                raise LLM4GENError(
                    f"{self.path} holds another study (other images, pairs, questions, seed or share of repeats); "
                    "choose another folder."
                )
            return False
        write_json(self._study, study.model_dump())
        return True

    @property
    def study(self) -> Study:
        """The stored study.

        Raises:
            LLM4GENError: there is no study, or it is damaged.
        """
        try:
            return Study.model_validate_json(self._study.read_bytes())
        except FileNotFoundError:
            raise LLM4GENError(
                f"{self.path} is not a study (it has no study.json); create one with "
                f"`python -m evaluation vote create {self.path} --images A B`."
            ) from None
        except ValidationError as error:
            raise LLM4GENError(f"{self._study} is damaged ({first_problem(error)}); create the study again.") from error

    def file(self, study: Study, image: PairImage) -> Path:
        """Path of an image."""
        (model,) = (model for model in study.models if model.name == image.model)
        return self.path / model.path / image.file

    def read(self, study: Study, image: PairImage) -> bytes:
        """Read the bytes of an image's file.

        Raises:
            LLM4GENError: the file is missing, or is not the one that the study was created with.
        """
        path = self.file(study, image)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise LLM4GENError(
                f"Image {path} cannot be read ({error.strerror}); restore the image set, or write its new "
                f'path into {self._study} ("path", relative to the study\'s folder).'
            ) from error
        if hashlib.sha256(content).hexdigest() != image.sha256:
            raise LLM4GENError(
                f"Image {path} is not the one that the study was created with; votes on both would be mixed. Restore "
                "the old image, or create a new study."
            )
        return content


def draw(*key: str | int) -> float:
    """Draw a number from 0 to 1 that depends only on the key, on every machine and Python version."""
    digest = hashlib.sha256(json.dumps(key, ensure_ascii=True).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def make_study(
    folder: Path,
    sets: Mapping[str, ImageSet],
    *,
    pairs: int = 50,
    seed: int = 0,
    repeat: float = 0.1,
    questions: Sequence[str] = tuple(QUESTIONS),
) -> Study:
    """Choose pairs among the prompts and seeds that all sets have, with as many of each category as its share of them.

    All comparisons use the same prompts and seeds. A prompt gets a second seed after all of its category have one.

    Args:
        folder: of the study; the paths of the sets are stored relative to it.
        sets: two or more, by the names of their models.
        pairs: of every two models; fewer if there are fewer.
        seed: of the choice.
        repeat: share of the pairs to show twice to each rater, at most .5.
        questions: keys of `QUESTIONS`.

    Raises:
        LLM4GENError: there are fewer than two sets, an unknown question, no image in common, or one prompt id with two
            texts.
    """
    if len(sets) < 2:
        raise LLM4GENError(f"{len(sets)} image set is given; expected two or more, of different models.")
    if pairs < 1 or not 0 <= repeat <= 0.5:
        raise LLM4GENError(f"{pairs} pairs with a share of {repeat:g} repeated; expected 1 or more, and 0 to 0.5.")
    if unknown := [name for name in questions if name not in QUESTIONS]:
        raise LLM4GENError(f"Question {unknown[0]!r} is unknown; expected one of {', '.join(QUESTIONS)}.")
    rows = {name: {(row.prompt, row.seed): row for row in images.rows()} for name, images in sets.items()}
    chosen = _choose(_common(rows), pairs, seed)
    found = []
    for (first, second), key in itertools.product(itertools.combinations(sets, 2), chosen):
        a, b = rows[first][key], rows[second][key]
        identity = fingerprint(["pair", seed, a.prompt, a.seed, first, second, a.sha256, b.sha256])
        found.append(
            Pair(
                id=identity,
                prompt=a.prompt,
                text=a.text,
                category=a.category,
                seed=a.seed,
                first=_pair_image(first, a),
                second=_pair_image(second, b),
            )
        )
    return Study(
        seed=seed,
        questions=[Question(id=name, text=QUESTIONS[name]) for name in dict.fromkeys(questions)],
        repeat=repeat,
        models=[
            StudyModel(
                name=name,
                path=relative(folder, images.path),
                settings=images.settings.fingerprint,
                images=fingerprint([[row.id, row.sha256] for row in rows[name].values()]),
            )
            for name, images in sets.items()
        ],
        pairs=found,
    )


_Key = tuple[str, int]
"""Id of a prompt, and a seed."""


def _common(rows: Mapping[str, Mapping[_Key, ImageRow]]) -> list[ImageRow]:
    """Return a row for each prompt and seed that all sets have."""
    name, *others = rows
    common = [row for key, row in rows[name].items() if all(key in rows[other] for other in others)]
    if not common:
        have = "; ".join(
            f"{name} has {len({prompt for prompt, _ in keys})} prompts with the seeds "
            f"{', '.join(map(str, sorted({seed for _, seed in keys})[:5])) or 'none'}"
            for name, keys in rows.items()
        )
        raise LLM4GENError(
            f"The sets have no prompt and seed in common ({have}); generate the same prompts with the same seeds."
        )
    for row in common:
        for other in others:
            if rows[other][row.prompt, row.seed].text != row.text:
                raise LLM4GENError(
                    f"Prompt {row.prompt!r} has another text in {other} than in {name}; expected sets of the same "
                    "prompts."
                )
    return common


def _choose(rows: Iterable[ImageRow], number: int, seed: int) -> list[_Key]:
    """Choose prompts and seeds, each category by its share (the largest remainders are rounded up)."""
    categories: dict[str, list[_Key]] = defaultdict(list)
    for row in rows:
        categories[row.category].append((row.prompt, row.seed))
    total = sum(map(len, categories.values()))
    number = min(number, total)
    shares = {name: divmod(number * len(keys), total) for name, keys in categories.items()}
    left = number - sum(whole for whole, _ in shares.values())
    rounded_up = sorted(shares, key=lambda name: (-shares[name][1], draw(seed, "category", name)))[:left]
    chosen = []
    for name in sorted(categories):
        keys = sorted(categories[name], key=lambda key: draw(seed, "choose", *key))
        # A prompt's second image comes after the first one of every prompt: prompts differ more than seeds.
        seen: dict[str, int] = defaultdict(int)
        turn = {}
        for key in keys:
            turn[key] = seen[key[0]]
            seen[key[0]] += 1
        chosen += sorted(keys, key=turn.__getitem__)[: shares[name][0] + (name in rounded_up)]
    return chosen


def _pair_image(model: str, row: ImageRow) -> PairImage:
    return PairImage(model=model, file=row.file, sha256=row.sha256, width=row.width, height=row.height)


def relative(folder: Path, path: Path) -> str:
    """Return the path relative to the folder, so that both can be moved together."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive on Windows
        return path.resolve().as_posix()


@dataclass(frozen=True)
class Task:
    """A pair as a rater sees it.

    Attributes:
        pair: of the study.
        repeat: whether it is the second showing, with sides swapped.
        left, right: images on the sides, "Image A" and "Image B".
    """

    pair: Pair
    repeat: bool
    left: PairImage
    right: PairImage

    @property
    def id(self) -> str:
        """Name that is unique for the rater."""
        return self.pair.id + "-2" * self.repeat


def schedule(study: Study, rater: str) -> list[Task]:
    """Return all that a rater sees, in order.

    Each draw is a hash of the study's seed, the rater and the pair, so that a restarted server continues with the same
    schedule. Pairs that are shown twice are drawn among those that leave room for `GAP` others between.

    Args:
        study: with the pairs.
        rater: as `votes.rater_name` returns it.
    """

    def drawn(what: str, pair: Pair) -> float:
        return draw(study.seed, what, rater, pair.id)

    order = sorted(study.pairs, key=lambda pair: drawn("order", pair))
    gap = min(GAP, len(order) // 2)
    early = order[: len(order) - gap]
    twice = sorted(early, key=lambda pair: drawn("twice", pair))[: round(study.repeat * len(order))]
    place = {pair.id: number for number, pair in enumerate(order)}

    def again(pair: Pair) -> float:
        """Place of the second showing: between two pairs at least `gap` after the first, or after the last pair."""
        earliest = place[pair.id] + gap
        return earliest + 0.5 + int(drawn("again", pair) * (len(order) - earliest))

    placed = [(float(place[pair.id]), _task(pair, False, drawn("side", pair) < 0.5)) for pair in order]
    placed += [(again(pair), _task(pair, True, drawn("side", pair) >= 0.5)) for pair in twice]
    return [task for _, task in sorted(placed, key=lambda one: (one[0], one[1].id))]


def _task(pair: Pair, repeat: bool, first_is_left: bool) -> Task:
    left, right = (pair.first, pair.second) if first_is_left else (pair.second, pair.first)
    return Task(pair, repeat, left, right)
