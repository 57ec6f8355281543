"""Stable Diffusion 1.x: CLIP-L's last hidden states, 4 latent channels, noise prediction."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import CLIPTextModel

from .base import Family, TextFeatures, join_chunks


class SD15(Family):
    """SD1.5 and its fine-tunes."""

    name = "sd15"
    title = "SD1.5"
    pipeline = "StableDiffusionPipeline"
    text_classes = (CLIPTextModel,)

    def encode_text(self, prompts: Sequence[str], chunks: int | None = None) -> TextFeatures:
        ids = self._clip_ids(0, prompts, chunks, pad_id=None)
        hidden = self.text_encoders[0](input_ids=ids.flatten(0, 1)).last_hidden_state
        return TextFeatures(join_chunks(hidden, len(prompts)))
