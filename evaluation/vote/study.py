"""Which pairs of images people are shown: chosen once from sets of images, and written down with their hashes."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llm4gen_core import LLM4GENError
from llm4gen_core.files import JSONLines, write_text
from llm4gen_diffusers.provenance import fingerprint

from ..image_set import ImageRow, ImageSet

QUESTIONS = {"quality": "Which image looks better?", "alignment": "Which image shows the text better?"}
"""The paper's two criteria, sample quality and image-text alignment, in the words that a rater reads."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class StudyModel(_Record):
    """One of the models that are compared.

    Attributes:
        name: as results show it; raters never see it.
        path: of the set of images, from the study's folder on.
        settings: `ImageSettings.fingerprint` of the set.
        images: fingerprint of the ids and hashes of all images that the set held when the study was made.
    """

    name: str = Field(min_length=1)
    path: str
    settings: str
    images: str


class PairImage(_Record):
    """One image of a pair.

    Attributes:
        model: name of the `StudyModel` that painted it.
        file: below the set's folder.
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
        """Opaque name for addresses; made from the file's hash, which nobody knows who has only seen the page."""
        return fingerprint(["image", self.model, self.file, self.sha256])


class Pair(_Record):
    """Images of two models for the same prompt and the same seed.

    Attributes:
        id: opaque, unique in the study.
        prompt, text, category: id, words and category of the prompt.
        seed: of the noise that both images began with.
        first, second: in the order of the study's models; on which side they stand is drawn for each rater.
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


class Question(_Record):
    """What raters are asked about every pair: a name for files, and the words."""

    id: str
    text: str


class Study(_Record):
    """What raters are shown.

    Attributes:
        seed: of the choice of pairs, and with a rater's name of order and sides.
        questions: asked of every pair, in this order.
        repeat: share of the pairs that each rater sees twice, with sides swapped.
        models: two or more.
        pairs: all of them.
    """

    seed: int
    questions: list[Question] = Field(min_length=1)
    repeat: float = Field(ge=0, le=0.5)
    models: list[StudyModel] = Field(min_length=2)
    pairs: list[Pair] = Field(min_length=1)

    @property
    def id(self) -> str:
        """Of everything but where the sets lie."""
        return fingerprint(self.model_dump(exclude={"models": {"__all__": {"path"}}}))

    @property
    def comparisons(self) -> list[tuple[str, str]]:
        """Names of each two models."""
        return list(itertools.combinations([model.name for model in self.models], 2))


class StudyFolder:
    """The folder of a study: `study.json`, `votes.jsonl`, and what `results` writes.

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
            False if the very same study stands there already; its votes stay.

        Raises:
            LLM4GENError: another study stands there.
        """
        if self._study.exists():
            if self.study.id != study.id:
                raise LLM4GENError(
                    f"{self.path} holds another study (other images, pairs, questions, seed or share of repeats); "
                    "choose another folder, for votes of two studies do not belong together."
                )
            return False
        write_text(self._study, json.dumps(study.model_dump(), indent=1, ensure_ascii=False) + "\n")
        return True

    @property
    def study(self) -> Study:
        """
        Raises:
            LLM4GENError: there is no study, or it is damaged.
        """
        try:
            return Study.model_validate_json(self._study.read_bytes())
        except FileNotFoundError:
            raise LLM4GENError(
                f"{self.path} is no study (it has no study.json); make one with "
                f"`python -m evaluation vote create {self.path} --images A B`."
            ) from None
        except ValidationError as error:
            raise LLM4GENError(f"{self._study} is damaged ({error.errors()[0]['msg']}).") from error

    def file(self, study: Study, image: PairImage) -> Path:
        """Where an image lies."""
        (model,) = (model for model in study.models if model.name == image.model)
        return self.path / model.path / image.file

    def read(self, study: Study, image: PairImage) -> bytes:
        """Content of an image's file.

        Raises:
            LLM4GENError: it is gone, or is another one than the study was made with.
        """
        path = self.file(study, image)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise LLM4GENError(
                f"Image {path} cannot be read ({error.strerror}); bring the set of images back to where it was, or "
                f'write its new place into {self._study} ("path", from the study\'s folder on).'
            ) from error
        if hashlib.sha256(content).hexdigest() != image.sha256:
            raise LLM4GENError(
                f"Image {path} is another one than when the study was made; votes for both would be mixed. Bring the "
                "old image back, or make a new study."
            )
        return content


def draw(*key: str | int) -> float:
    """A number from 0 to 1 that depends on the key alone, the same on every machine and in every version of Python."""
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
    """Choose the pairs: prompts and seeds that all sets have, each category by its share of them.

    All comparisons use the same prompts and seeds. A prompt gets a second seed when all of its category have one.

    Args:
        folder: of the study; paths of the sets are written from it on.
        sets: by the names of their models, two or more.
        pairs: of each two models; fewer if there are not as many.
        seed: of the choice.
        repeat: share of the pairs to show twice to each rater, at most .5.
        questions: keys of `QUESTIONS`.

    Raises:
        LLM4GENError: fewer than two sets, an unknown question, no image in common, or the same prompt id with another
            text.
    """
    if len(sets) < 2:
        raise LLM4GENError(f"{len(sets)} set of images is given; expected two or more, of different models.")
    if pairs < 1 or not 0 <= repeat <= 0.5:
        raise LLM4GENError(f"{pairs} pairs with a share of {repeat:g} repeated; expected 1 or more, and 0 to 0.5.")
    if unknown := [name for name in questions if name not in QUESTIONS]:
        raise LLM4GENError(f"Question {unknown[0]!r} is unknown; expected of {', '.join(QUESTIONS)}.")
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
                path=_from(folder, images.path),
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
    """A row for each prompt and seed that all sets have."""
    name, *others = rows
    common = [row for key, row in rows[name].items() if all(key in rows[other] for other in others)]
    if not common:
        have = "; ".join(
            f"{name} has {len({prompt for prompt, _ in keys})} prompts with the seeds "
            f"{', '.join(map(str, sorted({seed for _, seed in keys})[:5])) or 'none'}"
            for name, keys in rows.items()
        )
        raise LLM4GENError(
            f"The sets have no prompt and seed in common ({have}); paint the same prompts with the same seeds."
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
    """Prompts and seeds, each category by its share (the largest remainders are rounded up)."""
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
        # A prompt's second image comes after the first one of all prompts: other prompts say more than other noise.
        seen: dict[str, int] = defaultdict(int)
        turn = {}
        for key in keys:
            turn[key] = seen[key[0]]
            seen[key[0]] += 1
        chosen += sorted(keys, key=turn.__getitem__)[: shares[name][0] + (name in rounded_up)]
    return chosen


def _pair_image(model: str, row: ImageRow) -> PairImage:
    return PairImage(model=model, file=row.file, sha256=row.sha256, width=row.width, height=row.height)


def _from(folder: Path, path: Path) -> str:
    """The path as seen from the folder, so that both can be moved together."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # other drives of Windows
        return path.resolve().as_posix()
