"""SDXL's base and refiner as checkpoints that the host detects and loads, small where it allows, random.

The host tells SDXL's families by their UNet's width, its transformers a block and its context, not by how its levels
widen. So the UNets here do not widen. CLIP-G has its full size, because the host knows no other: 695 M parameters, of
the 1,010 M of the base.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import host_models
import torch
from checkpoint import open_clip_state
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

BASE = {
    # Segmind-Vega's transformers: the fewest that the host takes for SDXL.
    "model_channels": 320,
    "channel_mult": [1, 1, 1],
    "num_res_blocks": [2, 2, 2],
    "transformer_depth": [0, 0, 1, 1, 2, 2],
    "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
    "transformer_depth_middle": -1,
    "context_dim": 2048,
    "adm_in_channels": 2816,
}
REFINER = {
    "model_channels": 384,
    "channel_mult": [1, 1, 1, 1],
    "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [0, 0, 4, 4, 4, 4, 0, 0],
    "transformer_depth_output": [0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": -1,
    "context_dim": 1280,
    "adm_in_channels": 2560,
}


class Numbers:
    """Normally distributed numbers in float16, cut from one block: to draw 700 M of them takes too long."""

    def __init__(self, seed: int, size: int = 2**22) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.block = torch.randn(size, generator=self.generator)
        self.scaled: dict[float, Tensor] = {}

    def state(self, module: nn.Module) -> dict[str, Tensor]:
        """Random state as of `host_models.random_state`, for a module on the meta device."""
        return {name: self._fill(name, tensor.shape) for name, tensor in module.state_dict().items()}

    def _fill(self, name: str, shape: torch.Size) -> Tensor:
        if len(shape) >= 2:
            return self._cut(1 / math.sqrt(math.prod(shape[1:])), shape)
        small = self._cut(0.1, shape)
        return 1 + small if name.endswith("weight") else small

    def _cut(self, deviation: float, shape: torch.Size) -> Tensor:
        """Values from a place in the block, so that tensors of one shape differ; the longest repeat it."""
        if deviation not in self.scaled:
            self.scaled[deviation] = (self.block * deviation).half()
        count, block = math.prod(shape), self.scaled[deviation]
        start = int(torch.randint(len(block), (), generator=self.generator))
        if start + count > len(block):
            start = start % max(1, len(block) - count)
            block = block.repeat(-(-(start + count) // len(block)))
        return block[start : start + count].clone().view(shape)


def _unet(layout: dict[str, Any]) -> nn.Module:
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    return UNetModel(
        image_size=32,
        in_channels=4,
        out_channels=4,
        num_head_channels=64,
        use_spatial_transformer=True,
        use_linear_in_transformer=True,
        num_classes="sequential",
        legacy=False,
        # The model takes the transformers' numbers out of its lists.
        **{name: list(value) if isinstance(value, list) else value for name, value in layout.items()},
        dtype=torch.float16,
        device="meta",
    )


def _clip_g() -> nn.Module:
    import comfy.clip_model
    import comfy.ops
    import comfy.sd1_clip

    config = json.loads((Path(comfy.sd1_clip.__file__).parent / "clip_config_bigg.json").read_text())
    return comfy.clip_model.CLIPTextModel(config, torch.float16, "meta", comfy.ops.disable_weight_init)


def _save_checkpoints(sd15: Path, base: Path, refiner: Path) -> None:
    """Write both. CLIP-L and VAE, which have SD1.5's sizes, are those of the small SD1.5 checkpoint; CLIP-G is one."""
    numbers, of_sd15, before = Numbers(40), load_file(sd15), "cond_stage_model.transformer."
    vae = {name: tensor for name, tensor in of_sd15.items() if name.startswith("first_stage_model.")}
    clip_l = {name.removeprefix(before): tensor for name, tensor in of_sd15.items() if name.startswith(before)}
    clip_g = open_clip_state(numbers.state(_clip_g()))
    texts = {
        base: {"conditioner.embedders.0.transformer.": clip_l, "conditioner.embedders.1.model.": clip_g},
        refiner: {"conditioner.embedders.0.model.": clip_g},
    }
    for path, layout in ((base, BASE), (refiner, REFINER)):
        parts = {"model.diffusion_model.": numbers.state(_unet(layout)), "": vae, **texts[path]}
        save_file({prefix + name: tensor for prefix, state in parts.items() for name, tensor in state.items()}, path)


def _lora() -> Any:
    """A LoRA on the attention of the base, as a training with `cam+lora` puts it beside its Cross-Adapter."""
    import comfy.utils

    shapes = {name: tensor.shape for name, tensor in _unet(BASE).state_dict().items()}
    layers = {
        ours.removesuffix(".weight"): tuple(shapes[theirs])
        for ours, theirs in comfy.utils.unet_to_diffusers(BASE).items()
        if ours.endswith(".weight") and len(shapes.get(theirs, ())) == 2
    }
    return host_models.lora_part(layers, 42)


def fill(models: Path, sd15: Path) -> list[Path]:
    """Put base, refiner and an adapter into a host's model folders, under the names that the workflows use.

    Args:
        models: the host's folder.
        sd15: the small SD1.5 checkpoint.

    Returns:
        The files, 4.2 GB together.
    """
    base, refiner = (models / "checkpoints" / f"sd_xl_{part}_1.0.safetensors" for part in ("base", "refiner"))
    adapter = models / "llm4gen" / "llm4gen_sdxl.safetensors"
    _save_checkpoints(sd15, base, refiner)
    host_models.save_own_adapter(adapter, 41, base="sdxl", unet_part=_lora())
    return [base, refiner, adapter]
