"""What the READMEs say of the evaluation: commands, models and benchmarks that are understood."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from evaluation.__main__ import build_parser
from evaluation.benchmarks import BENCHMARKS, find_benchmark
from evaluation.models import model_files

ROOT = Path(__file__).parents[2]
README = (ROOT / "evaluation" / "README.md").read_text(encoding="utf-8")
COMMAND = re.compile(r"-m evaluation ((?:run|generate|score|report|judges|dense|vote) [^`#\n]+)")


def commands() -> list[str]:
    texts = [(ROOT / file).read_text(encoding="utf-8") for file in ("README.md", "evaluation/README.md")]
    return [match.strip() for text in texts for match in COMMAND.findall(text)]


def examples() -> list[str]:
    """Of the commands' own help."""
    (commands,) = (action for action in build_parser()._actions if hasattr(action, "choices") and action.choices)
    return [found for one in commands.choices.values() if one.epilog for found in COMMAND.findall(one.epilog)]


@pytest.mark.parametrize("command", [*commands(), *examples()])
def test_commands_are_understood(command: str) -> None:
    build_parser().parse_args(shlex.split(command))


def test_commands_are_found() -> None:
    assert len(commands()) > 5 and len(examples()) > 3


def test_the_file_of_models_is_understood() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    models = yaml.safe_load(block)
    assert len(models) == 4
    for name, fields in models.items():
        model_files(name, fields)


def test_every_benchmark_with_metrics_has_its_row() -> None:
    assert {*re.findall(r"^\| `([a-z0-9-]+)` \|", README, re.MULTILINE)} == {
        name for name in BENCHMARKS if find_benchmark(name).metrics
    }
