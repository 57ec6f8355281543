"""Conditionings: CLIP encoding with equal lengths and BREAK, and their fusion with LLM features."""

from __future__ import annotations

from typing import Any

import comfy.sd
import comfy.sd1_clip
import torch

from ..llm4gen_core import LLM4GENError, LLMFeatures
from ..llm4gen_core.llm_spec import split_at_break
from .host import HostAdapter, release
from .host_attention import mark

Conditioning = list[list[Any]]
"""The host's format: entries [context [B, L, d_text], options]."""

FUSED = "llm4gen_text_tokens"
"""Option of a fused entry: number of CLIP's own tokens, which come first."""

_WIDTHS = {768: "SD1.5", 1024: "SD2", 1280: "the SDXL refiner", 2048: "SDXL", 4096: "SD3 or another large model"}


def encode_clip(
    clip: comfy.sd.CLIP | None, text: str, paired_text: str = "", sizes: dict[str, int] | None = None
) -> Conditioning:
    """Encode a prompt with CLIP, as the host's CLIP Text Encode does.

    Args:
        clip: CLIP of a checkpoint.
        text: the prompt; every 75 tokens are a chunk of 77, and the word BREAK starts a new chunk.
        paired_text: the prompt of the other side of guidance. The shorter of the two is padded with chunks of the
            empty prompt, so that both sides are equally long and share one batched UNet call.
        sizes: SDXL's size conditions under the host's names (width, height, crop_w, crop_h, target_width,
            target_height), in pixels. Missing ones are those of an uncropped image of the generated size.

    Returns:
        Entries with context [1, 77 k, d_text]; for SDXL with the pooled text and the sizes in their options.

    Raises:
        LLM4GENError: there is no CLIP.
    """
    if clip is None:
        raise LLM4GENError(
            "The CLIP input is empty, since its checkpoint holds no text encoder. Use a full checkpoint, or Load CLIP "
            "with clip_l."
        )
    tokens, paired, empty = _tokenize(clip, text), _tokenize(clip, paired_text), clip.tokenize("")
    for name, chunks in tokens.items():
        chunks.extend(empty[name] * (len(paired[name]) - len(chunks)))
    return clip.encode_from_tokens_scheduled(tokens, add_dict=dict(sizes or {}))


def _tokenize(clip: comfy.sd.CLIP, text: str) -> dict[str, list]:
    """Chunks of the prompt for each of the model's encoders, with a new chunk at each BREAK."""
    tokens, *others = map(clip.tokenize, _parts(text))
    for other in others:
        for name, chunks in other.items():
            tokens[name].extend(chunks)
    return tokens


def without_breaks(text: str) -> str:
    """Return the prompt without BREAK, for a model without chunks; weights are kept."""
    return " ".join(_parts(text))


def _parts(text: str) -> list[str]:
    """Parts of a prompt between BREAKs, in the host's weight syntax; the unchanged text if there is no BREAK."""
    segments = comfy.sd1_clip.token_weights(comfy.sd1_clip.escape_important(text), 1.0)
    parts = split_at_break(segments)
    if parts == [segments]:
        return [text]
    return ["".join(_written(*segment) for segment in part) for part in parts]


def _written(text: str, weight: float) -> str:
    """A segment in the host's weight syntax, which parses to exactly this segment."""
    literal = comfy.sd1_clip.unescape_important(text).replace("(", r"\(").replace(")", r"\)")
    return f"({literal}:{weight})" if literal else ""


def fuse_conditioning(
    adapter: HostAdapter, conditioning: Conditioning, features: LLMFeatures, strength: float
) -> Conditioning:
    """Fuse every entry of a conditioning with the LLM's features.

    The entry's other options are kept. ControlNet, which was trained with plain CLIP, still receives it.

    Args:
        adapter: the Cross-Adapter.
        conditioning: CLIP's entries, with context [B, L_text, d_text].
        features: LLM features of the same prompt, [B or 1, L_llm, d_llm].
        strength: λ; 0 returns the conditioning unchanged.

    Returns:
        Entries with context [B, L_text + L_llm, d_text]; [B, L_llm, d_text] for ablations that replace CLIP's tokens,
        and [B, 2 L_text, d_text] for `clip_query`.

    Raises:
        LLM4GENError: a width, a batch size or the LLM does not match, or an entry is already fused.
    """
    for text, options in conditioning:
        _check_entry(adapter, text, options, features)
    if strength == 0:
        return conditioning
    fused = []
    scaled = adapter.metadata.lambda_mode == "embedding"  # other modes scale inside the UNet: see Patch Model
    for text, options in conditioning:
        size = max(text.shape[0], features.hidden.shape[0])
        context, paired = _to_batch(text, size), _is_paired(text)
        adapted = adapter(context[:, ::2] if paired else context, _to_batch(features.hidden, size))
        if paired:
            adapted = adapted.repeat_interleave(2, dim=1)
        own = text.shape[1] if adapter.config.context_layout[0] == "text" else 0
        combined = adapter.module.combine(context, adapted.to(context.device), strength if scaled else 1.0)
        options = {"cross_attn_controlnet": text, **options, FUSED: own}
        if own:
            options = mark(options, own, combined.shape[1], strength, scaled, paired)
        fused.append([combined, options])
    release(adapter.patcher)
    return fused


def _is_paired(text: torch.Tensor) -> bool:
    """Whether the tokens of a context [B, L, d_text] are duplicated, for the keys and for the values.

    NegPip encodes so, and separates the two inside the UNet. The first token, which weights do not affect, is then the
    same in both; CLIP itself never returns two equal first tokens.
    """
    return text.shape[1] % 2 == 0 and torch.equal(text[:, 0], text[:, 1]) and bool(text.any())


def _to_batch(tensor: torch.Tensor, size: int) -> torch.Tensor:
    return tensor.expand(size, -1, -1) if tensor.shape[0] == 1 else tensor


def _check_entry(adapter: HostAdapter, text: torch.Tensor, options: dict[str, Any], features: LLMFeatures) -> None:
    config, metadata = adapter.config, adapter.metadata
    if text.shape[-1] != config.d_text:
        found, trained = (f"{w} ({_WIDTHS.get(w, 'an unknown model')})" for w in (text.shape[-1], config.d_text))
        raise LLM4GENError(
            f"The conditioning has width {found}, but adapter {adapter.name} was trained for {trained}. Use a "
            "checkpoint and an adapter of one family."
        )
    if features.hidden.shape[-1] != config.d_llm:
        wanted = metadata.llm.label if metadata.llm else f"an LLM of width {config.d_llm}"
        raise LLM4GENError(
            f"The LLM features come from {features.spec.label}, but adapter {adapter.name} was trained with {wanted}. "
            "Load that LLM, or an adapter that was trained with this one."
        )
    if metadata.llm is not None and metadata.llm != features.spec:
        if reason := metadata.llm.mismatch(features.spec):
            advice = "Load that LLM, or an adapter that was trained with this one."
        else:
            reason = "they were encoded with other settings (prefix, length or layer)"
            advice = "Connect the adapter to the LLM Encode node too."
        raise LLM4GENError(
            f"The LLM features come from {features.spec.label}, but adapter {adapter.name} was trained with "
            f"{metadata.llm.label}: {reason}. {advice}"
        )
    if FUSED in options:
        raise LLM4GENError(
            "The conditioning is already fused; expected plain CLIP conditioning. To blend two fused prompts, "
            "use Conditioning (Combine) after Fuse."
        )
    batches = {text.shape[0], features.hidden.shape[0]} - {1}
    if len(batches) > 1:
        raise LLM4GENError(
            f"The conditioning holds {text.shape[0]} prompts and the LLM features {features.hidden.shape[0]}; "
            "encode the same prompts with both."
        )
