"""Reading of recipes: a YAML file over the recipe that it extends, with `key=value` overrides, checked as a whole.

Unknown keys and impossible values are errors that name the key; one message lists all of them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from llm4gen_core import LLM4GENError

from .recipe import Recipe, missing, shown

RECIPES = Path(__file__).parent / "recipes"
"""Folder of the project's recipes; `run sd15` finds `sd15.yaml` here."""

REQUIRED = "???"
"""Placeholder in a recipe for a value that each run has to give."""


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        name: YAML file, or the name of one of the project's recipes ("sd15").
        overrides: "key=value" with dots between sections ("train.steps=100"); the value is YAML.

    Raises:
        LLM4GENError: the file cannot be read, or a key or value is wrong.
    """
    path = find_recipe(name)
    content = _read(path)
    for override in overrides:
        _override(content, override)
    return parse_recipe(content, f"Recipe {path.name}")


def parse_recipe(content: Mapping[str, Any], what: str) -> Recipe:
    """Check the content of a recipe; `what` is its name in errors."""
    content, unfilled = _without_unfilled(content)
    problems = [missing(name) for name in unfilled]
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        problems += _explain(error)
    if problems:
        raise LLM4GENError(f"{what}: {'. '.join(dict.fromkeys(problems))}.")
    return recipe


def find_recipe(name: str) -> Path:
    """Find the YAML file or the project's recipe of that name."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    own = RECIPES / f"{path.stem if path.suffix in ('.yaml', '.yml') else path.name}.yaml"
    if path.parent == Path(".") and own.is_file():
        return own
    known = ", ".join(sorted(file.stem for file in RECIPES.glob("*.yaml")))
    raise LLM4GENError(f"Recipe {name} does not exist; expected a YAML file, or one of the project's: {known}.")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with two corrections: 2e-5 is a number, and a duplicate key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"the key {key} is not text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key}", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path.resolve() in seen:
        raise LLM4GENError(f"Recipe {path} extends itself; remove `extends` from one of {[p.name for p in seen]}.")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise LLM4GENError(f"Recipe {path} cannot be read ({error}); expected a UTF-8 text file.") from error
    except yaml.YAMLError as error:
        raise LLM4GENError(f"Recipe {path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise LLM4GENError(f"Recipe {path} has no keys; expected sections such as model, data and train.")
    parent = content.pop("extends", None)
    if parent is None:
        return content
    beside = [folder / parent for folder in (path.parent, RECIPES)] if isinstance(parent, str) else []
    found = next((file for file in beside if file.is_file()), None)
    if found is None:
        raise LLM4GENError(
            f"Recipe {path}: extends is {parent!r}; expected the name of a recipe beside it, or of one of the "
            "project's, such as sd15.yaml."
        )
    return _merge(_read(found, (*seen, path.resolve())), content)


def _merge(below: Any, above: Any) -> Any:
    """Merge `above` over `below`: sections key by key, other values replace."""
    if isinstance(below, dict) and isinstance(above, dict):
        return {**below, **{key: _merge(below.get(key), value) for key, value in above.items()}}
    return above


def _override(content: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    keys = name.split(".")
    if not equals or not all(keys):
        raise LLM4GENError(f"Override {override!r} is not understood; expected key=value, such as train.steps=100.")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise LLM4GENError(f"Override {override!r}: the value is not valid YAML ({error}).") from error
    section = content
    for depth, key in enumerate(keys[:-1]):
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise LLM4GENError(f"Override {override!r}: {'.'.join(keys[: depth + 1])} has no keys inside it.")
    section[keys[-1]] = value


def _without_unfilled(content: Mapping[str, Any], place: str = "") -> tuple[dict[str, Any], list[str]]:
    """Split the content into the keys that are given and those whose value is `REQUIRED`."""
    kept: dict[str, Any] = {}
    unfilled: list[str] = []
    for key, value in content.items():
        if value == REQUIRED:
            unfilled.append(place + key)
            continue
        if isinstance(value, dict):
            value, below = _without_unfilled(value, f"{place}{key}.")
            unfilled += below
        kept[key] = value
    return kept, unfilled


def _explain(error: ValidationError) -> list[str]:
    """Turn pydantic's errors into sentences that begin with the key, one for all values that a key may have."""
    sentences: list[str] = []
    expected: dict[str, list[str]] = {}
    for problem in error.errors():
        kind, place = problem["type"], problem["loc"]
        if kind == "missing" and isinstance(place[-1], int):
            place = place[:-1]  # a list that is too short
        name, section = _find(place)
        if kind == "value_error":
            # The sections' own checks name their key; the section is put before it.
            sentences.append(".".join(filter(None, (name, str(problem["ctx"]["error"])))))
        elif kind == "missing" and place == problem["loc"]:
            sentences += [missing(key) for key in _required(name, section)]
        elif kind in ("extra_forbidden", "unexpected_keyword_argument"):
            key, known = name.rpartition(".")[2], list(_fields(section))
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"closest is {close[0]}" if close else f"expected one of {', '.join(known)}"
            sentences.append(f"{name} is not a key of recipes; {hint}")
        else:
            expected.setdefault(f"{name} is {shown(problem['input'])}; expected ", []).append(_expectation(problem))
    return sentences + [start + " or ".join(dict.fromkeys(ends)) for start, ends in expected.items()]


_WORDS = {
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid string": "text",
    "a valid boolean": "true or false",
    "a valid tuple": "a list",
    "a valid list": "a list",
    " after validation": "",
    "Input should be ": "",
    "List should have ": "",
    "Tuple should have ": "",
    "'": "",
}
"""Pydantic's phrases and their replacements."""


def _expectation(problem: Any) -> str:
    if problem["type"] in ("model_type", "model_attributes_type", "dataclass_type"):
        return "keys with values"
    if problem["type"] == "missing":
        return "more values"
    message = problem["msg"].partition(", unable to")[0]
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    return message


def _find(place: Sequence[int | str]) -> tuple[str, Any]:
    """Turn pydantic's location into a dotted key, and find the section of the key.

    A location also names the members of a union, after the key; they are left out.
    """
    names: list[str] = []
    section, inside = None, Recipe
    for part in place:
        if isinstance(part, str):
            if inside is None:
                break
            section, inside = inside, _section(inside, part)
        names.append(str(part))
    return ".".join(names), section


def _fields(section: Any) -> Mapping[str, FieldInfo]:
    return getattr(section, "__pydantic_fields__", {})


def _section(section: Any, key: str) -> Any:
    """Find the section under a key, alone or in a list; None for a value."""
    field = _fields(section).get(key)
    choices = (field.annotation, *get_args(field.annotation)) if field else ()
    return next((choice for choice in choices if _fields(choice)), None)


def _required(name: str, section: Any) -> list[str]:
    """List the keys to give where a key is missing: itself, or the required keys of its section."""
    inside = _fields(section)[name.rpartition(".")[2]].annotation
    required = [key for key, field in _fields(inside).items() if field.is_required()]
    return [found for key in required for found in _required(f"{name}.{key}", inside)] or [name]
