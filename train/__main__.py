"""Command line of the trainer. Arguments only: torch and the other libraries load inside the commands."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llm4gen_diffusers.command_line import Parser, quiet_libraries, run_command, same_everywhere

MOVED = {
    "generate": ("llm4gen_diffusers", "generate"),
    "attention": ("llm4gen_diffusers", "attention"),
    "convert": ("llm4gen_diffusers", "convert"),
    "demo": ("miniature", "demo"),
    "reproduce": ("miniature", "reproduce"),
    "miniature": ("miniature", "world"),
}
"""Commands that moved to other packages; they still work here."""


def build_parser() -> Parser:
    parser = Parser(
        prog="python -m train",
        description="Train LLM4GEN adapters. All files are read from this machine; nothing is downloaded.",
        epilog="Quick start on a CPU: python -m miniature world miniature, then python -m train run miniature",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="train an adapter as a recipe says",
        description="Train as a recipe says and write the adapter. The recipe is checked as a whole before models are "
        "opened. Ctrl-C writes a checkpoint and stops; `resume` continues from it exactly. With several GPUs: "
        "accelerate launch -m train run ...",
        epilog="example: python -m train run sd15 model.base=models/sd15 model.llm=models/rankgen-t5-xl-all "
        f"data.sources=photos train.batch_size=64. The project's recipes: {', '.join(_recipe_names())}",
    )
    _add_recipe_arguments(run, _run)
    resume = commands.add_parser(
        "resume",
        help="continue a run that was stopped",
        description="Continue a run from its newest intact checkpoint, as if it had never been stopped. A broken "
        "checkpoint is skipped for the one before it. The recipe is that of the run; the number of processes may "
        "differ from before.",
        epilog="example: python -m train resume runs/sd15",
    )
    resume.add_argument("folder", metavar="RUN_DIR", help="folder of the run: `output` of its recipe")
    resume.set_defaults(run=_resume)
    plan = commands.add_parser(
        "plan",
        help="estimate memory, disk and time of a run without training",
        description="Estimate what `run` with the same arguments needs: parameters by group, memory for weights, "
        "gradients, optimizer and activations, sizes of the caches, steps, samples and time. Lists problems of the "
        "data.",
        epilog="example: python -m train plan sd15 model.base=models/sd15 model.llm=models/rankgen-t5-xl-all "
        "data.sources=photos",
    )
    _add_recipe_arguments(plan, _plan)
    parse = commands.add_parser(
        "parse",
        help="find the attribute-entity pairs of captions",
        description="Find which attribute belongs to which entity in captions, for entity guidance. Other fields of "
        ".jsonl rows are kept, so that the output can be a source of a recipe. A run parses captions without pairs by "
        "itself; use this command to look at the pairs and correct them.",
        epilog="example: python -m train parse photos/captions.jsonl --output photos/captions.parsed.jsonl",
    )
    parse.add_argument(
        "source", metavar="SOURCE", help=".txt with one caption a line, or .jsonl with one object a line"
    )
    parse.add_argument("--output", required=True, metavar="FILE", help=".jsonl to write")
    parse.add_argument(
        "--backend",
        default="auto",
        metavar="NAME",
        help="auto (spaCy if a trained pipeline is installed, else rules), spacy, spacy:PACKAGE or rules "
        "(default: %(default)s)",
    )
    parse.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="number of processes; 0 parses in this one (default: one per processor core if there are many captions)",
    )
    parse.add_argument(
        "--field",
        metavar="KEY",
        help='key of the caption in .jsonl, written as "caption" (default: caption, else text)',
    )
    parse.add_argument("--force", action="store_true", help="replace FILE if it exists")
    parse.set_defaults(run=_parse)
    export = commands.add_parser(
        "export",
        help="write the adapter of any checkpoint",
        description="Write the adapter file for ComfyUI/models/llm4gen if there is one, and the UNet (`unet`, with its "
        "noise schedule in `scheduler`) or the text encoder (`text_encoder`) if the recipe trains it whole. Prints "
        "their names. `run` does this by itself at its end.",
        epilog="example: python -m train export runs/sd15/checkpoints/step-00010000 --output halfway --dtype float16",
    )
    export.add_argument("source", metavar="RUN_DIR", help="a run, for its newest checkpoint, or a checkpoint inside it")
    export.add_argument("--output", metavar="DIR", help="folder to write into (default: export inside the run)")
    export.add_argument("--name", default="adapter", help="adapter file's name without .safetensors (%(default)s)")
    export.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="precision of the exported weights (default: float32, as trained)",
    )
    export.add_argument(
        "--no-ema",
        dest="ema",
        action="store_false",
        help="export the last weights in place of the moving average",
    )
    export.add_argument("--force", action="store_true", help="replace existing files of these names")
    export.set_defaults(run=_export)
    return parser


def _add_recipe_arguments(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], None]) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file, or the name of one of the project's recipes")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="value to use instead of the recipe's, with dots between sections: train.steps=100 "
        "'validation.prompts=[a cat]'. All keys are described in train/recipe.py",
    )
    parser.set_defaults(run=run)


def _run(args: argparse.Namespace) -> None:
    recipe = _recipe(args)
    from .loop import run

    quiet_libraries()
    run(recipe)


def _resume(args: argparse.Namespace) -> None:
    from .loop import resume

    quiet_libraries()
    resume(Path(args.folder))


def _plan(args: argparse.Namespace) -> None:
    recipe = _recipe(args)
    from .plan import plan

    quiet_libraries()
    plan(recipe)


def _parse(args: argparse.Namespace) -> None:
    from .parse import ParseSettings, parse_file

    parse_file(ParseSettings(**vars(args)))


def _export(args: argparse.Namespace) -> None:
    from .run import ExportSettings, export

    quiet_libraries()
    export(ExportSettings(**vars(args)))


def _recipe(args: argparse.Namespace) -> Any:
    from .recipe_file import load_recipe

    with same_everywhere():
        return load_recipe(args.recipe, args.overrides)


def _recipe_names() -> list[str]:
    return sorted(path.stem for path in (Path(__file__).parent / "recipes").glob("*.yaml"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; see `run_command`."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] and arguments[0] in MOVED:
        package, *command = MOVED[arguments[0]]
        return importlib.import_module(f"{package}.__main__").main([*command, *arguments[1:]])
    return run_command(build_parser, "train", arguments)


if __name__ == "__main__":
    sys.exit(main())
