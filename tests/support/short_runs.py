"""Short runs of the real trainer on the miniature world."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file

REPOSITORY = Path(__file__).resolve().parents[2]


def recipe_content(world: Path, output: Path, **sections: Mapping[str, Any] | Any) -> dict[str, Any]:
    """A recipe of a few fast steps; sections are merged over it."""
    content: dict[str, Any] = {
        "family": "miniature",
        "output": str(output),
        "seed": 3,
        "model": {"base": str(world / "base"), "llm": str(world / "llm")},
        "llm": {"max_length": 24},
        "adapter": {"heads": 4},
        "data": {"sources": [{"path": str(world / "images")}], "resolution": 16, "entities": "rules", "workers": 0},
        "optimizer": {"learning_rate": 1e-3},
        "train": {"steps": 4, "batch_size": 4, "micro_batch": 2, "precision": "float32"},
        "checkpoints": {"every": 2},
        "logging": {"every": 1, "gradient_ratio_every": 3, "tensorboard": False},
        "validation": {"every": 0},
    }
    for name, section in sections.items():
        if isinstance(section, Mapping) and isinstance(content.get(name), dict):
            content[name] = {**content[name], **section}
        else:
            content[name] = section
    return content


def forget_accelerate() -> None:
    """accelerate keeps its state for the life of a process; every run of a test starts anew."""
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    GradientState._reset_state()


def train(content: Mapping[str, Any]) -> Path:
    from train.loop import run
    from train.recipe_file import parse_recipe

    forget_accelerate()
    return run(parse_recipe(content, "Recipe of the test"))


def go_on(folder: Path) -> Path:
    from train.loop import resume

    forget_accelerate()
    return resume(folder)


def start_process(*arguments: str, processes: int = 1) -> subprocess.Popen[str]:
    """`python -m train` in a process of its own, or in several that torchrun launches."""
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
    return subprocess.Popen(
        [*command, "train", *arguments], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [values["loss"] for values in metrics(folder)]


def checkpoint_tensors(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """Everything numerical of a checkpoint: weights, average and optimizer."""
    path = folder / "checkpoints" / f"step-{step:08d}"
    found = {f"trained.{name}": tensor for name, tensor in load_file(path / "trained.safetensors").items()}
    if (path / "ema.safetensors").is_file():
        found |= {f"ema.{name}": tensor for name, tensor in load_file(path / "ema.safetensors").items()}
    state = torch.load(path / "optimizer.pt", weights_only=True)["optimizer"]["state"]
    for index, values in state.items():
        found |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in values.items()}
    return found


@torch.no_grad()
def prediction(
    training_loss: Any, conditioner: Any, captions: Sequence[str], side: int = 8
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Prediction of the trainer's own modules in the forward pass of the training loss.

    Returns:
        (x_t [B, C, side, side], the UNet's prediction in float32, timesteps [B]).
    """
    from train.loss import CaptionDropout, StepInputs

    family, count = training_loss.family, len(captions)
    draws = torch.Generator().manual_seed(5)
    latents, noise = torch.randn(2, count, family.latent_channels, side, side, generator=draws).to(conditioner.device)
    timesteps = torch.linspace(20, 980, count).long().to(conditioner.device)
    text = conditioner.encode(captions, [CaptionDropout.NOTHING] * count)
    pixels = side * family.pixels_per_latent
    sizes = torch.tensor([[pixels, pixels, 0, 0, pixels, pixels]]).expand(count, -1).to(conditioner.device)
    predicted: list[torch.Tensor] = []
    hook = training_loss.unet.register_forward_hook(lambda module, inputs, output: predicted.append(output[0].float()))
    try:
        training_loss(
            StepInputs(
                latents,
                noise,
                timesteps,
                text.get("clip"),
                text.get("pooled"),
                text.get("llm"),
                sizes,
                None,
                list(captions),
            )
        )
    finally:
        hook.remove()
    noisy, _ = training_loss.noise_target.add_noise(latents, noise, timesteps)
    return noisy, predicted[0], timesteps


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
