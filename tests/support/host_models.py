"""Models in their real formats, small or shallow, with random weights: what the host tests load.

The UNet has SD1.5's width and keys but two levels of one block (107 M parameters), so that the host
detects it as SD1.5. CLIP-L and the VAE have their full size, because the host knows no other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

T5_CONFIG = {
    "d_model": 64,
    "d_ff": 128,
    "d_kv": 16,
    "num_heads": 4,
    "num_layers": 3,
    "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
LLM_WIDTH = T5_CONFIG["d_model"]


def random_state(module: nn.Module, seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    """A state dict for a module on the meta device: variance-preserving matrices, unit norms, small biases."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, parameter in module.state_dict().items():
        shape = parameter.shape
        if len(shape) >= 2:
            deviation = scale / math.sqrt(math.prod(shape[1:]))
            state[name] = torch.randn(shape, generator=generator) * deviation
        elif name.endswith("weight"):
            state[name] = 1 + 0.1 * torch.randn(shape, generator=generator)
        else:
            state[name] = 0.1 * torch.randn(shape, generator=generator)
    return state


def unet_state(seed: int, full: bool = False) -> dict[str, Tensor]:
    """SD1.5's UNet in the checkpoint's keys: two levels of one block, or the whole of it."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    if full:
        layout = {
            "num_res_blocks": [2, 2, 2, 2],
            "channel_mult": [1, 2, 4, 4],
            "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
            "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        }
    else:
        layout = {
            "num_res_blocks": [1, 1],
            "channel_mult": [1, 2],
            "transformer_depth": [1, 1],
            "transformer_depth_output": [1, 1, 1, 1],
        }
    unet = UNetModel(
        image_size=32,
        in_channels=4,
        model_channels=320,
        out_channels=4,
        num_heads=8,
        use_spatial_transformer=True,
        transformer_depth_middle=1,
        context_dim=768,
        legacy=False,
        **layout,
        dtype=torch.float32,
        device="meta",
    )
    return random_state(unet, seed)


def narrow_sd15(levels: int) -> Any:
    """The host's SD1.5 model under its patcher, with a UNet of few narrow levels, which predicts in milliseconds."""
    import comfy.model_patcher
    import comfy.supported_models

    layout = {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 32,
        "num_res_blocks": [1] * levels,
        "channel_mult": [2**level for level in range(levels)],
        "transformer_depth": [1] * levels,
        "transformer_depth_output": [1] * (2 * levels),
        "transformer_depth_middle": 1,
        "num_heads": 8,
        "num_head_channels": -1,
        "use_spatial_transformer": True,
        "legacy": False,
        "dtype": torch.float32,
    }
    config = comfy.supported_models.SD15({**comfy.supported_models.SD15.unet_config, **layout})
    device = torch.device("cpu")
    model = config.get_model({}, "", device=device)
    model.diffusion_model.load_state_dict(random_state(model.diffusion_model, 0))
    return comfy.model_patcher.ModelPatcher(model.eval(), load_device=device, offload_device=device)


def checkpoint_state(seed: int) -> dict[str, Tensor]:
    """SD1.5's checkpoint format: UNet, CLIP-L and VAE under their prefixes."""
    import comfy.clip_model
    import comfy.ops
    import comfy.sd1_clip
    from comfy.ldm.models.autoencoder import AutoencoderKL

    config = json.loads((Path(comfy.sd1_clip.__file__).parent / "sd1_clip_config.json").read_text())
    with torch.device("meta"):
        clip = comfy.clip_model.CLIPTextModel(config, torch.float32, "meta", comfy.ops.disable_weight_init)
        vae = AutoencoderKL(
            ddconfig={
                "double_z": True,
                "z_channels": 4,
                "resolution": 256,
                "in_channels": 3,
                "out_ch": 3,
                "ch": 128,
                "ch_mult": [1, 2, 4, 4],
                "num_res_blocks": 2,
                "attn_resolutions": [],
                "dropout": 0.0,
            },
            embed_dim=4,
        )
    parts = (
        ("model.diffusion_model.", unet_state(seed)),
        ("cond_stage_model.transformer.", random_state(clip, seed + 1)),
        ("first_stage_model.", random_state(vae, seed + 2)),
    )
    return {prefix + name: tensor for prefix, state in parts for name, tensor in state.items()}


def t5_state(seed: int) -> dict[str, Tensor]:
    """Keys and values of a small T5-v1.1 encoder, in transformers' layout."""
    from transformers import T5Config, T5EncoderModel

    with torch.device("meta"):
        model = T5EncoderModel(T5Config(**T5_CONFIG))
    state = random_state(model, seed)
    state.pop("encoder.embed_tokens.weight", None)
    state["shared.weight"] = torch.randn(state["shared.weight"].shape, generator=torch.Generator().manual_seed(seed))
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    state[bias] = torch.randn(state[bias].shape, generator=torch.Generator().manual_seed(seed))
    return state


def rankgen_state(seed: int) -> dict[str, Tensor]:
    """The same under RankGen's key prefix, with its unused projection."""
    return {
        **{f"t5_encoder.{name}": tensor for name, tensor in t5_state(seed).items()},
        "projection.weight": torch.zeros(LLM_WIDTH, LLM_WIDTH),
    }


def adapter_state(seed: int, d_text: int = 768, d_llm: int = LLM_WIDTH) -> dict[str, Tensor]:
    """A Cross-Adapter under the official keys."""
    from llm4gen_core import CrossAdapter, CrossAdapterConfig

    with torch.device("meta"):
        module = CrossAdapter(CrossAdapterConfig(d_text, d_llm))
    return {f"CrossFusionModule.0.{name}": tensor for name, tensor in random_state(module, seed).items()}


def save_own_adapter(
    path: Path,
    seed: int,
    fusion: str = "cross_adapter",
    unet_part: Any = None,
    lambda_mode: str = "embedding",
    base: str = "sd15",
) -> None:
    """An adapter in the project's own file, of any fusion, λ mode and base, with or without a part of the UNet."""
    from llm4gen_core import AdapterMetadata, CrossAdapter, CrossAdapterConfig, save_adapter

    with torch.device("meta"):
        width = {"sd15": 768, "sdxl": 2048}[base]
        module = CrossAdapter(CrossAdapterConfig(width, LLM_WIDTH, fusion=fusion))
    module.load_state_dict(random_state(module, seed), assign=True)
    save_adapter(module, path, AdapterMetadata(base, None, lambda_mode=lambda_mode), unet_part)


def kv_part(layers: Mapping[str, tuple[int, int]], seed: int, scale: float = 0.5) -> Any:
    """A change of the cross-attention's keys and values among layers {module: (out, in)}, large enough to be seen."""
    from llm4gen_core import UNetPart

    generator = torch.Generator().manual_seed(seed)
    return UNetPart(
        "cross_attention_kv",
        {
            f"{module}.diff": torch.randn(shape, generator=generator) * scale / math.sqrt(shape[1])
            for module, shape in layers.items()
            if module.endswith((".attn2.to_k", ".attn2.to_v"))
        },
    )


def lora_part(layers: Mapping[str, tuple[int, int]], seed: int, rank: int = 4, alpha: float = 2.0) -> Any:
    """A LoRA on every attention, feed-forward and projection layer among layers {module: (out, in)}."""
    from llm4gen_core import UNetPart

    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module, (rows, columns) in layers.items():
        if ".attentions." in module:
            tensors[f"{module}.lora_A.weight"] = torch.randn(rank, columns, generator=generator) / math.sqrt(columns)
            tensors[f"{module}.lora_B.weight"] = torch.randn(rows, rank, generator=generator) * 0.5
            tensors[f"{module}.alpha"] = torch.tensor(alpha)
    return UNetPart("lora", tensors)


def save_half(state: Mapping[str, Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.half() for name, tensor in state.items()}, path)


def save_hf_t5(state: Mapping[str, Tensor], folder: Path, tokenizer: Path) -> None:
    """A Hugging Face folder: config, weights, the host's T5 tokenizer."""
    from transformers import T5Config, T5TokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        **T5Config(**T5_CONFIG).to_dict(),
        "architectures": ["T5EncoderModel"],
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(dict(state), folder / "model.safetensors", metadata={"format": "pt"})
    T5TokenizerFast.from_pretrained(tokenizer).save_pretrained(folder)


def fill(models: Path, t5_tokenizer: Path) -> None:
    """Put the small models into a host's model folders, under the names that the tests use."""
    save_half(checkpoint_state(0), models / "checkpoints" / "sd15.safetensors")
    save_half(unet_state(10), models / "diffusion_models" / "llm4gen_unet.safetensors")
    save_file(rankgen_state(20), models / "text_encoders" / "rankgen.safetensors")
    save_hf_t5(t5_state(20), models / "llm" / "some" / "t5-folder", t5_tokenizer)
    torch.save(adapter_state(30), models / "llm4gen" / "projector.pth")
