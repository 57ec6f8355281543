"""The command line. Arguments only: torch and the rest load inside the command that needs them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def build_parser() -> Parser:
    parser = Parser(
        prog="python -m train",
        description="LLM4GEN without ComfyUI: paint, convert adapters, and see the whole path run. "
        "Everything is read from this machine; nothing is ever downloaded.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_generate(commands)
    _add_convert(commands)
    _add_demo(commands)
    return parser


def _add_generate(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "generate",
        help="paint images with a base model and LLM4GEN",
        description="Paint the image that the ComfyUI workflow paints with sampler ddim, scheduler ddim_uniform and "
        "the same seed. Without --adapter and --llm it is the plain base. The name of each image is printed; its "
        "prompt and settings are stored in the PNG. Prompts are taken literally: ComfyUI's (word:1.3) has no meaning "
        "here.",
        epilog="example: python -m train generate --base models/sd15 --unet LLM4GEN/unet --adapter "
        'LLM4GEN/projector.pth --llm models/rankgen-t5-xl-all --prompt "a red cat on a blue chair" --seed 7',
    )
    models = parser.add_argument_group("models")
    models.add_argument(
        "--base", required=True, metavar="PATH", help="SD1.5 or SDXL: a diffusers folder, or a checkpoint as in ComfyUI"
    )
    models.add_argument("--family", metavar="NAME", help="sd15, sdxl or miniature (default: told by the base)")
    models.add_argument(
        "--unet",
        metavar="PATH",
        help="UNet in place of the base's, such as the release's fine-tuned one: a diffusers folder or a file",
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
    prompts = image.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", action="append", metavar="TEXT", help="what to paint; may be given several times")
    prompts.add_argument("--prompt-file", metavar="FILE", help="text file (UTF-8) with one prompt a line")
    image.add_argument("--negative", default="", metavar="TEXT", help="what to avoid (default: nothing)")
    image.add_argument("--seed", type=int, default=0, help="the same for every prompt (default: %(default)s)")
    image.add_argument(
        "--steps",
        type=int,
        default=50,
        help="where it does not divide 1000, ddim_uniform makes more, such as 31 for 30 (default: %(default)s)",
    )
    image.add_argument("--guidance", type=float, default=7.5, help="CFG scale; 1 is off (default: %(default)s)")
    image.add_argument("--width", type=int, help="multiple of 8 (default: 512 of SD1.5, 1024 of SDXL)")
    image.add_argument("--height", type=int, help="multiple of 8 (default: 512 of SD1.5, 1024 of SDXL)")
    image.add_argument("--batch", type=int, default=1, help="images of each prompt (default: %(default)s)")
    image.add_argument("--strength", type=float, help="of the LLM's tokens; 0 is plain CLIP (default: the adapter's)")
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
    parser.set_defaults(run=_generate)


def _add_convert(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "convert",
        help="turn projector.pth into one safe, self-describing file",
        description="Read an adapter (the official projector.pth, its keys in safetensors, or the project's own file) "
        "without running anything in it, and write the project's own file: the same values, and beside them the base "
        "family, the LLM with its prompt preparation, and what model managers show.",
        epilog="example: python -m train convert projector.pth ComfyUI/models/llm4gen/llm4gen_sd15.safetensors",
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


def _add_demo(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "demo",
        help="run everything once with random miniature models",
        description="Make small random models in the real file formats and paint with them, with and without LLM4GEN. "
        "The images are abstract patterns; what it shows is that the whole path runs on this machine. "
        "Takes less than a minute on a CPU.",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the models and images")
    parser.set_defaults(run=_demo)


def _generate(args: argparse.Namespace) -> None:
    from .generate import GenerateSettings, generate

    settings = vars(args)
    prompt, prompt_file = settings.pop("prompt"), settings.pop("prompt_file")
    _quiet_libraries()
    generate(GenerateSettings(prompts=prompt or read_prompts(prompt_file), **settings))


def _convert(args: argparse.Namespace) -> None:
    from .convert import ConvertSettings, convert

    convert(ConvertSettings(**vars(args)))


def _demo(args: argparse.Namespace) -> None:
    from .demo import demo

    _quiet_libraries()
    demo(args.output)


def read_prompts(path: str) -> list[str]:
    """The lines of a UTF-8 text file that are not blank.

    Raises:
        LLM4GENError: the file cannot be read or holds no prompt.
    """
    from llm4gen_core import LLM4GENError

    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise LLM4GENError(
            f"Prompt file {path} cannot be read ({error.strerror}); expected a text file with one prompt a line."
        ) from error
    except UnicodeDecodeError as error:
        raise LLM4GENError(f"Prompt file {path} is not UTF-8 text ({error.reason}); save it as UTF-8.") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise LLM4GENError(f"Prompt file {path} holds no prompt; expected one a line.")
    return prompts


def _quiet_libraries() -> None:
    """Progress bars and hints of the libraries: an error of ours has to be the only line that a script sees."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        Exit code: 0, or 2 after an error of one line on stderr.
    """
    args = build_parser().parse_args(arguments)
    run = args.run
    del args.run, args.command

    from llm4gen_core import LLM4GENError

    try:
        run(args)
    except (LLM4GENError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
