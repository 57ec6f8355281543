"""The UNet part of an adapter as weight patches of the host, which can be combined and removed."""

from __future__ import annotations

import comfy.lora
import comfy.model_patcher
import comfy.utils

from ..llm4gen_core import LLM4GENError, UNetPart
from .host import HostAdapter

_PREFIX = "diffusion_model."


def check_model(model: comfy.model_patcher.ModelPatcher, adapter: HostAdapter) -> None:
    """Raise LLM4GENError if the model reads text of another width than the adapter's."""
    config = getattr(model.model, "model_config", None)
    width = getattr(config, "unet_config", {}).get("context_dim")
    expected = adapter.config.d_text
    if width not in (None, expected):
        # The width of CLIP-G alone is that of SDXL's refiner.
        advice = "The refiner uses no adapter: connect the base. " if width == 1280 else ""
        raise LLM4GENError(
            f"Adapter {adapter.name} is for {adapter.base}, whose UNet reads text of width {expected}; the model is "
            f"{type(model.model).__name__} and reads width {width}. {advice}Use a base model of the adapter's family, "
            "or the adapter of this one."
        )


def patch_unet(
    model: comfy.model_patcher.ModelPatcher, adapter: HostAdapter, strength: float
) -> comfy.model_patcher.ModelPatcher:
    """Return a copy of the model with the adapter's UNet part, W + strength * change.

    Args:
        model: a UNet of the adapter's base family, patched by other nodes or not.
        adapter: the adapter; without a UNet part the model is returned unchanged.
        strength: 1 is the trained UNet; 0 returns the model unchanged.

    Raises:
        LLM4GENError: the model lacks layers of the UNet part, or their sizes differ.
    """
    part = adapter.unet_part
    if part is None:
        return model
    weights = _weight_names(model, part, adapter)
    if strength == 0:
        return model
    # The names are those of a LoRA file in diffusers' layout, which the host can read.
    patches = comfy.lora.load_lora(dict(part.tensors), weights)
    patched = model.clone()
    applied = patched.add_patches(patches, strength)
    if set(applied) != set(weights.values()):
        raise LLM4GENError(
            f"Adapter {adapter.name}: this version of ComfyUI applied {len(applied)} of the {len(weights)} changes of "
            "its UNet part. Update ComfyUI and LLM4GEN."
        )
    return patched


def _weight_names(model: comfy.model_patcher.ModelPatcher, part: UNetPart, adapter: HostAdapter) -> dict[str, str]:
    """The host's names of the weights of the changed layers, after checking that they exist with equal sizes."""
    found = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    own = model.model.state_dict()
    weights = {module: f"{_PREFIX}{found.get(f'{module}.weight', '')}" for module in part.modules}
    origin = f"Adapter {adapter.name} changes the UNet of {adapter.base}"
    advice = "Connect a model of that family."
    missing = [module for module, name in weights.items() if name not in own]
    if missing:
        raise LLM4GENError(
            f"{origin}: {len(weights)} of its layers, of which this model lacks {len(missing)} ({missing[0]}, ...). "
            f"{advice}"
        )
    for module, name in weights.items():
        rows, *columns = comfy.utils.get_attr(model.model, name).shape
        size = (rows, columns[0]) if set(columns[1:]) <= {1} else (rows, *columns)  # a 1x1 convolution is linear
        if size != part.shape(module):
            raise LLM4GENError(
                f"{origin}, where {module} has the size {list(part.shape(module))}; in this model it is {list(size)}. "
                f"{advice}"
            )
    return weights
