"""`python -m train`: exit codes, one line of error, nothing executed, quick help."""

import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from llm4gen_core import LLM4GENError, load_adapter
from train.__main__ import build_parser, main
from train.recipe_file import RECIPES

ROOT = Path(__file__).parents[2]


class Exploit:
    """A pickle that makes a file when it is opened without care."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def refused(capsys):
    """Run a command that must end with code 2 and one line on stderr; returns the line."""

    def run(*arguments):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:  # argparse
            code = end.code
        captured = capsys.readouterr()
        assert code == 2 and captured.out == ""
        [line] = captured.err.splitlines()
        assert line.startswith("error: ")
        return line

    return run


def test_generate_paints(models, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\ufeffa red cat\n\n  two dogs \n", encoding="utf-8")
    arguments = f"generate --base {models.base} --adapter {models.adapter} --llm {models.llm} --device cpu"
    arguments += f" --prompt-file {prompts} --steps 2 --width 32 --height 32 --output {tmp_path / 'out'}"
    assert main(arguments.split()) == 0
    files = capsys.readouterr().out.splitlines()
    assert [Path(file).name for file in files] == ["llm4gen_00001.png", "llm4gen_00002.png"]
    assert all(Path(file).is_file() for file in files)


def test_convert_writes(models, tmp_path, capsys):
    assert main(["convert", str(models.adapter), str(tmp_path / "a.safetensors"), "--family", "sd15"]) == 0
    assert load_adapter(tmp_path / "a.safetensors").metadata.base_family == "sd15"


@pytest.mark.parametrize("command", ["convert", "generate"])
def test_a_malicious_adapter_is_refused_and_not_executed(refused, models, tmp_path, command):
    mark, evil = tmp_path / "executed", tmp_path / "projector.pth"
    torch.save({"CrossFusionModule.0.llm_proj.weight": Exploit(mark)}, evil)
    if command == "convert":
        line = refused("convert", evil, tmp_path / "a.safetensors", "--family", "sd15")
    else:
        line = refused("generate", "--base", models.base, "--adapter", evil, "--llm", models.llm, "--prompt", "a cat")
    assert str(evil) in line and "nothing was executed" in line
    assert not mark.exists() and not (tmp_path / "a.safetensors").exists()


def test_a_malicious_llm_is_refused_and_not_executed(refused, models, tmp_path):
    llm, mark = tmp_path / "llm", tmp_path / "executed"
    llm.mkdir()
    for file in models.llm.glob("*.json"):
        (llm / file.name).write_bytes(file.read_bytes())
    torch.save({"t5_encoder.shared.weight": Exploit(mark)}, llm / "pytorch_model.bin")
    refused("generate", "--base", models.base, "--adapter", models.adapter, "--llm", llm, "--prompt", "a cat")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "COMMAND"),
        ("paint", "'paint'"),
        ("generate --base none", "--prompt"),
        ("generate --base none --prompt x --prompt-file y", "not allowed with"),
        ("generate --base none --prompt x --steps many", "'many'"),
        ("generate --base none --prompt x --width 65", "Width is 65"),
        ("generate --base none --prompt x", "does not exist"),
        ("generate --base none --prompt-file none.txt", "Prompt file none.txt"),
        ("convert none.pth out.safetensors", "none.pth does not exist"),
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
def test_bad_input_is_one_line_and_code_2(refused, arguments, message):
    assert message in refused(*arguments.split())


def test_a_prompt_file_without_prompts(refused, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    assert "holds no prompt" in refused("generate", "--base", "none", "--prompt-file", tmp_path / "empty.txt")


def test_a_prompt_file_that_is_not_text(refused, tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in refused("generate", "--base", "none", "--prompt-file", tmp_path / "bad.txt")


def test_what_the_operating_system_refuses_is_one_line_too(refused, models, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "llm4gen_diffusers.convert.save_adapter", Mock(side_effect=OSError(28, "No space left on device"))
    )
    assert "No space left" in refused("convert", models.adapter, tmp_path / "a.safetensors", "--family", "sd15")


def test_a_demo_inside_a_file(refused, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    assert "which is a file" in refused("demo", "--output", tmp_path / "file")


def test_the_real_process_ends_with_code_2_and_one_line(tmp_path):
    command = [sys.executable, "-m", "train", "generate", "--base", str(tmp_path), "--prompt", "a cat"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1


COMMANDS = (
    "run",
    "resume",
    "plan",
    "parse",
    "export",
    "convert",
    "generate",
    "attention",
    "miniature",
    "reproduce",
    "demo",
)


def test_these_are_the_commands(capsys):
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
def test_of_several_processes_one_reports_what_all_of_them_see(monkeypatch, capsys, refused, arguments):
    refused(*arguments.split())
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(SystemExit) as end:
        main(arguments.split())
    assert end.value.code == 2 and capsys.readouterr() == ("", "")


def test_a_process_reports_what_may_be_its_own_error_alone(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr("train.loop.run", Mock(side_effect=LLM4GENError("The loss is NaN.")))
    assert main(["run", "miniature"]) == 2
    assert capsys.readouterr().err == "error in process 3: The loss is NaN.\n"


def test_a_missing_package_is_one_line(refused, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "yaml" or name == "train.recipe_file"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("train.recipe_file", raising=False)
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert "The package yaml is not installed" in refused("run", "sd15")


def test_broken_off_from_the_keyboard(monkeypatch, capsys):
    monkeypatch.setattr("train.loop.run", Mock(side_effect=KeyboardInterrupt))
    assert main(["run", "miniature"]) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("command", ["", *(command for command in COMMANDS if command != "miniature")])
def test_help_loads_nothing_heavy(command):
    heavy = {"torch", "diffusers", "transformers", "numpy", "pydantic", "PIL", "spacy"}
    code = (
        "import sys, atexit\n"
        f"atexit.register(lambda: print('HEAVY', {heavy} & set(sys.modules)))\n"
        "from train.__main__ import main\n"
        f"main({[*command.split(), '--help']})"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0 and "HEAVY set()" in ended.stdout
    assert f"python -m train {command}".strip() in ended.stdout
