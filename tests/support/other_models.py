"""Models of other origin in their real formats, small or shallow, with random weights: what stands beside LLM4GEN.

They fit the UNet and the text encoder of `host_models`.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from host_models import LLM_WIDTH, random_state, save_half
from safetensors.torch import save_file
from torch import Tensor

TEXT, IMAGE = 768, 1024
"""Widths of SD1.5's context and of the image embeddings that an IP-Adapter reads."""
IMAGE_TOKENS = 4

LORA_LAYERS = {
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": (320, 320),
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k": (320, TEXT),
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_v": (640, TEXT),
    "lora_te_text_model_encoder_layers_0_self_attn_q_proj": (TEXT, TEXT),
    "lora_te_text_model_encoder_layers_1_mlp_fc1": (4 * TEXT, TEXT),
}
"""kohya's names of some layers of UNet and text encoder, with their sizes (out, in)."""

IP_ADAPTER_LAYERS = 16
IP_ADAPTER_REACHES = {1: "down_blocks.0.attentions.0", 13: "up_blocks.1.attentions.1"}
"""Number in an IP-Adapter's file, and diffusers' name, of the layers that it finds in the shallow UNet by the host's
names of SD1.5's blocks: input 1, and output 3. Both are 320 wide."""


def lora_state(seed: int, rank: int = 4) -> dict[str, Tensor]:
    """A LoRA as kohya's sd-scripts saves it, of UNet and text encoder, strong enough to be seen."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, (rows, columns) in LORA_LAYERS.items():
        state[f"{name}.lora_down.weight"] = torch.randn(rank, columns, generator=generator) / math.sqrt(columns)
        state[f"{name}.lora_up.weight"] = torch.randn(rows, rank, generator=generator) / 2
        state[f"{name}.alpha"] = torch.tensor(float(rank))
    return state


def controlnet_state(seed: int) -> dict[str, Tensor]:
    """A ControlNet under the keys of SD1.5's v1.1 files, as deep as the shallow UNet; it adds what is seen."""
    from comfy.cldm.cldm import ControlNet

    network = ControlNet(
        image_size=32,
        in_channels=4,
        hint_channels=3,
        model_channels=320,
        num_res_blocks=[1, 1],
        channel_mult=[1, 2],
        num_heads=8,
        use_spatial_transformer=True,
        transformer_depth=[1, 1],
        transformer_depth_middle=1,
        context_dim=TEXT,
        legacy=False,
        device="meta",
    )
    return {f"control_model.{name}": tensor for name, tensor in random_state(network, seed).items()}


def ip_adapter_state(seed: int) -> dict[str, Tensor]:
    """An IP-Adapter for SD1.5 (4 image tokens), its keys and values large enough to be seen.

    Layers that the shallow UNet does not have are one row wide.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {
        "image_proj.proj.weight": torch.randn(IMAGE_TOKENS * TEXT, IMAGE, generator=generator) / math.sqrt(IMAGE),
        "image_proj.proj.bias": torch.randn(IMAGE_TOKENS * TEXT, generator=generator) / 10,
        "image_proj.norm.weight": 1 + torch.randn(TEXT, generator=generator) / 10,
        "image_proj.norm.bias": torch.randn(TEXT, generator=generator) / 10,
    }
    for number in range(1, 2 * IP_ADAPTER_LAYERS, 2):
        rows = 320 if number in IP_ADAPTER_REACHES else 1
        for part in ("k", "v"):
            weight = torch.randn(rows, TEXT, generator=generator) / math.sqrt(TEXT)
            state[f"ip_adapter.{number}.to_{part}_ip.weight"] = weight
    return state


def hypernetwork_state(seed: int) -> dict:
    """A hypernetwork as AUTOMATIC1111 saves it: for each width, what is added to keys' and to values' tokens."""
    generator = torch.Generator().manual_seed(seed)

    def network(width: int) -> dict[str, Tensor]:
        return {
            "linear.0.weight": torch.randn(32, width, generator=generator) / math.sqrt(width),
            "linear.0.bias": torch.randn(32, generator=generator) / 10,
            "linear.1.weight": torch.randn(width, 32, generator=generator) / math.sqrt(32),
            "linear.1.bias": torch.zeros(width),
        }

    return {width: (network(width), network(width)) for width in (TEXT, 320)} | {"activation_func": "relu"}


def image_embeds(seed: int) -> Tensor:
    """Output of a CLIP vision model for an image, [1, 1024]."""
    return torch.randn(1, IMAGE, generator=torch.Generator().manual_seed(seed))


def fill(models: Path) -> None:
    """Put one of each into a host's model folders, under names that begin with `other`."""
    for folder in ("loras", "controlnet", "hypernetworks", "ipadapter"):
        (models / folder).mkdir(exist_ok=True)
    save_file(lora_state(50), models / "loras" / "other_kohya.safetensors")
    save_half(controlnet_state(60), models / "controlnet" / "other.safetensors")
    save_file(ip_adapter_state(70), models / "ipadapter" / "other.safetensors")
    torch.save(hypernetwork_state(80), models / "hypernetworks" / "other.pt")


def save_short_adapter(path: Path, seed: int = 90) -> None:
    """An LLM4GEN adapter whose LLM gives 33 tokens.

    Beside plain CLIP in one tensor, as attention couple puts them, 77 + 33 and 77 tokens are repeated to 770; with the
    usual 256 it would be to 25641.
    """
    from llm4gen_core import AdapterMetadata, CrossAdapter, CrossAdapterConfig, LLMSpec, save_adapter

    with torch.device("meta"):
        module = CrossAdapter(CrossAdapterConfig(TEXT, LLM_WIDTH))
    module.load_state_dict(random_state(module, seed), assign=True)
    spec = LLMSpec(model="", architecture="t5", layers=3, width=LLM_WIDTH, prefix="pre ", max_length=33)
    save_adapter(module, path, AdapterMetadata("sd15", spec))
