"""The exact judge of the miniature world, for its prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from PIL import Image
from pydantic import TypeAdapter

from miniature.captions import Caption
from miniature.judge import CLEAR, read, score

from ..prompts import Prompt
from .base import Context, ImageMetric, Scores

_CAPTION = TypeAdapter(Caption)


def caption_prompt(name: str, number: int, caption: Caption) -> Prompt:
    """A prompt of the miniature; its category is the set of prompts that it comes from."""
    about = _CAPTION.dump_python(caption, mode="json", exclude={"text"})
    return Prompt(id=f"{name}-{number:04}", text=caption.text, category=name, about={"caption": about})


class MiniatureJudge(ImageMetric):
    """Reads an image back into its objects. "score" is the share of what is asked for that is there; "words",
    "binding" and "exact" are the other fields of `miniature.judge.Score`."""

    name = "miniature"
    title = "What is asked for that is there"
    share = True

    @classmethod
    def load(cls, context: Context) -> MiniatureJudge:
        return cls()

    @classmethod
    def applies(cls, prompt: Prompt) -> bool:
        return "caption" in prompt.about

    def describe(self) -> dict[str, Any]:
        return {"judge": "miniature.judge", "clear": CLEAR}

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Scores]:
        readings = read(np.stack([np.asarray(image) for image in images]))
        found: list[Scores] = []
        for reading, prompt in zip(readings, prompts, strict=True):
            about = prompt.about["caption"]
            assert isinstance(about, dict)
            values = asdict(score(reading, _CAPTION.validate_python({"text": prompt.text, **about})))
            found.append({"score": values.pop("accuracy"), **values})
        return found
