"""λ inside the UNet's cross-attention: which tokens are the LLM's, how much they count, and when.

Fuse marks its conditionings with a tensor among the host's `model_conds`, which the host repeats and concatenates like
the context itself, so that every row of a call knows its own tokens. Patch Model puts in a wrapper that takes the marks
out before the UNet is called and works out λ once a step. For the time of the call it adds an `attn2_patch` and an
`attn2_output_patch` to those of other packs, next to the attention: the last one before it, the first one after it. So
these read what the attention reads, whatever the order of the nodes.
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
from ..llm4gen_core.strength import StrengthSchedule

MARKS = "llm4gen_tokens"
"""Key of `model_conds`, and of the options that the attention's patches see."""
_KEY = "llm4gen"
_WAITING = "llm4gen_waiting"
_SCALED, _PAIRED = 1, 2
_UNIT = 1 << 20
"""Marks are whole numbers, since the host casts all others to the model's precision: λ in units of 2^-20."""


class TokenMarks(comfy.conds.CONDRegular):
    """Which of a conditioning's tokens are the LLM's: whole numbers [B, 4].

    Columns: CLIP's tokens, which come first; all tokens; λ > 0 times 2^20; `_SCALED` if the tokens are scaled by it
    already, plus `_PAIRED` if they come in pairs.
    """

    @classmethod
    def of(cls, text: int, tokens: int, strength: float, scaled: bool, paired: bool = False) -> TokenMarks:
        flags = _SCALED * scaled + _PAIRED * paired
        return cls(torch.tensor([[text, tokens, max(1, round(strength * _UNIT)), flags]]))

    def can_concat(self, other: Any) -> bool:
        """Rows of one call have the same tokens in the same places."""
        return isinstance(other, TokenMarks) and torch.equal(self.cond[0, :2], other.cond[0, :2])


@dataclass(frozen=True)
class _Step:
    """What one call of the UNet needs.

    Attributes:
        mode: one of `LAMBDA_MODES`.
        text, tokens, paired: see `TokenMarks`.
        scale: [B, 1, 1], what the LLM's tokens (`embedding`), their values (`value`) or their part of the attention
            (`decoupled`) are multiplied with.
        restore: [B, 1, 1], what gives the tokens as the adapter made them, or None if they are so already.
        off: whether all of it is 0: the LLM's tokens are left out.
        neutral: whether all of it is 1 and nothing is to be restored.
        unet: the one that is called; with several devices there are several.
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
        """CLIP's tokens, and all, of which a context of some length is made."""
        if self.paired and length % self.tokens:  # NegPip has taken the keys' half, or the values'
            return self.text // 2, self.tokens // 2
        return self.text, self.tokens

    def is_llm(self, length: int, device: torch.device) -> Tensor:
        """[length], True for the LLM's tokens; of a context that was repeated or appended to as well."""
        text, tokens = self.layout(length)
        place = torch.arange(length, device=device)
        if length % tokens == 0:
            place = place % tokens
        return (place >= text) & (place < tokens)

    def for_rows_of(self, context: Tensor, sides: Sequence[int]) -> _Step:
        """The same for a context that has more rows than the call.

        Packs that paint regions in one call (attention couple) read the positive side once for each region, with the
        region's own context in the rows that are added. Those have no marks: one that was fused is scaled like the row
        to which it was added, and plain CLIP stays as it is.

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
        return replace(
            self,
            scale=spread(self.scale, 0.0 if self.mode == "decoupled" else 1.0),
            restore=None if self.restore is None else spread(self.restore, 1.0),
        )


def _is_periodic(context: Tensor, period: int) -> Tensor:
    """[B, 1, 1], whether a row's tokens repeat after some number of them, which a context is repeated with."""
    return (context[:, period:] == context[:, :-period]).flatten(1).all(1).view(-1, 1, 1)


def mark(
    options: dict[str, Any], text: int, tokens: int, strength: float, scaled: bool, paired: bool = False
) -> dict[str, Any]:
    """Options of a conditioning's entry with marks; those that are there stay.

    Args:
        options: of the entry.
        text: how many tokens are CLIP's, the first ones.
        tokens: how many there are.
        strength: λ.
        scaled: whether the LLM's tokens have been multiplied with it.
        paired: whether each token is there twice, for the keys and for the values.
    """
    marks = TokenMarks.of(text, tokens, strength, scaled, paired)
    return {**options, "model_conds": {**options.get("model_conds", {}), MARKS: marks}}


def patch_attention(
    model: comfy.model_patcher.ModelPatcher, mode: str, schedule: StrengthSchedule
) -> comfy.model_patcher.ModelPatcher:
    """A copy of the model that reads λ as `mode` says, after the schedule; in place of what an earlier one set.

    * `embedding`: keys and values of the LLM's tokens come from λ c'_l.
    * `value`: the values alone do.
    * `decoupled`: CA(x, c_t) + λ CA(x, c'_l), a softmax each.

    λ is that of Fuse times that of the schedule. Where it is 0, the LLM's tokens are left out: plain CLIP to the bit.

    Args:
        model: of a UNet.
        mode: one of `LAMBDA_MODES`.
        schedule: λ over the sampling range.

    Raises:
        LLM4GENError: the model is no UNet with cross-attention.
    """
    if not _has_cross_attention(model.model.diffusion_model):
        raise LLM4GENError(
            f"The model is a {type(model.model).__name__} and no UNet with cross-attention; expected one of SD1.5 or "
            "SDXL, for which the adapter was trained."
        )
    patched = model.clone()
    wrappers = comfy.patcher_extension.WrappersMP.APPLY_MODEL
    patched.remove_wrappers_with_key(wrappers, _KEY)
    patched.add_wrapper_with_key(wrappers, _KEY, _Wrapper(mode, schedule))
    return patched


def _has_cross_attention(unet: Any) -> bool:
    modules = unet.modules() if hasattr(unet, "input_blocks") else ()
    return any(getattr(module, "attn2", None) is not None for module in modules)


def _layer(unet: Any, options: dict[str, Any]) -> Any:
    """The attn2 that is being computed, by the host's name of its block."""
    side, number = options["block"]
    block = unet.middle_block if side == "middle" else getattr(unet, f"{side}_blocks")[number]
    [transformers] = [part.transformer_blocks for part in block if hasattr(part, "transformer_blocks")]
    return transformers[options["block_index"]].attn2


class _Wrapper:
    """Around each call of the model: works out λ and hands it to the attention's patches."""

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
        now = self.schedule.at(_percent(model.model_sampling, float(t.max())))
        unet = getattr(model.diffusion_model, "_orig_mod", model.diffusion_model)  # of a compiled one
        patches = transformer_options.get("patches", {})
        before, after = patches.get("attn2_patch", []), patches.get("attn2_output_patch", [])
        transformer_options = {
            **transformer_options,
            MARKS: self._step(marks, now, x.device, unet),
            "patches": {**patches, "attn2_patch": [*before, _before], "attn2_output_patch": [_after, *after]},
        }
        with _uncompiled():
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    def _step(self, marks: Tensor, now: float, device: torch.device, unet: Any) -> _Step:
        text, tokens = marks[0, :2].tolist()
        own = [strength / _UNIT for strength in marks[:, 2].tolist()]
        scaled = (marks[:, 3] & _SCALED).tolist()
        kept = self.mode == "embedding"
        scale = [now if kept and done else strength * now for strength, done in zip(own, scaled, strict=True)]
        restore = [1 / strength if done and not kept else 1 for strength, done in zip(own, scaled, strict=True)]
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
    """For the time of a call, a compiled UNet runs as it was before.

    The host's node compiles it without checks of the options. So the code for the first step, or for the first block of
    some width, would be taken for the others, with its λ and with its layer.
    """
    if "torch._dynamo" not in sys.modules or not hasattr(torch.compiler, "set_stance"):  # since torch 2.6
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def _percent(sampling: Any, sigma: float) -> float:
    """How far sampling has come at a noise level, the inverse of the host's `percent_to_sigma`."""
    low, high = 0.0, 1.0
    for _ in range(24):
        middle = (low + high) / 2
        if float(sampling.percent_to_sigma(middle)) >= sigma:
            low = middle
        else:
            high = middle
    # At the noisiest level sampling has not begun, whatever the last bit says.
    return 0.0 if high < 1e-3 else high


def _before(query: Tensor, context: Tensor, value: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """attn2_patch: context for the keys, and for the values, [B, L, d_text] each."""
    step: _Step | None = options.get(MARKS)
    if step is None or context is None:
        return query, context, value
    if step.neutral and step.mode != "decoupled":
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
    """[B, L, d] with the LLM's tokens multiplied."""
    return torch.where(is_llm[:, None], tokens * scale.to(tokens.dtype), tokens)


def _after(attended: Tensor, options: dict[str, Any]) -> Tensor:
    """attn2_output_patch: adds λ CA(x, c'_l), whose last layer's bias counts once."""
    waiting = options.pop(_WAITING, None)
    if waiting is None:
        return attended
    step, query, context, value = waiting
    layer = _layer(step.unet, options)
    of_llm = layer(query, context=context, value=value, transformer_options=options)
    bias = layer.to_out(query.new_zeros(1, 1, layer.heads * layer.dim_head))
    return attended + step.scale.to(attended.dtype) * (of_llm - bias)
