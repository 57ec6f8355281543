"""Image sets of a reproduction with given scores, without generating images."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Scored:
    """Scores of one prompt set in one image set.

    Attributes:
        variant, seed, name: of the image set.
        set: the prompt set.
        scores: a value for each image by measure.
        prompts: beginning of the prompts' texts.
    """

    variant: str
    seed: int
    set: str
    scores: Mapping[str, Sequence[float | None]]
    name: str = "final"
    prompts: str = ""

    @property
    def place(self) -> tuple[str, int, str]:
        return self.variant, self.seed, self.name


def write_sets(folder: Path, found: Iterable[Scored]) -> None:
    """Write the image sets; all images are the same small file."""
    for (variant, seed, name), parts in groupby(
        sorted(found, key=lambda one: (*one.place, one.set)), lambda o: o.place
    ):
        path = folder / "images" / variant / str(seed) / name
        (path / "scores").mkdir(parents=True)
        (path / "images").mkdir()
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(path / "images" / "all.png")
        prompts, rows, scores = [], [], []
        for one in parts:
            for number in range(len(next(iter(one.scores.values())))):
                prompt = f"{one.set}-{number:04}"
                text = f"{one.prompts}{prompt}"
                prompts.append({"id": prompt, "text": text, "category": one.set})
                row = {"id": f"{prompt}.0", "file": "images/all.png", "prompt": prompt, "text": text, "seed": 0}
                row |= {"category": one.set, "width": 16, "height": 16, "settings": "s", "seconds": 0.1, "sha256": "h"}
                rows.append({**row, "made": {"device": "cpu", "torch": "2.11.0"}})
                values = {measure: column[number] for measure, column in one.scores.items()}
                scores.append({"image": f"{prompt}.0", "sha256": "h", "judge": "j", "scores": values})
        settings = {"name": variant, "benchmark": "miniature", "seeds": [0], "generation": {}}
        (path / "settings.json").write_text(json.dumps(settings))
        for file, lines in (("prompts", prompts), ("images", rows), ("scores/miniature", scores)):
            (path / f"{file}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
