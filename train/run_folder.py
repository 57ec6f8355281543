"""The folder of a run: what was asked for, what came out, and where everything came from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm4gen_core import LLM4GENError
from llm4gen_core.files import write_text
from llm4gen_diffusers.provenance import machine

from .recipe import Recipe
from .recipe_file import load_recipe


class RunFolder:
    """Names and files of a run.

    Contents: `recipe.yaml` (complete, with defaults), `provenance.json`, `metrics.jsonl`, `data.json` (report on the
    data), `data_left_out.jsonl` and `data_unreadable.jsonl` (what could not be used, and what could not be read
    later), `checkpoints/`, `validation/`, `cache/`, `tensorboard/` and, at the end, `export/`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.validation = path / "validation"
        self.export = path / "export"
        self.metrics = path / "metrics.jsonl"
        self.recipe = path / "recipe.yaml"
        self.provenance = path / "provenance.json"

    def create(self, recipe: Recipe) -> None:
        """Make the folder of a new run; one that ended before its first step is taken over.

        Raises:
            LLM4GENError: it holds a run already, or is a file.
        """
        if self.metrics.exists() or self.checkpoints.exists():
            raise LLM4GENError(
                f"Output {self.path} holds a run already; go on with it by `python -m train resume {self.path}`, or "
                "give another folder (output=PATH)."
            )
        if self.path.is_file():
            raise LLM4GENError(f"Output {self.path} is a file; give a folder (output=PATH).")
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.recipe, recipe.to_yaml())

    def load(self) -> Recipe:
        """The recipe of an existing run.

        Raises:
            LLM4GENError: there is no run.
        """
        if not self.recipe.is_file():
            raise LLM4GENError(f"{self.path} holds no run: there is no recipe.yaml. Expected the output of a recipe.")
        return load_recipe(str(self.recipe))

    def write_provenance(self, content: Mapping[str, Any]) -> None:
        write_text(self.provenance, json.dumps({**machine(), **content}, indent=1, ensure_ascii=False) + "\n")

    def cut_metrics(self, step: int) -> None:
        """Forget what was logged after a step from which the run goes on; a half-written last line too."""
        if not self.metrics.is_file():
            return
        kept = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue
        write_text(self.metrics, "".join(kept))

    def log(self, values: Mapping[str, Any]) -> None:
        """Append a line to `metrics.jsonl`."""
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
