"""What LLM4GEN costs inside ComfyUI: seconds a step, seconds to import, bytes left on the compute device.

    COMFYUI_PATH=~/ComfyUI python benchmarks/host_sd15.py [--full] [--size 512] [--rounds 5]

Everything is measured in one process of the host, with random weights: time does not depend on their values.
Steps with plain CLIP (77 tokens), with the fused context (333 tokens) and with it in each λ mode take turns, so that a
noisy machine disturbs all alike; ratios to plain CLIP are given as the median over the rounds and between the fastest.
`--full` takes SD1.5's whole UNet (860 M parameters) in place of the shallow one of the tests.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

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


def steps(pack: str, models: Path, full: bool, size: int, rounds: int) -> dict[str, object]:
    """Of plain CLIP, and of the fused context in each λ mode, against plain CLIP."""
    import comfy.sample
    import comfy.sd

    conditioning = importlib.import_module(f"{pack}.nodes.conditioning")
    host = importlib.import_module(f"{pack}.nodes.host")
    host_llm = importlib.import_module(f"{pack}.nodes.host_llm")
    attention = importlib.import_module(f"{pack}.nodes.host_attention")
    schedule = importlib.import_module(f"{pack}.llm4gen_core.strength").StrengthSchedule(0.9, 1.1)
    clip = comfy.sd.load_checkpoint_guess_config(str(models / "checkpoints" / "sd15.safetensors"))[1]
    unet = comfy.sd.load_diffusion_model_state_dict(host_models.unet_state(0, full=full))
    llm = host_llm.load_llm("rankgen.safetensors", {})
    adapter = host.HostAdapter.load("projector.pth")

    def side(text: str):
        plain = conditioning.encode_clip(clip, text)
        return plain, conditioning.fuse_conditioning(adapter, plain, llm.encode(text, llm.spec), 1.0)

    plain, fused = zip(side("a green armchair left of a round oak table"), side(""), strict=True)
    modes = {mode: attention.patch_attention(unet, mode, schedule) for mode in ("embedding", "value", "decoupled")}
    ways = {"plain": (unet, plain), "fused": (unet, fused)}
    ways |= {f"{mode}, λ from 0.9 to 1.1": (model, fused) for mode, model in modes.items()}
    latent = torch.zeros(1, 4, size // 8, size // 8)
    noise = comfy.sample.prepare_noise(latent, 0)

    def seconds(model, sides) -> float:
        started = time.perf_counter()
        comfy.sample.sample(model, noise, 1, 7.5, "ddim", "ddim_uniform", *sides, latent, disable_pbar=True, seed=0)
        return time.perf_counter() - started

    for way in ways.values():
        seconds(*way)
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
        }
    return found


def bytes_on_compute_device(pack: str) -> dict[str, object]:
    """Bytes of the LLM and of the adapter on the compute device after a prompt was encoded."""
    import comfy.model_management as management

    host = importlib.import_module(f"{pack}.nodes.host")
    host_llm = importlib.import_module(f"{pack}.nodes.host_llm")
    conditioning = importlib.import_module(f"{pack}.nodes.conditioning")
    llm = host_llm.load_llm("rankgen.safetensors", {})
    adapter = host.HostAdapter.load("projector.pth")
    features = llm.encode("a prompt", llm.spec)
    conditioning.fuse_conditioning(adapter, [[torch.zeros(1, 77, 768), {}]], features, 1.0)
    compute = management.get_torch_device()

    def held(module: torch.nn.Module) -> int:
        return sum(p.nbytes for p in module.parameters() if p.device == compute and compute.type != "cpu")

    return {
        "compute_device": str(compute),
        "llm_bytes": held(llm.clip.cond_stage_model),
        "adapter_bytes": held(adapter.module),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="SD1.5's whole UNet")
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
            "unet": "full" if options.full else "shallow",
            "size": options.size,
            "import_seconds": seconds,
            "steps": steps(pack, base / "models", options.full, options.size, options.rounds),
            "after_encoding": bytes_on_compute_device(pack),
        }
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
