"""Cost of LLM4GEN inside ComfyUI: seconds a step, peak memory, seconds to import, bytes left on the compute device.

    COMFYUI_PATH=~/ComfyUI python benchmarks/host.py [--family sdxl] [--full] [--size 512] [--rounds 5]

Everything is measured in one process of the host, with random weights: time does not depend on their values.
Steps with plain CLIP (77 tokens), with the fused context (333 tokens) and with it in each λ mode take turns, so that a
noisy machine disturbs all alike; ratios to plain CLIP are given as the median over the rounds and between the fastest.
`--full` takes a family's whole UNet (860 M and 2,567 M parameters) in place of one of its widths with fewer blocks: the
tests' shallow SD1.5, and Segmind-Vega's layout for SDXL (745 M). SDXL's step is timed without its text encoders, whose
features are random numbers.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import importlib
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / "tests" / "support"), str(REPOSITORY)]

import host_models  # noqa: E402
import torch  # noqa: E402
from comfy_server import COMFYUI, make_base  # noqa: E402


def start_host(base: Path) -> None:
    sys.path.insert(0, str(COMFYUI))
    # The attention that the host takes on a GPU; on a CPU it would take one that is made to save memory.
    device = [] if torch.cuda.is_available() else ["--cpu", "--use-pytorch-cross-attention"]
    sys.argv = ["main.py", *device, "--base-directory", str(base)]
    import comfy.options

    comfy.options.enable_args_parsing()
    # What a started host has imported, in its own order.
    importlib.import_module("utils.extra_config")
    importlib.import_module("nodes")
    importlib.import_module("server")


def import_seconds() -> tuple[float, str]:
    """(seconds from nothing to registered schemas, name under which the pack was imported)."""
    name = "pack"
    started = time.perf_counter()
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    extension = importlib.import_module(".nodes", name).LLM4GENExtension()
    for node in asyncio.run(extension.get_node_list()):
        node.GET_SCHEMA()
    return time.perf_counter() - started, name


def sdxl_unet(full: bool) -> dict[str, torch.Tensor]:
    """SDXL's UNet at its widths, whole or with Segmind-Vega's blocks."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    depths = ([0, 0, 2, 2, 10, 10], [0, 0, 0, 2, 2, 2, 10, 10, 10], 10) if full else None
    down, up, middle = depths or ([0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 1, 2, 2, 2], -1)
    unet = UNetModel(
        image_size=32,
        in_channels=4,
        out_channels=4,
        model_channels=320,
        channel_mult=[1, 2, 4],
        num_res_blocks=[2, 2, 2],
        num_head_channels=64,
        use_spatial_transformer=True,
        use_linear_in_transformer=True,
        transformer_depth=down,
        transformer_depth_output=up,
        transformer_depth_middle=middle,
        context_dim=2048,
        num_classes="sequential",
        adm_in_channels=2816,
        legacy=False,
        dtype=torch.float32,
        device="meta",
    )
    return host_models.random_state(unet, 0)


def sides(pack: str, models: Path, family: str) -> tuple[list[Any], list[Any]]:
    """(both sides by CLIP alone, both sides fused)."""
    import comfy.sd

    conditioning = importlib.import_module(f"{pack}.nodes.conditioning")
    host = importlib.import_module(f"{pack}.nodes.host")
    llm = importlib.import_module(f"{pack}.nodes.host_llm").load_llm("rankgen.safetensors", {})
    texts = ("a green armchair left of a round oak table", "")
    if family == "sd15":
        clip = comfy.sd.load_checkpoint_guess_config(str(models / "checkpoints" / "sd15.safetensors"))[1]
        plain = [conditioning.encode_clip(clip, text) for text in texts]
        adapter = host.HostAdapter.load("projector.pth")
    else:
        plain = [[[torch.randn(1, 77, 2048), {"pooled_output": torch.randn(1, 1280)}]] for _ in texts]
        host_models.save_own_adapter(models / "llm4gen" / "sdxl.safetensors", 0, base="sdxl")
        adapter = host.HostAdapter.load("sdxl.safetensors")
    fused = [
        conditioning.fuse_conditioning(adapter, side, llm.encode(text, llm.spec), 1.0)
        for text, side in zip(texts, plain, strict=True)
    ]
    return plain, fused


def steps(pack: str, models: Path, family: str, full: bool, size: int, rounds: int) -> dict[str, object]:
    """Time and memory of a step with plain CLIP, and with the fused context in each λ mode."""
    import comfy.sample
    import comfy.sd

    attention = importlib.import_module(f"{pack}.nodes.host_attention")
    schedule = importlib.import_module(f"{pack}.llm4gen_core.attention").StrengthSchedule(0.9, 1.1)
    unet = comfy.sd.load_diffusion_model_state_dict(
        host_models.unet_state(0, full=full) if family == "sd15" else sdxl_unet(full)
    )
    plain, fused = sides(pack, models, family)
    modes = {mode: attention.patch_attention(unet, mode, schedule) for mode in ("embedding", "value", "decoupled")}
    ways = {"plain": (unet, plain), "fused": (unet, fused)}
    ways |= {f"{mode}, λ from 0.9 to 1.1": (model, fused) for mode, model in modes.items()}
    latent = torch.zeros(1, 4, size // 8, size // 8)
    noise = comfy.sample.prepare_noise(latent, 0)

    def seconds(model: Any, sides: list[Any]) -> float:
        started = time.perf_counter()
        comfy.sample.sample(model, noise, 1, 7.5, "ddim", "ddim_uniform", *sides, latent, disable_pbar=True, seed=0)
        return time.perf_counter() - started

    for way in ways.values():
        seconds(*way)
    peaks = {name: peak_megabytes(partial(seconds, *way)) for name, way in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            times[name].append(seconds(*way))
    found: dict[str, object] = {"context_tokens": fused[0][0][0].shape[1]}
    for name, of_way in times.items():
        found[name] = {
            "seconds_a_step": statistics.median(of_way),
            "ratio_median_of_rounds": statistics.median(a / b for a, b in zip(of_way, times["plain"], strict=True)),
            "ratio_of_fastest": min(of_way) / min(times["plain"]),
            "peak_megabytes": peaks[name],
        }
    return found


def after_encoding(pack: str) -> dict[str, object]:
    """Peak memory of encoding and fusing a prompt, and what of LLM and adapter is left on the compute device."""
    import comfy.model_management as management

    host = importlib.import_module(f"{pack}.nodes.host")
    host_llm = importlib.import_module(f"{pack}.nodes.host_llm")
    conditioning = importlib.import_module(f"{pack}.nodes.conditioning")
    llm = host_llm.load_llm("rankgen.safetensors", {})
    adapter = host.HostAdapter.load("projector.pth")

    def encode() -> None:
        features = llm.encode("a prompt", llm.spec)
        conditioning.fuse_conditioning(adapter, [[torch.zeros(1, 77, 768), {}]], features, 1.0)

    megabytes = peak_megabytes(encode)
    compute = management.get_torch_device()

    def held(module: torch.nn.Module) -> int:
        return sum(p.nbytes for p in module.parameters() if p.device == compute and compute.type != "cpu")

    return {
        "compute_device": str(compute),
        "peak_megabytes": megabytes,
        "llm_bytes": held(llm.clip.cond_stage_model),
        "adapter_bytes": held(adapter.module),
    }


def peak_megabytes(work: Callable[[], object]) -> float | None:
    """Memory of some work above what was in use before it; on a CPU, Linux's high-water mark."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    status = Path("/proc/self/status")
    if not status.is_file():
        return None

    def read(name: str) -> int:
        [line] = [line for line in status.read_text().splitlines() if line.startswith(name)]
        return int(line.split()[1])

    ctypes.CDLL(None).malloc_trim(0)  # what is free already would be used without being seen
    Path("/proc/self/clear_refs").write_text("5")  # begins the high-water mark anew
    before = read("VmRSS")
    work()
    return (read("VmHWM") - before) * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=("sd15", "sdxl"), default="sd15", help="of the UNet")
    parser.add_argument("--full", action="store_true", help="the family's whole UNet")
    parser.add_argument("--size", type=int, default=512, help="pixels of a side")
    parser.add_argument("--rounds", type=int, default=5, help="how often each way is timed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = make_base(Path(folder) / "base")
        start_host(base)
        seconds, pack = import_seconds()
        host_models.fill(base / "models", COMFYUI / "comfy" / "text_encoders" / "t5_tokenizer")
        results = {
            "torch": torch.__version__,
            "comfyui": str(COMFYUI),
            "threads": torch.get_num_threads(),
            "family": options.family,
            "unet": "whole" if options.full else "fewer blocks",
            "size": options.size,
            "import_seconds": seconds,
            "steps": steps(pack, base / "models", options.family, options.full, options.size, options.rounds),
            "after_encoding": after_encoding(pack),
        }
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
