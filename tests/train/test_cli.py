"""`python -m train`: exit codes, errors of one line, commands, quick help."""

import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from llm4gen_core import LLM4GENError
from train.__main__ import build_parser, main
from train.recipe_file import RECIPES

ROOT = Path(__file__).parents[2]


@pytest.fixture
def refused(refused_by):
    """Run a command that must be refused; returns the error."""
    return refused_by(main)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "COMMAND"),
        ("paint", "'paint'"),
        ("generate --base none", "--prompt"),
        ("run", "RECIPE"),
        (
            "run none",
            "Recipe none does not exist; expected a YAML file, or one of the project's: miniature, miniature-base",
        ),
        ("run sd15", "model.base is missing; give model.base=PATH"),
        ("plan sd15 model.base=x train.stepz=5", "train.stepz is not a key of recipes; closest is steps"),
        ("run sd15 --fast", "--fast"),
        ("resume none", "none holds no run"),
        ("export none", "none holds no run"),
        ("export none --dtype int8", "'int8'"),
    ],
)
def test_bad_input_gives_one_line_and_code_2(refused, arguments, message):
    assert message in refused(*arguments.split())


def test_a_real_process_ends_with_code_2_and_one_line(tmp_path):
    command = [sys.executable, "-m", "train", "export", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1


COMMANDS = ("run", "resume", "plan", "parse", "export")


def test_list_of_commands(capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["--help"])
    help = capsys.readouterr().out
    assert [line.split()[0] for line in help.splitlines() if re.match("    [a-z]", line)] == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_describes_itself_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as end:
        build_parser().parse_args([command, "--help"])
    description, example = " ".join(capsys.readouterr().out.split()).split("options:")
    assert end.value.code == 0
    assert len(description) > 100 and f"example: python -m train {command}" in example


def test_the_help_of_run_lists_the_projects_recipes(capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["run", "--help"])
    help = re.sub(r"-\s+", "-", capsys.readouterr().out)  # argparse breaks lines at hyphens
    assert all(re.search(rf"\b{path.stem}[,\n]", help) for path in RECIPES.glob("*.yaml"))


@pytest.mark.parametrize(
    ("arguments", "function", "expected"),
    [
        ("resume runs/x", "train.loop.resume", Path("runs/x")),
        ("export runs/x --no-ema --dtype float16 --name y", "train.run.export", ("runs/x", "y", "float16", False)),
    ],
)
def test_commands_reach_their_function(monkeypatch, arguments, function, expected):
    monkeypatch.setattr(function, called := Mock())
    assert main(arguments.split()) == 0
    [given] = called.call_args.args
    assert (given if isinstance(given, Path) else (given.source, given.name, given.dtype, given.ema)) == expected


def test_run_gets_the_recipe_with_its_overrides(monkeypatch):
    monkeypatch.setattr("train.loop.run", called := Mock())
    assert main(["run", "miniature", "train.steps=7", "data.sources=[a, b]"]) == 0
    [recipe] = called.call_args.args
    assert recipe.train.steps == 7 and len(recipe.data.sources) == 2


@pytest.mark.parametrize("arguments", ["run sd15", "run none", "run"])
def test_one_of_several_processes_reports_a_common_error(monkeypatch, capsys, refused, arguments):
    refused(*arguments.split())
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(SystemExit) as end:
        main(arguments.split())
    assert end.value.code == 2 and capsys.readouterr() == ("", "")


def test_each_process_reports_an_error_of_its_own(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr("train.loop.run", Mock(side_effect=LLM4GENError("The loss is NaN.")))
    assert main(["run", "miniature"]) == 2
    assert capsys.readouterr().err == "error in process 3: The loss is NaN.\n"


def test_a_missing_package_gives_one_line(refused, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "yaml" or name == "train.recipe_file"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("train.recipe_file", raising=False)
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert "The package yaml is not installed" in refused("run", "sd15")


def test_keyboard_interrupt(monkeypatch, capsys):
    monkeypatch.setattr("train.loop.run", Mock(side_effect=KeyboardInterrupt))
    assert main(["run", "miniature"]) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("command", "package", "expected"),
    [
        ("generate --base x", "llm4gen_diffusers", ["generate", "--base", "x"]),
        ("demo", "miniature", ["demo"]),
        ("miniature world", "miniature", ["world", "world"]),
    ],
)
def test_moved_commands_still_work(monkeypatch, command, package, expected):
    monkeypatch.setattr(f"{package}.__main__.main", called := Mock(return_value=0))
    assert main(command.split()) == 0
    assert called.call_args.args == (expected,)


def test_help_loads_nothing_heavy():
    heavy = {"torch", "diffusers", "transformers", "numpy", "pydantic", "PIL", "spacy"}
    code = (
        "import sys\n"
        "from train.__main__ import main\n"
        f"for command in {['', *COMMANDS]}:\n"
        "    try:\n"
        "        main([*command.split(), '--help'])\n"
        "    except SystemExit as end:\n"
        "        assert end.code == 0\n"
        f"print('HEAVY', {heavy} & set(sys.modules))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0 and "HEAVY set()" in ended.stdout
    assert all(f"python -m train {command}" in ended.stdout for command in COMMANDS)
