"""The training loop: recipe in, adapter out."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from PIL import Image
from tqdm import tqdm

from llm4gen_core import LLM4GENError

from .alpha import Alpha
from .average import Average
from .conditioning import Conditioner
from .data.sources import open_source
from .interrupt import Interrupt
from .noise_target import NoiseTarget
from .optimizers import build_optimizer, build_schedule
from .recipe import Recipe
from .run_folder import RunFolder
from .run_state import SHARDED, RunState
from .setup import adapter_metadata, open_models
from .step import OptimizerStep
from .training_data import TrainingData
from .training_loss import TrainingLoss
from .validation import generate_validation

log = logging.getLogger("llm4gen")

_MIXED = {"float32": "no", "float16": "fp16", "bfloat16": "bf16"}
EXPORT_NAME = "adapter"
"""Of the adapter file in a run's `export` folder, without its ending."""


class Stopped(KeyboardInterrupt):
    """A signal ended the run; its checkpoint is written.

    Attributes:
        signal: the signal's name; None where another process received it.
    """

    def __init__(self, signal: str | None) -> None:
        super().__init__(signal)
        self.signal = signal


def run(recipe: Recipe) -> Path:
    """Train as a recipe says, from the beginning.

    Returns:
        The folder of the run.

    Raises:
        LLM4GENError: something in the recipe, the models or the data does not fit, the loss is no number, or the
            disk is full.
        Stopped: a signal came; `resume` goes on.
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
    """Go on with a run from its newest checkpoint that is whole; from the beginning if there is none.

    The number of processes may be another than before.
    """
    folder = RunFolder(Path(path))
    recipe = folder.load().model_copy(update={"output": str(folder.path.absolute())})
    Trainer(recipe, folder).fit()
    return folder.path


def join_processes() -> PartialState:
    """Meet the other processes of the run, if it was launched with several.

    Without an accelerator, accelerate joins them only if it is told that they use the CPU. While the main process
    looks through millions of files the others wait, for longer than torch's ten minutes.
    """
    return PartialState(cpu=_on_cpu(), timeout=timedelta(days=2))


def _on_cpu() -> bool:
    return not torch.accelerator.is_available()


class Trainer:
    """One run in one process of it.

    Args:
        recipe: checked.
        folder: made by `RunFolder.create`, or that of a run to go on with.
    """

    data_class: type[TrainingData] = TrainingData

    def __init__(self, recipe: Recipe, folder: RunFolder) -> None:
        self.recipe = recipe
        self.folder = folder
        settings = recipe.train
        processes = join_processes().num_processes
        self.accumulation, rest = divmod(settings.batch_size, settings.micro_batch * processes)
        if rest or not self.accumulation:
            raise LLM4GENError(
                f"train.batch_size {settings.batch_size} cannot be split into micro-batches of {settings.micro_batch} "
                f"over {processes} processes; expected a multiple of {settings.micro_batch * processes}."
            )
        for source in recipe.data.sources:
            open_source(source)  # what is not there is said before large models are loaded
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = settings.tf32
        self.accelerator = Accelerator(
            cpu=_on_cpu(),
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
                "guidance.alpha is balanced, but under FSDP or DeepSpeed gradients cannot be measured one loss at a "
                "time; give a number, such as the one that a short run on one GPU settles at (alpha in metrics.jsonl)."
            )
        self.device = self.accelerator.device
        self._build_models()
        self._build_data()
        self._build_training()
        if not self.state.restore() and self.accelerator.is_main_process and folder.metrics.exists():
            tqdm.write("There is no checkpoint that is whole: beginning with the first step.")

    # ---- building

    def _trackers(self) -> list[Any]:
        wanted = {"tensorboard": self.recipe.logging.tensorboard, "wandb": self.recipe.logging.wandb is not None}
        trackers = [name for name, is_wanted in wanted.items() if is_wanted]
        for name in trackers:
            if importlib.util.find_spec(name) is None:
                off = "false" if name == "tensorboard" else "null"
                raise LLM4GENError(
                    f"logging.{name} is on, but the package {name} is not installed; install it (pip install {name}) "
                    f"or give logging.{name}={off}."
                )
        return list(trackers)

    def _build_models(self) -> None:
        recipe = self.recipe
        self.models = open_models(recipe)
        self.family, self.adapter = self.models.family, self.models.adapter
        self.llm = self.models.load_llm(self.device)
        self.parts = self.models.trained_parts()
        self.train_text = self.models.trains_text
        if recipe.train.gradient_checkpointing:
            self.family.unet.enable_gradient_checkpointing()
            for encoder in self.family.text_encoders if self.train_text else ():
                encoder.gradient_checkpointing_enable()
        if recipe.train.compile:
            # Measuring two losses' gradients goes through a graph more than once, which reused buffers forbid.
            torch._functorch.config.donated_buffer = False
            self.family.unet.compile_repeated_blocks()
        self.family.to(self.device)

    def _build_data(self) -> None:
        recipe = self.recipe
        layout = self.models.layout
        self.conditioner = Conditioner(
            self.family, self.llm, layout, recipe.guidance, recipe.data.clip_chunks, self.train_text, self.device
        )
        self.data = self.data_class(recipe, self.folder.path, self.family, self.conditioner, self.accelerator)

    def _build_training(self) -> None:
        recipe = self.recipe
        options = recipe.guidance
        denoising = NoiseTarget(self.family.base.schedule, recipe.loss.min_snr_gamma)
        objective = TrainingLoss(
            self.family,
            self.adapter,
            denoising,
            options,
            recipe.data.clip_chunks,
            self.train_text,
            recipe.adapter.lambda_mode,
        ).to(self.device)
        self.objective = objective.train()
        groups = self.parts.groups()
        optimizer = build_optimizer(groups, recipe.optimizer)
        self.schedule = build_schedule(optimizer, recipe.optimizer, recipe.train.steps)
        self.model, self.optimizer = self.accelerator.prepare(objective, optimizer)
        trained = self.parts.named_parameters()
        ema = recipe.train.ema
        home = torch.device("cpu") if ema.device == "cpu" else None
        self.average = Average(trained, ema.decay, home) if ema.enabled else None
        alpha = Alpha(recipe.guidance, recipe.logging.gradient_ratio_every)
        # The gradient ratio is measured where the method is: at the CAM, or at all that is trained if there is none.
        probe = [p for group in groups if group.name == "cam" for p in group.parameters.values()]
        self.optimizer_step = OptimizerStep(
            recipe,
            self.accelerator,
            self.model,
            self.objective,
            self.optimizer,
            self.schedule,
            self.conditioner,
            self.family,
            alpha,
            probe or list(trained.values()),
        )
        self.state = RunState(
            recipe,
            self.folder.checkpoints,
            self.accelerator,
            self.model,
            self.parts,
            self.optimizer,
            self.schedule,
            self.average,
            alpha,
            self.data.fingerprint,
        )

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.state.step

    # ---- the loop

    def fit(self) -> None:
        """Train to the last step, or until a signal; then leave a checkpoint, and at the end the export."""
        recipe = self.recipe
        accelerator = self.accelerator
        if accelerator.is_main_process:
            self.folder.cut_metrics(self.step)
            self.folder.write_provenance(self._provenance())
        if accelerator.log_with:
            accelerator.init_trackers(
                recipe.logging.wandb or "tensorboard",
                config=None,
                init_kwargs={"wandb": {"config": recipe.to_dict()}},
            )
        progress = tqdm(
            total=recipe.train.steps,
            initial=self.step,
            desc="training",
            unit="step",
            dynamic_ncols=True,
            disable=not accelerator.is_main_process,
        )
        notice = "Signal received: finishing this step, writing a checkpoint, then leaving."
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
                    self.state.step += 1
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
                        self.state.save()
                    if recipe.validation.every and self._due(recipe.validation.every):
                        self._validate()
                    started = time.monotonic()
            if stopped:
                self.state.save()
        if not stopped:
            self._export()
        accelerator.end_training()
        if stopped:
            if accelerator.is_main_process:
                print(
                    f"Stopped after step {self.step}. Go on with: python -m train resume {self.folder.path}", flush=True
                )
            raise Stopped(interrupt.signal)

    def _due(self, every: int) -> bool:
        """Every so many steps, and after the last."""
        return self.step % every == 0 or self.step == self.recipe.train.steps

    def _log(self, values: Mapping[str, float]) -> None:
        if torch.cuda.is_available():
            values = {**values, "memory_gb": torch.cuda.max_memory_allocated() / 1e9}
        if self.accelerator.is_main_process:
            self.folder.log({"step": self.step, **values})
        self.accelerator.log(dict(values), step=self.step)

    # ---- what comes out

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        """With the moving average in the place of the trained weights, if there is one."""
        return contextlib.nullcontext() if self.average is None else self.average.in_place()

    def _validate(self) -> None:
        recipe = self.recipe
        if not recipe.validation.prompts:
            return
        if self.is_sharded:
            log.warning("Validation images are not painted under FSDP and DeepSpeed; use `export` and `generate`.")
            return
        if self.accelerator.is_main_process:
            if self.objective.recorder is not None:
                self.objective.recorder.begin(None)
            with self._averaged():
                files = generate_validation(
                    recipe,
                    self.family,
                    self.models.validation_adapter(),
                    self.llm,
                    self.folder.validation / f"step-{self.step:08d}",
                )
            self._show(files)
        self.accelerator.wait_for_everyone()

    def _show(self, files: list[Path]) -> None:
        """To TensorBoard and W&B."""
        images = {f"validation/{file.stem}": np.asarray(Image.open(file))[None] for file in files}
        for tracker in self.accelerator.trackers:
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images(images, step=self.step, **layout)

    def _export(self) -> None:
        if not self.accelerator.is_main_process:
            return
        if self.is_sharded:
            print(f"Trained. Write the adapter with: python -m train export {self.folder.path}", flush=True)
            return
        with self._averaged():
            metadata = adapter_metadata(self.models, self.step, self.data.fingerprint, self.data.parser)
            files = self.parts.export(self.folder.export, EXPORT_NAME, metadata, self.family.base.schedule)
        for file in files:
            print(file, flush=True)

    def _provenance(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.to_dict(),
            "data": self.data.fingerprint,
            "samples": self.data.samples,
            "parser": self.data.parser,
            "processes": self.accelerator.num_processes,
            "accumulation": self.accumulation,
            "first_step": self.step,
        }
