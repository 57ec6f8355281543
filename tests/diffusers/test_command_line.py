"""Command lines `python -m llm4gen_diffusers` and `llm4gen`: help, exit codes, one line of error, nothing executed."""

import os
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from llm4gen_core import LLM4GENError, load_adapter
from llm4gen_diffusers.__main__ import PACKAGES, build_parser, console, main
from llm4gen_diffusers.command_line import Parser
from llm4gen_diffusers.options import GenerationOptions, ModelFiles, Options, add_arguments, option, options_from
from train.__main__ import MOVED
from train.__main__ import main as train_main

ROOT = Path(__file__).parents[2]
COMMANDS = ("generate", "attention", "convert")


class Exploit:
    """A pickle that makes a file when it is opened without care."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def refused(refused_by):
    """Run a command that must be refused; returns the error."""
    return refused_by(main)


def help_of(run, *arguments, capsys):
    with pytest.raises(SystemExit) as end:
        run([*arguments, "--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


# What the commands do


def test_generate_writes_an_image_of_every_line(models, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\ufeffa red cat\n\n  two dogs \n", encoding="utf-8")
    arguments = f"generate --base {models.base} --adapter {models.adapter} --llm {models.llm} --device cpu"
    arguments += f" --prompt-file {prompts} --steps 2 --width 32 --height 32 --output {tmp_path / 'out'}"
    assert main(arguments.split()) == 0
    files = capsys.readouterr().out.splitlines()
    assert [Path(file).name for file in files] == ["llm4gen_00001.png", "llm4gen_00002.png"]
    assert all(Path(file).is_file() for file in files)


def test_convert_writes_an_adapter(models, tmp_path, capsys):
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


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "COMMAND"),
        ("sample", "'sample'"),
        ("generate --base none", "--prompt"),
        ("generate --prompt x", "--base"),
        ("generate --base none --prompt x --prompt-file y", "not allowed with"),
        ("generate --base none --prompt x --steps many", "'many'"),
        ("generate --base none --prompt x --dtype int8", "'int8'"),
        ("generate --base none --prompt x --width 65", "Width is 65; it should be a multiple of 8."),
        ("generate --base none --prompt x --llm y", "There is an LLM but no adapter"),
        ("generate --base none --prompt x --lambda-mode value", "Lambda mode is 'value', but there is no adapter"),
        ("generate --base none --prompt x --family sd2", "Family 'sd2' is not known"),
        ("generate --base none --prompt x", "does not exist"),
        ("generate --base none --prompt-file none.txt", "Prompt file none.txt"),
        ("attention --base none --prompt x", "--word"),
        ("attention --base none --prompt x --word y", "Word 'y' does not occur"),
        ("convert none.pth out.safetensors", "none.pth does not exist"),
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


def test_an_error_of_the_operating_system_is_one_line_too(refused, models, tmp_path, monkeypatch):
    error = OSError(28, "No space left on device")
    monkeypatch.setattr("llm4gen_diffusers.convert.save_adapter", Mock(side_effect=error))
    assert "No space left" in refused("convert", models.adapter, tmp_path / "a.safetensors", "--family", "sd15")


def test_the_real_process_ends_with_code_2_and_one_line(tmp_path):
    command = [sys.executable, "-m", "llm4gen_diffusers", "generate", "--base", str(tmp_path), "--prompt", "a cat"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1


# Help


def test_these_are_the_commands(capsys):
    help = help_of(main, capsys=capsys)
    assert [line.split()[0] for line in help.splitlines() if re.match("    [a-z]", line)] == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_describes_itself_with_an_example(command, capsys):
    description, example = " ".join(help_of(main, command, capsys=capsys).split()).split("options:")
    assert len(description) > 100 and f"example: python -m llm4gen_diffusers {command}" in example


@pytest.mark.parametrize("command", MOVED)
def test_train_passes_moved_commands_on(command, capsys):
    package, *_ = MOVED[command]
    assert help_of(train_main, command, capsys=capsys).startswith(f"usage: python -m {package} ")


def test_help_of_the_console_command_names_all_commands(capsys):
    help = help_of(console, capsys=capsys)
    named = [line.split()[0] for line in help.splitlines() if re.match("    [a-z]", line)]
    assert named == [*COMMANDS, *PACKAGES]
    for package, summary in PACKAGES.items():
        of_package = help_of(console, package, capsys=capsys)
        for command in summary.rpartition(":")[2].replace("...", "").split(","):
            assert re.search(rf"^    {command.strip()}\b", of_package, re.MULTILINE), (package, command)


@pytest.mark.parametrize("arguments", [["train", "run"], ["evaluation", "run"], ["miniature", "demo"]])
def test_the_console_command_reaches_every_package(arguments, capsys):
    assert help_of(console, *arguments, capsys=capsys).startswith(f"usage: python -m {' '.join(arguments)} ")


def test_the_console_command_does_not_run_a_train_py_of_the_current_folder(tmp_path):
    """The script that pip writes: Python puts its folder on the path, not the current one."""
    script, folder = tmp_path / "bin" / "llm4gen", tmp_path / "project"
    for parent in (script.parent, folder):
        parent.mkdir()
    script.write_text("import sys\nfrom llm4gen_diffusers.__main__ import console\nsys.exit(console())\n")
    (folder / "train.py").write_text("open('executed', 'w')\n")
    command = [sys.executable, str(script), "train", "run", "--help"]
    ended = subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert ended.returncode == 0 and ended.stdout.startswith("usage: python -m train run"), ended.stderr
    assert not (folder / "executed").exists()


# Options


class Small(Options):
    """A group with every kind of field."""

    path: str = option(..., "a file", "FILE")
    names: tuple[str, ...] = option((), "a name", name="--name")
    count: int | None = option(None, "a number", ge=1)
    kind: str = option("plain", "a word")
    fast: bool = option(False, "a switch")


def parsed(arguments, **changes):
    parser = Parser()
    add_arguments(parser, Small, **changes)
    return parser.parse_args(arguments.split())


def test_arguments_become_the_group_and_defaults_stay():
    given = parsed("--path x --name a --name b --count 3 --fast")
    assert options_from(Small, given) == Small(path="x", names=("a", "b"), count=3, fast=True)
    assert options_from(Small, parsed("--path x")) == Small(path="x")


def test_fields_may_be_left_out_or_not_required(capsys):
    assert not hasattr(parsed("", leave_out=("kind",), require=False), "kind")
    with pytest.raises(SystemExit):
        parsed("")
    assert "--path" in capsys.readouterr().err


def test_the_help_holds_descriptions_and_defaults():
    parser = Parser()
    add_arguments(parser, Small)
    help = " ".join(parser.format_help().split())
    assert "--path FILE a file" in help and "a word (default: plain)" in help and "None" not in help


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "Model a: Path is missing."),
        ({"path": "x", "cuont": 3}, "Model a: cuont is not an option; expected one of path, names, count, kind, fast."),
        ({"path": "x", "count": 0}, "Model a: Count is 0; it should be greater than or equal to 1."),
        (3, "Model a: The value is 3; it should be a valid dictionary or instance of Small."),
    ],
)
def test_values_of_a_file_are_refused_in_one_sentence(values, message):
    with pytest.raises(LLM4GENError) as caught:
        options_from(Small, values, "Model a")
    assert str(caught.value) == message


def test_an_option_stands_once_in_the_help_of_a_command(capsys):
    help = help_of(main, "generate", capsys=capsys)
    for name in (*ModelFiles.model_fields, *GenerationOptions.model_fields):
        assert len(re.findall(rf"^  --{name.replace('_', '-')} ", help, re.MULTILINE)) == 1


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_loads_nothing_heavy(command):
    heavy = {"torch", "diffusers", "transformers", "numpy", "PIL", "spacy"}
    code = (
        "import sys, atexit\n"
        f"atexit.register(lambda: print('HEAVY', {heavy} & set(sys.modules)))\n"
        "from llm4gen_diffusers.__main__ import main\n"
        f"main({[*command.split(), '--help']})"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0 and "HEAVY set()" in ended.stdout
    assert build_parser().prog in ended.stdout
