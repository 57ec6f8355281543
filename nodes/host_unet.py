"""The UNet part of an adapter as weight patches of the host: stackable, and gone when the node is unplugged."""

from __future__ import annotations

import comfy.lora
import comfy.model_patcher
import comfy.utils

from ..llm4gen_core import LLM4GENError, UNetPart
from .host import HostAdapter

_PREFIX = "diffusion_model."
REFINER_WIDTH = 1280
"""Of the text that SDXL's refiner reads: CLIP-G's alone."""


def check_model(model: comfy.model_patcher.ModelPatcher, adapter: HostAdapter) -> None:
    """Raise LLM4GENError if the model reads text of another width than the adapter gives."""
    config = getattr(model.model, "model_config", None)
    width = getattr(config, "unet_config", {}).get("context_dim")
    expected = adapter.module.config.d_text
    if width not in (None, expected):
        advice = "The refiner takes no adapter: connect the base. " if width == REFINER_WIDTH else ""
        raise LLM4GENError(
            f"Adapter {adapter.name} is for {adapter.base}, whose UNet reads text of width {expected}; the model is "
            f"{type(model.model).__name__} and reads width {width}. {advice}Use a base model of the adapter's family, "
            "or the adapter of this one."
        )


def patch_unet(
    model: comfy.model_patcher.ModelPatcher, adapter: HostAdapter, strength: float
) -> comfy.model_patcher.ModelPatcher:
    """A copy of the model whose UNet is changed as in the adapter's training, W + strength * change.

    Args:
        model: any UNet of the adapter's base family, patched by other nodes or not.
        adapter: one without a UNet part gives the model back as it is.
        strength: 1 is the UNet that the adapter was trained with; 0 gives the model back as it is.

    Raises:
        LLM4GENError: the model lacks layers that the part changes, or has them in other sizes.
    """
    part = adapter.unet_part
    if part is None:
        return model
    weights = _weight_names(model, part, adapter)
    if strength == 0:
        return model
    # The part's names are those of a LoRA file in diffusers' layout, which the host reads itself.
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
    """The host's name of the weight of every layer that the part changes; all of them exist and have its sizes."""
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
