"""`python -m llm4gen_diffusers`: generate images, show their attention, convert adapter files; and `llm4gen`.

Arguments only: torch and the rest load inside the command that needs them.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence

from .command_line import Parser, quiet_libraries, read_prompts, run_command
from .options import (
    AttentionSettings,
    ConvertSettings,
    GenerateSettings,
    ModelFiles,
    RunOptions,
    SamplingSettings,
    add_arguments,
    options_from,
)

PACKAGES = {
    "train": "train adapters: run, resume, plan, export, ...",
    "evaluation": "measure models on benchmarks: run, generate, score, report, ...",
    "miniature": "a small world to try everything on a CPU: demo, reproduce, ...",
}
"""Packages with a command line of their own, which `llm4gen` runs by their names."""


def build_parser(prog: str = "python -m llm4gen_diffusers", packages: Mapping[str, str] | None = None) -> Parser:
    """Parser of the commands; `packages` adds names and help of commands that `console` passes on."""
    parser = Parser(
        prog=prog,
        description="LLM4GEN on diffusers: generate images, show where they attend to words, convert adapters. "
        "Everything is read from this machine; nothing is ever downloaded.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_generate(commands)
    _add_attention(commands)
    _add_convert(commands)
    for name, help in (packages or {}).items():
        commands.add_parser(name, help=help)
    return parser


def _add_generate(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "generate",
        help="generate images with a base model and LLM4GEN",
        description="Generate the image that the ComfyUI workflow generates with sampler ddim, scheduler ddim_uniform "
        "and the same seed. Without --adapter and --llm it is the plain base. The name of each image is printed; its "
        "prompt and settings are stored in the PNG. Prompts are taken literally: ComfyUI's (word:1.3) has no meaning "
        "here.",
        epilog="example: python -m llm4gen_diffusers generate --base models/sd15 --unet LLM4GEN/unet --adapter "
        'LLM4GEN/projector.pth --llm models/rankgen-t5-xl-all --prompt "a red cat on a blue chair" --seed 7',
    )
    image = _add_sampling(parser, GenerateSettings, ("prompts",))
    prompts = image.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", action="append", dest="prompts", metavar="TEXT", help="prompt; repeatable")
    prompts.add_argument("--prompt-file", metavar="FILE", help="text file (UTF-8) with one prompt a line")
    parser.set_defaults(run=_generate)


def _add_attention(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "attention",
        help="generate an image and show where it attends to words",
        description="Generate the image that `generate` generates with the same options, and write it with a heat map "
        "for each word beside it: the cross-attention that the word's tokens get, averaged over heads, layers and "
        "steps. Colors go from the lowest to the highest value of each map; the number is the word's share of all "
        "attention.",
        epilog="example: python -m llm4gen_diffusers attention --base models/sd15 --unet LLM4GEN/unet --adapter "
        'LLM4GEN/projector.pth --llm models/rankgen-t5-xl-all --prompt "a red cat on a blue chair" --word red '
        "--word cat --seed 7 --output maps.png",
    )
    _add_sampling(parser, AttentionSettings)
    parser.set_defaults(run=_attention)


def _add_convert(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "convert",
        help="convert projector.pth to one safe, self-describing file",
        description="Read an adapter (the official projector.pth, its keys in safetensors, or the project's own file) "
        "without running anything in it, and write the project's own file: the same values, and beside them the base "
        "family, the LLM with its prompt preparation, and what model managers show.",
        epilog="example: python -m llm4gen_diffusers convert projector.pth "
        "ComfyUI/models/llm4gen/llm4gen_sd15.safetensors",
    )
    add_arguments(parser, ConvertSettings)
    parser.set_defaults(run=_convert)


def _add_sampling(
    parser: Parser, settings: type[SamplingSettings], leave_out: Sequence[str] = ()
) -> argparse._ArgumentGroup:
    """Add the options of a command that generates, in three groups; returns the group of the image."""
    add_arguments(parser.add_argument_group("model"), ModelFiles)
    image = parser.add_argument_group("image")
    add_arguments(image, settings, (*leave_out, *ModelFiles.model_fields, *RunOptions.model_fields))
    add_arguments(parser.add_argument_group("run"), RunOptions)
    return image


def _generate(args: argparse.Namespace) -> None:
    from .generate import generate

    if args.prompt_file is not None:
        args.prompts = read_prompts(args.prompt_file)
    settings = options_from(GenerateSettings, args)
    quiet_libraries()
    generate(settings)


def _attention(args: argparse.Namespace) -> None:
    from .attention_maps import attention

    settings = options_from(AttentionSettings, args)
    quiet_libraries()
    attention(settings)


def _convert(args: argparse.Namespace) -> None:
    from .convert import convert

    convert(options_from(ConvertSettings, args))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; see `run_command`."""
    return run_command(build_parser, "train", arguments)


def console(arguments: Sequence[str] | None = None) -> int:
    """Run the console command `llm4gen`: commands of this package, and of `PACKAGES` after the package's name.

    Unlike `python -m train`, it never runs a `train.py` that lies in the current folder.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] and arguments[0] in PACKAGES:
        return importlib.import_module(f"{arguments[0]}.__main__").main(arguments[1:])
    return run_command(lambda: build_parser("llm4gen", PACKAGES), "train", arguments)


if __name__ == "__main__":
    sys.exit(main())
