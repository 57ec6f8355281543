"""Optimizers and learning rate schedules, each from the library that is known for it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from llm4gen_core import LLM4GENError

if TYPE_CHECKING:
    from . import recipe

_BLOCK_8BIT, _SMALLEST_8BIT, _CODES_8BIT = 256, 4096, 2 * 256 * 4
"""bitsandbytes: elements that share a scale, elements below which a tensor is kept in 32 bits, bytes of its codes."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are trained alike.

    Attributes:
        name: "cam", "unet" or "text_encoder"; `unet_learning_rate` is the "unet" group's.
        parameters: by their full names, in an order that is the same in every run.
    """

    name: str
    parameters: Mapping[str, torch.nn.Parameter]


def build_optimizer(groups: list[ParameterGroup], settings: recipe.Optimizer) -> torch.optim.Optimizer:
    """The optimizer of a recipe.

    Weight decay is for matrices and convolutions. Parameters of one dimension, which are the weights and biases of
    norms and every other bias, have none: what it would pull to zero there is a scale or an offset. PyTorch's
    defaults would decay all; the paper does not say.

    Each group becomes up to two of the optimizer's, which keep its name, for logging.

    Args:
        groups: their parameters are on the device that they are trained on, so that PyTorch's fused AdamW can be
            taken where there is one. It is elementwise like the others: a resumed run stays the same to the bit.

    Raises:
        LLM4GENError: the optimizer's package is missing, or it cannot do what the settings ask for.
    """
    parameters = [parameter for group in groups for parameter in group.parameters.values()]
    if not parameters:
        raise LLM4GENError("There is nothing to train: no group has a parameter; choose other trainable.parts.")
    content = [part for group in groups for part in _with_and_without_decay(group, settings)]
    rate, betas, eps, decay = settings.learning_rate, settings.betas, settings.eps, settings.weight_decay
    if settings.name == "adamw":
        fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
        return torch.optim.AdamW(content, lr=rate, betas=betas, eps=eps, weight_decay=decay, fused=fused)
    if settings.name == "adamw_8bit":
        return _adamw_8bit(parameters)(content, lr=rate, betas=betas, eps=eps, weight_decay=decay)
    if settings.name == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(content, lr=rate, weight_decay=decay, relative_step=False, scale_parameter=False)
    try:
        from prodigyopt import Prodigy
    except ImportError as error:
        raise _missing("prodigy", "prodigyopt", error) from error
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that it decouples weight decay
        return Prodigy(content, lr=rate, betas=betas, eps=eps, weight_decay=decay)


def build_schedule(optimizer: torch.optim.Optimizer, settings: recipe.Optimizer, steps: int) -> LambdaLR:
    """The learning rate over `steps` optimizer steps, as diffusers and transformers define it.

    With warm-up the first step has learning rate 0. It is to be stepped once an optimizer step, whatever the
    number of processes.
    """
    from diffusers.optimization import get_scheduler

    name: str = settings.schedule
    if name == "constant" and settings.warmup_steps:
        name = "constant_with_warmup"  # diffusers' "constant" ignores warm-up
    return get_scheduler(name, optimizer, num_warmup_steps=settings.warmup_steps, num_training_steps=steps)


def optimizer_state_bytes(settings: recipe.Optimizer, parameters: Iterable[Tensor]) -> int:
    """Bytes of the optimizer's state for these parameters, which may be on the meta device."""
    parameters = list(parameters)
    if settings.name == "adamw":  # two moments, and the step as a tensor
        return sum(2 * _bytes(parameter) + 4 for parameter in parameters)
    if settings.name == "prodigy":  # two moments, the first weights, and the running mean of gradients
        return sum(4 * _bytes(parameter) for parameter in parameters)
    if settings.name == "adafactor":
        return sum(_adafactor_bytes(parameter) for parameter in parameters)
    large = [parameter.numel() for parameter in parameters if parameter.numel() >= _SMALLEST_8BIT]
    small = [parameter.numel() for parameter in parameters if parameter.numel() < _SMALLEST_8BIT]
    scales = sum(-(-count // _BLOCK_8BIT) for count in large)
    return 2 * sum(large) + 2 * 4 * scales + (_CODES_8BIT if large else 0) + 2 * 4 * sum(small)


def _with_and_without_decay(group: ParameterGroup, settings: recipe.Optimizer) -> list[dict[str, Any]]:
    rate = settings.learning_rate
    if group.name == "unet" and settings.unet_learning_rate is not None:
        rate = settings.unet_learning_rate
    split: tuple[list[Tensor], list[Tensor]] = ([], [])
    for parameter in group.parameters.values():
        split[parameter.ndim < 2].append(parameter)
    return [
        {"params": params, "lr": rate, "weight_decay": decay, "name": group.name}
        for params, decay in zip(split, (settings.weight_decay, 0.0), strict=True)
        if params
    ]


def _adamw_8bit(parameters: Iterable[Tensor]) -> Any:
    try:
        from bitsandbytes.optim import AdamW8bit
    except Exception as error:  # it looks for GPU libraries when it is imported, and fails in many ways
        raise _missing("adamw_8bit", "bitsandbytes", error) from error
    found = sorted({parameter.device.type for parameter in parameters} - {"cpu", "cuda", "xpu"})
    if found:
        raise LLM4GENError(
            f"optimizer.name adamw_8bit cannot run on {', '.join(found)}; bitsandbytes knows NVIDIA, AMD and Intel "
            "GPUs and the CPU. Give optimizer.name=adafactor, which needs less memory still."
        )
    return AdamW8bit


def _missing(name: str, package: str, error: Exception) -> LLM4GENError:
    return LLM4GENError(
        f"optimizer.name {name} needs the package {package}, which cannot be imported here ({error}). "
        f"Install it (pip install {package}), or give optimizer.name=adamw."
    )


def _adafactor_bytes(parameter: Tensor) -> int:
    """One value a row and one a column of the last two dimensions, and the norm of the weights."""
    if parameter.ndim < 2:
        return _bytes(parameter) + parameter.element_size()
    *_, rows, columns = parameter.shape
    count = parameter.numel()
    return (count // columns + count // rows + 1) * parameter.element_size()


def _bytes(parameter: Tensor) -> int:
    return parameter.numel() * parameter.element_size()
