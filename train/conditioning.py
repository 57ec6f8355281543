"""What the UNet is conditioned on in training: captions through both encoders, and where their paired words stand."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from llm4gen_core import EntityPair, LLMEncoder
from llm4gen_core.entities.positions import context_segments
from llm4gen_core.entity_guidance import (
    GuidanceOptions,
    GuidanceTargets,
    PairPositions,
    guidance_targets,
    pair_positions,
)
from llm4gen_core.prompt_tokens import prompt_offsets
from llm4gen_diffusers.families import Family

_KEPT_CAPTIONS = 32_768
"""Whose token positions are remembered: 8 KB of a short caption of the miniature, 19 KB of a paragraph."""


class CaptionDropout(Enum):
    """What a sample does not see of its caption, so that the model learns to paint without it."""

    NOTHING = "nothing"
    CAPTION = "caption"
    """Both encoders see the empty prompt: the very pair that guidance uses when painting."""
    LLM = "llm"
    """The LLM alone sees it."""


def choose_dropout(draw: float, caption_share: float, llm_share: float) -> CaptionDropout:
    """By a number drawn from [0, 1)."""
    if draw < caption_share:
        return CaptionDropout.CAPTION
    return CaptionDropout.LLM if draw < caption_share + llm_share else CaptionDropout.NOTHING


@dataclass(frozen=True)
class TextInputs:
    """Frozen encoders' view of a micro-batch: c_t [B, L_text, d_text], pooled [B, d_pooled], c_l [B, L_llm, d_llm].

    None where there is no such encoder, or where it is trained and therefore runs inside the objective.
    """

    text: Tensor | None
    pooled: Tensor | None
    llm: Tensor | None


class Conditioner:
    """Encodes captions with the frozen encoders and finds words in the fused context.

    Args:
        family: its text encoders.
        llm: None trains without an LLM.
        layout: `CrossAdapterConfig.context_layout`; ("text",) without an adapter.
        options: of entity guidance.
        chunks: of CLIP tokens; see `Family.encode_text`.
        train_text: the text encoders are trained; they are not run here.
        device: of the tensors that come out.
    """

    def __init__(
        self,
        family: Family,
        llm: LLMEncoder | None,
        layout: tuple[str, ...],
        options: GuidanceOptions,
        chunks: int,
        train_text: bool,
        device: torch.device,
    ) -> None:
        self.family = family
        self.llm = llm
        self.layout = layout
        self.options = options
        self.chunks = chunks
        self.train_text = train_text
        self.device = device
        self._empty: dict[str, Tensor] | None = None
        # A data set of some tens of thousands of captions is tokenized in its first epoch alone.
        self._positions = functools.lru_cache(_KEPT_CAPTIONS)(self._find_positions)

    @torch.no_grad()
    def features(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """What the frozen encoders say of B captions, under the names of the text cache.

        Returns:
            "clip" [B, L k, d_text] and "pooled" [B, d_pooled] if CLIP is frozen, "llm" [B, L_llm, d_llm] if there
            is an LLM; each in the precision of its encoder.
        """
        found: dict[str, Tensor] = {}
        if not self.train_text:
            text = self.family.encode_text(captions, self.chunks)
            found["clip"] = text.hidden
            if text.pooled is not None:
                found["pooled"] = text.pooled
        if self.llm is not None:
            found["llm"] = self.llm.encode(captions).hidden
        return found

    def inputs(
        self, captions: Sequence[str], drops: Sequence[CaptionDropout], cached: Mapping[str, Tensor] | None = None
    ) -> TextInputs:
        """Encode a micro-batch, or take it from the cache, and put the empty prompt where a sample drops its own."""
        if cached is None:
            found = self.features(captions)
        else:
            found = {name: tensor.to(self.device, non_blocking=True) for name, tensor in cached.items()}
        if any(drop is not CaptionDropout.NOTHING for drop in drops):
            if self._empty is None:
                self._empty = self.features([""])
            for name, tensor in found.items():
                dropped = [d is CaptionDropout.CAPTION or (d is CaptionDropout.LLM and name == "llm") for d in drops]
                rows = torch.tensor(dropped, device=tensor.device).view(-1, *[1] * (tensor.ndim - 1))
                found[name] = torch.where(rows, self._empty[name], tensor)
        moved = {name: tensor.to(self.device) for name, tensor in found.items()}
        return TextInputs(moved.get("clip"), moved.get("pooled"), moved.get("llm"))

    def targets(
        self, captions: Sequence[str], pairs: Sequence[Sequence[EntityPair]], drops: Sequence[CaptionDropout]
    ) -> GuidanceTargets:
        """Where the paired words of each caption stand in the context; none for a caption that is dropped."""
        return guidance_targets(
            [
                self._positions(caption, tuple(of_caption), drop)
                if of_caption and drop is not CaptionDropout.CAPTION
                else []
                for caption, of_caption, drop in zip(captions, pairs, drops, strict=True)
            ]
        )

    def _find_positions(self, caption: str, pairs: tuple[EntityPair, ...], drop: CaptionDropout) -> list[PairPositions]:
        llm = None
        if "llm" in self.layout:
            assert self.llm is not None
            text = caption if drop is CaptionDropout.NOTHING else ""
            llm = prompt_offsets(self.llm.tokenizer, text, self.llm.spec)
        segments = context_segments(self.layout, self.family.text_offsets(caption, self.chunks), llm)
        return pair_positions(pairs, segments, self.options)
