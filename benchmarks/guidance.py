"""Cost of entity guidance: the attention columns alone, and a whole training step with and without.

    python benchmarks/guidance.py columns                  SD1.5's layers, against softmax(Q Kᵀ) written down
    python benchmarks/guidance.py step                     a shallow UNet of SD1.5's width
    python benchmarks/guidance.py step --unet sd15         SD1.5's whole UNet, random weights (about 16 GB)
    python benchmarks/guidance.py step --unet sdxl --device cuda --batch 16 --precision bfloat16 --checkpointing

Times alternate between the two ways in one process; ratios are medians over pairs. Peak memory is measured in a
process of its own for each way: on a GPU what torch allocated, on the CPU the most that was resident.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

import torch
from diffusers_folder import SDXL_IN_DIFFUSERS
from torch import Tensor

from llm4gen_core import CrossAdapter, CrossAdapterConfig
from llm4gen_core.attention import attention_columns
from llm4gen_core.entity_guidance import GuidanceOptions, PairPositions, guidance_targets

TEXT, LLM = 77, 256
LAYERS = ((64, 40, 5), (32, 80, 5), (16, 160, 5), (8, 160, 1))
"""SD1.5 at 512 pixels: side of the map, width of a head, cross-attention layers."""
HEADS = 8
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHALLOW = {
    "block_out_channels": (320, 640),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
SD15: dict[str, Any] = {"cross_attention_dim": 768, "attention_head_dim": 8}
UNETS = {"shallow": SHALLOW, "sd15": SD15, "sdxl": SDXL_IN_DIFFUSERS}


def pairs(count: int) -> list[PairPositions]:
    """Pairs of one-token words, half of them among CLIP's tokens and half among the LLM's."""
    places = [1 + 2 * i for i in range(count // 2)] + [TEXT + 1 + 2 * i for i in range(count - count // 2)]
    return [PairPositions((place,), (place + 1,)) for place in places]


# ---- the columns alone


def full_map(query: Tensor, key: Tensor, columns: Tensor, scale: float) -> Tensor:
    probabilities = (query.float() @ key.float().transpose(-1, -2) * scale).softmax(-1)
    return probabilities[..., columns].mean(1)


def ours(query: Tensor, key: Tensor, columns: Tensor, scale: float) -> Tensor:
    return attention_columns(query, key, columns, scale, mean_heads=True)


def run_columns(way: Callable[..., Tensor], options: argparse.Namespace) -> float:
    """Seconds for forward and backward of all of SD1.5's layers, the graphs of all alive at once as in training."""
    device = options.device
    columns = torch.arange(16, device=device) * 4
    layers = []
    for side, width, count in LAYERS:
        for _ in range(count):
            shape = (options.batch, HEADS, side * side, width)
            query = torch.randn(shape, device=device, dtype=PRECISIONS[options.precision], requires_grad=True)
            key = torch.randn(
                (options.batch, HEADS, TEXT + LLM, width), device=device, dtype=query.dtype, requires_grad=True
            )
            layers.append((query, key))
    synchronize(device)
    started = time.perf_counter()
    terms = [way(query, key, columns, query.shape[-1] ** -0.5).square().mean() for query, key in layers]
    torch.stack(terms).mean().backward()
    synchronize(device)
    return time.perf_counter() - started


# ---- a whole step


class Step:
    """Forward, backward and AdamW of the CAM and the full UNet, in the trainer's own classes."""

    def __init__(self, options: argparse.Namespace, alpha: float) -> None:
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        from llm4gen_diffusers.families import FAMILIES
        from llm4gen_diffusers.schedule import NoiseSchedule
        from train.loss import TrainingLoss
        from train.models import Models
        from train.recipe_file import parse_recipe

        device = torch.device(options.device)
        config = UNETS[options.unet]
        self.options, self.device = options, device
        family = object.__new__(FAMILIES["sdxl" if options.unet == "sdxl" else "sd15"])
        with device:
            family.unet = UNet2DConditionModel(sample_size=options.size // 8, **config).train()
            adapter = CrossAdapter(CrossAdapterConfig(config["cross_attention_dim"], 2048))
        if options.checkpointing:
            family.unet.enable_gradient_checkpointing()
        family.base = SimpleNamespace(schedule=NoiseSchedule.stable_diffusion())
        self.guidance = GuidanceOptions(alpha=alpha)
        recipe = {
            "family": "sd15",
            "output": "none",
            "model": {"base": "none", "llm": "none"},
            "data": {"sources": "none"},
            "guidance": {"alpha": alpha},
            "train": {"steps": 1, "batch_size": options.batch, "micro_batch": options.batch},
        }
        models = Models(parse_recipe(recipe, "Recipe of the benchmark"), family, None, adapter, None)
        self.training_loss = TrainingLoss(models).to(device)
        self.optimizer = torch.optim.AdamW(self.training_loss.parameters(), lr=1e-9, fused=True)
        self.width = config["cross_attention_dim"]

    def inputs(self) -> Any:
        from train.loss import StepInputs

        batch, side, device = self.options.batch, self.options.size // 8, self.device
        targets = guidance_targets([pairs(self.options.pairs)] * batch).to(device)
        return StepInputs(
            latents=torch.randn(batch, 4, side, side, device=device),
            noise=torch.randn(batch, 4, side, side, device=device),
            timesteps=torch.randint(1000, (batch,), device=device),
            text=torch.randn(batch, TEXT, self.width, device=device),
            pooled=torch.randn(batch, 1280, device=device),
            llm=torch.randn(batch, LLM, 2048, device=device),
            sizes=torch.tensor([[512, 512, 0, 0, 512, 512]] * batch, device=device),
            targets=targets if self.guidance.is_on else None,
            captions=[""] * batch,
        )

    def __call__(self) -> float:
        inputs = self.inputs()
        synchronize(self.device)
        started = time.perf_counter()
        precision = PRECISIONS[self.options.precision]
        with torch.autocast(self.device.type, precision, enabled=precision != torch.float32):
            error, guidance, _ = self.training_loss(inputs)
        (error.mean() + self.guidance.alpha * guidance.mean()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        synchronize(self.device)
        return time.perf_counter() - started


# ---- measuring


def synchronize(device: str | torch.device) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def peak(device: str) -> float:
    """GB."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def ways(options: argparse.Namespace) -> dict[str, Callable[[], Callable[[], float]]]:
    """Factories of functions that run once and return seconds, by name; the first is the reference."""
    if options.what == "columns":
        return {
            "full map": lambda: lambda: run_columns(full_map, options),
            "columns": lambda: lambda: run_columns(ours, options),
        }
    return {"without": lambda: Step(options, 0.0), "with": lambda: Step(options, 0.1)}


def measure_alone(options: argparse.Namespace) -> None:
    """Peak memory above that before the first run, measured in a process of its own."""
    run = ways(options)[options.alone]()
    before = peak(options.device) if options.what == "columns" else 0.0
    run()
    run()
    print(json.dumps({"peak": peak(options.device), "before": before}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("columns", "step"))
    parser.add_argument("--unet", choices=UNETS, default="shallow")
    parser.add_argument("--size", type=int, default=512, help="pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=8, help="of words a sample (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        measure_alone(options)
        return
    torch.backends.cuda.matmul.allow_tf32 = True
    memory = {}
    for name in ways(options):
        command = [sys.executable, __file__, *sys.argv[1:], "--alone", name]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        memory[name] = json.loads(result.stdout.splitlines()[-1])
    runs = {name: make() for name, make in ways(options).items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(options.repeats):
        for name, run in runs.items():
            seconds[name].append(run())
    first, second = runs
    for name in runs:
        used = memory[name]["peak"] - memory[name]["before"]
        line = f"{name:>10}: {statistics.median(seconds[name]):8.3f} s   {used:7.3f} GB"
        if options.what == "step":
            line += f"   {options.batch / statistics.median(seconds[name]):7.2f} images/s"
        print(line)
    ratios = sorted(b / a for a, b in zip(seconds[first], seconds[second], strict=True))
    spaces = [memory[name]["peak"] - memory[name]["before"] for name in (second, first)]
    print(
        f"{second} / {first}: time {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f} in "
        f"{options.repeats} pairs), peak memory {spaces[0] / spaces[1]:.3f}"
    )


if __name__ == "__main__":
    main()
