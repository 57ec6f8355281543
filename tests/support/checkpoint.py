"""The miniatures as a single checkpoint file: the names of Stability's code, written out by hand.

The trainer reads such files through diffusers' converters; this goes the other way without them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def unet_name(name: str, layers: int, attending: set[int]) -> str:
    """Stability's name of a UNet's tensor; `attending` are the up blocks with attention."""
    for ours, theirs in _UNET.items():
        name = re.sub(rf"^{re.escape(ours)}\.", f"{theirs}.", name)
    if found := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", name):
        side, block, kind, index, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        number = block * (layers + 1) + (index if kind in ("resnets", "attentions") else layers)
        if kind == "downsamplers":
            return f"input_blocks.{number + 1}.0.op.{rest.removeprefix('conv.')}"
        if kind == "upsamplers":
            return f"output_blocks.{number}.{2 if block in attending else 1}.{rest}"
        place = f"input_blocks.{number + 1}" if side == "down" else f"output_blocks.{number}"
        name = f"{place}.{0 if kind == 'resnets' else 1}.{rest}"
    if re.match(r"(input_blocks|output_blocks)\.\d+\.0\.|middle_block\.[02]\.", name):
        for ours, theirs in _RESNET.items():
            name = name.replace(f".{ours}.", f".{theirs}.")
    return name


def vae_name(name: str, levels: int) -> str:
    name = re.sub(r"up_blocks\.(\d+)\.", lambda found: f"up.{levels - 1 - int(found[1])}.", name)
    name = name.replace("down_blocks.", "down.").replace("mid_block.attentions.0.", "mid.attn_1.")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    name = name.replace(".resnets.", ".block.").replace("downsamplers.0", "downsample")
    name = name.replace("upsamplers.0", "upsample").replace("conv_norm_out", "norm_out")
    name = name.replace("conv_shortcut", "nin_shortcut")
    for ours, theirs in _ATTENTION.items():
        name = name.replace(f"attn_1.{ours}.", f"attn_1.{theirs}.")
    return name


def open_clip_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP keeps query, key and value in one matrix, and the projection transposed."""
    theirs = {
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "ln_final.weight": state["text_model.final_layer_norm.weight"],
        "ln_final.bias": state["text_model.final_layer_norm.bias"],
        "text_projection": state["text_projection.weight"].T.contiguous(),
        "logit_scale": torch.tensor(4.6),
    }
    for name, tensor in state.items():
        if found := re.match(r"text_model\.encoder\.layers\.(\d+)\.(.*)\.(weight|bias)", name):
            block, layer, kind = f"transformer.resblocks.{found[1]}", found[2], found[3]
            if layer in _OPEN_CLIP:
                theirs[f"{block}.{_OPEN_CLIP[layer]}.{kind}"] = tensor
            elif layer == "self_attn.q_proj":
                parts = [state[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
                theirs[f"{block}.attn.in_proj_{kind}"] = torch.cat(parts)
    return theirs


def checkpoint_state(folder: Path) -> dict[str, Tensor]:
    """The tensors of a diffusers folder of `small_models` under the names of a checkpoint."""
    unet = json.loads((folder / "unet" / "config.json").read_text())
    attending = {i for i, kind in enumerate(unet["up_block_types"]) if kind.startswith("CrossAttn")}
    vae_levels = len(json.loads((folder / "vae" / "config.json").read_text())["block_out_channels"])
    clip_l, state = load_file(folder / "text_encoder" / "model.safetensors"), {}
    for name, tensor in load_file(folder / "unet" / "diffusion_pytorch_model.safetensors").items():
        state["model.diffusion_model." + unet_name(name, unet["layers_per_block"], attending)] = tensor
    for name, tensor in load_file(folder / "vae" / "diffusion_pytorch_model.safetensors").items():
        is_convolution = ".attentions." in name and tensor.ndim == 2
        state["first_stage_model." + vae_name(name, vae_levels)] = (
            tensor[:, :, None, None].clone() if is_convolution else tensor
        )
    if (folder / "text_encoder_2").is_dir():
        state |= {f"conditioner.embedders.0.transformer.{name}": tensor for name, tensor in clip_l.items()}
        clip_g = open_clip_state(load_file(folder / "text_encoder_2" / "model.safetensors"))
        state |= {f"conditioner.embedders.1.model.{name}": tensor for name, tensor in clip_g.items()}
    else:
        state |= {f"cond_stage_model.transformer.{name}": tensor for name, tensor in clip_l.items()}
    return state


def write_checkpoint(folder: Path, path: Path, **extra: Tensor) -> Path:
    """A diffusers folder of `small_models` as one file, with `extra` tensors beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {**checkpoint_state(folder), **extra}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path
