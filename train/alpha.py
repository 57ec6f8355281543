"""Alpha of eq. 6, and how strongly entity guidance pulls beside the diffusion loss."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llm4gen_core.entity_guidance import GuidanceOptions


class Alpha:
    """The weight of L_reg: given, or found by its effect as `GuidanceOptions.alpha` "balanced" says.

    Args:
        options: of the run.
        every: steps between two measurements that are only looked at; 0 is none.

    Attributes:
        value: alpha; 0 while it is still to be found.
    """

    def __init__(self, options: GuidanceOptions, every: int) -> None:
        self.options = options
        self.every = every
        self.value = 0.0 if isinstance(options.alpha, str) else float(options.alpha)
        self._ratios: list[float] = []

    def measures(self, step: int) -> bool:
        """Whether |grad L_reg| / |grad L_diff| is to be measured in a step, counted from 1."""
        return self.options.is_on and (self._is_open() or (self.every > 0 and step % self.every == 0))

    def take(self, ratio: float) -> dict[str, float]:
        """Note a measurement; the last of those that are waited for sets alpha, from the next step on.

        Returns:
            What is logged: the ratio, and with alpha in it the share that guidance has in the gradient.
        """
        values = {"gradient_ratio": ratio, "gradient_share": self.value * ratio}
        if self._is_open() and math.isfinite(ratio) and ratio > 0:
            self._ratios.append(ratio)
            if not self._is_open():
                self.value = self.options.balance / statistics.geometric_mean(self._ratios)
        return values

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as JSON."""
        return {"value": self.value, "ratios": self._ratios}

    def load(self, state: Mapping[str, Any]) -> None:
        self.value, self._ratios = float(state["value"]), list(state["ratios"])

    def _is_open(self) -> bool:
        return self.options.alpha == "balanced" and len(self._ratios) < self.options.balance_steps


class GradientRatio:
    """|grad L_reg| / |grad L_diff| over the samples of a whole optimizer step.

    `autograd.grad` goes past the hooks of DDP: nothing is reduced and nothing accumulates in the parameters.

    Args:
        parameters: with respect to which.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self._totals: list[Tensor] | None = None

    def add(self, regularizer: Tensor, diffusion: Tensor) -> None:
        """Both losses of a micro-batch, as their sums over samples; their graph stays usable."""
        gradients = [self._gradient(loss) for loss in (regularizer, diffusion)]
        before = self._totals or [torch.zeros_like(gradient) for gradient in gradients]
        self._totals = [total + gradient for total, gradient in zip(before, gradients, strict=True)]

    def measure(self, sum_over_processes: Callable[[Tensor], Tensor]) -> float:
        """The ratio; infinite where the diffusion loss has no gradient."""
        assert self._totals is not None
        regularizer, diffusion = (float(sum_over_processes(total).norm()) for total in self._totals)
        return regularizer / diffusion if diffusion else math.inf

    def _gradient(self, loss: Tensor) -> Tensor:
        """All parameters' in one vector."""
        found = torch.autograd.grad(loss, self.parameters, retain_graph=True, allow_unused=True)
        pairs = zip(self.parameters, found, strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).float().flatten() for p, g in pairs])
