"""Optimizers, learning rate schedules and the moving average of the weights, from the libraries known for each."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from llm4gen_core import LLM4GENError

from . import recipe

_BLOCK_8BIT, _SMALLEST_8BIT, _CODES_8BIT = 256, 4096, 2 * 256 * 4
"""bitsandbytes: elements that share a scale, size below which a tensor is kept in 32 bits, bytes of its codes."""


Groups = Mapping[str, Mapping[str, nn.Parameter]]
"""Trained parameters by full name, in the groups "cam", "unet" and "text_encoder"."""


def build_optimizer(groups: Groups, settings: recipe.Optimizer) -> torch.optim.Optimizer:
    """Build the optimizer of a recipe.

    Weight decay applies to matrices and convolutions. Parameters of one dimension (norms and biases) have none: there
    it would pull a scale or an offset to zero. PyTorch's defaults decay all; the paper does not say.

    Each group becomes up to two groups of the optimizer, which keep its name, for logging.

    Args:
        groups: on the device that they are trained on, so that PyTorch's fused AdamW can be used where there is one. It
            is elementwise like the others: a resumed run stays the same to the bit.
        settings: of the recipe; `unet_learning_rate` is for the group "unet".

    Raises:
        LLM4GENError: the optimizer's package is missing, or it does not support the settings or the device.
    """
    parameters = [parameter for group in groups.values() for parameter in group.values()]
    if not parameters:
        raise LLM4GENError("There is nothing to train: no group has a parameter; choose other trainable.parts.")
    content = [part for name, group in groups.items() for part in _split_by_decay(name, group, settings)]
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
    with contextlib.redirect_stdout(io.StringIO()):  # it prints a notice about weight decay
        return Prodigy(content, lr=rate, betas=betas, eps=eps, weight_decay=decay)


def build_schedule(optimizer: torch.optim.Optimizer, settings: recipe.Optimizer, steps: int) -> LambdaLR:
    """Build the learning rate schedule over `steps` optimizer steps, as diffusers and transformers define it.

    With warm-up the first step has learning rate 0. Step it once an optimizer step, whatever the number of processes.
    """
    name: str = settings.schedule
    if name == "constant" and settings.warmup_steps:
        name = "constant_with_warmup"  # diffusers' "constant" ignores warm-up
    return get_scheduler(name, optimizer, num_warmup_steps=settings.warmup_steps, num_training_steps=steps)


def optimizer_state_bytes(settings: recipe.Optimizer, parameters: Iterable[Tensor]) -> int:
    """Compute the bytes of the optimizer's state for these parameters, which may be on the meta device."""
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


class Average:
    """Exponential moving average of the trained parameters: diffusers' EMAModel, with names.

    After n steps the average moves by 1 - min(decay, (1 + n) / (10 + n)).

    Args:
        parameters: by name.
        decay: largest value of the decay.
        device: that the average is kept on between steps; None is that of the parameters.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float, device: torch.device | None) -> None:
        self._names = list(parameters)
        self._parameters = list(parameters.values())
        self._home = device
        self._model = EMAModel(self._parameters, decay=decay)
        self._move(device)

    @property
    def steps(self) -> int:
        """Number of updates."""
        return self._model.optimization_step

    def update(self) -> None:
        """Update the average after an optimizer step."""
        self._move(self._parameters[0].device if self._home is not None else None)
        self._model.step(self._parameters)
        self._move(self._home)

    def weights(self) -> dict[str, Tensor]:
        """Averaged weights by name."""
        return dict(zip(self._names, self._model.shadow_params, strict=True))

    def load(self, weights: Mapping[str, Tensor], steps: int) -> None:
        """Load the `weights` and `steps` of a checkpoint."""
        for name, own in self.weights().items():
            own.copy_(weights[name])
        self._model.optimization_step = steps

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the averaged weights in the place of the parameters for a while."""
        self._model.store(self._parameters)
        self._model.copy_to(self._parameters)
        try:
            yield
        finally:
            self._model.restore(self._parameters)

    def _move(self, device: torch.device | None) -> None:
        if device is not None:
            self._model.to(device)


def _split_by_decay(name: str, group: Mapping[str, nn.Parameter], settings: recipe.Optimizer) -> list[dict[str, Any]]:
    rate = settings.learning_rate
    if name == "unet" and settings.unet_learning_rate is not None:
        rate = settings.unet_learning_rate
    split: tuple[list[Tensor], list[Tensor]] = ([], [])
    for parameter in group.values():
        split[parameter.ndim < 2].append(parameter)
    return [
        {"params": params, "lr": rate, "weight_decay": decay, "name": name}
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
            f"optimizer.name adamw_8bit cannot run on {', '.join(found)}; bitsandbytes supports NVIDIA, AMD and "
            "Intel GPUs and the CPU. Give optimizer.name=adafactor, which needs even less memory."
        )
    return AdamW8bit


def _missing(name: str, package: str, error: Exception) -> LLM4GENError:
    return LLM4GENError(
        f"optimizer.name {name} needs the package {package}, which cannot be imported here ({error}). "
        f"Install it (pip install {package}), or give optimizer.name=adamw."
    )


def _adafactor_bytes(parameter: Tensor) -> int:
    """Bytes of one value a row and one a column of the last two dimensions, and of the norm of the weights."""
    if parameter.ndim < 2:
        return _bytes(parameter) + parameter.element_size()
    *_, rows, columns = parameter.shape
    count = parameter.numel()
    return (count // columns + count // rows + 1) * parameter.element_size()


def _bytes(parameter: Tensor) -> int:
    return parameter.numel() * parameter.element_size()
