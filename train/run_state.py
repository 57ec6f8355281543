"""Everything of a run that changes from step to step: what a checkpoint holds, and how it is put back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llm4gen_core import LLM4GENError

from .alpha import Alpha
from .average import Average
from .checkpoints import Checkpoints
from .optimizers import optimizer_state_bytes
from .parts import TrainedParts
from .recipe import Recipe

SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)
"""Ways to train in which no process holds all weights; accelerate stores and loads those itself."""


class RunState:
    """Saved and restored as a whole; all processes call both.

    Args:
        recipe: of the run.
        folder: of its checkpoints.
        accelerator: which process this is, and the loss scaling of float16.
        model: the objective as accelerate prepared it.
        parts: what is trained.
        optimizer, schedule: of it.
        average: moving average, if there is one.
        alpha: of eq. 6.
        data: fingerprint of the data, without which nothing goes on exactly.

    Attributes:
        step: optimizer steps done.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        accelerator: Accelerator,
        model: nn.Module,
        parts: TrainedParts,
        optimizer: Any,
        schedule: Any,
        average: Average | None,
        alpha: Alpha,
        data: str,
    ) -> None:
        self.recipe = recipe
        self.checkpoints = Checkpoints(folder, recipe.checkpoints.keep)
        self.accelerator = accelerator
        self.model = model
        self.parts = parts
        self.trained = parts.named_parameters()
        self.optimizer = optimizer
        self.schedule = schedule
        self.average = average
        self.alpha = alpha
        self.data = data
        self.step = 0

    def save(self) -> None:
        """Write a checkpoint of the steps done so far.

        Raises:
            LLM4GENError: the disk is too small; see `Checkpoints.save`.
        """
        if self.accelerator.distributed_type in SHARDED:
            self._save_sharded()
        elif self.accelerator.is_main_process:
            self.checkpoints.save(self.step, self._write, self._bytes())
        self.accelerator.wait_for_everyone()

    def restore(self) -> bool:
        """Put the newest checkpoint that is whole in place.

        Returns:
            Whether there is one.

        Raises:
            LLM4GENError: it was made with other data, another seed, or another way to spread the weights.
        """
        folder = self.checkpoints.newest()
        if folder is None:
            return False
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if state["data"] != self.data:
            raise LLM4GENError(
                f"Checkpoint {folder} was made with other data than the sources hold now (captions, pairs or images "
                "have changed), so the run cannot go on exactly. Put the data back, or begin a new run with "
                f"model.adapter from `python -m train export {self.recipe.output}`."
            )
        if state["seed"] != self.recipe.seed:
            raise LLM4GENError(
                f"Checkpoint {folder} was made with seed {state['seed']}, but recipe.yaml says {self.recipe.seed}; put "
                "the seed back."
            )
        is_sharded = self.accelerator.distributed_type in SHARDED
        if is_sharded != (folder / "sharded").is_dir():
            raise LLM4GENError(
                f"Checkpoint {folder} was written {'without' if is_sharded else 'with'} FSDP or DeepSpeed; resume it "
                f"{'without' if is_sharded else 'with'} them."
            )
        if is_sharded:
            self.accelerator.load_state(str(folder / "sharded"))
            rest = torch.load(folder / "schedule.pt", weights_only=True)
        else:
            self.parts.load(load_file(folder / "trained.safetensors"))
            rest = torch.load(folder / "optimizer.pt", weights_only=True, map_location="cpu")
            self.optimizer.load_state_dict(rest["optimizer"])
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(rest["scaler"])
        self.schedule.load_state_dict(rest["schedule"])
        if self.average is not None:
            self.average.load(load_file(folder / "ema.safetensors"), int(state["ema_steps"]))
        self.alpha.load(state["alpha"])
        self.step = int(state["step"])
        return True

    def _bytes(self) -> int:
        parameters = list(self.trained.values())
        weights = sum(p.numel() * p.element_size() for p in parameters)
        return weights * (1 if self.average is None else 2) + optimizer_state_bytes(self.recipe.optimizer, parameters)

    def _write(self, folder: Path) -> None:
        _save(self.trained, folder / "trained.safetensors")
        if self.average is not None:
            _save(self.average.weights(), folder / "ema.safetensors")
        scaler = self.accelerator.scaler
        torch.save(
            {
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else {},
            },
            folder / "optimizer.pt",
        )
        self._write_numbers(folder)

    def _write_numbers(self, folder: Path) -> None:
        state: dict[str, Any] = {
            "step": self.step,
            "data": self.data,
            "seed": self.recipe.seed,
            "alpha": self.alpha.state(),
        }
        if self.average is not None:
            state["ema_steps"] = self.average.steps
        (folder / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")

    def _save_sharded(self) -> None:
        """Every process writes its own share in accelerate's form, and one the whole weights, for `export`."""
        accelerator = self.accelerator
        weights = accelerator.get_state_dict(self.model)
        partial: list[Any] = [None]
        if accelerator.is_main_process:
            partial[0] = self.checkpoints.begin(self.step, self._bytes())
        torch.distributed.broadcast_object_list(partial)
        folder: Path = partial[0]
        accelerator.save_state(str(folder / "sharded"))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _save({name: weights[name] for name in self.trained}, folder / "trained.safetensors")
            torch.save({"schedule": self.schedule.state_dict()}, folder / "schedule.pt")
            self._write_numbers(folder)
            self.checkpoints.commit(folder)


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
