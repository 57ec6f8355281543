from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evaluation.image_set import ImageRow, ImageSet, ImageSettings, Prompt, image_id
from llm4gen_diffusers.machine import fingerprint

Score = Callable[[Prompt, int], Mapping[str, Any] | None]


class SetMaker:
    """Writes image sets and scores, as `generate` and `score` do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def prompts(count: int, categories: Sequence[str] = ("",), words: int = 6) -> list[Prompt]:
        """Prompts with alternating categories."""
        return [
            Prompt(
                id=f"p{number:03}",
                text=" ".join([f"a thing number {number}", *["and another"] * max(words // 2 - 2, 0)]),
                category=categories[number % len(categories)],
            )
            for number in range(count)
        ]

    @staticmethod
    def drawn(name: str, low: float = 0.0, high: float = 1.0) -> Score:
        """A pseudo-random score of each image, from its name."""

        def score(prompt: Prompt, seed: int) -> Mapping[str, Any]:
            return {"score": float(_generator(f"{name} {prompt.id} {seed}").uniform(low, high))}

        return score

    @staticmethod
    def scores(
        images: ImageSet,
        metric: str,
        score: Score,
        *,
        title: str = "",
        share: bool = True,
        describe: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the scores of all images for which `score` returns one."""
        about = dict(describe or {"judge": metric, "hash": "0123456789abcdef"})
        rows = []
        prompts = {prompt.id: prompt for prompt in images.prompts}
        for row in images.rows():
            found = score(prompts[row.prompt], row.seed)
            if found is not None:
                rows.append({"image": row.id, "sha256": row.sha256, "scores": dict(found), "judge": fingerprint(about)})
        images.score_file(metric).append(*rows)
        record = {"judge": fingerprint(about), "describe": about, "title": title or metric, "share": share}
        (images.scores / f"{metric}.about.json").write_text(json.dumps(record), encoding="utf-8")

    @staticmethod
    def set_score(images: ImageSet, metric: str, scores: Mapping[str, Any], /, **more: Any) -> None:
        """Write numbers of the whole set."""
        about = {"judge": "Inception", "resize": "clean"}
        record = {"judge": fingerprint(about), "describe": about, "scores": dict(scores), **more}
        images.scores.mkdir(parents=True, exist_ok=True)
        (images.scores / f"{metric}.set.json").write_text(json.dumps(record), encoding="utf-8")

    @staticmethod
    def read(images: ImageSet, metric: str) -> dict[str, float]:
        """Scores by image id, read with json alone."""
        rows = (json.loads(line) for line in (images.scores / f"{metric}.jsonl").read_text("utf-8").splitlines())
        return {row["image"]: row["scores"]["score"] for row in rows if row["scores"]["score"] is not None}

    def __call__(
        self,
        name: str,
        prompts: Sequence[Prompt],
        seeds: Sequence[int] = (1, 2),
        *,
        benchmark: str = "",
        folder: str = "",
        without: Sequence[str] = (),
        side: int = 24,
        device: Mapping[str, Any] | None = None,
        seconds: float = 2.0,
        generate: Callable[[Prompt, int], Image.Image] | None = None,
    ) -> ImageSet:
        images = ImageSet(self.folder / (folder or name))
        settings = ImageSettings(
            name=name, benchmark=benchmark, seeds=list(seeds), generation={"model": name, "steps": 50, "guidance": 7.5}
        )
        images.create(settings, prompts)
        images.images.mkdir(parents=True, exist_ok=True)
        rows = []
        for number, (prompt, seed) in enumerate((p, s) for p in prompts for s in seeds):
            one = image_id(prompt.id, seed)
            if one in without:
                continue
            picture = generate(prompt, seed) if generate else _noise(f"{name} {one}", side)
            buffer = io.BytesIO()
            picture.save(buffer, format="PNG")
            (images.images / f"{one}.png").write_bytes(buffer.getvalue())
            rows.append(
                ImageRow(
                    id=one,
                    file=f"images/{one}.png",
                    prompt=prompt.id,
                    text=prompt.text,
                    category=prompt.category,
                    seed=seed,
                    width=picture.width,
                    height=picture.height,
                    settings=settings.fingerprint,
                    seconds=seconds + 0.1 * (number % 5),
                    made=dict(device or {"device": "cpu"}),
                    sha256=hashlib.sha256(buffer.getvalue()).hexdigest(),
                ).model_dump()
            )
        images.manifest.append(*rows)
        return images


def _generator(text: str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))


def _noise(text: str, side: int) -> Image.Image:
    return Image.fromarray(_generator(text).integers(0, 255, (side, side, 3), np.uint8))


@pytest.fixture
def make_set(tmp_path: Path) -> SetMaker:
    return SetMaker(tmp_path)
