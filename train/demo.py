"""`python -m train demo`: the whole path, on random miniature models that it makes itself."""

from __future__ import annotations

import dataclasses
import os
import shlex
from pathlib import Path

from .generate import GenerateSettings, generate
from .images import check_output
from .small_models import make_diffusers_folder, make_projector, make_t5_folder

PROMPTS = (
    "a red cat on a blue chair and a black dog in a white hat",
    "three green birds in the sky, two men in a boat and a woman with four white hats",
)
MODELS = "llm4gen_demo_models"
SIZE = 256
STEPS = 10


def demo(output: str | os.PathLike[str]) -> list[Path]:
    """Make the models, paint `PROMPTS` without and with LLM4GEN, and print what happened and what it means.

    Args:
        output: folder; models go into `llm4gen_demo_models` inside it, images beside that.

    Returns:
        The PNG files: both prompts without LLM4GEN, then both with it.

    Raises:
        LLM4GENError: the folder cannot be used.
    """
    folder = Path(output)
    check_output(folder)
    models = folder / MODELS
    print("These models are random miniatures: the images are abstract patterns, like noise, and show no cats.")
    print("The point is that the whole path runs on this machine, with the file formats of the real models.\n")
    base = make_diffusers_folder(models / "sd15")
    llm = make_t5_folder(models / "rankgen-t5")
    adapter = make_projector(models / "projector.pth")
    print(
        f"Models, in {models}: {base.name} (diffusers), {llm.name} (RankGen's layout), {adapter.name} (the release's)."
    )
    files = []
    plain = GenerateSettings(
        base=str(base),
        prompts=PROMPTS,
        output=str(folder / "plain.png"),
        width=SIZE,
        height=SIZE,
        steps=STEPS,
    )
    print(f"\nImages of {len(PROMPTS)} prompts, without LLM4GEN:", flush=True)
    files = generate(plain)
    print("\nThe same with LLM4GEN:", flush=True)
    with_llm = dataclasses.replace(plain, adapter=str(adapter), llm=str(llm), output=str(folder / "llm4gen.png"))
    files += generate(with_llm)
    command = (
        f"python -m train generate --base {shlex.quote(str(base))} --adapter {shlex.quote(str(adapter))} "
        f'--llm {shlex.quote(str(llm))} --width {SIZE} --height {SIZE} --steps {STEPS} --prompt "{PROMPTS[0]}"'
    )
    print(f"\nThe same by hand; put the real models in the place of these:\n{command}")
    return files
