"""`python -m train plan`: memory, disk, time and data of a run, before anything is trained."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import io
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from accelerate.utils import gather_object

from llm4gen_core import LLMEncoder
from llm4gen_core.encoder import load_tokenizer
from llm4gen_core.entities import entity_backend

from .data.batches import Bars, cache_folder
from .data.images import variations
from .data.manifest import Manifest, Summary, describe, summarize
from .data.scan import scan
from .loop import Trainer, accumulation_steps, join_processes
from .loss import CaptionDropout, Conditioner
from .memory import Estimate, Shapes, estimate, text_form
from .models import Models, open_models
from .recipe import Recipe
from .run import RunFolder

RESERVE = 3 * 2**29
"""Bytes that an accelerator needs beside tensors: driver and kernels, their workspaces, fragmentation."""

CARDS = (8, 12, 16, 24, 32, 48, 80, 96, 141, 192)
"""Usual memory sizes of accelerators in GiB."""

WARM_UP, TIMED = 2, 3
"""Optimizer steps of the measurement. The first ones compile and choose kernels, and measure the two gradients."""

_MICRO_BATCHES = 4
"""Largest number of micro-batches in a measured optimizer step; the time of longer steps is scaled up."""
_ENOUGH_SECONDS = 120.0
"""Time after which no further step is measured."""


@dataclass(frozen=True)
class Disk:
    """Bytes that a run writes.

    Attributes:
        latents, text: whole caches; `text` is None where captions cannot be cached.
        checkpoint, checkpoints: bytes of one, and the largest number at once.
        needed: total of what the recipe asks for.
        free: on the disk of the run.
    """

    latents: int
    text: int | None
    checkpoint: int
    checkpoints: int
    needed: int
    free: int


@dataclass(frozen=True)
class Speed:
    """Measured speed.

    Attributes:
        seconds: per optimizer step.
        images: per second, over all processes.
        peak: largest number of bytes on the accelerator; None on the CPU.
        steps: number of timed steps.
    """

    seconds: float
    images: float
    peak: int | None
    steps: int


@dataclass(frozen=True)
class Plan:
    """Result of `plan`.

    Attributes:
        data: statistics of the data.
        samples: number of samples of an epoch.
        estimate: parameters and memory.
        disk: bytes on the disk.
        free: free bytes of the memory that the run would use.
        speed: None if it was not measured.
    """

    data: Summary
    samples: int
    estimate: Estimate
    disk: Disk
    free: int
    speed: Speed | None


def plan(recipe: Recipe) -> Plan:
    """Check data and models, compute sizes, time a few steps in a temporary run, and print the results.

    Writes nothing but the cache, which the run reuses.

    Raises:
        LLM4GENError: something in the recipe, the models or the data does not fit.
    """
    state = join_processes()
    recipe = recipe.absolute()
    accumulation = accumulation_steps(recipe, state.num_processes)
    models = open_models(recipe, parts=())
    for part in (models.family.base.unet, models.family.base.vae, *models.family.base.text):
        part.check()
    folder = cache_folder(recipe, Path(recipe.output))
    with state.main_process_first(), Bars(state.is_main_process) as bars:
        manifest = scan(recipe.data, folder, bars, recipe.guidance.is_on)
    summary = summarize(manifest)
    samples = len(manifest.order(recipe.train.batch_size, recipe.seed))
    say = _Table(state.is_main_process)
    say.data(recipe, summary, manifest)
    say.training(recipe, samples, accumulation, state.num_processes)
    found = estimate(models, _shapes(models, manifest, summary), state.num_processes)
    say.parameters(found)
    free = free_memory()
    say.memory(found, free, recipe, state.num_processes)
    disk = _disk(models, summary, found, folder)
    say.disk(disk, recipe, folder)
    say.title("Time (measured)")
    speed = None
    if all(gather_object([found.memory.total <= free])):
        try:
            speed = measure(recipe, folder, accumulation)
            say.speed(speed, recipe)
        except torch.cuda.OutOfMemoryError:
            say.line("not measured", "a step ran out of the GPU's memory; lower train.micro_batch")
    else:
        say.line("not measured", f"a step needs more memory than is free here ({_size(free)})")
    return Plan(summary, samples, found, disk, free, speed)


def free_memory() -> int:
    """Free bytes on the GPU of this process, or in the machine if there is none."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)


def latent_bytes(models: Models, summary: Summary) -> int:
    """Bytes of the latent cache: mean and standard deviation in float32 for each cut of each image, and their keys."""
    family, total = models.family, 0
    for bucket in summary.buckets:
        factor = family.pixels_per_latent
        numbers = 2 * family.latent_channels * (bucket.height // factor) * (bucket.width // factor)
        total += bucket.images * variations(models.recipe.data) * (4 * numbers + 16)
    return total


def text_bytes(models: Models, summary: Summary) -> int | None:
    """Bytes of the text cache: features of each caption and of the empty prompt, and their keys."""
    if models.trains_text:
        return None
    entry = sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in text_form(models).values())
    return (summary.different_captions + 1) * (entry + 16)


def _shapes(models: Models, manifest: Manifest, summary: Summary) -> Shapes:
    """Shapes of a micro-batch: the largest bucket, and as many entity pairs as the first captions have."""
    recipe, family = models.recipe, models.family
    image = max(((b.height, b.width) for b in summary.buckets), key=lambda size: size[0] * size[1])
    if not recipe.guidance.is_on:
        return Shapes(image, 8, 8)
    family.tokenizers = family.base.load_tokenizers()
    if models.spec is not None and recipe.model.llm is not None:
        llm = LLMEncoder(torch.nn.Module(), load_tokenizer(Path(recipe.model.llm)), models.spec)
        models = dataclasses.replace(models, llm=llm)
    first = range(min(len(manifest), recipe.train.micro_batch))
    captions, pairs = [manifest.caption(i) for i in first], [manifest.pairs(i) for i in first]
    conditioner = Conditioner(models, torch.device("cpu"))
    targets = conditioner.targets(captions, pairs, [CaptionDropout.NOTHING] * len(captions))
    assert targets is not None
    return Shapes(image, targets.columns.shape[1], targets.pairs.shape[1])


def _disk(models: Models, summary: Summary, found: Estimate, folder: Path) -> Disk:
    recipe = models.recipe
    settings = recipe.checkpoints
    written = -(-recipe.train.steps // settings.every)
    # A new one is written before the oldest is removed.
    checkpoints = written if settings.keep is None else min(written, settings.keep + 1)
    latents, text = latent_bytes(models, summary), text_bytes(models, summary)
    needed = checkpoints * found.checkpoint_bytes
    needed += latents if recipe.data.cache.latents else 0
    needed += text if recipe.data.cache.text and text is not None else 0
    return Disk(latents, text, found.checkpoint_bytes, checkpoints, needed, shutil.disk_usage(folder).free)


# The measurement


def measure(recipe: Recipe, folder: Path, accumulation: int) -> Speed:
    """Time some optimizer steps of the trainer, on a few of the pairs, in a temporary run.

    Args:
        recipe: with absolute paths.
        folder: of the cache.
        accumulation: number of micro-batches of a step.
    """
    micro_batches = min(accumulation, _MICRO_BATCHES)
    batch_size = recipe.train.batch_size // accumulation * micro_batches
    with tempfile.TemporaryDirectory(prefix="llm4gen-plan-") as temporary:
        short = recipe.model_copy(
            update={
                "output": temporary,
                "data": recipe.data.model_copy(
                    update={"cache": recipe.data.cache.model_copy(update={"folder": str(folder)})}
                ),
                "train": recipe.train.model_copy(update={"batch_size": batch_size}),
                "logging": recipe.logging.model_copy(update={"tensorboard": False, "wandb": None}),
            }
        )
        with contextlib.redirect_stdout(io.StringIO()):  # the data has been described before
            trial = Trainer(short, RunFolder(Path(temporary)), pairs=(WARM_UP + TIMED) * batch_size)
        try:
            seconds, steps = _time_steps(trial)
            peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
        finally:
            trial.accelerator.free_memory()
            del trial
            gc.collect()
    seconds *= accumulation / micro_batches
    return Speed(seconds, recipe.train.batch_size / seconds, peak, steps)


def _time_steps(trainer: Trainer) -> tuple[float, int]:
    """Mean seconds of an optimizer step, with data and moving average, and the number of timed steps."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    begun, times = time.monotonic(), list[float]()
    with contextlib.closing(trainer.data.steps(0, WARM_UP + TIMED, trainer.accumulation)) as steps:
        started = begun
        for number, batches in enumerate(steps, 1):
            trainer.optimizer_step(batches, number)
            if trainer.average is not None:
                trainer.average.update()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            now = time.monotonic()
            times.append(now - started)
            started = now
            long = torch.tensor([float(now - begun > _ENOUGH_SECONDS)], device=trainer.device)
            if float(trainer.accelerator.reduce(long, reduction="sum")):  # all processes stop at the same step
                break
    timed = times[WARM_UP:] or times[-1:]
    return sum(timed) / len(timed), len(timed)


# Output


class _Table:
    """Printer of the results.

    Args:
        shown: whether this process prints.
    """

    def __init__(self, shown: bool) -> None:
        self._shown = shown

    def title(self, text: str) -> None:
        self._print(f"\n{text}")

    def line(self, name: str, text: str) -> None:
        self._print(f"  {name:<26} {text}")

    def data(self, recipe: Recipe, summary: Summary, manifest: Manifest) -> None:
        self.title("Data")
        for line in describe(summary, manifest.problems()):
            self._print(f"  {line}")
        if recipe.guidance.is_on:
            parser = entity_backend(recipe.data.entities)
            fallback = " (the fallback, which knows no grammar)" if parser.startswith("rules/") else ""
            self.line("entity parser", parser + fallback)

    def training(self, recipe: Recipe, samples: int, accumulation: int, processes: int) -> None:
        train = recipe.train
        seen = train.steps * train.batch_size
        self.title("Training")
        self.line("steps", f"{train.steps:,} of {train.batch_size:,} samples")
        self.line("samples", f"{seen:,}, {seen / samples:.2f} epochs of {samples:,}")
        self.line(
            "a step", f"{processes} process{'es' * (processes > 1)} x {accumulation} x {train.micro_batch} samples"
        )
        if (Path(recipe.output) / "recipe.yaml").exists():
            self.line("output", f"{recipe.output} holds a run already; `run` needs another folder")

    def parameters(self, found: Estimate) -> None:
        self.title("Parameters")
        for part in found.parts:
            kind = "trained" if part.trained == part.parameters else "frozen"
            if 0 < part.trained < part.parameters:
                kind = f"{part.trained / 1e6:,.2f} M of them trained"
            self.line(part.name, f"{part.parameters / 1e6:>9,.2f} M {_size(part.weight_bytes):>11}  {kind}")

    def memory(self, found: Estimate, free: int, recipe: Recipe, processes: int) -> None:
        memory, micro_batch = found.memory, recipe.train.micro_batch
        self.title("Memory of one process (computed)")
        self.amount("weights", memory.weights)
        self.amount("gradients", memory.gradients)
        self.amount("optimizer", memory.optimizer, recipe.optimizer.name)
        if recipe.train.ema.enabled:
            on_cpu = recipe.train.ema.device == "cpu"
            self.amount("moving average", memory.ema, f"and {_size(found.ema_bytes)} on the CPU" if on_cpu else "")
        if memory.copies:
            self.amount("copies for autocast", memory.copies, recipe.train.precision)
        self.amount("activations", memory.activations, f"{micro_batch} x {_size(memory.activations / micro_batch)}")
        if recipe.guidance.is_on:
            self.amount("  entity guidance's share", memory.guidance)
        if memory.recomputed:
            self.amount("one block recomputed", memory.recomputed)
        self.amount("temporary", memory.workspace)
        if memory.encoding:
            self.amount("encoding images", memory.encoding, "more than a step itself; data.cache.latents avoids it")
        if processes > 1:
            self.amount("gradients between processes", memory.buckets)
        self.amount("reserve", RESERVE, "driver, kernels, fragmentation")
        total = memory.total + RESERVE
        several = "" if processes > 1 else f"{_size(memory.gradients)} more in each of several processes"
        self.amount("total, at most", total, several)
        if torch.cuda.is_available():
            verdict = "fits" if total <= free else "DOES NOT FIT"
            self.line(verdict, f"{torch.cuda.get_device_name()}, {_size(free)} free")
        else:
            card = next((card for card in CARDS if total <= card * 2**30), None)
            wanted = f"a GPU of {card} GB" if card else f"no single GPU of {CARDS[-1]} GB or less"
            self.line("fits", f"{wanted}; there is no GPU here, and {_size(free)} of the machine's memory are free")

    def disk(self, disk: Disk, recipe: Recipe, folder: Path) -> None:
        cache = recipe.data.cache
        self.title("Disk")
        self.amount("latent cache", disk.latents, "" if cache.latents else "if data.cache.latents were true")
        if disk.text is not None:
            self.amount("text cache", disk.text, "" if cache.text else "if data.cache.text were true")
        each = f"{disk.checkpoints} x {_size(disk.checkpoint)}"
        self.amount("checkpoints", disk.checkpoint * disk.checkpoints, each)
        self.amount("needed", disk.needed, "" if disk.needed <= disk.free else "MORE THAN IS FREE")
        self.amount("free", disk.free, str(folder.parent))

    def speed(self, speed: Speed, recipe: Recipe) -> None:
        self.line("a step", f"{speed.seconds:.3g} s (mean of {speed.steps}), {speed.images:,.3g} images a second")
        self.line("the run", f"{_duration(speed.seconds * recipe.train.steps)}, without validation and checkpoints")
        if speed.peak is not None:
            self.amount("memory of tensors", speed.peak, "at most")

    def amount(self, name: str, count: float, remark: str = "") -> None:
        """Print a line with bytes."""
        self.line(name, f"{_size(count):>11}  {remark}".rstrip())

    def _print(self, text: str) -> None:
        if self._shown:
            print(text, flush=True)


def _size(count: float) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.2f} MB"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    days, hours = divmod(minutes // 60, 24)
    if days:
        return f"{days} days {hours} hours"
    return f"{hours} hours {minutes % 60} minutes" if hours else f"{minutes} minutes" if minutes else f"{seconds:.0f} s"
