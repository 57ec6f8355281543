"""SDXL: two CLIPs side by side, a pooled text embedding, and the sizes that an image was cut from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from llm4gen_core import LLM4GENError

from .base import Family, TextFeatures, join_chunks

SIZES = 6
"""Numbers of the size condition: (original height, width, crop top, left, target height, width)."""


class SDXL(Family):
    """SDXL base and its fine-tunes (arXiv 2307.01952).

    The context is CLIP-L's and OpenCLIP bigG's states before their last block, without final norm, side by side; the
    pooled embedding is bigG's projection of the first chunk's end token.
    """

    name = "sdxl"
    title = "SDXL"
    pipeline = "StableDiffusionXLPipeline"
    text_classes = (CLIPTextModel, CLIPTextModelWithProjection)
    vae_in_half = False
    pad_ids = (None, 0)
    """After the end token, CLIP-L reads end tokens and bigG id 0, "!", in diffusers and ComfyUI alike."""

    def encode_text(self, prompts: Sequence[str], chunks: int | None = None) -> TextFeatures:
        hidden = []
        for index, (encoder, pad_id) in enumerate(zip(self.text_encoders, self.pad_ids, strict=True)):
            ids = self._clip_ids(index, prompts, chunks, pad_id)
            output = encoder(input_ids=ids.flatten(0, 1), output_hidden_states=True)
            hidden.append(join_chunks(output.hidden_states[-2], len(prompts)))
        pooled = output.text_embeds.unflatten(0, ids.shape[:2])[:, 0]
        return TextFeatures(torch.cat(hidden, dim=-1), pooled.float())

    def unused_text_parameters(self) -> set[str]:
        """CLIP-L is read before its last block; bigG's goes into the pooled embedding."""
        last = f"encoder.layers.{self.text_encoders[0].config.num_hidden_layers - 1}."
        return {
            f"0.{name}"
            for name, _ in self.text_encoders[0].named_parameters()
            if last in name or "final_layer_norm" in name
        }

    def _added_conditions(self, latents: Tensor, pooled: Tensor | None, sizes: Tensor | None) -> dict[str, Tensor]:
        if pooled is None or sizes is None:
            missing = "pooled" if pooled is None else "sizes"
            raise LLM4GENError(f"SDXL's UNet needs {missing}; see Family.predict.")
        if sizes.shape != (len(latents), SIZES):
            raise LLM4GENError(f"sizes has shape {list(sizes.shape)}; expected {[len(latents), SIZES]}.")
        # In float32: bfloat16 has no number between 1024 and 1032. The UNet casts their embedding, not them.
        return {"text_embeds": pooled.to(latents), "time_ids": sizes.to(latents.device, torch.float32)}

    def _check_conditions(self) -> None:
        unet, text = self.base.unet, self.base.text[-1]
        kind = unet.config.get("addition_embed_type")
        if kind != "text_time":
            raise LLM4GENError(
                f"UNet {unet.path} has conditions of type {kind!r}; expected 'text_time', as SDXL's has."
            )
        pooled = unet.config["projection_class_embeddings_input_dim"] - SIZES * unet.config["addition_time_embed_dim"]
        if pooled != text.config["projection_dim"]:
            raise LLM4GENError(
                f"UNet {unet.path} reads a pooled text embedding of width {pooled}, but {text.path} writes "
                f"{text.config['projection_dim']}; use a UNet of the same family as the base."
            )
