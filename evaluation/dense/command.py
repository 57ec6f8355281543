"""`python -m evaluation dense`: the shipped set's generator, the builder from images, and statistics."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from llm4gen_diffusers.command_line import Parser


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the commands `generate`, `build` and `statistics`."""
    commands = parser.add_subparsers(dest="dense_command", required=True, metavar="COMMAND", parser_class=Parser)
    _add_generate(commands)
    commands.add_parser(
        "build",
        help="make dense prompts from images as the paper did, by a vision-language model and an LLM",
        description="Describe every image of a folder by a vision-language model, let an LLM turn each description "
        "into many dense prompts, and keep those that are long enough, English, harmless and unlike the others. "
        "Both models are reached through an endpoint that speaks OpenAI's protocol, or loaded from a folder of "
        "transformers. What was described or written is stored at once; the same command goes on where it was ended.",
        epilog="example: python -m evaluation dense build photos --output dense --vision-url http://127.0.0.1:8080/v1 "
        "--vision-model qwen2.5-vl --writer-folder models/qwen2.5-7b-instruct",
        configured_by="evaluation.dense.build_command",
    )
    _add_statistics(commands)


def _add_generate(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "generate",
        help="make dense prompts by rules: the shipped set, or as many others as wanted",
        description="Make dense prompts by rules, with gold attribute-entity pairs and questions. Without options they "
        "are those of the set that comes with the project; another seed gives another set.",
        epilog="example: python -m evaluation dense generate --output dense-2.jsonl --seed 2 --count 1200",
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="to write; ends in .jsonl or .jsonl.gz")
    parser.add_argument("--count", type=int, metavar="N", help="prompts (default: as many as the shipped set)")
    parser.add_argument("--seed", metavar="TEXT", help="any number or text (default: that of the shipped set)")
    parser.add_argument("--force", action="store_true", help="replace FILE if it exists")
    parser.set_defaults(run=_generate)


def _add_statistics(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "statistics",
        help="how long, dense and varied prompts are (Fig. 4 of the paper)",
        description="Words, tokens, parts of speech and attributes of the prompts of any set, beside what papers say "
        "of theirs. Parts of speech need a trained spaCy pipeline, tokens a folder with a tokenizer.",
        epilog="example: python -m evaluation dense statistics --clip-tokenizer models/sd15/tokenizer",
    )
    parser.add_argument(
        "source", nargs="?", metavar="FILE", help=".jsonl, .jsonl.gz, or .txt with one prompt a line (default: shipped)"
    )
    parser.add_argument("--clip-tokenizer", metavar="DIR", help="folder with CLIP's tokenizer")
    parser.add_argument("--t5-tokenizer", metavar="DIR", help="folder with the tokenizer of a T5 or another LLM")
    speech = parser.add_mutually_exclusive_group()
    speech.add_argument(
        "--spacy", default="auto", metavar="NAME", help="trained pipeline, name or folder (default: what is installed)"
    )
    speech.add_argument("--no-spacy", dest="spacy", action="store_const", const=None, help="count no parts of speech")
    parser.add_argument("--json", metavar="FILE", help="write the numbers as JSON too")
    parser.set_defaults(run=_statistics)


def _generate(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from llm4gen_core import LLM4GENError

    from .generator import COUNT, SEED, generate_prompts
    from .prompt_file import write_prompt_file

    output = Path(args.output)
    if output.exists() and not args.force:
        raise LLM4GENError(f"Output {output} exists; choose another name, or give --force to replace it.")
    if not output.name.endswith((".jsonl", ".jsonl.gz")):
        raise LLM4GENError(f"Output {output}: expected a name that ends in .jsonl or .jsonl.gz.")
    count = COUNT if args.count is None else args.count
    prompts = list(
        tqdm(generate_prompts(count, args.seed or SEED), total=max(count, 0), unit=" prompts", mininterval=0.5)
    )
    write_prompt_file(output, prompts)
    print(f"{output}: {len(prompts):,} prompts, {output.stat().st_size:,} bytes")


def _statistics(args: argparse.Namespace) -> None:
    from llm4gen_core.files import write_text

    from . import SHIPPED
    from .prompt_file import read_prompt_file
    from .statistics import count_statistics
    from .statistics_table import as_json, table

    source = Path(args.source) if args.source else SHIPPED
    found = count_statistics(source.name, read_prompt_file(source), args.clip_tokenizer, args.t5_tokenizer, args.spacy)
    print(table(found))
    if args.json:
        write_text(Path(args.json), json.dumps(as_json(found), indent=1, ensure_ascii=False) + "\n")
        print(f"\nwrote {args.json}")
