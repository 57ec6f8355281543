"""BLIP-VQA, T2I-CompBench's score of attribute binding (Huang et al. 2023, arXiv 2307.06350).

Each noun chunk of the prompt becomes a question, "a green bench?", and the score is the product of the probabilities
that BLIP answers yes. What `BLIPvqa_eval` does, and this does after it:
    The chunks "top", "the side", "the left" and "the right" are left out, and of the others the first eight count.
    A question is in lower case without . ! " ( ) * # : ; ~, of at most 50 words and 35 tokens, and its first token is
    BLIP's [ENC]; transformers leaves BERT's [CLS] there.
    P(yes) is p(yes) / (p(yes) + p(no)) by the first token of the answer.
    Images are resized to squares of 480 pixels, whatever their shape.
What differs:
    `Salesforce/blip-vqa-capfilt-large` is the official checkpoint whose table of positions was resized from 480 to
    384 pixels when it was converted. It is resized back here, which does not give quite the same table.
    A prompt without any noun chunk scores 1 there and cannot be judged here.
    The official script rounds each probability and each product to four digits, and reads prompts from file names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, BlipForQuestionAnswering

from llm4gen_core import LLM4GENError

from ..judges import Judge
from ..prompts import Prompt
from .base import Context, ImageMetric, Scores
from .judge_model import chosen_dtype, chosen_folder, description, load_model, read_part
from .noun_chunks import Chunker, find_chunker

BLIP = Judge(
    "blip-vqa",
    "Salesforce/blip-vqa-capfilt-large",
    (
        "config.json",
        "model.safetensors|pytorch_model.bin",
        "tokenizer.json|vocab.txt",
        "preprocessor_config.json|processor_config.json",
    ),
    "BSD-3-Clause",
    "1.5 GB",
)

CATEGORIES = ("color", "shape", "texture", "complex")
NOT_ASKED = ("top", "the side", "the left", "the right")
MOST_CHUNKS = 8
SIZE = 480
"""Pixels of a side."""

_DROPPED = re.compile(r'[.!"()*#:;~]')
_MOST_WORDS, _MOST_TOKENS = 50, 35
_BATCH = 32
"""Questions that are asked at once, as officially."""


def question_of(chunk: str) -> str:
    """What BLIP is asked of a noun chunk."""
    question = _DROPPED.sub("", f"{chunk}?".lower()).rstrip(" ")
    return " ".join(question.split(" ")[:_MOST_WORDS])


def asked_chunks(chunks: Sequence[str]) -> tuple[list[str], int]:
    """The noun chunks that count, and how many more there are behind them."""
    kept = [chunk for chunk in chunks if chunk not in NOT_ASKED]
    return kept[:MOST_CHUNKS], max(0, len(kept) - MOST_CHUNKS)


class BlipJudge:
    """BLIP for visual question answering, from a folder.

    Args:
        folder: with model, tokenizer and preprocessor.
        device: torch's name of a device.
        dtype: of the weights.

    Raises:
        LLM4GENError: it is another model, or is damaged.
    """

    def __init__(self, folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.folder, self.device, self.dtype = folder, device, dtype
        self._model = load_model(BlipForQuestionAnswering, folder, dtype, device, kind="blip")
        self._tokenizer: Any = read_part(
            folder, "tokenizer", lambda: AutoTokenizer.from_pretrained(folder, local_files_only=True)
        )
        self._tokenizer.truncation_side = "right"
        self._images: Any = read_part(
            folder,
            "preprocessor",
            lambda: AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil"),
        )
        text = self._model.config.text_config
        # BLIP appends [DEC], which begins an answer, and [ENC] to BERT's vocabulary; transformers names only [DEC].
        self._start, self._encode = text.bos_token_id, text.bos_token_id + 1
        self._answers = [self._tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no")]
        if self._encode >= text.vocab_size or self._tokenizer.unk_token_id in self._answers:
            raise LLM4GENError(
                f"Judge {folder} lacks BLIP's token [ENC] or the words yes and no; expected {BLIP.repository}."
            )

    def describe(self) -> dict[str, Any]:
        return {**description(self.folder, self.dtype), "size": SIZE}

    @torch.no_grad()
    def yes(self, images: Sequence[Image.Image], questions: Sequence[Sequence[str]]) -> list[list[float]]:
        """P(yes) of each question of each image.

        Args:
            images: in RGB, of any sizes.
            questions: for each image those that are asked of it.
        """
        seen = self._see(images)
        owners = [place for place, asked in enumerate(questions) for _ in asked]
        flat = [question for asked in questions for question in asked]
        tokens = self._tokenizer(flat, truncation=True, max_length=_MOST_TOKENS).input_ids if flat else []
        # Only questions of one length go together: BLIP's decoder in transformers 5 ignores the mask of its
        # cross-attention, so that padding would change the answers.
        order = sorted(range(len(flat)), key=lambda place: len(tokens[place]))
        found = [0.0] * len(flat)
        for _, group in groupby(order, key=lambda place: len(tokens[place])):
            places = list(group)
            for part in (places[start : start + _BATCH] for start in range(0, len(places), _BATCH)):
                answers = self._ask(seen[[owners[place] for place in part]], [tokens[place] for place in part])
                for place, answer in zip(part, answers, strict=True):
                    found[place] = answer
        rest = iter(found)
        return [[next(rest) for _ in asked] for asked in questions]

    def _see(self, images: Sequence[Image.Image]) -> Tensor:
        """[B, 1 + patches, d]."""
        side = {"height": SIZE, "width": SIZE}
        pixels = self._images(list(images), size=side, do_center_crop=False, return_tensors="pt").pixel_values
        seen = self._model.vision_model(pixel_values=pixels.to(self.device, self.dtype), interpolate_pos_encoding=True)
        return seen.last_hidden_state

    def _ask(self, seen: Tensor, tokens: list[list[int]]) -> list[float]:
        """Of images [Q, 1 + patches, d], one for each question; all questions have the same length."""
        ids = torch.tensor(tokens, device=self.device)
        ids[:, 0] = self._encode
        read = self._model.text_encoder(input_ids=ids, encoder_hidden_states=seen).last_hidden_state
        start = torch.full((len(ids), 1), self._start, device=self.device)
        logits = self._model.text_decoder(input_ids=start, encoder_hidden_states=read).logits[:, 0, self._answers]
        # Over the two answers alone the softmax is p(yes) / (p(yes) + p(no)) of that over the vocabulary.
        return logits.float().softmax(-1)[:, 0].tolist()


class BlipVQA(ImageMetric):
    """The product of P(yes) over a prompt's noun chunks."""

    name = "blip_vqa"
    title = "BLIP-VQA"
    share = True
    judges_needed = (BLIP,)

    def __init__(self, judge: BlipJudge, chunker: Chunker) -> None:
        self._judge, self._chunker = judge, chunker

    @classmethod
    def load(cls, context: Context) -> BlipVQA:
        """See `ImageMetric.load`; the option "pipeline" is `find_chunker`'s package."""
        chunker = find_chunker(context.options.get("pipeline"))
        judge = BlipJudge(chosen_folder(context, BLIP), context.device, chosen_dtype(context, on_gpu=torch.float32))
        return cls(judge, chunker)

    @classmethod
    def applies(cls, prompt: Prompt) -> bool:
        return prompt.category in CATEGORIES

    def describe(self) -> dict[str, Any]:
        return {"chunks": self._chunker.name, "most_chunks": MOST_CHUNKS, **self._judge.describe()}

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Scores]:
        """See `ImageMetric.score`.

        Returns:
            Beside "score": "chunks" that were asked, P(yes) of each as "probabilities", and how many chunks were
            "left_out" behind the eighth; "note" where the chunker has something to say.
        """
        found = [self._chunker.chunks(prompt.text) for prompt in prompts]
        asked = [asked_chunks(chunks or []) for chunks in found]
        answers = self._judge.yes(images, [[question_of(chunk) for chunk in chunks] for chunks, _ in asked])
        note = {"note": self._chunker.note} if self._chunker.note else {}
        return [
            {"score": math.prod(yes), "chunks": chunks, "probabilities": yes, "left_out": left_out, **note}
            if chunks
            else {"score": None, "reason": _no_chunks(cut), **note}
            for cut, (chunks, left_out), yes in zip(found, asked, answers, strict=True)
        ]


def _no_chunks(cut: list[str] | None) -> str:
    if cut is None:
        return "The prompt is no template, and without a spaCy pipeline its noun chunks are not known."
    return "The prompt has no noun chunk that is asked for."
