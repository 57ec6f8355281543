"""LLM4GEN's nodes against ComfyUI-ELLA's on one host, with one UNet and one T5: a prompt change, and a step.

    COMFYUI_PATH=~/ComfyUI COMFYUI_PACKS_PATH=~/comfyui-packs python benchmarks/against_ella.py [--full]

Both packs run in one process of the host, with random weights of the real sizes: ELLA's resampler of 64 tokens, the
official Cross-Adapter, T5 of XL's width (`--t5-layers 24` is the whole of it), SD1.5's whole UNet with `--full`. A
prompt change is what its nodes do from two texts to two conditionings for `--steps` steps: ELLA reads the prompt's own
tokens by T5 and adapts them anew for every step; LLM4GEN reads 256 by T5 and 77 by CLIP, and adapts them once. The two
take turns, so that a noisy machine disturbs both alike.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from host import REPOSITORY, import_seconds, start_host

sys.path[:0] = [str(REPOSITORY / "tests" / "support"), str(REPOSITORY)]

import host_models  # noqa: E402
from comfy_server import COMFYUI, make_base, pack_folder  # noqa: E402

from llm4gen_core import AdapterMetadata, CrossAdapter, CrossAdapterConfig, save_adapter  # noqa: E402

TEXTS = (
    "a green velvet armchair left of a small round oak table, a ginger cat asleep on a red woven rug, tall windows "
    "with linen curtains behind them, a brass lamp and three books on the table, morning light from the left",
    "blurry, low quality",
)


def make_models(models: Path, layers: int) -> None:
    """The same T5 for both, as a folder, with the Cross-Adapter that fits it."""
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    config = T5Config(
        d_model=2048,
        d_ff=5120,
        d_kv=64,
        num_heads=32,
        num_layers=layers,
        vocab_size=32128,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    folder = models / "ella_encoder" / "t5"
    T5EncoderModel(config).half().save_pretrained(folder)
    T5TokenizerFast.from_pretrained(COMFYUI / "comfy" / "text_encoders" / "t5_tokenizer").save_pretrained(folder)
    (models / "llm" / "t5").symlink_to(folder)
    host_models.save_half(host_models.checkpoint_state(0), models / "checkpoints" / "sd15.safetensors")
    adapter = CrossAdapter(CrossAdapterConfig(d_text=768, d_llm=2048))
    save_adapter(adapter, models / "llm4gen" / "adapter.safetensors", AdapterMetadata("sd15", None))


def import_ella() -> ModuleType:
    """Node module of the pack, imported as the host imports it."""
    name, folder = "ella_pack", pack_folder("ComfyUI-ELLA")
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    if spec is None or spec.loader is None or not folder.is_dir():
        sys.exit(f"There is no ComfyUI-ELLA at {folder}; set COMFYUI_PACKS_PATH to the folder that holds it.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return importlib.import_module(f"{name}.ella")


class Ella:
    """ELLA's nodes, in the order of its own example workflow."""

    def __init__(self, models: Path, unet: Any, steps: int) -> None:
        from safetensors.torch import save_file

        nodes = import_ella()
        resampler = importlib.import_module("ella_pack.model").ELLAModel()
        save_file(resampler.state_dict(), models / "ella" / "ella.safetensors")
        self.nodes, self.unet, self.steps = nodes, unet, steps
        (self.ella,) = nodes.ELLALoader().load("ella.safetensors")
        (self.t5,) = nodes.T5TextEncoderLoader().load("t5", dtype="FP32")

    def encode(self, steps: int | None = None) -> list[Any]:
        """Both conditionings, from the texts."""
        settings = {"model": self.unet, "ella": self.ella, "scheduler": "ddim_uniform", "denoise": 1.0}
        (timed,) = self.nodes.SetEllaTimesteps().set_timesteps(**settings, steps=steps or self.steps)
        embeds = [self.nodes.T5TextEncode().encode(text, self.t5)[0] for text in TEXTS]
        return [self.nodes.EllaEncode().encode(timed, side)[0] for side in embeds]


class Ours:
    """Encode as Text Encode does."""

    def __init__(self, pack: str, clip: Any) -> None:
        self.node = importlib.import_module(f"{pack}.nodes.encode").LLM4GENTextEncode
        self.clip = clip
        self.llm = importlib.import_module(f"{pack}.nodes.host_llm").load_llm("t5/", {"dtype": torch.float32})
        self.adapter = importlib.import_module(f"{pack}.nodes.host").HostAdapter.load("adapter.safetensors")
        importlib.import_module(f"{pack}.nodes.encode").say = lambda *_: None  # there is no browser

    def encode(self) -> list[Any]:
        return list(self.node.execute(self.clip, self.llm, self.adapter, *TEXTS, 1.0).result)


def compare(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, object]:
    """Seconds of each, and the ratio of the second to the first."""
    for way in ways.values():
        way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - started)
    first, second = times.values()
    return {
        **{f"{name}_seconds": statistics.median(of_way) for name, of_way in times.items()},
        "ratio_median_of_rounds": statistics.median(b / a for a, b in zip(first, second, strict=True)),
        "ratio_of_fastest": min(second) / min(first),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="SD1.5's whole UNet")
    parser.add_argument("--t5-layers", type=int, default=6, help="blocks of T5; XL has 24 (default: %(default)s)")
    parser.add_argument("--size", type=int, default=512, help="pixels of a side")
    parser.add_argument("--steps", type=int, default=20, help="of the image that a prompt is encoded for")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is timed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = make_base(Path(folder) / "base")
        models = base / "models"
        for name in ("ella", "ella_encoder"):
            (models / name).mkdir()
        start_host(base)
        import comfy.sample
        import comfy.sd

        make_models(models, options.t5_layers)
        clip = comfy.sd.load_checkpoint_guess_config(str(models / "checkpoints" / "sd15.safetensors"))[1]
        unet = comfy.sd.load_diffusion_model_state_dict(host_models.unet_state(0, full=options.full))
        ella, ours = Ella(models, unet, options.steps), Ours(import_seconds()[1], clip)
        latent = torch.zeros(1, 4, options.size // 8, options.size // 8)
        noise = comfy.sample.prepare_noise(latent, 0)

        def step(sides: list[Any]) -> object:
            return comfy.sample.sample(
                unet, noise, 1, 7.5, "ddim", "ddim_uniform", *sides, latent, disable_pbar=True, seed=0
            )

        with torch.inference_mode():
            prompt = compare({"ella": ella.encode, "llm4gen": ours.encode}, options.rounds)
            sides = {"ella": ella.encode(1), "llm4gen": ours.encode()}
            one_step = compare({name: lambda s=s: step(s) for name, s in sides.items()}, options.rounds)
    print(
        json.dumps(
            {
                "comfyui": str(COMFYUI),
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "t5_layers": options.t5_layers,
                "unet": "whole" if options.full else "shallow",
                "size": options.size,
                "prompt_change": {"steps": options.steps, **prompt},
                "step": one_step,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
