"""The processes that `accelerate launch` starts; one without it."""

from __future__ import annotations

from datetime import timedelta

import torch
from accelerate import PartialState

PATIENCE = timedelta(days=7)
"""That processes wait for the others: a set metric of 30,000 images is made by one while the others wait."""


def process_state() -> PartialState:
    """Of this process; the first call joins it with the others."""
    # Without being told, accelerate takes several processes on CPUs for single ones.
    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
