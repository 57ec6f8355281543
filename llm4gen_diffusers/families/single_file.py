"""Weights of a single file, as ComfyUI loads them: a checkpoint of SD1.5 or SDXL, or a UNet or VAE by itself.

Such a file has Stability's names for its tensors and no configuration. diffusers translates the names; the
configurations come from `inferred`. What a file is can be told from its header alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from llm4gen_core import LLM4GENError
from llm4gen_core.weights import SAFETENSORS_SUFFIXES, load_pickle, load_tensors, read_header

from ..schedule import NoiseSchedule
from .folder import first_sentence, load_tokenizer
from .inferred import Shapes, clip_g_config, clip_l_config, unet_config, vae_config
from .parts import Base, Part

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP_L = {"sd15": "cond_stage_model.transformer.", "sdxl": "conditioner.embedders.0.transformer."}
CLIP_G = "conditioner.embedders.1.model."
_UNUSED = ("position_ids", "logit_scale", "text_projection.weight")
"""Endings of what checkpoints hold of CLIP beside the weights that are used."""
REPOSITORY = Path(__file__).parents[2]


def checkpoint_family(path: Path) -> str:
    """Which family a checkpoint belongs to, from its header: "sd15" or "sdxl".

    Raises:
        LLM4GENError: it cannot be read, or is another model or a part of one.
    """
    return _tell_family(path, _shapes(path, "Base"))


def open_checkpoint(path: Path, family: str, tokenizer: Path | None) -> Base:
    """A checkpoint; its header is read, its tensors are not.

    Args:
        path: `.safetensors` or `.ckpt`.
        family: that it must belong to.
        tokenizer: folder with CLIP's vocab.json and merges.txt, which a checkpoint lacks; None for the one of the
            ComfyUI that this clone is installed in.

    Raises:
        LLM4GENError: it cannot be read, is another model, or there is no tokenizer.
    """
    shapes = _shapes(path, "Base")
    found = _tell_family(path, shapes)
    if found != family:
        raise LLM4GENError(f"Base {path} is a checkpoint of {found}; expected {family}.")
    is_sdxl = family == "sdxl"
    # As ComfyUI reads them, which knows these markers in SDXL alone.
    schedule = NoiseSchedule.stable_diffusion(
        "v_prediction" if is_sdxl and "v_pred" in shapes else "epsilon",
        zero_terminal_snr=is_sdxl and "v_pred" in shapes and "ztsnr" in shapes,
    )
    clip_l = clip_l_config(shapes.under(CLIP_L[family]))
    text = [_part(path, lambda: clip_l, partial(_load_clip_l, path, CLIP_L[family], clip_l))]
    if is_sdxl:
        clip_g = clip_g_config(shapes.under(CLIP_G))
        text.append(_part(path, lambda: clip_g, partial(_load_clip_g, path, clip_g)))
    return Base(
        path=path,
        schedule=schedule,
        unet=unet_file(path, family),
        vae=vae_file(path, family),
        text=tuple(text),
        load_tokenizers=lambda: (load_tokenizer(tokenizer or _host_tokenizer(path)),) * len(text),
    )


def unet_file(path: Path, family: str) -> Part:
    """The UNet of a checkpoint, or one in a file of its own, as ComfyUI's *Load Diffusion Model* reads it."""
    return _part(path, lambda: unet_config(_unet_shapes(path)[1], family), partial(_load_unet, path, family))


def vae_file(path: Path, family: str) -> Part:
    """The VAE of a checkpoint, or one in a file of its own, as ComfyUI's *Load VAE* reads it."""
    return _part(path, lambda: vae_config(_vae_shapes(path)[1], family), partial(_load_vae, path, family))


def _part(path: Path, read_config: Callable[[], dict[str, Any]], load: Callable[[torch.dtype], nn.Module]) -> Part:
    # The header, which was read to know what the file is, says whether it is whole.
    return Part(path, read_config, check=lambda: None, load=load)


# What is in the file


def _shapes(path: Path, what: str) -> Shapes:
    if path.suffix.lower() in SAFETENSORS_SUFFIXES:
        return Shapes(f"{what} {path}", {name: info.shape for name, info in read_header(path, what)[0].items()})
    tensors = load_pickle(path, what, device="meta")
    return Shapes(f"{what} {path}", {name: tuple(tensor.shape) for name, tensor in tensors.items()})


def _read(path: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, without it. A checkpoint may hold gigabytes of others, such as an average."""
    if path.suffix.lower() in SAFETENSORS_SUFFIXES:
        with safe_open(str(path), framework="pt") as file:
            return {name.removeprefix(prefix): file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}
    return {n.removeprefix(prefix): tensor for n, tensor in load_tensors(path).items() if n.startswith(prefix)}


def _tell_family(path: Path, shapes: Shapes) -> str:
    unet = shapes.under(UNET)
    if "input_blocks.0.0.weight" not in unet:
        raise LLM4GENError(f"Base {path} is {_stranger(shapes)}; expected a checkpoint of SD1.5 or SDXL.")
    context = next((shape[1] for name, shape in unet.items() if name.endswith("attn2.to_k.weight")), None)
    if unet["input_blocks.0.0.weight"][1] != 4:
        raise LLM4GENError(
            f"Base {path} reads {unet['input_blocks.0.0.weight'][1]} channels; expected 4. Inpainting models cannot "
            "be used here."
        )
    found = None
    if any(name.startswith("cond_stage_model.model.") for name in shapes) or context == 1024:
        found = "SD2"
    elif any(name.startswith("conditioner.embedders.0.model.") for name in shapes):
        found = "SDXL's refiner"
    elif "edm_mean" in shapes or "edm_vpred.sigma_max" in shapes:
        found = "an SDXL with EDM's noise schedule, such as Playground 2.5"
    if found:
        raise LLM4GENError(f"Base {path} is {found}; expected a checkpoint of SD1.5 or SDXL.")
    family = "sdxl" if "label_emb.0.0.weight" in unet else "sd15"
    encoders = (CLIP_L["sdxl"], CLIP_G) if family == "sdxl" else (CLIP_L["sd15"],)
    for prefix, what in ((VAE, "VAE"), *((prefix, "text encoder") for prefix in encoders)):
        if not any(name.startswith(prefix) for name in shapes):
            raise LLM4GENError(
                f"Base {path} has no {what} (no tensors {prefix}*); expected a whole checkpoint of {family}. A UNet by "
                "itself can take the place of that of a base, but is none."
            )
    return family


def _stranger(shapes: Shapes) -> str:
    """What a file is that is no Stable Diffusion with a UNet."""

    def has(part: str) -> bool:
        return any(part in name for name in shapes)

    if has("joint_blocks."):
        return "SD3"
    if has("double_blocks.") or has("single_blocks."):
        return "Flux or a relative of it"
    if has("input_blocks."):
        return "a UNet by itself"
    if has("down_blocks."):
        return "a single model out of a diffusers folder"
    if has("lora_"):
        return "a LoRA"
    return f"not a checkpoint of Stable Diffusion (it holds {', '.join(sorted(shapes)[:2]) or 'no tensors'}, ...)"


def _host_tokenizer(checkpoint: Path) -> Path:
    folder = REPOSITORY.parent.parent / "comfy" / "sd1_tokenizer"
    if REPOSITORY.parent.name == "custom_nodes" and (folder / "vocab.json").is_file():
        return folder
    raise LLM4GENError(
        f"Base {checkpoint} is a checkpoint file, which holds no tokenizer; give --tokenizer (tokenizer in a recipe) "
        "with a folder of CLIP's vocab.json and merges.txt, such as comfy/sd1_tokenizer in ComfyUI's folder."
    )


def _unet_shapes(path: Path) -> tuple[str, Shapes]:
    """(prefix of its names, shapes without it)."""
    shapes = _shapes(path, "UNet")
    prefix = UNET if any(name.startswith(UNET) for name in shapes) else ""
    shapes = shapes.under(prefix)
    if "input_blocks.0.0.weight" not in shapes:
        advice = " Give the folder that it is in." if any(name.startswith("down_blocks.") for name in shapes) else ""
        raise LLM4GENError(
            f"UNet {path} is {_stranger(shapes)}; expected the UNet of SD1.5 or SDXL as ComfyUI stores it, or a "
            f"diffusers folder.{advice}"
        )
    return prefix, shapes


def _vae_shapes(path: Path) -> tuple[str, Shapes]:
    shapes = _shapes(path, "VAE")
    prefix = VAE if any(name.startswith(VAE) for name in shapes) else ""
    shapes = shapes.under(prefix)
    if "encoder.down.0.block.0.conv2.weight" not in shapes or "decoder.conv_in.weight" not in shapes:
        raise LLM4GENError(
            f"VAE {path} is not a VAE of SD1.5 or SDXL as ComfyUI stores it (it holds "
            f"{', '.join(sorted(shapes)[:2]) or 'no tensors'}, ...); give such a file, or a diffusers folder."
        )
    return prefix, shapes


# Models


def _load_unet(path: Path, family: str, dtype: torch.dtype) -> nn.Module:
    prefix, shapes = _unet_shapes(path)
    config = unet_config(shapes, family)
    tensors = {UNET + name: tensor for name, tensor in _read(path, prefix).items() if name in shapes}
    state = convert_ldm_unet_checkpoint(tensors, config)
    if len(state) != len(tensors):
        raise LLM4GENError(
            f"UNet {path} holds {len(tensors)} tensors, of which {len(state)} belong to a UNet of {family}; expected "
            "such a UNet and nothing else under its names."
        )
    return _filled(path, "UNet", lambda: UNet2DConditionModel(**config), state, dtype)


def _load_vae(path: Path, family: str, dtype: torch.dtype) -> nn.Module:
    prefix, shapes = _vae_shapes(path)
    config = vae_config(shapes, family)
    tensors = {VAE + name: tensor for name, tensor in _read(path, prefix).items()}
    state = convert_ldm_vae_checkpoint(tensors, config)
    return _filled(path, "VAE", lambda: AutoencoderKL(**config), state, dtype)


def _load_clip_l(path: Path, prefix: str, config: dict[str, Any], dtype: torch.dtype) -> nn.Module:
    state = {f"text_model.{n.removeprefix('text_model.')}": tensor for n, tensor in _read(path, prefix).items()}
    return _filled(path, "Text encoder", lambda: CLIPTextModel(CLIPTextConfig(**config)), state, dtype)


def _load_clip_g(path: Path, config: dict[str, Any], dtype: torch.dtype) -> nn.Module:
    tensors = _read(path, CLIP_G)
    if "text_projection.weight" in tensors:  # some tools store it as a linear layer does
        tensors["text_projection"] = tensors.pop("text_projection.weight").T
    model = None  # only asked where there is no projection, and then the file is incomplete
    state = convert_open_clip_checkpoint(model, tensors, prefix="") if "text_projection" in tensors else {}
    return _filled(path, "Text encoder", lambda: CLIPTextModelWithProjection(CLIPTextConfig(**config)), state, dtype)


def _filled(
    path: Path, what: str, make: Callable[[], nn.Module], state: dict[str, Tensor], dtype: torch.dtype
) -> nn.Module:
    """A model with the tensors of a file in place of random ones, which are never made."""
    with init_empty_weights(include_buffers=False):
        model = make()
    own = set(model.state_dict())
    if not any(name.startswith("text_model.") for name in own):  # as CLIPTextModel since transformers 5.6
        state = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    missing = sorted(own - set(state))
    if missing:
        raise LLM4GENError(
            f"{what} {path} lacks {len(missing)} of its weights ({missing[0]}, ...); the file is incomplete. Download "
            "it again."
        )
    strange = sorted(n for n in set(state) - own if not n.endswith(_UNUSED))
    if strange:
        raise LLM4GENError(
            f"{what} {path} has {len(strange)} tensors that belong to none of its layers ({strange[0]}, ...), as "
            "quantised files with scales have; expected plain weights in float16, bfloat16 or float32."
        )
    try:
        model.load_state_dict({name: state[name].to(dtype) for name in own}, assign=True)
    except RuntimeError as error:
        raise LLM4GENError(f"{what} {path} has tensors of unexpected shapes ({first_sentence(error)}).") from error
    return model.eval().requires_grad_(False)
