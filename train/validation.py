"""Images painted during a run, always of the same prompts from the same seeds."""

from __future__ import annotations

from pathlib import Path

from llm4gen_core import Adapter, LLMEncoder
from llm4gen_diffusers.families import Family
from llm4gen_diffusers.images import save_png
from llm4gen_diffusers.options import GenerationOptions
from llm4gen_diffusers.sampling import Pipeline

from .recipe import Recipe


def generate_validation(
    recipe: Recipe, family: Family, adapter: Adapter | None, llm: LLMEncoder | None, folder: Path
) -> list[Path]:
    """Paint every prompt of `recipe.validation` from every seed with the models as they are now.

    Returns:
        PNG files `prompt-01-seed-0.png`, ...
    """
    settings = recipe.validation
    size = settings.size or recipe.data.resolution
    # Not checked: the miniature generates sizes that are no multiples of 8.
    options = GenerationOptions.model_construct(
        steps=settings.steps, guidance=settings.guidance, width=size, height=size
    )
    pipeline = Pipeline(family, adapter, llm)
    files = []
    for number, prompt in enumerate(settings.prompts, 1):
        for seed in settings.seeds:
            image = pipeline.generate(prompt, options, seed=seed)[0]
            record = {
                "prompt": prompt,
                "seed": seed,
                "steps": settings.steps,
                "guidance": settings.guidance,
                "width": size,
                "height": size,
                "run": folder.parent.parent.name,
                "step": folder.name,
            }
            folder.mkdir(parents=True, exist_ok=True)
            target = folder / f"prompt-{number:02d}-seed-{seed}.png"
            target.unlink(missing_ok=True)  # of a run that was killed after this step and came by again
            files.append(save_png(image, target, record))
    return files
