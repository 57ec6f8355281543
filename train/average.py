"""Exponential moving average of what is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn


class Average:
    """diffusers' EMAModel by names: after n steps the average moves by 1 - min(decay, (1 + n) / (10 + n)).

    Args:
        parameters: by name.
        decay: at its highest.
        device: where the average is kept between steps; None is that of the parameters.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float, device: torch.device | None) -> None:
        self._names = list(parameters)
        self._parameters = list(parameters.values())
        self._home = device
        self._model = EMAModel(self._parameters, decay=decay)
        self._move(device)

    @property
    def steps(self) -> int:
        return self._model.optimization_step

    def update(self) -> None:
        """After an optimizer step."""
        self._move(self._parameters[0].device if self._home is not None else None)
        self._model.step(self._parameters)
        self._move(self._home)

    def weights(self) -> dict[str, Tensor]:
        return dict(zip(self._names, self._model.shadow_params, strict=True))

    def load(self, weights: Mapping[str, Tensor], steps: int) -> None:
        """Take over what `weights` and `steps` gave."""
        for name, own in self.weights().items():
            own.copy_(weights[name])
        self._model.optimization_step = steps

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The average stands in the parameters' place."""
        self._model.store(self._parameters)
        self._model.copy_to(self._parameters)
        try:
            yield
        finally:
            self._model.restore(self._parameters)

    def _move(self, device: torch.device | None) -> None:
        if device is not None:
            self._model.to(device)
