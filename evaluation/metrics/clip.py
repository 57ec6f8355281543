"""Metrics on CLIP embeddings: cosines between image and prompt, and LAION's aesthetic score.

CLIPScore (Hessel et al. 2021, arXiv 2104.08718) is w * max(cos, 0). The LLM4GEN paper, like torchmetrics, uses w = 100
and reports percent; Hessel et al. use 2.5. T2I-CompBench (Huang et al. 2023, arXiv 2307.06350) uses the cosine itself,
by ViT-B/32, for its category "non-spatial".

CLIP reads 77 tokens, of which the last is EOS, and the text embedding is the encoder's output at EOS. A long text
therefore loses words at its end but never its EOS: truncating after token 77, as torchmetrics did (issue 2883), leaves
no EOS, and the embedding of another token is compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import CLIPModel

from llm4gen_core import LLM4GENError
from llm4gen_core.files import load_pickle

from ..image_set import Prompt
from .base import Context, ImageMetric, Judge, JudgeOptions, Scores
from .judge_model import CONFIG, PREPROCESSOR, WEIGHTS, JudgeModel

_FILES = (CONFIG, WEIGHTS, "tokenizer.json|vocab.json", PREPROCESSOR)
CLIP_L = Judge("clip", "openai/clip-vit-large-patch14", _FILES, "MIT", "1.7 GB")
CLIP_B = Judge("clip-b32", "openai/clip-vit-base-patch32", _FILES, "MIT", "0.6 GB")
LONG_CLIP = Judge("long-clip", "zer0int/LongCLIP-L-Diffusers", _FILES, "MIT", "1.7 GB")

HEADS = ("sac+logos+ava1-l14-linearMSE.pth", "sa_0_4_vit_l_14_linear.pth")
"""Files of the aesthetic heads v2 and v1; the first that exists is used."""
HEAD = Judge(
    "aesthetic",
    "sac+logos+ava1-l14-linearMSE.pth of https://github.com/christophschuhmann/improved-aesthetic-predictor",
    ("|".join(HEADS),),
    "Apache-2.0",
    "4 MB",
)


class ClipJudge(JudgeModel):
    """CLIP from a folder; see `JudgeModel`.

    Attributes:
        length: number of tokens that it reads, with BOS and EOS: the rows of its position table, 77 for OpenAI's and
            248 for Long-CLIP (Zhang et al. 2024, arXiv 2403.15378).
        width: size of an embedding.
    """

    loader = CLIPModel
    kind = "clip"

    def __init__(self, folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        super().__init__(folder, device, dtype)
        self._tokenizer, self._images = self._tokenizer_and_images()
        self.length: int = self._model.config.text_config.max_position_embeddings
        self.width: int = self._model.config.projection_dim
        self._eos = self._tokenizer.eos_token_id
        if self._eos is None or self._tokenizer("a").input_ids[-1] != self._eos:
            raise LLM4GENError(
                f"Judge {folder}: its tokenizer does not end a text with EOS, where CLIP's text embedding is; expected "
                "CLIP's own tokenizer. Download the folder again."
            )

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "length": self.length}

    @torch.no_grad()
    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Embeddings [B, d] of RGB images of any sizes: unit length, float32, on the CPU."""
        pixels = self._images(list(images), return_tensors="pt").pixel_values
        hidden = self._model.vision_model(pixel_values=pixels.to(self.device, self.dtype)).pooler_output
        return F.normalize(self._model.visual_projection(hidden).float(), dim=-1).cpu()

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> tuple[Tensor, list[int]]:
        """Embeddings [B, d] of texts, as for images, and the number of tokens of each text with BOS and EOS.

        Tokens that do not fit are cut off before EOS.

        The embedding is read at the EOS that ends the text. `CLIPModel` finds it by the `eos_token_id` of the
        configuration, which is 2 in old folders (OpenAI's among them); it then takes the token with the highest id,
        which is EOS only if EOS is the last word of the vocabulary. With a correct configuration both are the same.
        """
        rows = [list(self._tokenizer(text, verbose=False).input_ids) for text in texts]
        read = [row if len(row) <= self.length else [*row[: self.length - 1], self._eos] for row in rows]
        ends = torch.tensor([len(row) - 1 for row in read])
        # The encoder is causal: padding after EOS changes nothing before it.
        ids = torch.tensor([row + [self._eos] * (int(ends.max()) + 1 - len(row)) for row in read])
        hidden = self._model.text_model(input_ids=ids.to(self.device)).last_hidden_state
        pooled = hidden[torch.arange(len(read)), ends]
        vectors = F.normalize(self._model.text_projection(pooled).float(), dim=-1).cpu()
        return vectors, [len(row) for row in rows]

    def compare(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[dict[str, Any]]:
        """Cosine of each image with its text as "cosine", number of "tokens" of the text, and "truncated"."""
        vectors, lengths = self.embed_texts(texts)
        cosines = (self.embed_images(images) * vectors).sum(-1).tolist()
        return [
            {"cosine": cosine, "tokens": tokens, "truncated": tokens > self.length}
            for cosine, tokens in zip(cosines, lengths, strict=True)
        ]


class ClipScore(ImageMetric):
    """100 * max(cos, 0) by CLIP ViT-L/14.

    The paper names no model for its CLIP scores. ViT-L/14 is the default of torchmetrics, the largest of OpenAI's
    models at 224 pixels, and its text encoder is SD1.5's. Scores of other CLIPs differ by several points, so only
    scores of one judge can be compared.
    """

    name = "clip_score"
    share = False
    judges_needed = (CLIP_L,)
    Options = JudgeOptions
    formula: ClassVar[str] = "100 * max(cosine, 0)"

    def __init__(self, judge: ClipJudge) -> None:
        self._judge = judge

    @classmethod
    def load(cls, context: Context) -> ClipScore:
        return cls(ClipJudge.from_context(context, *cls.judges_needed))

    def describe(self) -> dict[str, Any]:
        return {"formula": self.formula, **self._judge.describe()}

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Scores]:
        found = self._judge.compare(images, [prompt.text for prompt in prompts])
        return [{"score": self._of(one["cosine"]), **one} for one in found]

    @staticmethod
    def _of(cosine: float) -> float:
        return 100 * max(cosine, 0.0)


class LongClipScore(ClipScore):
    """CLIP score by Long-CLIP, which reads 248 tokens, for prompts that CLIP truncates."""

    name = "long_clip_score"
    judges_needed = (LONG_CLIP,)

    def __init__(self, judge: ClipJudge) -> None:
        super().__init__(judge)
        if judge.length <= 77:
            raise LLM4GENError(
                f"Judge {judge.folder} reads {judge.length} tokens, as any CLIP does; expected a Long-CLIP, whose "
                f"max_position_embeddings is 248, such as {LONG_CLIP.repository}."
            )


class NonSpatial(ClipScore):
    """T2I-CompBench's score of non-spatial relations: the cosine by CLIP ViT-B/32.

    The official script fails for prompts above 77 tokens; here they are truncated and marked. The score saturates:
    SD1.4 has 0.3079 and SDXL 0.3110.
    """

    name = "non_spatial"
    judges_needed = (CLIP_B,)
    formula = "cosine"

    @classmethod
    def applies(cls, prompt: Prompt) -> bool:
        return prompt.category == "non-spatial"

    @staticmethod
    def _of(cosine: float) -> float:
        return cosine


class AestheticHead:
    """Linear layers over CLIP's image embedding, fitted to people's ratings from 1 to 10.

    The head is recognised by the names of its weights:
    - v2, `sac+logos+ava1-l14-linearMSE.pth` (github.com/christophschuhmann/improved-aesthetic-predictor): layers
      768-1024-128-64-16-1 with dropout in training and no activations, so at inference it is one affine map.
    - v1, `sa_0_4_vit_l_14_linear.pth` (github.com/LAION-AI/aesthetic-predictor): one layer 768-1.

    Args:
        state: weights by name, of either version.
        name: name of the file, for errors.

    Attributes:
        version: "v1" or "v2".
        width: size of an embedding.

    Raises:
        LLM4GENError: the weights belong to neither version, or do not fit each other.
    """

    _prefixes: ClassVar = {"v2": ("layers.0.", "layers.2.", "layers.4.", "layers.6.", "layers.7."), "v1": ("",)}

    def __init__(self, state: Mapping[str, Tensor], name: str) -> None:
        self.version = "v2" if "layers.0.weight" in state else "v1"
        prefixes = self._prefixes[self.version]
        if set(state) != {f"{prefix}{part}" for prefix in prefixes for part in ("weight", "bias")}:
            raise LLM4GENError(
                f"Aesthetic head {name} has the weights {', '.join(sorted(state))}; expected those of v2 "
                "(layers.0.weight to layers.7.bias) or of v1 (weight, bias). Download the file again."
            )
        self._layers = [(state[f"{prefix}weight"].float(), state[f"{prefix}bias"].float()) for prefix in prefixes]
        self.width = self._layers[0][0].shape[-1]
        try:
            one_number = self(torch.zeros(1, self.width)).shape == (1,)
        except RuntimeError:
            one_number = False
        if not one_number:
            raise LLM4GENError(
                f"Aesthetic head {name} has layers of shape {[tuple(weight.shape) for weight, _ in self._layers]}; "
                "expected each to fit the one before, and the last to end in one number. Download the file again."
            )

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Scores [B] of embeddings [B, width] of unit length."""
        for weight, bias in self._layers:
            embeddings = F.linear(embeddings, weight, bias)
        return embeddings.squeeze(-1)


class Aesthetic(ImageMetric):
    """LAION's aesthetic score over OpenAI's CLIP ViT-L/14; the prompt plays no part.

    The paper names neither the head nor its version; scores of different heads cannot be compared.
    """

    name = "aesthetic"
    share = False
    judges_needed = (CLIP_L, HEAD)
    Options = JudgeOptions

    def __init__(self, judge: ClipJudge, head: AestheticHead, digest: str) -> None:
        self._judge, self._head, self._digest = judge, head, digest

    @classmethod
    def load(cls, context: Context) -> Aesthetic:
        folder = context.folder(HEAD)
        file = next(folder / name for name in HEADS if (folder / name).is_file())
        head = AestheticHead(load_pickle(file, "Aesthetic head"), str(file))
        judge = ClipJudge.from_context(context, CLIP_L)
        if judge.width != head.width:
            raise LLM4GENError(
                f"Judge {judge.folder} has embeddings of {judge.width} numbers, and {file} reads {head.width}; "
                f"expected {CLIP_L.repository}, on which the head was trained."
            )
        return cls(judge, head, hashlib.sha256(file.read_bytes()).hexdigest()[:16])

    def describe(self) -> dict[str, Any]:
        return {"head": self._head.version, "head_hash": self._digest, **self._judge.describe()}

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Scores]:
        return [{"score": score} for score in self._head(self._judge.embed_images(images)).tolist()]
