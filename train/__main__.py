"""The command line. Arguments only: torch and the rest load inside the command that needs them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm4gen_headless.command_line import Parser, quiet_libraries, read_prompts, run_command, same_everywhere


def build_parser() -> Parser:
    parser = Parser(
        prog="python -m train",
        description="LLM4GEN without ComfyUI: train adapters, convert them, paint with them. "
        "Everything is read from this machine; nothing is ever downloaded.",
        epilog="Try it all on a CPU: python -m train miniature miniature, then python -m train run miniature",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands)
    _add_resume(commands)
    _add_plan(commands)
    commands.add_parser(
        "parse",
        help="find attributes and their entities in captions, once",
        description="Find which attribute belongs to which entity in captions, for entity guidance. Other fields of "
        ".jsonl rows are kept, so that what is written can be a source of a recipe. A run does this by itself for what "
        "has no pairs; here they can be looked at and corrected.",
        epilog="example: python -m train parse photos/captions.jsonl --output photos/captions.parsed.jsonl",
        configured_by="train.parse",
    )
    _add_export(commands)
    _add_convert(commands)
    _add_generate(commands)
    _add_attention(commands)
    commands.add_parser(
        "miniature",
        help="make small models and captioned images to try the trainer with",
        description="Make a base model and an LLM with random weights, and images of coloured shapes with their "
        "captions, all small enough to train with on a CPU. The recipe `miniature` reads them from the folder "
        "`miniature`.",
        epilog="example: python -m train miniature miniature",
        configured_by="train.miniature_world",
    )
    commands.add_parser(
        "reproduce",
        help="check the paper's claims on a small world that is trained from scratch",
        description="Make a world of small pictures with captions, train a CLIP, two language models and a base on it, "
        "then the base with and without LLM4GEN and its ablations, paint sets of prompts, let an exact judge score "
        "them, and write a report. The set can be finished over several sittings: what is there is not made again.",
        epilog="example: python -m train reproduce reproduction --experiment all",
        configured_by="train.reproduce.command",
    )
    _add_demo(commands)
    return parser


def _add_run(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "run",
        help="train an adapter as a recipe says",
        description="Train as a recipe says and write the adapter. The recipe is checked as a whole before a model is "
        "opened. Ctrl-C writes a checkpoint and leaves; `resume` goes on from it exactly. With several GPUs: "
        "accelerate launch -m train run ...",
        epilog="example: python -m train run sd15 model.base=models/sd15 model.llm=models/rankgen-t5-xl-all "
        f"data.sources=photos train.batch_size=64. Recipes of the project: {', '.join(_recipe_names())}",
    )
    _add_recipe_arguments(parser)
    parser.set_defaults(run=_run)


def _add_resume(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "resume",
        help="go on with a run that was stopped",
        description="Go on with a run from its newest checkpoint that is whole, as if it had never been stopped. A "
        "broken checkpoint is skipped for the one before it. The recipe is the run's own, and the number of processes "
        "may be another than before.",
        epilog="example: python -m train resume runs/sd15",
    )
    parser.add_argument("folder", metavar="RUN_DIR", help="output of the recipe")
    parser.set_defaults(run=_resume)


def _add_plan(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "plan",
        help="say what a run would take, and train nothing",
        description="Say what `run` with the same arguments would take: parameters by group, memory for weights, "
        "gradients, optimizer and activations, sizes of the caches, steps, samples and time, and what is wrong with "
        "the data.",
        epilog="example: python -m train plan sd15 model.base=models/sd15 model.llm=models/rankgen-t5-xl-all "
        "data.sources=photos",
    )
    _add_recipe_arguments(parser)
    parser.set_defaults(run=_plan)


def _add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file, or the name of one of the project's recipes")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="in place of the recipe's, with dots between sections: train.steps=100 'validation.prompts=[a cat]'. "
        "All keys are described in train/recipe.py",
    )


def _add_export(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "export",
        help="write the adapter of any checkpoint",
        description="Write what can be painted with: the adapter file for ComfyUI/models/llm4gen if there is one, and "
        "the UNet (`unet`, and in `scheduler` what it was trained with) or the text encoder (`text_encoder`) if the "
        "recipe trains it whole. Their names are printed. "
        "`run` does this by itself at its end.",
        epilog="example: python -m train export runs/sd15/checkpoints/step-00010000 --output half-way --dtype float16",
    )
    parser.add_argument("source", metavar="RUN_DIR", help="a run, for its newest checkpoint, or a checkpoint inside it")
    parser.add_argument("--output", metavar="DIR", help="folder to write into (default: export inside the run)")
    parser.add_argument("--name", default="adapter", help="of the adapter file, without .safetensors (%(default)s)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="precision of the written weights (default: as trained, float32)",
    )
    parser.add_argument(
        "--no-ema", dest="ema", action="store_false", help="take the weights themselves where a moving average exists"
    )
    parser.add_argument("--force", action="store_true", help="replace what exists under these names")
    parser.set_defaults(run=_export)


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
    _add_painting_arguments(parser, several=True)
    parser.set_defaults(run=_generate)


def _add_attention(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "attention",
        help="paint an image and show where it looked at words",
        description="Paint the image that `generate` paints with the same options, and write it with a heat map for "
        "each word beside it: the cross-attention that the word's tokens get, averaged over heads, layers and steps. "
        "Colours go from the lowest to the highest value of each map; the number is the word's share of all attention.",
        epilog="example: python -m train attention --base models/sd15 --unet LLM4GEN/unet --adapter "
        'LLM4GEN/projector.pth --llm models/rankgen-t5-xl-all --prompt "a red cat on a blue chair" --word red '
        "--word cat --seed 7 --output maps.png",
    )
    _add_painting_arguments(parser, several=False)
    parser.set_defaults(run=_attention)


def _add_painting_arguments(parser: argparse.ArgumentParser, several: bool) -> None:
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
        help="paint and train with miniature models",
        description="Paint dense prompts with the miniature that comes with the project, base and LLM4GEN side by "
        "side, and show where both looked at an attribute and its entity; then train a random miniature, interrupt "
        "it, resume it, and paint with what came out. Takes about a minute on a CPU; nothing is downloaded.",
        epilog="example: python -m train demo --output demo",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the models and images")
    parser.set_defaults(run=_demo)


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


def _export(args: argparse.Namespace) -> None:
    from .export import ExportSettings, export

    quiet_libraries()
    export(ExportSettings(**vars(args)))


def _recipe(args: argparse.Namespace) -> Any:
    from .recipe_file import load_recipe

    with same_everywhere():
        return load_recipe(args.recipe, args.overrides)


def _recipe_names() -> list[str]:
    return sorted(path.stem for path in (Path(__file__).parent / "recipes").glob("*.yaml"))


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


def _demo(args: argparse.Namespace) -> None:
    from .demo import demo

    quiet_libraries()
    demo(args.output)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; see `run_command`."""
    return run_command(build_parser, "train", arguments)


if __name__ == "__main__":
    sys.exit(main())
