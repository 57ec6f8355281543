"""The command line. Arguments only: torch and the rest load inside the command that needs them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from llm4gen_diffusers.command_line import Parser, run_command


def build_parser() -> Parser:
    parser = Parser(
        prog="python -m evaluation",
        description="The paper's benchmarks, for LLM4GEN, its bases, any other pipeline of diffusers and any workflow "
        "of ComfyUI. Everything is read from this machine; nothing is ever downloaded.",
        epilog="Try it all on a CPU: python -m evaluation run miniature results",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser(
        "run",
        help="a whole benchmark: paint, score, report",
        description="Paint the prompts of a benchmark with one or several models, score the images by its metrics, and "
        "write the report. What is there is not made again, so that the same command goes on after Ctrl-C, a crash or "
        "a kill. With several GPUs: accelerate launch -m evaluation run ...",
        epilog="example: python -m evaluation run t2i-compbench results --prompts T2I-CompBench/examples/dataset "
        "--models models.yaml --judges judges",
        configured_by="evaluation.run_command",
    )
    commands.add_parser(
        "generate",
        help="paint a set of prompts with one model",
        description="Paint every prompt with every seed, as PNG files with a manifest of what each was made with. "
        "Images that are there are not painted again. With several GPUs: accelerate launch -m evaluation generate ...",
        epilog="example: python -m evaluation generate sets/sd15 --benchmark dense-prompts --base models/sd15",
        configured_by="evaluation.generate_command",
    )
    commands.add_parser(
        "score",
        help="score sets of images",
        description="Score the images of one or several sets. Judges are models in folders of this machine; what is "
        "missing is named with its source. Images that the same judge has scored are not scored again.",
        epilog="example: python -m evaluation score sets/sd15 sets/llm4gen --metrics clip_score aesthetic "
        "--judges judges",
        configured_by="evaluation.score_command",
    )
    commands.add_parser(
        "report",
        help="tables, intervals, paired tests and grids of scored sets",
        description="Write one page and one JSON file about scored sets of images; the first is what the others are "
        "compared with.",
        epilog="example: python -m evaluation report sets/sd15 sets/llm4gen --output report",
        configured_by="evaluation.report.write",
    )
    commands.add_parser(
        "judges",
        help="what the metrics need, and what of it is there",
        description="List the models that judge: which metric needs which, whether it is there, and where to download "
        "what is not, with its size and licence.",
        epilog="example: python -m evaluation judges t2i-compbench --judges judges",
        configured_by="evaluation.judges_command",
    )
    commands.add_parser(
        "dense",
        help="DensePrompts: the shipped set, the builder, statistics",
        description="Dense prompts: the set that comes with the project and its generator, the paper's way to build "
        "another one from images, and statistics of any set of prompts.",
        configured_by="evaluation.dense.command",
    )
    commands.add_parser(
        "vote",
        help="a user study: blind votes on pairs of images, in the browser",
        description="Let people vote blindly which of two images looks better and which shows its text better.",
        configured_by="evaluation.vote.command",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; see `run_command`."""
    return run_command(build_parser, "evaluation", arguments)


if __name__ == "__main__":
    sys.exit(main())
