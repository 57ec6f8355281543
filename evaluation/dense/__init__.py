"""DensePrompts: the shipped set and its generator, the paper's way to build another one, and statistics of any set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..prompts import Prompt

SHIPPED = Path(__file__).resolve().parents[1] / "data" / "dense_prompts.jsonl.gz"
"""What `generate_prompts()` makes."""


def shipped_prompts() -> list[Prompt]:
    """The set that comes with the project: 7,200 prompts with gold pairs and questions, see `generator`.

    Raises:
        LLM4GENError: the file is missing or damaged.
    """
    from .prompt_file import read_prompt_file

    return read_prompt_file(SHIPPED)
