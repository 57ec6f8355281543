"""What a base consists of, before anything large is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..schedule import NoiseSchedule


@dataclass(frozen=True)
class Part:
    """One model of a base. Nothing is read before it is asked for.

    Attributes:
        path: folder or file that it is in.
        read_config: diffusers' or transformers' configuration of it.
        check: raises LLM4GENError unless the weights are there and whole, as far as can be told without reading them.
        load: the model in evaluation mode and in a given precision, frozen, on the CPU.
    """

    path: Path
    read_config: Callable[[], Mapping[str, Any]]
    check: Callable[[], None]
    load: Callable[[torch.dtype], nn.Module]

    @cached_property
    def config(self) -> Mapping[str, Any]:
        return self.read_config()


@dataclass(frozen=True)
class Base:
    """A base model in a diffusers folder or in a checkpoint file.

    Attributes:
        path: of the folder or file.
        schedule: noise schedule and what the UNet predicts.
        unet, vae: models.
        text: one part for each text encoder, in the order in which their hidden states are concatenated.
        load_tokenizers: CLIP's, one for each text encoder.
    """

    path: Path
    schedule: NoiseSchedule
    unet: Part
    vae: Part
    text: tuple[Part, ...]
    load_tokenizers: Callable[[], tuple[Any, ...]]
