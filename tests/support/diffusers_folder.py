"""The tests' SD1.5 checkpoint in diffusers: the same weights under the other library's names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

SDXL_IN_DIFFUSERS = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
"""Configuration of SDXL's UNet, as diffusers names it."""


def diffusers_unet(checkpoint: Mapping[str, Tensor]) -> Any:
    """diffusers' UNet with the weights of a checkpoint of `host_models.checkpoint_state`, in its precision."""
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=768,
            attention_head_dim=8,
        )
    state = convert_ldm_unet_checkpoint(dict(checkpoint), unet.config)
    unet.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)
    return unet.eval()


def write_diffusers_folder(checkpoint_file: Path, clip_tokenizer: Path, folder: Path) -> Path:
    """Write UNet, VAE, CLIP, tokenizer and scheduler, in float32.

    Args:
        checkpoint_file: of `host_models.fill`.
        clip_tokenizer: folder with CLIP's vocabulary.
        folder: to be made.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    checkpoint = {name: tensor.float() for name, tensor in load_file(checkpoint_file).items()}
    unet = diffusers_unet(checkpoint)
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
    )
    vae.load_state_dict(convert_ldm_vae_checkpoint(dict(checkpoint), vae.config))
    clip = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            hidden_act="quick_gelu",
            projection_dim=768,
        )
    )
    prefix = "cond_stage_model.transformer."
    state = {name.removeprefix(prefix): tensor for name, tensor in checkpoint.items() if name.startswith(prefix)}
    own = set(clip.state_dict())
    if not any(name.startswith("text_model.") for name in own):
        state = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    clip.load_state_dict({name: tensor for name, tensor in state.items() if name in own})
    StableDiffusionPipeline(
        unet=unet,
        vae=vae,
        text_encoder=clip,
        tokenizer=CLIPTokenizer.from_pretrained(clip_tokenizer),
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder
