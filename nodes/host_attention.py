"""λ inside the UNet's cross-attention: its modes and its schedule, applied to the LLM's tokens of each row.

Fuse adds a tensor of marks to the host's `model_conds`, which the host repeats and concatenates like the context, so
that every row of a call has the marks of its own tokens. Patch Model adds a wrapper that removes the marks before the
UNet is called and computes λ once per step. During the call it adds an `attn2_patch` after those of other packs and an
`attn2_output_patch` before theirs. Both are thus adjacent to the attention, whatever the order of the nodes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import comfy.conds
import comfy.model_patcher
import comfy.patcher_extension
import torch
from torch import Tensor

from ..llm4gen_core import LLM4GENError
from ..llm4gen_core.attention import StrengthSchedule

MARKS = "llm4gen_tokens"
"""Key of the marks in `model_conds` and in the options of the attention's patches."""
_KEY = "llm4gen"
_WAITING = "llm4gen_waiting"
_SCALED, _PAIRED = 1, 2
_UNIT = 1 << 20
"""λ is stored as an integer in units of 2^-20, since the host casts floating-point marks to the model's precision."""


class TokenMarks(comfy.conds.CONDRegular):
    """Marks of a conditioning's LLM tokens, integers [B, 4].

    Columns: number of CLIP's tokens, which come first; number of all tokens; λ > 0 times 2^20; flags `_SCALED` if the
    tokens are already multiplied by λ, and `_PAIRED` if each token occurs twice.
    """

    @classmethod
    def of(cls, text: int, tokens: int, strength: float, scaled: bool, paired: bool = False) -> TokenMarks:
        flags = _SCALED * scaled + _PAIRED * paired
        return cls(torch.tensor([[text, tokens, max(1, round(strength * _UNIT)), flags]]))

    def can_concat(self, other: Any) -> bool:
        """Rows of one call must have the same numbers of tokens."""
        return isinstance(other, TokenMarks) and torch.equal(self.cond[0, :2], other.cond[0, :2])


@dataclass(frozen=True)
class _Step:
    """λ for one call of the UNet.

    Attributes:
        mode: one of `LAMBDA_MODES`.
        text, tokens, paired: see `TokenMarks`.
        scale: [B, 1, 1] factor of the LLM's tokens (`embedding`), of their values (`value`) or of the output of their
            attention (`decoupled`).
        restore: [B, 1, 1] factor that undoes the tokens' own scaling, or None if they are unscaled.
        off: whether all of `scale` is 0, so that the LLM's tokens are left out.
        neutral: whether all of `scale` is 1 and `restore` is None.
        unet: the called UNet; with several devices there are several.
    """

    mode: str
    text: int
    tokens: int
    paired: bool
    scale: Tensor
    restore: Tensor | None
    off: bool
    neutral: bool
    unet: Any

    def layout(self, length: int) -> tuple[int, int]:
        """Numbers of CLIP's and of all tokens of which a context of some length consists."""
        if self.paired and length % self.tokens:  # NegPip has selected the half for the keys or the values
            return self.text // 2, self.tokens // 2
        return self.text, self.tokens

    def is_llm(self, length: int, device: torch.device) -> Tensor:
        """Mask [length] of the LLM's tokens, also for a context that was repeated or appended to."""
        text, tokens = self.layout(length)
        place = torch.arange(length, device=device)
        if length % tokens == 0:
            place = place % tokens
        return (place >= text) & (place < tokens)

    def for_rows_of(self, context: Tensor, sides: Sequence[int]) -> _Step:
        """Return the step for a context with more rows than the call.

        Packs for regions (attention couple) repeat the positive side for each region, with the region's own context in
        the added rows. Those have no marks: fused ones are scaled like the row that they were added to, plain CLIP is
        not scaled.

        Args:
            context: [B', L, d_text] for the keys.
            sides: the host's `cond_or_uncond`: 0 for each positive part of the call's rows, 1 for each negative one.
        """
        if len(context) == len(self.scale):
            return self
        size, positive = len(self.scale) // len(sides), sides.count(0)
        regions = (len(context) // size - (len(sides) - positive)) // positive

        def spread(numbers: Tensor, plain: float) -> Tensor:
            parts = numbers.chunk(len(sides))
            rows = [part if side else part.repeat(regions, 1, 1) for part, side in zip(parts, sides, strict=True)]
            return torch.cat(rows).where(fused, plain)

        text, tokens = self.layout(context.shape[1])
        fused = _is_periodic(context, tokens) & ~_is_periodic(context, text)
        scale = spread(self.scale, 0.0 if self.mode == "decoupled" else 1.0)
        return replace(self, scale=scale, restore=None if self.restore is None else spread(self.restore, 1.0))


def _is_periodic(context: Tensor, period: int) -> Tensor:
    """[B, 1, 1], whether a row's tokens repeat with a period, as those of a repeated context do."""
    return (context[:, period:] == context[:, :-period]).flatten(1).all(1).view(-1, 1, 1)


def mark(
    options: dict[str, Any], text: int, tokens: int, strength: float, scaled: bool, paired: bool = False
) -> dict[str, Any]:
    """Return the options of a conditioning's entry with marks added.

    Args:
        options: options of the entry.
        text: number of CLIP's tokens, which come first.
        tokens: number of all tokens.
        strength: λ.
        scaled: whether the LLM's tokens are already multiplied by λ.
        paired: whether each token occurs twice, for the keys and for the values.
    """
    marks = TokenMarks.of(text, tokens, strength, scaled, paired)
    return {**options, "model_conds": {**options.get("model_conds", {}), MARKS: marks}}


def patch_attention(
    model: comfy.model_patcher.ModelPatcher, mode: str, schedule: StrengthSchedule
) -> comfy.model_patcher.ModelPatcher:
    """Return a copy of the model with a mode and a schedule of λ, which replace earlier ones.

    λ is the product of Fuse's and the schedule's. Where it is 0, the LLM's tokens are left out, which is bit-identical
    to plain CLIP.

    Args:
        model: model with a UNet.
        mode: one of `LAMBDA_MODES`.
        schedule: λ over the sampling range.

    Raises:
        LLM4GENError: the model is not a UNet with cross-attention.
    """
    unet = model.model.diffusion_model
    modules = unet.modules() if hasattr(unet, "input_blocks") else ()
    if not any(getattr(module, "attn2", None) is not None for module in modules):
        raise LLM4GENError(
            f"The model is a {type(model.model).__name__} and not a UNet with cross-attention; expected the SD1.5 or "
            "SDXL model that the adapter was trained for."
        )
    patched = model.clone()
    wrappers = comfy.patcher_extension.WrappersMP.APPLY_MODEL
    patched.remove_wrappers_with_key(wrappers, _KEY)
    patched.add_wrapper_with_key(wrappers, _KEY, _Wrapper(mode, schedule))
    return patched


def _layer(unet: Any, options: dict[str, Any]) -> Any:
    """Layer attn2 of the block that the host is computing."""
    side, number = options["block"]
    block = unet.middle_block if side == "middle" else getattr(unet, f"{side}_blocks")[number]
    [transformers] = [part.transformer_blocks for part in block if hasattr(part, "transformer_blocks")]
    return transformers[options["block_index"]].attn2


class _Wrapper:
    """Wrapper of the model's calls, which computes λ and passes it to the attention's patches."""

    def __init__(self, mode: str, schedule: StrengthSchedule) -> None:
        self.mode = mode
        self.schedule = schedule

    def __call__(
        self,
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Any = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: dict[str, Any] = {},  # noqa: B006  (the host's own signature)
        **kwargs: Any,
    ) -> Any:
        marks = kwargs.pop(MARKS, None)
        if marks is None:
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        model = executor.class_obj
        percent = _percent(model.model_sampling, float(t.max()))
        unet = getattr(model.diffusion_model, "_orig_mod", model.diffusion_model)  # compiled models
        patches = transformer_options.get("patches", {})
        before, after = patches.get("attn2_patch", []), patches.get("attn2_output_patch", [])
        transformer_options = {
            **transformer_options,
            MARKS: self._step(marks, self.schedule.at(percent), x.device, unet),
            "patches": {**patches, "attn2_patch": [*before, _before], "attn2_output_patch": [_after, *after]},
        }
        with _uncompiled():
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    def _step(self, marks: Tensor, now: float, device: torch.device, unet: Any) -> _Step:
        text, tokens = marks[0, :2].tolist()
        own = list(zip((marks[:, 2] / _UNIT).tolist(), (marks[:, 3] & _SCALED).tolist(), strict=True))
        kept = self.mode == "embedding"
        scale = [now if kept and done else strength * now for strength, done in own]
        restore = [1 / strength if done and not kept else 1 for strength, done in own]
        is_whole = all(factor == 1 for factor in restore)

        def rows(numbers: list[float]) -> Tensor:
            return torch.tensor(numbers, device=device).view(-1, 1, 1)

        return _Step(
            self.mode,
            text,
            tokens,
            bool(marks[0, 3] & _PAIRED),
            rows(scale),
            None if is_whole else rows(restore),
            off=not any(scale),
            neutral=is_whole and all(factor == 1 for factor in scale),
            unet=unet,
        )


def _uncompiled() -> AbstractContextManager[Any]:
    """Run a compiled UNet without its compiled code for the duration of a call.

    The host's node compiles it without guards on the options. The code for the first step, or for the first block of
    some width, would be reused for the others, with its λ and its layer.
    """
    if "torch._dynamo" not in sys.modules or not hasattr(torch.compiler, "set_stance"):  # since torch 2.6
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def _percent(sampling: Any, sigma: float) -> float:
    """Fraction of sampling done at a noise level, the inverse of the host's `percent_to_sigma`."""
    low, high = 0.0, 1.0
    for _ in range(24):
        middle = (low + high) / 2
        if float(sampling.percent_to_sigma(middle)) >= sigma:
            low = middle
        else:
            high = middle
    # Exactly 0 at the highest noise level, despite rounding.
    return 0.0 if high < 1e-3 else high


def _before(query: Tensor, context: Tensor, value: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """attn2_patch: return query, context for the keys and context for the values, [B, L, d_text] each."""
    step: _Step | None = options.get(MARKS)
    if step is None or context is None or (step.neutral and step.mode != "decoupled"):
        return query, context, value
    is_llm = step.is_llm(context.shape[1], context.device)
    if step.off:
        return query, context[:, ~is_llm], value[:, ~is_llm]
    step = step.for_rows_of(context, options.get("cond_or_uncond", ()))
    if step.restore is not None:
        context, value = (_scaled(tokens, is_llm, step.restore) for tokens in (context, value))
    if step.mode == "decoupled":
        options[_WAITING] = (step, query, context[:, is_llm], value[:, is_llm])
        return query, context[:, ~is_llm], value[:, ~is_llm]
    if step.mode == "embedding":
        context = _scaled(context, is_llm, step.scale)
    return query, context, _scaled(value, is_llm, step.scale)


def _scaled(tokens: Tensor, is_llm: Tensor, scale: Tensor) -> Tensor:
    """Multiply the LLM's tokens of a context [B, L, d]."""
    return torch.where(is_llm[:, None], tokens * scale.to(tokens.dtype), tokens)


def _after(attended: Tensor, options: dict[str, Any]) -> Tensor:
    """attn2_output_patch: add λ CA(x, c'_l), without the output layer's bias, which is already added."""
    waiting = options.pop(_WAITING, None)
    if waiting is None:
        return attended
    step, query, context, value = waiting
    layer = _layer(step.unet, options)
    of_llm = layer(query, context=context, value=value, transformer_options=options)
    bias = layer.to_out(query.new_zeros(1, 1, layer.heads * layer.dim_head))
    return attended + step.scale.to(attended.dtype) * (of_llm - bias)
