"""READMEs about the trainer: every key with its default, and valid commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from train.__main__ import build_parser
from train.recipe import Recipe
from train.recipe_file import RECIPES, _fields, _section, load_recipe

ROOT = Path(__file__).parents[2]
README = (ROOT / "train" / "README.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `([a-z_.0-9]+)` \| `(.*?)` \|", re.MULTILINE)
COMMAND = re.compile(r"^(?:accelerate launch|torchrun)?.*?(?:python )?-m train (.+?)(?:  #.*)?$", re.MULTILINE)


def commands() -> list[str]:
    """Commands after `-m train` in the code blocks; a backslash continues a line."""
    found = []
    for file in ("README.md", "train/README.md"):
        text = (ROOT / file).read_text(encoding="utf-8")
        for block in re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            found += [match[1] for line in lines if (match := COMMAND.match(line)) and "Go on with" not in line]
    return found


def keys(section: Any = Recipe, place: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in _fields(section).items():
        inside = _section(section, name)
        if inside is None:
            yield place + name, "???" if field.is_required() else field.default
        else:
            yield from keys(inside, f"{place}{name}.")


def test_every_key_is_in_the_table_with_its_default() -> None:
    documented = {key: yaml.safe_load(default) for key, default in ROW.findall(README.partition("## Every key")[2])}
    expected = {key: list(default) if isinstance(default, tuple) else default for key, default in keys()}
    numbers = {key: float(documented[key]) for key in documented if isinstance(expected.get(key), float)}
    assert {**documented, **numbers} == expected


def test_every_recipe_is_named() -> None:
    for recipe in RECIPES.glob("*.yaml"):
        name = recipe.stem.removeprefix("table4-")
        assert f"`{name}`" in README, name


@pytest.mark.parametrize("command", commands())
def test_commands_are_understood(command: str) -> None:
    args = build_parser().parse_args(shlex.split(command))
    if hasattr(args, "overrides"):
        load_recipe(args.recipe, args.overrides)


def test_commands_are_found() -> None:
    assert len(commands()) > 10
