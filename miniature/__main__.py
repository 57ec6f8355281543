"""`python -m miniature`: the miniature world, its experiments, and the demo.

Only arguments are defined here; torch and the rest are imported by the command that needs them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llm4gen_diffusers.command_line import Parser, quiet_libraries, run_command


def build_parser() -> Parser:
    parser = Parser(
        prog="python -m miniature",
        description="A text-to-image world that can be trained on a CPU, and experiments in it. Nothing is ever "
        "downloaded.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="generate images and train with miniature models",
        description="Generate images of dense prompts with the miniature models that come with the project, base and "
        "LLM4GEN side by side, with attention maps of an attribute and its entity; then train LLM4GEN, interrupt the "
        "run, resume it, and generate an image with the result. Takes about half a minute on a CPU; nothing is "
        "downloaded.",
        epilog="example: python -m miniature demo --output demo",
    )
    demo.add_argument("--output", required=True, metavar="DIR", help="folder for the models and images")
    demo.set_defaults(run=_demo)
    commands.add_parser(
        "world",
        help="write small models and captioned images to try the trainer with",
        description="Write a small base model, a small T5, and images of coloured shapes with their captions, to train "
        "with on a CPU. The recipe `miniature` reads them from the folder `miniature`.",
        epilog="example: python -m miniature world miniature",
        configured_by="miniature.world",
    )
    commands.add_parser(
        "reproduce",
        help="test the paper's claims on small models that are trained from scratch",
        description="Make small images with captions, train a CLIP, two language models and a base on them, then the "
        "base with and without LLM4GEN and its ablations, generate images of prompt sets, score them with an exact "
        "judge, and write a report. What is there is not made again.",
        epilog="example: python -m miniature reproduce reproduction --experiment all",
        configured_by="miniature.reproduce",
    )
    return parser


def _demo(args: argparse.Namespace) -> None:
    from .demo import demo

    quiet_libraries()
    demo(args.output)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; see `run_command`."""
    return run_command(build_parser, "train,evaluation", arguments)


if __name__ == "__main__":
    sys.exit(main())
