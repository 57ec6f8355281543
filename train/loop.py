"""Training loop: from a recipe to an adapter, in one process or several."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import signal
import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from llm4gen_core import LLM4GENError
from llm4gen_core.entity_guidance import GuidanceTargets
from llm4gen_core.files import read_json, write_json

from .data.batches import Batch, TrainingData
from .data.sources import open_source
from .loss import Alpha, Conditioner, GradientRatio, TrainingLoss
from .models import open_models
from .optimizers import Average, build_optimizer, build_schedule, optimizer_state_bytes
from .recipe import Recipe
from .run import Checkpoints, RunFolder

log = logging.getLogger("llm4gen")

_MIXED = {"float32": "no", "float16": "fp16", "bfloat16": "bf16"}

SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)
"""Ways to train in which no process holds all weights; accelerate stores and loads those itself."""

EXPORT_NAME = "adapter"
"""Name of the adapter file in a run's `export` folder, without its extension."""

_ONE_PRESS = 1.0
"""Seconds within which a second SIGINT counts as the first: launchers repeat what the terminal already sent."""


class Stopped(KeyboardInterrupt):
    """A signal ended the run; its checkpoint is written.

    Attributes:
        signal: name of the signal; None where another process received it.
    """

    def __init__(self, signal: str | None) -> None:
        super().__init__(signal)
        self.signal = signal


class Interrupt:
    """Context manager that turns SIGINT and SIGTERM into a request, which the loop reads between two steps.

    A second SIGINT raises KeyboardInterrupt, for a person who does not want to wait. The previous handlers are restored
    at the end. Python delivers signals to the main thread alone: in any other thread nothing is handled.

    With several processes each one sees its own signals: they have to agree on the request before they stop.

    Args:
        notice: line for stderr at the first signal; empty for none.

    Attributes:
        requested: whether a signal has come.
        signal: name of the first one ("SIGINT"), None before.
        active: whether signals are handled.
    """

    def __init__(self, notice: str = "") -> None:
        self.notice = notice
        self.requested = False
        self.signal: str | None = None
        self.active = False
        self._came = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupt:
        self.active = threading.current_thread() is threading.main_thread()
        if self.active:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()
        self.active = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.requested:
            if number == signal.SIGINT and now - self._came > _ONE_PRESS:
                raise KeyboardInterrupt
            return
        self.requested, self.signal, self._came = True, signal.Signals(number).name, now
        if self.notice:
            # Not print: its lock may be held by the very line that the signal interrupted.
            os.write(2, f"\n{self.notice}\n".encode())


def run(recipe: Recipe) -> Path:
    """Train as a recipe says, from the beginning.

    Returns:
        Folder of the run.

    Raises:
        LLM4GENError: something in the recipe, the models or the data does not fit, the loss is not a number, or the
            disk is full.
        Stopped: a signal came; `resume` continues the run.
    """
    state = join_processes()
    recipe = recipe.absolute()
    folder = RunFolder(Path(recipe.output))
    if state.is_main_process:
        folder.create(recipe)
    state.wait_for_everyone()
    Trainer(recipe, folder).fit()
    return folder.path


def resume(path: Path) -> Path:
    """Continue a run from its newest intact checkpoint; from the beginning if there is none.

    The number of processes may differ from before.
    """
    folder = RunFolder(Path(path))
    recipe = folder.load().model_copy(update={"output": str(folder.path.absolute())})
    Trainer(recipe, folder).fit()
    return folder.path


def join_processes() -> PartialState:
    """Join the other processes of the run, if it was launched with several.

    Without an accelerator, accelerate joins them only if it is told that they use the CPU. The timeout is long because
    the others wait while the main process scans millions of files.
    """
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=2))


def accumulation_steps(recipe: Recipe, processes: int) -> int:
    """Number of micro-batches that each process computes in an optimizer step.

    Raises:
        LLM4GENError: the batch cannot be split among the processes.
    """
    settings = recipe.train
    accumulation, rest = divmod(settings.batch_size, settings.micro_batch * processes)
    if rest or not accumulation:
        raise LLM4GENError(
            f"train.batch_size {settings.batch_size} cannot be split into micro-batches of {settings.micro_batch} over "
            f"{processes} processes; expected a multiple of {settings.micro_batch * processes}."
        )
    return accumulation


class Trainer:
    """One process of a run.

    Args:
        recipe: checked.
        folder: made by `RunFolder.create`, or that of a run to resume.
        pairs: number of pairs to use, so that `plan` need not fill a cache of millions; None for all.

    Attributes:
        step: number of optimizer steps done.
    """

    def __init__(self, recipe: Recipe, folder: RunFolder, pairs: int | None = None) -> None:
        self.recipe = recipe
        self.folder = folder
        self.step = 0
        settings = recipe.train
        self.accumulation = accumulation_steps(recipe, join_processes().num_processes)
        for source in recipe.data.sources:
            open_source(source)  # a missing source is reported before large models are loaded
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = settings.tf32
        self.accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),
            mixed_precision=_MIXED[settings.precision],
            gradient_accumulation_steps=self.accumulation,
            log_with=self._trackers() or None,
            project_dir=str(folder.path),
        )
        self.is_sharded = self.accelerator.distributed_type in SHARDED
        if self.is_sharded and settings.ema.enabled:
            raise LLM4GENError(
                "train.ema.enabled is true, but under FSDP or DeepSpeed no process holds the whole weights to average; "
                "set it to false, or train with plain data parallelism."
            )
        if self.is_sharded and isinstance(recipe.guidance.alpha, str):
            raise LLM4GENError(
                "guidance.alpha is balanced, but under FSDP or DeepSpeed the gradients of the two losses cannot be "
                "measured separately; give a number, such as the one that a short run on one GPU finds (alpha in "
                "metrics.jsonl)."
            )
        self.device = self.accelerator.device
        self._build_models()
        self.data = TrainingData(self.models, folder.path, self.accelerator, pairs)
        self._build_training()
        if not self._restore() and self.accelerator.is_main_process and folder.metrics.exists():
            tqdm.write("There is no intact checkpoint: beginning with the first step.")

    # Building

    def _trackers(self) -> list[Any]:
        wanted = {"tensorboard": self.recipe.logging.tensorboard, "wandb": self.recipe.logging.wandb is not None}
        trackers: list[Any] = [name for name, is_wanted in wanted.items() if is_wanted]
        for name in trackers:
            if importlib.util.find_spec(name) is None:
                off = "false" if name == "tensorboard" else "null"
                raise LLM4GENError(
                    f"logging.{name} is on, but the package {name} is not installed; install it (pip install {name}) "
                    f"or give logging.{name}={off}."
                )
        return trackers

    def _build_models(self) -> None:
        settings = self.recipe.train
        self.models = open_models(self.recipe)
        self.models.load_llm(self.device)
        family = self.models.family
        self.parts = self.models.trained_parts()
        if settings.gradient_checkpointing:
            family.unet.enable_gradient_checkpointing()
            for encoder in family.text_encoders if self.models.trains_text else ():
                encoder.gradient_checkpointing_enable()
        if settings.compile:
            # Measuring the gradients of two losses traverses a graph more than once, which donated buffers forbid.
            torch._functorch.config.donated_buffer = False
            family.unet.compile_repeated_blocks()
        family.to(self.device)
        self.conditioner = Conditioner(self.models, self.device)

    def _build_training(self) -> None:
        recipe = self.recipe
        training_loss = TrainingLoss(self.models).to(self.device)
        self.training_loss = training_loss.train()
        groups = self.parts.groups()
        optimizer = build_optimizer(groups, recipe.optimizer)
        self.schedule = build_schedule(optimizer, recipe.optimizer, recipe.train.steps)
        self.model, self.optimizer = self.accelerator.prepare(training_loss, optimizer)
        self.trained = self.parts.named_parameters()
        ema = recipe.train.ema
        home = torch.device("cpu") if ema.device == "cpu" else None
        self.average = Average(self.trained, ema.decay, home) if ema.enabled else None
        self.alpha = Alpha(recipe.guidance, recipe.logging.gradient_ratio_every)
        # The gradient ratio is measured at the CAM, or at all that is trained if there is none.
        self.probe = list(groups.get("cam", self.trained).values())
        self.checkpoints = Checkpoints(self.folder.checkpoints, recipe.checkpoints.keep)

    # The loop

    def fit(self) -> None:
        """Train to the last step, or until a signal; then write a checkpoint, and at the end the export."""
        recipe = self.recipe
        accelerator = self.accelerator
        if accelerator.is_main_process:
            self.folder.cut_metrics(self.step)
            self.folder.write_provenance(
                {
                    "recipe": recipe.to_dict(),
                    "data": self.data.fingerprint,
                    "samples": self.data.samples,
                    "parser": self.data.parser,
                    "processes": accelerator.num_processes,
                    "accumulation": self.accumulation,
                    "first_step": self.step,
                }
            )
        if accelerator.log_with:
            options = {"wandb": {"config": recipe.to_dict()}}
            accelerator.init_trackers(recipe.logging.wandb or "tensorboard", config=None, init_kwargs=options)
        progress = tqdm(
            total=recipe.train.steps,
            initial=self.step,
            desc="training",
            unit="step",
            dynamic_ncols=True,
            disable=not accelerator.is_main_process,
        )
        notice = "Signal received: finishing this step, writing a checkpoint, then stopping."
        stopped = False
        with Interrupt(notice if accelerator.is_main_process else "") as interrupt, progress:
            seconds, counted = 0.0, 0
            with contextlib.closing(self.data.steps(self.step, recipe.train.steps, self.accumulation)) as steps:
                started = time.monotonic()
                for batches in steps:
                    values = self.optimizer_step(batches, self.step + 1, interrupt.requested)
                    if values is None:
                        stopped = True
                        break
                    self.step += 1
                    if self.average is not None:
                        self.average.update()
                    self.data.report([problem for batch in batches for problem in batch.problems])
                    progress.update()
                    progress.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)
                    seconds, counted = seconds + time.monotonic() - started, counted + recipe.train.batch_size
                    if self._due(recipe.logging.every):
                        self._log({**values, "images_per_second": counted / seconds})
                        seconds, counted = 0.0, 0
                    if self._due(recipe.checkpoints.every):
                        self._save()
                    if recipe.validation.every and self._due(recipe.validation.every):
                        self._validate()
                    started = time.monotonic()
            if stopped:
                self._save()
        if not stopped:
            self._export()
        accelerator.end_training()
        if stopped:
            if accelerator.is_main_process:
                advice = f"Continue with: python -m train resume {self.folder.path}"
                print(f"Stopped after step {self.step}. {advice}", flush=True)
            raise Stopped(interrupt.signal)

    def optimizer_step(self, batches: list[Batch], step: int, stop: bool = False) -> dict[str, float] | None:
        """Make an optimizer step.

        Means are taken over the samples of all processes and micro-batches together, so that a step is the same however
        its samples are split: unreadable samples and captions without pairs, which do not count, are seldom spread
        evenly.

        Args:
            batches: micro-batches of this process.
            step: number of the step, from 1.
            stop: whether this process was asked to stop.

        Returns:
            Values to log; None if any process was asked to stop, and then nothing was done.

        Raises:
            LLM4GENError: no sample could be read, or the loss is not a number; nothing was changed.
        """
        accelerator, conditioner = self.accelerator, self.conditioner
        drops = [conditioner.dropout(batch) for batch in batches]
        targets = [
            conditioner.targets(batch.captions, batch.pairs, dropped)
            for batch, dropped in zip(batches, drops, strict=True)
        ]
        valid, paired, stops = self._count(batches, targets, stop)
        if stops:
            return None
        if not valid:
            raise LLM4GENError(
                f"Step {step}: none of its {self.recipe.train.batch_size} samples could be read; see "
                f"data_unreadable.jsonl in {self.recipe.output}. Is the disk with the images still there?"
            )
        ratio = GradientRatio(self.probe) if paired and self.alpha.measures(step) else None
        precision = torch.float32 if self.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
        sums = torch.zeros(4, dtype=precision, device=self.device)  # error, guidance, mass of attributes and entities
        bad: list[tuple[list[str], Tensor]] = []
        # accelerate divides by the accumulation steps, DDP by the processes; the means are over all samples.
        scale = accelerator.gradient_accumulation_steps * accelerator.num_processes
        norm = None
        for batch, dropped, target in zip(batches, drops, targets, strict=True):
            with accelerator.accumulate(self.model):
                error, guidance, mass = self.model(conditioner.inputs(batch, dropped, target))
                counted = batch.valid.to(self.device)
                bad.append((batch.keys, counted & ~(error + guidance).isfinite()))
                error_sum = torch.where(counted, error, 0).sum()
                sums[0] += error_sum.detach()
                loss = error_sum * (scale / valid)
                if target is not None:
                    has_pairs = counted & target.has_pairs.to(self.device)
                    guidance_sum = torch.where(has_pairs, guidance, 0).sum()
                    sums[1] += guidance_sum.detach()
                    sums[2:] += torch.where(has_pairs[:, None], mass, 0).sum(0)
                    regularizer = guidance_sum * (scale / max(paired, 1))
                    if ratio is not None:
                        ratio.add(regularizer, loss)
                    loss = loss + self.alpha.value * regularizer
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    self._check_finite(bad, step)
                    limit = self.recipe.optimizer.max_grad_norm
                    if limit is not None:
                        norm = accelerator.clip_grad_norm_(self.model.parameters(), limit)
                    self.optimizer.step()
                    if not accelerator.optimizer_step_was_skipped:
                        self.schedule.step()
                    self.optimizer.zero_grad()
        total = self._sum(sums).tolist()
        values: dict[str, float] = {"loss": total[0] / valid, "diffusion": total[0] / valid, "valid": valid}
        if self.recipe.guidance.is_on:
            regularization, attribute, entity = (value / max(paired, 1) for value in total[1:])
            values["loss"] += self.alpha.value * regularization
            values |= {"guidance": regularization, "alpha": self.alpha.value, "paired": paired}
            values |= {"mass_attribute": attribute, "mass_entity": entity}
        values |= {f"learning_rate_{group['name']}": group["lr"] for group in self.optimizer.param_groups}
        if ratio is not None:
            values |= self.alpha.take(ratio.measure(self._sum))
        if norm is not None:
            values["gradient_norm"] = float(norm)
        return values

    def _count(self, batches: list[Batch], targets: list[GuidanceTargets | None], stop: bool) -> tuple[int, int, int]:
        """Count over all processes: valid samples, those of them with pairs, and processes that were asked to stop."""
        valid = sum(int(batch.valid.sum()) for batch in batches)
        pairs = zip(batches, targets, strict=True)
        paired = sum(int((target.has_pairs & batch.valid).sum()) for batch, target in pairs if target is not None)
        counts = self._sum(torch.tensor([valid, paired, int(stop)], device=self.device)).tolist()
        return counts[0], counts[1], counts[2]

    def _check_finite(self, bad: list[tuple[list[str], Tensor]], step: int) -> None:
        """Raise LLM4GENError in every process if the loss of any sample in any process is not a number.

        Args:
            bad: keys of each micro-batch, and which of its losses are not finite.
            step: number of the step.
        """
        any_bad = torch.stack([is_bad.any() for _, is_bad in bad]).any()
        if not int(self._sum(any_bad.long())):
            return
        keys = [key for of_batch, flags in bad for key, flag in zip(of_batch, flags.tolist(), strict=True) if flag]
        place = f"samples {', '.join(keys)}" if keys else "samples of another process, which names them"
        raise LLM4GENError(
            f"Step {step}: the loss is not a number for {place}. This step changed nothing; the last checkpoint in "
            f"{self.recipe.output} is from before it. Look at these samples, lower optimizer.learning_rate, or use "
            "train.precision=bfloat16 instead of float16."
        )

    def _sum(self, tensor: Tensor) -> Tensor:
        result = self.accelerator.reduce(tensor, reduction="sum")
        assert isinstance(result, Tensor)
        return result

    def _due(self, every: int) -> bool:
        """Whether the step is a multiple of `every`, or the last."""
        return self.step % every == 0 or self.step == self.recipe.train.steps

    def _log(self, values: Mapping[str, float]) -> None:
        if torch.cuda.is_available():
            values = {**values, "memory_gb": torch.cuda.max_memory_allocated() / 1e9}
        if self.accelerator.is_main_process:
            self.folder.log({"step": self.step, **values})
        self.accelerator.log(dict(values), step=self.step)

    # Checkpoints

    def _save(self) -> None:
        """Write a checkpoint; all processes call it.

        Raises:
            LLM4GENError: the disk is too small; see `Checkpoints.save`.
        """
        parameters = list(self.trained.values())
        weights = sum(p.numel() * p.element_size() for p in parameters)
        needed = weights * (1 if self.average is None else 2)
        needed += optimizer_state_bytes(self.recipe.optimizer, parameters)
        if self.is_sharded:
            self._save_sharded(needed)
        elif self.accelerator.is_main_process:
            self.checkpoints.save(self.step, self._write, needed)
        self.accelerator.wait_for_everyone()

    def _write(self, folder: Path) -> None:
        _save_tensors(self.trained, folder / "trained.safetensors")
        if self.average is not None:
            _save_tensors(self.average.weights(), folder / "ema.safetensors")
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

    def _save_sharded(self, needed: int) -> None:
        """Write the share of every process in accelerate's format, and the whole weights once, for `export`."""
        accelerator = self.accelerator
        weights = accelerator.get_state_dict(self.model)
        partial: list[Any] = [None]
        if accelerator.is_main_process:
            partial[0] = self.checkpoints.begin(self.step, needed)
        torch.distributed.broadcast_object_list(partial)
        folder: Path = partial[0]
        accelerator.save_state(str(folder / "sharded"))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _save_tensors({name: weights[name] for name in self.trained}, folder / "trained.safetensors")
            torch.save({"schedule": self.schedule.state_dict()}, folder / "schedule.pt")
            self._write_numbers(folder)
            self.checkpoints.commit(folder)

    def _write_numbers(self, folder: Path) -> None:
        state: dict[str, Any] = {
            "step": self.step,
            "data": self.data.fingerprint,
            "seed": self.recipe.seed,
            "alpha": self.alpha.state(),
        }
        if self.average is not None:
            state["ema_steps"] = self.average.steps
        write_json(folder / "state.json", state)

    def _restore(self) -> bool:
        """Load the newest intact checkpoint; all processes call it.

        Returns:
            Whether there is one.

        Raises:
            LLM4GENError: it was made with other data, another seed, or another way to shard the weights.
        """
        folder = self.checkpoints.newest()
        if folder is None:
            return False
        state = read_json(folder / "state.json", "State", "remove this checkpoint")
        if state["data"] != self.data.fingerprint:
            raise LLM4GENError(
                f"Checkpoint {folder} was made with other data than the sources hold now (captions, pairs or images "
                "have changed), so the run cannot be resumed exactly. Restore the data, or begin a new run with "
                f"model.adapter from `python -m train export {self.recipe.output}`."
            )
        if state["seed"] != self.recipe.seed:
            raise LLM4GENError(
                f"Checkpoint {folder} was made with seed {state['seed']}, but recipe.yaml says {self.recipe.seed}; "
                "restore the seed."
            )
        if self.is_sharded != (folder / "sharded").is_dir():
            raise LLM4GENError(
                f"Checkpoint {folder} was written {'without' if self.is_sharded else 'with'} FSDP or DeepSpeed; resume "
                f"it {'without' if self.is_sharded else 'with'} them."
            )
        if self.is_sharded:
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

    # Results

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Context with the moving average in the place of the trained weights, if there is one."""
        return contextlib.nullcontext() if self.average is None else self.average.in_place()

    def _validate(self) -> None:
        if not self.recipe.validation.prompts:
            return
        if self.is_sharded:
            log.warning("Validation images are not generated under FSDP and DeepSpeed; use `export` and `generate`.")
            return
        if self.accelerator.is_main_process:
            if self.training_loss.recorder is not None:
                self.training_loss.recorder.begin(None)
            with self.averaged():
                files = self.models.validation_images(self.folder.validation / f"step-{self.step:08d}")
            images = {f"validation/{file.stem}": np.asarray(Image.open(file))[None] for file in files}
            for tracker in self.accelerator.trackers:
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images(images, step=self.step, **layout)
        self.accelerator.wait_for_everyone()

    def _export(self) -> None:
        if not self.accelerator.is_main_process:
            return
        if self.is_sharded:
            print(f"Trained. Write the adapter with: python -m train export {self.folder.path}", flush=True)
            return
        with self.averaged():
            metadata = self.models.metadata(self.step, self.data.fingerprint, self.data.parser)
            schedule = self.models.family.base.schedule
            files = self.parts.export(self.folder.export, EXPORT_NAME, metadata, schedule)
        for file in files:
            print(file, flush=True)


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
