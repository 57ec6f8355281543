"""How strongly entity guidance pulls beside the diffusion loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


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
