"""`python -m llm4gen_diffusers`: generate images, look at their attention, convert adapter files.

Arguments only: torch and the rest load inside the command that needs them.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from .command_line import Parser, quiet_libraries, read_prompts, run_command

PACKAGES = ("train", "evaluation", "miniature")
"""Packages with a command line of their own, which `llm4gen` reaches by their names."""


def build_parser() -> Parser:
    parser = Parser(
        prog="python -m llm4gen_diffusers",
        description="LLM4GEN on diffusers: generate images, look at their attention, convert adapters. "
        "Everything is read from this machine; nothing is ever downloaded.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_generate(commands)
    _add_attention(commands)
    _add_convert(commands)
    return parser


def _add_generate(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "generate",
        help="paint images with a base model and LLM4GEN",
        description="Paint the image that the ComfyUI workflow paints with sampler ddim, scheduler ddim_uniform and "
        "the same seed. Without --adapter and --llm it is the plain base. The name of each image is printed; its "
        "prompt and settings are stored in the PNG. Prompts are taken literally: ComfyUI's (word:1.3) has no meaning "
        "here.",
        epilog="example: python -m llm4gen_diffusers generate --base models/sd15 --unet LLM4GEN/unet --adapter "
        'LLM4GEN/projector.pth --llm models/rankgen-t5-xl-all --prompt "a red cat on a blue chair" --seed 7',
    )
    _add_generation_arguments(parser, several=True)
    parser.set_defaults(run=_generate)


def _add_attention(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "attention",
        help="paint an image and show where it looked at words",
        description="Paint the image that `generate` paints with the same options, and write it with a heat map for "
        "each word beside it: the cross-attention that the word's tokens get, averaged over heads, layers and steps. "
        "Colours go from the lowest to the highest value of each map; the number is the word's share of all attention.",
        epilog="example: python -m llm4gen_diffusers attention --base models/sd15 --unet LLM4GEN/unet --adapter "
        'LLM4GEN/projector.pth --llm models/rankgen-t5-xl-all --prompt "a red cat on a blue chair" --word red '
        "--word cat --seed 7 --output maps.png",
    )
    _add_generation_arguments(parser, several=False)
    parser.set_defaults(run=_attention)


def _add_generation_arguments(parser: argparse.ArgumentParser, several: bool) -> None:
    """Models, image and run; of several images, or of one and words in it."""
    models = parser.add_argument_group("models")
    models.add_argument(
        "--base", required=True, metavar="PATH", help="SD1.5 or SDXL: a diffusers folder, or a checkpoint as in ComfyUI"
    )
    models.add_argument("--family", metavar="NAME", help="sd15, sdxl or miniature (default: told by the base)")
    models.add_argument(
        "--unet",
        metavar="PATH",
        help="UNet in place of the base's, such as the release's fine-tuned one: a diffusers folder or a file. "
        "A folder `scheduler` beside a folder `unet` says what it was trained with, such as v-prediction",
    )
    models.add_argument(
        "--clip", metavar="DIR", help="fine-tuned text encoder in place of the base's: a transformers folder"
    )
    models.add_argument(
        "--tokenizer",
        metavar="DIR",
        help="folder with CLIP's vocab.json and merges.txt, which a checkpoint does not hold "
        "(default: that of the ComfyUI in whose custom_nodes this is)",
    )
    models.add_argument("--adapter", metavar="FILE", help="adapter: projector.pth or .safetensors")
    models.add_argument("--llm", metavar="DIR", help="Hugging Face folder of the adapter's LLM")
    image = parser.add_argument_group("image")
    if several:
        prompts = image.add_mutually_exclusive_group(required=True)
        prompts.add_argument(
            "--prompt", action="append", metavar="TEXT", help="what to paint; may be given several times"
        )
        prompts.add_argument("--prompt-file", metavar="FILE", help="text file (UTF-8) with one prompt a line")
        image.add_argument("--batch", type=int, default=1, help="images of each prompt (default: %(default)s)")
    else:
        image.add_argument("--prompt", required=True, metavar="TEXT", help="what to paint")
        image.add_argument(
            "--word",
            action="append",
            required=True,
            metavar="TEXT",
            help="word of the prompt; may be given several times, the same word for its next occurrence",
        )
        image.add_argument(
            "--tokens",
            choices=("both", "clip", "llm"),
            default="both",
            help="copies of the word that are looked at: CLIP's, the LLM's, or their sum (default: %(default)s)",
        )
    image.add_argument("--negative", default="", metavar="TEXT", help="what to avoid (default: nothing)")
    image.add_argument(
        "--seed", type=int, default=0, help="of the noise, the same for every prompt (default: %(default)s)"
    )
    image.add_argument(
        "--steps",
        type=int,
        default=50,
        help="where it does not divide 1000, ddim_uniform makes more, such as 31 for 30 (default: %(default)s)",
    )
    image.add_argument("--guidance", type=float, default=7.5, help="CFG scale; 1 is off (default: %(default)s)")
    image.add_argument("--width", type=int, help="multiple of 8 (default: 512 of SD1.5, 1024 of SDXL)")
    image.add_argument("--height", type=int, help="multiple of 8 (default: 512 of SD1.5, 1024 of SDXL)")
    image.add_argument("--strength", type=float, help="of the LLM's tokens; 0 is plain CLIP (default: the adapter's)")
    image.add_argument(
        "--lambda-mode",
        choices=("embedding", "value", "decoupled"),
        help="what the strength scales: the LLM's tokens, their values, or an attention of their own (default: the "
        "adapter's)",
    )
    run = parser.add_argument_group("run")
    run.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), help="default: float16 on a GPU, float32 on the CPU"
    )
    run.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: a GPU if there is one)")
    run.add_argument(
        "--output",
        default="outputs",
        metavar="PATH",
        help="folder, or a name ending in .png; nothing is overwritten, files are numbered (default: %(default)s)",
    )


def _add_convert(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "convert",
        help="turn projector.pth into one safe, self-describing file",
        description="Read an adapter (the official projector.pth, its keys in safetensors, or the project's own file) "
        "without running anything in it, and write the project's own file: the same values, and beside them the base "
        "family, the LLM with its prompt preparation, and what model managers show.",
        epilog="example: python -m llm4gen_diffusers convert projector.pth "
        "ComfyUI/models/llm4gen/llm4gen_sd15.safetensors",
    )
    parser.add_argument("source", help="file to read")
    parser.add_argument("target", help="file to write, ending in .safetensors")
    parser.add_argument("--family", help="base family: sd15, sdxl, sd3 or miniature (default: told by the file)")
    parser.add_argument(
        "--llm",
        metavar="PATH",
        help="the adapter's LLM: its Hugging Face folder, or a JSON file with the fields of LLMSpec "
        "(default: told by the file; RankGen T5-XL for the official release)",
    )
    parser.add_argument("--llm-model", metavar="NAME", help="name of the LLM's weights, such as a Hugging Face id")
    parser.add_argument("--title", help="shown by model managers, as are the next two")
    parser.add_argument("--author")
    parser.add_argument("--description")
    parser.add_argument("--force", action="store_true", help="replace TARGET if it exists")
    parser.set_defaults(run=_convert)


def _generate(args: argparse.Namespace) -> None:
    from .generate import GenerateSettings, generate

    settings = vars(args)
    prompt, prompt_file = settings.pop("prompt"), settings.pop("prompt_file")
    quiet_libraries()
    generate(GenerateSettings(prompts=prompt or read_prompts(prompt_file), **settings))


def _attention(args: argparse.Namespace) -> None:
    from .attention_maps import attention
    from .generate import GenerateSettings

    settings = vars(args)
    prompt, words, tokens = settings.pop("prompt"), settings.pop("word"), settings.pop("tokens")
    quiet_libraries()
    attention(GenerateSettings(prompts=[prompt], **settings), words, tokens)


def _convert(args: argparse.Namespace) -> None:
    from .convert import ConvertSettings, convert

    convert(ConvertSettings(**vars(args)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; see `run_command`."""
    return run_command(build_parser, "train", arguments)


def console(arguments: Sequence[str] | None = None) -> int:
    """The console command `llm4gen`: the commands of this package, and those of `PACKAGES` behind the package's name.

    Unlike `python -m train`, it never runs a `train.py` that lies in the current folder.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] and arguments[0] in PACKAGES:
        return importlib.import_module(f"{arguments[0]}.__main__").main(arguments[1:])
    return main(arguments)


if __name__ == "__main__":
    sys.exit(main())
