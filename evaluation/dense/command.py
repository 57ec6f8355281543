"""`python -m evaluation dense`: build dense prompts from images, and statistics of a prompt set."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from llm4gen_diffusers.command_line import Parser

if TYPE_CHECKING:
    from .chat_models import ChatModel

_SHOWN = 5


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the commands `build` and `statistics`."""
    commands = parser.add_subparsers(dest="dense_command", required=True, metavar="COMMAND", parser_class=Parser)
    commands.add_parser(
        "build",
        help="build dense prompts from images as the paper did, with a vision-language model and an LLM",
        description="Describe every image of a folder with a vision-language model, let an LLM turn each description "
        "into many dense prompts, and keep those that are long enough, English, harmless and not near-duplicates. "
        "Both models are behind an OpenAI-compatible endpoint, or in a folder of transformers. Every answer is stored "
        "at once; after an interruption, run the same command again.",
        epilog="example: python -m evaluation dense build photos --output dense --vision-url http://127.0.0.1:8080/v1 "
        "--vision-model qwen2.5-vl --writer-folder models/qwen2.5-7b-instruct",
        configured_by=_configure_build,
    )
    commands.add_parser(
        "statistics",
        help="length, density and variety of a prompt set (Fig. 4 of the paper)",
        description="Count words, tokens, parts of speech and attributes of a prompt set, and show the numbers that "
        "papers state of theirs. Parts of speech need a trained spaCy pipeline, tokens a tokenizer.",
        epilog="example: python -m evaluation dense statistics --clip-tokenizer models/sd15/tokenizer",
        configured_by=_configure_statistics,
    )


def _configure_build(parser: argparse.ArgumentParser) -> None:
    from llm4gen_diffusers.options import add_arguments

    from .builder import BuildSettings

    parser.add_argument("images", metavar="DIR", help="folder of images, with its subfolders; check their licences")
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder of the build; an unfinished build is continued"
    )
    parser.add_argument("--licences", metavar="FILE", help='JSONL of {"image": NAME, "licence": TEXT, "source": TEXT}')
    for name, what in (("vision", "vision-language model that describes"), ("writer", "LLM that writes the prompts")):
        group = parser.add_argument_group(f"{name} model", f"the {what}: an endpoint or a folder")
        place = group.add_mutually_exclusive_group(required=True)
        place.add_argument(f"--{name}-url", metavar="URL", help="OpenAI-compatible endpoint, up to and including /v1")
        place.add_argument(f"--{name}-folder", metavar="DIR", help="model of transformers with a chat template")
        group.add_argument(f"--{name}-model", metavar="NAME", help="name of the model at the endpoint")
        group.add_argument(
            f"--{name}-key-variable",
            default="OPENAI_API_KEY",
            metavar="NAME",
            help="environment variable with the endpoint's key, if it needs one (default: %(default)s)",
        )
    prompts = parser.add_argument_group("prompts")
    add_arguments(prompts, BuildSettings)
    prompts.add_argument(
        "--unsafe-words", metavar="FILE", help="words that no prompt may contain (default: a short list)"
    )
    run = parser.add_argument_group("run")
    run.add_argument("--parallel", type=int, default=4, help="requests at a time (default: %(default)s)")
    run.add_argument("--timeout", type=float, default=300.0, help="seconds for an answer (default: %(default)s)")
    run.add_argument("--device", help="for models from folders: cpu, cuda, ... (default: a GPU if there is one)")
    run.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), help="default: bfloat16 on a GPU, float32 on the CPU"
    )
    parser.set_defaults(run=_build)


def _configure_statistics(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        nargs="?",
        metavar="FILE",
        help=".jsonl, .jsonl.gz, or .txt with one prompt a line (default: the shipped set)",
    )
    parser.add_argument("--clip-tokenizer", metavar="DIR", help="folder with CLIP's tokenizer")
    parser.add_argument("--t5-tokenizer", metavar="DIR", help="folder with the tokenizer of a T5 or another LLM")
    speech = parser.add_mutually_exclusive_group()
    speech.add_argument(
        "--spacy", default="auto", metavar="NAME", help="trained pipeline, name or folder (default: an installed one)"
    )
    speech.add_argument("--no-spacy", dest="spacy", action="store_const", const=None, help="count no parts of speech")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers as JSON")
    parser.set_defaults(run=_statistics)


def _build(args: argparse.Namespace) -> None:
    from llm4gen_core import LLM4GENError
    from llm4gen_diffusers.options import options_from

    from .builder import Build, BuildSettings
    from .filters import UNSAFE, read_unsafe_words
    from .image_folder import source_images

    if args.parallel < 1 or args.timeout <= 0:
        raise LLM4GENError(f"--parallel {args.parallel}, --timeout {args.timeout}; expected at least 1, and above 0.")
    settings = options_from(BuildSettings, args)
    unsafe = read_unsafe_words(Path(args.unsafe_words) if args.unsafe_words else UNSAFE)
    images = source_images(Path(args.images), Path(args.licences) if args.licences else None)
    build = Build(Path(args.output), images, _model(args, "vision"), _model(args, "writer"), settings, unsafe)
    # A model from a folder computes one answer at a time.
    report = build.run(args.parallel if args.vision_url and args.writer_url else 1)
    print(
        f"{build.folder / 'prompts.jsonl'}: {report.prompts:,} prompts from {report.described:,} of {report.images:,} "
        f"images and {report.answers:,} answers"
    )
    for reason, count in report.rejected.most_common():
        print(f"  left out, {reason}: {count:,}")
    if report.without_licence:
        names = ", ".join(report.without_licence[:_SHOWN])
        more = len(report.without_licence) - _SHOWN
        print(
            f"  no licence is known of {names}{f' and {more:,} more' if more > 0 else ''}; name the licences before "
            "you publish the prompt set (--licences)"
        )
    print(f"statistics: python -m evaluation dense statistics {build.folder / 'prompts.jsonl'}")


def _model(args: argparse.Namespace, name: str) -> ChatModel:
    from llm4gen_core import LLM4GENError
    from llm4gen_diffusers.machine import DTYPES, choose_device

    from .chat_models import Endpoint, LocalModel

    url, folder, model = (getattr(args, f"{name}_{part}") for part in ("url", "folder", "model"))
    if url:
        if not model:
            raise LLM4GENError(f"--{name}-url needs --{name}-model: the name of the model at the endpoint.")
        return Endpoint(url, model, getattr(args, f"{name}_key_variable"), args.timeout)
    device = choose_device(args.device)
    dtype = DTYPES[args.dtype or ("float32" if device.type == "cpu" else "bfloat16")]
    return LocalModel(Path(folder), name == "vision", device, dtype)


def _statistics(args: argparse.Namespace) -> None:
    from llm4gen_core.files import write_json

    from . import SHIPPED, read_prompt_file
    from .statistics import count_statistics, table

    source = Path(args.source) if args.source else SHIPPED
    found = count_statistics(source.name, read_prompt_file(source), args.clip_tokenizer, args.t5_tokenizer, args.spacy)
    print(table(found))
    if args.json:
        write_json(Path(args.json), found.as_json())
        print(f"\nwrote {args.json}")
