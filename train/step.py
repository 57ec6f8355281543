"""One optimizer step: micro-batches in, one update and what is worth knowing of it out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from llm4gen_core import LLM4GENError
from llm4gen_core.entity_guidance import GuidanceTargets
from llm4gen_diffusers.families import Family

from .alpha import Alpha, GradientRatio
from .conditioning import CaptionDropout, Conditioner, choose_dropout
from .data.batches import Batch
from .recipe import Recipe
from .seeds import generator, uniform
from .training_loss import StepInputs, TrainingLoss


@dataclass
class _Sums:
    """Of one process's samples in a step; the means are taken over all processes.

    Attributes:
        error, guidance, mass: sums over the samples that count.
        bad: of each micro-batch, its keys and where its loss is no number.
    """

    error: Tensor
    guidance: Tensor
    mass: Tensor
    bad: list[tuple[list[str], Tensor]] = field(default_factory=list)


class OptimizerStep:
    """Runs the optimizer steps of one process.

    Means are taken over the samples of all processes and micro-batches together, so that a step is the same however
    its samples are split: unreadable samples and captions without pairs, which do not count, are seldom spread
    evenly.

    Args:
        recipe: checked.
        accelerator: of the run.
        model: the objective as accelerate prepared it.
        objective: the same, unwrapped.
        optimizer: prepared.
        schedule: of the learning rate.
        conditioner: text side.
        family: encodes images that are not cached.
        alpha: of eq. 6.
        probe: parameters at which the two losses' gradients are compared.
    """

    def __init__(
        self,
        recipe: Recipe,
        accelerator: Accelerator,
        model: nn.Module,
        objective: TrainingLoss,
        optimizer: Any,
        schedule: Any,
        conditioner: Conditioner,
        family: Family,
        alpha: Alpha,
        probe: Sequence[nn.Parameter],
    ) -> None:
        self.recipe = recipe
        self.accelerator = accelerator
        self.device = accelerator.device
        self.model = model
        self.objective = objective
        self.optimizer = optimizer
        self.schedule = schedule
        self.conditioner = conditioner
        self.family = family
        self.alpha = alpha
        self.probe = probe

    def __call__(self, batches: list[Batch], step: int, stop: bool = False) -> dict[str, float] | None:
        """Make the step.

        Args:
            batches: this process's micro-batches.
            step: its number, from 1.
            stop: whether this process was asked to stop.

        Returns:
            What is logged; None if any process was asked to stop, and then nothing was done.

        Raises:
            LLM4GENError: no sample could be read, or the loss is no number; nothing was changed.
        """
        drops = [self.drops(batch) for batch in batches]
        targets = [self._targets(batch, dropped) for batch, dropped in zip(batches, drops, strict=True)]
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
        zero = torch.zeros((), dtype=precision, device=self.device)
        sums = _Sums(zero, zero.clone(), zero.repeat(2))
        norm = None
        for batch, dropped, target in zip(batches, drops, targets, strict=True):
            with self.accelerator.accumulate(self.model):
                loss = self._loss(batch, dropped, target, valid, paired, sums, ratio)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self._refuse_broken(sums, step)
                    norm = self._clip()
                    self.optimizer.step()
                    if not self.accelerator.optimizer_step_was_skipped:
                        self.schedule.step()
                    self.optimizer.zero_grad()
        values = self._values(sums, valid, paired)
        if ratio is not None:
            values |= self.alpha.take(ratio.measure(self._sum))
        if norm is not None:
            values["gradient_norm"] = norm
        return values

    def drops(self, batch: Batch) -> list[CaptionDropout]:
        """What each sample does not see of its caption, this time."""
        data = self.recipe.data
        return [
            choose_dropout(uniform(self.recipe.seed, key, epoch, "drop"), data.caption_dropout, data.llm_dropout)
            for key, epoch in zip(batch.keys, batch.epochs, strict=True)
        ]

    def inputs(self, batch: Batch, drops: list[CaptionDropout], targets: GuidanceTargets | None) -> StepInputs:
        """Everything random about the samples is drawn here, each from the sample's own generators."""
        mean, std = batch.latents if batch.latents is not None else self._encode_images(batch)
        shape = tuple(mean.shape[1:])
        latents = mean.to(self.device, non_blocking=True).float()
        if not self.family.is_deterministic:
            latents = latents + std.to(self.device, non_blocking=True).float() * self._draw(batch, "vae", shape)
        noise = self._draw(batch, "noise", shape)
        if self.recipe.loss.noise_offset:
            noise = noise + self.recipe.loss.noise_offset * self._draw(batch, "noise offset", (shape[0], 1, 1))
        steps = len(self.objective.denoising)
        timesteps = [
            int(uniform(self.recipe.seed, key, epoch, "timestep") * steps)
            for key, epoch in zip(batch.keys, batch.epochs, strict=True)
        ]
        text = self.conditioner.inputs(batch.captions, drops, batch.text)
        return StepInputs(
            latents=latents,
            noise=noise,
            timesteps=torch.tensor(timesteps, device=self.device),
            text=text.text,
            pooled=text.pooled,
            llm=text.llm,
            sizes=batch.sizes.to(self.device),
            targets=targets.to(self.device) if targets is not None else None,
            captions=["" if d is CaptionDropout.CAPTION else c for c, d in zip(batch.captions, drops, strict=True)],
        )

    def _targets(self, batch: Batch, drops: list[CaptionDropout]) -> GuidanceTargets | None:
        if not self.recipe.guidance.is_on:
            return None
        return self.conditioner.targets(batch.captions, batch.pairs, drops)

    def _count(self, batches: list[Batch], targets: list[GuidanceTargets | None], stop: bool) -> tuple[int, int, int]:
        """Over all processes: samples that count, those of them with pairs, and processes that were asked to stop."""
        valid = sum(int(batch.valid.sum()) for batch in batches)
        pairs = zip(batches, targets, strict=True)
        paired = sum(int((target.has_pairs & batch.valid).sum()) for batch, target in pairs if target is not None)
        counts = self._sum(torch.tensor([valid, paired, int(stop)], device=self.device)).tolist()
        return counts[0], counts[1], counts[2]

    def _loss(
        self,
        batch: Batch,
        drops: list[CaptionDropout],
        targets: GuidanceTargets | None,
        valid: int,
        paired: int,
        sums: _Sums,
        ratio: GradientRatio | None,
    ) -> Tensor:
        """This micro-batch's part of the step's loss, eq. 6."""
        error, guidance, mass = self.model(self.inputs(batch, drops, targets))
        counted = batch.valid.to(self.device)
        # accelerate divides by the accumulation steps, DDP by the processes; the means are over all samples.
        scale = self.accelerator.gradient_accumulation_steps * self.accelerator.num_processes
        sums.bad.append((batch.keys, counted & ~(error + guidance).isfinite()))
        error_sum = torch.where(counted, error, 0).sum()
        sums.error += error_sum.detach()
        loss = error_sum * (scale / valid)
        if targets is None:
            return loss
        has_pairs = counted & targets.has_pairs.to(self.device)
        guidance_sum = torch.where(has_pairs, guidance, 0).sum()
        sums.guidance += guidance_sum.detach()
        sums.mass += torch.where(has_pairs[:, None], mass, 0).sum(0)
        regularizer = guidance_sum * (scale / max(paired, 1))
        if ratio is not None:
            ratio.add(regularizer, loss)
        return loss + self.alpha.value * regularizer

    def _values(self, sums: _Sums, valid: int, paired: int) -> dict[str, float]:
        total = self._sum(torch.cat([sums.error[None], sums.guidance[None], sums.mass])).tolist()
        values: dict[str, float] = {"loss": total[0] / valid, "diffusion": total[0] / valid, "valid": valid}
        if self.recipe.guidance.is_on:
            guidance, attribute, entity = (value / max(paired, 1) for value in total[1:])
            values["loss"] += self.alpha.value * guidance
            values |= {"guidance": guidance, "alpha": self.alpha.value, "paired": paired}
            values |= {"mass_attribute": attribute, "mass_entity": entity}
        return values | {f"learning_rate_{group['name']}": group["lr"] for group in self.optimizer.param_groups}

    @torch.no_grad()
    def _encode_images(self, batch: Batch) -> tuple[Tensor, Tensor]:
        assert batch.pixels is not None
        return self.family.encode_images(batch.pixels.to(self.device, non_blocking=True))

    def _draw(self, batch: Batch, purpose: str, shape: tuple[int, ...]) -> Tensor:
        """Normal noise [B, *shape]; drawn on the CPU, so that it is the same on every device."""
        drawn = [
            torch.randn(shape, generator=generator(self.recipe.seed, key, epoch, purpose))
            for key, epoch in zip(batch.keys, batch.epochs, strict=True)
        ]
        return torch.stack(drawn).to(self.device, non_blocking=True)

    def _refuse_broken(self, sums: _Sums, step: int) -> None:
        """Raise LLM4GENError in every process if the loss of any sample in any process is no number."""
        bad = torch.stack([is_bad.any() for _, is_bad in sums.bad]).any()
        if not int(self._sum(bad.long())):
            return
        keys = [key for of_batch, flags in sums.bad for key, flag in zip(of_batch, flags.tolist(), strict=True) if flag]
        place = f"samples {', '.join(keys)}" if keys else "samples of another process, which names them"
        raise LLM4GENError(
            f"Step {step}: the loss is not a number for {place}. This step changed nothing; the last checkpoint in "
            f"{self.recipe.output} is from before it. Look at these samples, lower optimizer.learning_rate, or use "
            "train.precision=bfloat16 in place of float16."
        )

    def _clip(self) -> float | None:
        limit = self.recipe.optimizer.max_grad_norm
        if limit is None:
            return None
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), limit)
        return float(norm) if norm is not None else None

    def _sum(self, tensor: Tensor) -> Tensor:
        result = self.accelerator.reduce(tensor, reduction="sum")
        assert isinstance(result, Tensor)
        return result
