"""`python -m miniature`: the small world, its experiments, and the demo.

Arguments only: torch and the rest load inside the command that needs them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llm4gen_diffusers.command_line import Parser, quiet_libraries, run_command


def build_parser() -> Parser:
    parser = Parser(
        prog="python -m miniature",
        description="A text-to-image world small enough to be trained on a CPU, and the experiments in it. "
        "Nothing is ever downloaded.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="generate images and train with miniature models",
        description="Generate images of dense prompts with the miniature that comes with the project, base and LLM4GEN "
        "side by side, and show where both looked at an attribute and its entity; then train a miniature, interrupt "
        "it, resume it, and generate an image with what came out. Takes about a minute on a CPU; nothing is "
        "downloaded.",
        epilog="example: python -m miniature demo --output demo",
    )
    demo.add_argument("--output", required=True, metavar="DIR", help="folder for the models and images")
    demo.set_defaults(run=_demo)
    commands.add_parser(
        "world",
        help="make small models and captioned images to try the trainer with",
        description="Make a base model and an LLM with random weights, and images of coloured shapes with their "
        "captions, all small enough to train with on a CPU. The recipe `miniature` reads them from the folder "
        "`miniature`.",
        epilog="example: python -m miniature world miniature",
        configured_by="miniature.world",
    )
    commands.add_parser(
        "reproduce",
        help="check the paper's claims on a small world that is trained from scratch",
        description="Make a world of small images with captions, train a CLIP, two language models and a base on it, "
        "then the base with and without LLM4GEN and its ablations, generate images for sets of prompts, let an exact "
        "judge score them, and write a report. What is there is not made again.",
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
    return run_command(build_parser, "train", arguments)


if __name__ == "__main__":
    sys.exit(main())
