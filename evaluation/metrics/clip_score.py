"""Metrics that are a cosine between CLIP's embeddings of image and text.

CLIPScore (Hessel et al. 2021, arXiv 2104.08718) is w * max(cos, 0). The paper of LLM4GEN, like torchmetrics, takes
w = 100 and so speaks of percent; Hessel et al. take 2.5. T2I-CompBench (Huang et al. 2023, arXiv 2307.06350) takes the
cosine itself, by ViT-B/32, for its category "non-spatial".

CLIP reads 77 tokens, of which the last is EOS, and the text's embedding is what its encoder says at EOS. A long text
therefore loses words from its end, never its EOS: cutting off everything behind token 77, as torchmetrics did (issue
2883), leaves no EOS, and the embedding of another token is compared instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from llm4gen_core import LLM4GENError

from ..judges import Judge
from ..prompts import Prompt
from .base import Context, ImageMetric, Scores
from .judge_model import chosen_dtype, chosen_folder, description, load_model, read_part

_FILES = (
    "config.json",
    "model.safetensors|pytorch_model.bin",
    "tokenizer.json|vocab.json",
    "preprocessor_config.json|processor_config.json",
)
CLIP_L = Judge("clip", "openai/clip-vit-large-patch14", _FILES, "MIT", "1.7 GB")
CLIP_B = Judge("clip-b32", "openai/clip-vit-base-patch32", _FILES, "MIT", "0.6 GB")
LONG_CLIP = Judge("long-clip", "zer0int/LongCLIP-L-Diffusers", _FILES, "MIT", "1.7 GB")


@dataclass(frozen=True)
class TextEmbeddings:
    """Texts as CLIP reads them.

    Attributes:
        vectors: [B, d], of unit length, float32, on the CPU.
        tokens: of each whole text, BOS and EOS counted, before anything is cut off.
    """

    vectors: Tensor
    tokens: list[int]


class ClipJudge:
    """A CLIP model of transformers, from a folder.

    Args:
        folder: with model, tokenizer and preprocessor.
        device: torch's name of a device.
        dtype: of the weights.

    Attributes:
        length: tokens that it reads, BOS and EOS among them: the rows of its table of positions, 77 for OpenAI's and
            248 for Long-CLIP (Zhang et al. 2024, arXiv 2403.15378).
        width: of the embeddings.

    Raises:
        LLM4GENError: it is another model, or is damaged.
    """

    def __init__(self, folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.folder, self.device, self.dtype = folder, device, dtype
        self._model = load_model(CLIPModel, folder, dtype, device, kind="clip")
        self._tokenizer: Any = read_part(
            folder, "tokenizer", lambda: AutoTokenizer.from_pretrained(folder, local_files_only=True)
        )
        # Pillow's resize is that of OpenAI's code; torchvision's gives slightly other pixels.
        self._images: Any = read_part(
            folder,
            "preprocessor",
            lambda: AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil"),
        )
        self.length: int = self._model.config.text_config.max_position_embeddings
        self.width: int = self._model.config.projection_dim
        self._eos = self._tokenizer.eos_token_id
        if self._eos is None or self._tokenizer("a").input_ids[-1] != self._eos:
            raise LLM4GENError(
                f"Judge {folder}: its tokenizer does not end a text with EOS, where CLIP reads the text's embedding; "
                "expected CLIP's own tokenizer. Download the folder again."
            )

    def describe(self) -> dict[str, Any]:
        return {**description(self.folder, self.dtype), "length": self.length}

    @torch.no_grad()
    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        """[B, d], of unit length, float32, on the CPU; for images in RGB of any sizes."""
        pixels = self._images(list(images), return_tensors="pt").pixel_values
        hidden = self._model.vision_model(pixel_values=pixels.to(self.device, self.dtype)).pooler_output
        return F.normalize(self._model.visual_projection(hidden).float(), dim=-1).cpu()

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> TextEmbeddings:
        """Embeddings of texts; what does not fit is cut off before EOS.

        They are read at the EOS that ends the text. `CLIPModel` looks for it by the configuration, whose
        `eos_token_id` is 2 in old folders (OpenAI's among them): it then takes the highest token of the text, which
        is EOS only if the vocabulary has it last. Where the configuration is right both are the same.
        """
        rows = [list(self._tokenizer(text, verbose=False).input_ids) for text in texts]
        read = [row if len(row) <= self.length else [*row[: self.length - 1], self._eos] for row in rows]
        ends = torch.tensor([len(row) - 1 for row in read])
        # The encoder is causal: what stands behind EOS changes nothing before it.
        ids = torch.tensor([row + [self._eos] * (int(ends.max()) + 1 - len(row)) for row in read])
        hidden = self._model.text_model(input_ids=ids.to(self.device)).last_hidden_state
        pooled = hidden[torch.arange(len(read)), ends]
        vectors = F.normalize(self._model.text_projection(pooled).float(), dim=-1).cpu()
        return TextEmbeddings(vectors, [len(row) for row in rows])

    def compare(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[dict[str, Any]]:
        """For each image with its text "cosine", "tokens" of the whole text, and "truncated"."""
        read = self.embed_texts(texts)
        cosines = (self.embed_images(images) * read.vectors).sum(-1).tolist()
        return [
            {"cosine": cosine, "tokens": tokens, "truncated": tokens > self.length}
            for cosine, tokens in zip(cosines, read.tokens, strict=True)
        ]


class ClipScore(ImageMetric):
    """100 * max(cos, 0) by CLIP ViT-L/14.

    The paper names no model for its CLIP scores. ViT-L/14 is what torchmetrics takes by default, it is the largest
    that OpenAI gave away with 224 pixels, and SD1.5 reads its text encoder. Scores of other CLIPs differ by several
    points, so that only those of one judge are comparable.
    """

    name = "clip_score"
    title = "CLIP score"
    share = False
    judges_needed = (CLIP_L,)

    def __init__(self, judge: ClipJudge) -> None:
        self._judge = judge

    @classmethod
    def load(cls, context: Context) -> ClipScore:
        return cls(_clip(context, *cls.judges_needed))

    def describe(self) -> dict[str, Any]:
        return {"formula": "100 * max(cosine, 0)", **self._judge.describe()}

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Scores]:
        found = self._judge.compare(images, [prompt.text for prompt in prompts])
        return [{"score": 100 * max(one["cosine"], 0.0), **one} for one in found]


class LongClipScore(ClipScore):
    """The same by Long-CLIP, which reads 248 tokens, for prompts of which CLIP sees only the beginning."""

    name = "long_clip_score"
    title = "Long-CLIP score"
    judges_needed = (LONG_CLIP,)

    @classmethod
    def load(cls, context: Context) -> LongClipScore:
        judge = _clip(context, LONG_CLIP)
        if judge.length <= 77:
            raise LLM4GENError(
                f"Judge {judge.folder} reads {judge.length} tokens, as any CLIP does; expected a Long-CLIP, whose "
                f"max_position_embeddings is 248, such as {LONG_CLIP.repository}."
            )
        return cls(judge)


class NonSpatial(ImageMetric):
    """T2I-CompBench's score of non-spatial relations: the cosine by CLIP ViT-B/32.

    The official script fails at prompts above 77 tokens; here they are cut off and said to be. It saturates: SD1.4
    has 0.3079 and SDXL 0.3110.
    """

    name = "non_spatial"
    title = "Non-spatial"
    share = False  # a cosine can fall below 0
    judges_needed = (CLIP_B,)

    def __init__(self, judge: ClipJudge) -> None:
        self._judge = judge

    @classmethod
    def load(cls, context: Context) -> NonSpatial:
        return cls(_clip(context, CLIP_B))

    @classmethod
    def applies(cls, prompt: Prompt) -> bool:
        return prompt.category == "non-spatial"

    def describe(self) -> dict[str, Any]:
        return {"formula": "cosine", **self._judge.describe()}

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Scores]:
        found = self._judge.compare(images, [prompt.text for prompt in prompts])
        return [{"score": one["cosine"], **one} for one in found]


def _clip(context: Context, judge: Judge) -> ClipJudge:
    return ClipJudge(chosen_folder(context, judge), context.device, chosen_dtype(context, on_gpu=torch.float32))
