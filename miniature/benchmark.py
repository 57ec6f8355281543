"""The miniature world as a benchmark of `evaluation`: prompts, models and the metric of its exact judge.

`evaluation.benchmarks` finds both by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from PIL import Image
from pydantic import TypeAdapter

from evaluation.benchmarks import Benchmark, Column, Preset
from evaluation.image_set import Prompt
from evaluation.metrics.base import Context, ImageMetric, Scores
from evaluation.models import AnyFiles, ModelFiles

from . import GUIDANCE, MODELS, STEPS
from .captions import Caption
from .dataset import SETS
from .judge import CLEAR, read, score

PROMPTS = 32
"""Number of prompts of each set, unless a number is requested."""

_CAPTION = TypeAdapter(Caption)


class MiniatureJudge(ImageMetric):
    """Read an image back into its objects and compare them with the caption.

    "score" is the share of the requested content that is present; "words", "binding" and "exact" are the other fields
    of `miniature.judge.Score`.
    """

    name = "miniature"
    share = True

    @classmethod
    def load(cls, context: Context) -> MiniatureJudge:
        return cls()

    @classmethod
    def applies(cls, prompt: Prompt) -> bool:
        return "caption" in prompt.about

    def describe(self) -> dict[str, Any]:
        # The fingerprint of stored scores; another value would score old image sets again.
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


def caption_prompt(name: str, number: int, caption: Caption) -> Prompt:
    """Prompt of a caption; its category is the name of the prompt set that it comes from, a key of `SETS`."""
    about = _CAPTION.dump_python(caption, mode="json", exclude={"text"})
    return Prompt(id=f"{name}-{number:04}", text=caption.text, category=name, about={"caption": about})


def prompts(count: int | None = None) -> list[Prompt]:
    """The first `count` prompts of each prompt set; None for `PROMPTS`."""
    return [
        caption_prompt(name, number, caption)
        for name, one in SETS.items()
        for number, caption in enumerate(one.prompts(count or PROMPTS))
    ]


def models() -> dict[str, AnyFiles]:
    """The shipped models: the base alone, and with LLM4GEN."""
    base, llm4gen = str(MODELS / "base"), MODELS / "llm4gen"
    return {
        "base": ModelFiles(base=base, batch=64),
        "LLM4GEN": ModelFiles(
            base=base,
            unet=str(llm4gen / "unet"),
            adapter=str(llm4gen / "adapter.safetensors"),
            llm=str(MODELS / "t5"),
            batch=64,
        ),
    }


_PRESET = Preset(
    f"the miniature's own report: DDIM, {STEPS} steps, guidance {GUIDANCE:g}", (0,), STEPS, GUIDANCE, "ddim"
)

BENCHMARK = Benchmark(
    "miniature",
    "Miniature world",
    ("miniature",),
    (
        Column("miniature", "Two objects: requested content present", "color"),
        Column("miniature", "Complex: requested content present", "complex"),
        Column("miniature", "Dense: requested content present", "dense"),
        Column("miniature", "Dense: requested words present", "dense", part="words"),
        Column("miniature", "Dense: binding among objects whose words are all present", "dense", part="binding"),
    ),
    shipped=prompts,
    official=_PRESET,
    paper=_PRESET,
    models=models,
    note="Small models of a synthetic world of small images, judged exactly: no statement about SD1.5 or SDXL.",
)
