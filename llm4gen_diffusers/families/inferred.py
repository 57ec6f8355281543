"""Configurations of models, read off the names and shapes of their tensors in Stability's layout; never fetched."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from llm4gen_core import LLM4GENError

SCALING_FACTORS = {"sd15": 0.18215, "sdxl": 0.13025}
SAMPLE_SIZES = {"sd15": 64, "sdxl": 128}
"""Latents of a side of the images that the family was trained on."""
HEADS = 8
"""Of SD1.5's UNet at every width; SDXL has heads of 64 channels instead, as have both CLIPs."""
HEAD_WIDTH = 64
TIME_EMBEDDING = 256
"""Width of the embedding of each of SDXL's six size conditions."""


class Shapes(dict[str, tuple[int, ...]]):
    """Shapes of tensors by name; one that is missing is an error in words."""

    def __init__(self, where: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(shapes)
        self.where = where

    def __missing__(self, name: str) -> tuple[int, ...]:
        raise LLM4GENError(f"{self.where} lacks the tensor {name}; the file is incomplete. Download it again.")

    def under(self, prefix: str) -> Shapes:
        """Those under a prefix, without it."""
        return Shapes(self.where, {n.removeprefix(prefix): shape for n, shape in self.items() if n.startswith(prefix)})


def unet_config(shapes: Shapes, family: str) -> dict[str, Any]:
    """Configuration of UNet2DConditionModel: levels of equally many blocks, each level with or without attention."""
    levels: list[list[tuple[int, int]]] = [[]]  # (channels, transformer blocks) of each residual block
    for block in (f"input_blocks.{number}." for number in range(1, _count(shapes, "input_blocks."))):
        if f"{block}0.op.weight" in shapes:
            levels.append([])
        else:
            levels[-1].append((shapes[f"{block}0.out_layers.3.weight"][0], _depth(shapes, f"{block}1.")))
    output = [_depth(shapes, f"output_blocks.{n}.1.") for n in range(_count(shapes, "output_blocks."))]
    middle = _depth(shapes, "middle_block.1.")
    layers = len(levels[0])
    alike = all(len(level) == layers and len(set(level)) == 1 for level in levels)
    channels, depths = zip(*(level[0] for level in levels), strict=True) if alike else ((), ())
    expected = [depth for depth in reversed(depths) for _ in range(layers + 1)]
    if not alike or output != expected or not middle or (depths[-1] and depths[-1] != middle):
        raise LLM4GENError(
            f"{shapes.where} has {len(levels)} levels whose blocks are not alike, as pruned models such as SSD-1B "
            "have; expected SD1.5, SDXL or a fine-tune of them. Use it as a diffusers folder, which says how it is "
            "built."
        )
    to_k = next(shape for name, shape in shapes.items() if name.endswith("attn2.to_k.weight"))
    projection = next(shape for name, shape in shapes.items() if name.endswith(".1.proj_in.weight"))
    config: dict[str, Any] = {
        "sample_size": SAMPLE_SIZES[family],
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": list(channels),
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)],
        "layers_per_block": layers,
        # the last entry counts for the middle block as well
        "transformer_layers_per_block": [depth or 1 for depth in depths[:-1]] + [middle],
        "cross_attention_dim": to_k[1],
        "use_linear_projection": len(projection) == 2,
        # diffusers' name for the number of heads
        "attention_head_dim": [c // HEAD_WIDTH for c in channels] if family == "sdxl" else HEADS,
    }
    if "label_emb.0.0.weight" in shapes:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": TIME_EMBEDDING,
            "projection_class_embeddings_input_dim": shapes["label_emb.0.0.weight"][1],
        }
    return config


def vae_config(shapes: Shapes, family: str) -> dict[str, Any]:
    """Configuration of AutoencoderKL."""
    levels = _count(shapes, "encoder.down.")
    return {
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "block_out_channels": [shapes[f"encoder.down.{level}.block.0.conv2.weight"][0] for level in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": _count(shapes, "encoder.down.0.block."),
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "scaling_factor": SCALING_FACTORS[family],
    }


def clip_l_config(shapes: Shapes) -> dict[str, Any]:
    """Configuration of CLIPTextModel from transformers' names, which some tools store without `text_model.`."""
    prefix = "text_model." if any(name.startswith("text_model.") for name in shapes) else ""
    return _clip_config(
        embedding=shapes[f"{prefix}embeddings.token_embedding.weight"],
        positions=shapes[f"{prefix}embeddings.position_embedding.weight"][0],
        layers=_count(shapes, f"{prefix}encoder.layers."),
        hidden=shapes[f"{prefix}encoder.layers.0.mlp.fc1.weight"][0],
        activation="quick_gelu",
    )


def clip_g_config(shapes: Shapes) -> dict[str, Any]:
    """Configuration of CLIPTextModelWithProjection from OpenCLIP's names."""
    return _clip_config(
        embedding=shapes["token_embedding.weight"],
        positions=shapes["positional_embedding"][0],
        layers=_count(shapes, "transformer.resblocks."),
        hidden=shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
        activation="gelu",
    )


def _clip_config(
    embedding: tuple[int, ...], positions: int, layers: int, hidden: int, activation: str
) -> dict[str, Any]:
    vocabulary, width = embedding
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": width // HEAD_WIDTH,
        "max_position_embeddings": positions,
        "hidden_act": activation,
        "projection_dim": width,  # square in both CLIPs
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }


def _count(names: Iterable[str], prefix: str) -> int:
    """How many numbers follow `prefix` in names."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return len({found[1] for name in names if (found := pattern.match(name))})


def _depth(shapes: Shapes, block: str) -> int:
    return _count(shapes, f"{block}transformer_blocks.")
