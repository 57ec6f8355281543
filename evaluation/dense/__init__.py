"""DensePrompts: the set that ships with the project, the paper's way to build another one, and statistics of any set.

The paper's own set (LLM4GEN, "DensePrompts Benchmark") has more than 7,000 prompts of more than 40 words on average,
written by GPT-4 from descriptions of 100 images. It is not public. The shipped set is another one, as long, dense and
varied. A grammar wrote it, so that the attribute-entity pairs are known rather than parsed; its scores do not compare
with the paper's. Commit 4b76608 is the last one that holds the grammar (`evaluation/dense/generator.py`).

`Prompt.about` of a shipped prompt holds

    pairs: [{"attribute": [start, end], "entity": [start, end]}, ...], characters of the text as in
        `llm4gen_core.entities.Span`. Attributes describe things in the picture, wherever the text says them ("a red
        cat", "its eyes are green", "made of oak", "with stripes"); numbers, positions and the picture's style are not
        attributes. An attribute that the text repeats is a pair again.
    questions: [{"id": 1, "category": "entity", "text": "Is there a cat?", "parents": []}, ...], at most ten yes-or-no
        questions as in the Davidsonian Scene Graph (Cho et al. 2023, arXiv 2310.18235). A question depends on its
        parents: the colour of a cat is asked only where there is a cat.
    scene: name of the setting.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..image_set import Prompt

SHIPPED = Path(__file__).resolve().parents[1] / "data" / "dense_prompts.jsonl.gz"


def shipped_prompts() -> list[Prompt]:
    """Return the shipped set: 7,200 prompts, 600 in each of 12 categories.

    Raises:
        LLM4GENError: the file is missing or damaged.
    """
    return read_prompt_file(SHIPPED)


def read_prompt_file(path: str | os.PathLike[str]) -> list[Prompt]:
    """Read a prompt set.

    Args:
        path: .jsonl as `write_prompts` makes it, the same compressed (.jsonl.gz), or .txt with one prompt a line.

    Raises:
        LLM4GENError: the file cannot be read, a line is not a prompt, an id occurs twice, or there is no prompt.
    """
    from llm4gen_diffusers.command_line import read_prompts as read_lines

    from ..image_set import Prompt, read_prompts

    if not str(path).endswith(".txt"):
        return read_prompts(path)
    return [Prompt(id=f"{number:05d}", text=text) for number, text in enumerate(read_lines(str(path)), 1)]
