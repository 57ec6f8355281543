"""The README and docs/ against the code: commands, recipe keys with their defaults, recipes, models and benchmarks."""

from __future__ import annotations

import dataclasses
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from evaluation.benchmarks import BENCHMARKS, find_benchmark
from evaluation.models import model_files
from train.recipe import Recipe
from train.recipe_file import RECIPES, load_recipe

ROOT = Path(__file__).parents[1]
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))}
COMMAND = re.compile(r"-m (llm4gen_diffusers|train|evaluation|miniature) (.+?)(?:  +#.*)?$", re.MULTILINE)
KEY_ROW = re.compile(r"^\| `([a-z_.0-9]+)` \| `(.*?)` \|", re.MULTILINE)


def documented() -> list[tuple[str, str]]:
    """(package, arguments) of every command in a code block; a line that ends in a backslash goes on."""
    found = []
    for text in TEXTS.values():
        for block in re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            lines = [line for line in block.replace("\\\n", " ").splitlines() if "Continue with" not in line]
            found += [match.groups() for line in lines if (match := COMMAND.search(line))]
    return found


def helped() -> list[tuple[str, str]]:
    """The same of the examples in the commands' own help."""
    found = []
    for package in ("llm4gen_diffusers", "train", "evaluation", "miniature"):
        parser = importlib.import_module(f"{package}.__main__").build_parser()
        (commands,) = (action for action in parser._actions if getattr(action, "choices", None))
        examples = [command.epilog.partition(". ")[0] for command in commands.choices.values() if command.epilog]
        found += [match.groups() for example in examples if (match := COMMAND.search(example))]
    return found


@pytest.mark.parametrize(("package", "arguments"), [*documented(), *helped()])
def test_commands_are_understood(package: str, arguments: str) -> None:
    args = importlib.import_module(f"{package}.__main__").build_parser().parse_args(shlex.split(arguments))
    if hasattr(args, "overrides"):
        load_recipe(args.recipe, args.overrides)


def test_commands_are_found() -> None:
    assert len(documented()) > 20 and len(helped()) > 10


def sections(annotation: Any) -> Iterator[type]:
    for choice in (annotation, *get_args(annotation)):
        if dataclasses.is_dataclass(choice) or (isinstance(choice, type) and issubclass(choice, BaseModel)):
            yield choice


def keys(section: Any = Recipe, place: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in section.__pydantic_fields__.items():
        if inside := next(sections(field.annotation), None):
            yield from keys(inside, f"{place}{name}.")
        else:
            yield place + name, "???" if field.is_required() else field.default


def test_every_key_is_documented_with_its_default() -> None:
    table = TEXTS["train.md"].partition("## Every key")[2]
    documented = {key: yaml.safe_load(default) for key, default in KEY_ROW.findall(table)}
    expected = {key: list(default) if isinstance(default, tuple) else default for key, default in keys()}
    numbers = {key: float(documented[key]) for key in documented if isinstance(expected.get(key), float)}
    assert {**documented, **numbers} == expected


def test_every_recipe_is_named() -> None:
    for recipe in RECIPES.glob("*.yaml"):
        assert f"`{recipe.stem.removeprefix('table4-')}`" in TEXTS["train.md"], recipe.stem


def test_the_file_of_models_is_understood() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", TEXTS["evaluate.md"], re.DOTALL)
    for name, fields in yaml.safe_load(block).items():
        model_files(name, fields)


def test_every_benchmark_is_named() -> None:
    assert {*re.findall(r"^\| `([a-z0-9-]+)` \|", TEXTS["evaluate.md"], re.MULTILINE)} == {
        name for name in BENCHMARKS if find_benchmark(name).metrics
    }


def test_every_file_and_link_exists() -> None:
    for name, text in TEXTS.items():
        folder = ROOT if name == "README.md" else ROOT / "docs"
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (folder / target).exists(), f"{name}: {target}"
        for target in re.findall(r"`(tests/[\w/.]+\.py|benchmarks/[\w/.]+\.py)`", text):
            assert (ROOT / target).exists(), f"{name}: {target}"
