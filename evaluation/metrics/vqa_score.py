"""VQAScore: how likely a vision-language model finds it that an image shows its prompt.

Lin et al. 2024 (arXiv 2404.01291): the probability of the answer "Yes" to the question
`Does this figure show "{text}"? Please answer yes or no.` It reads long prompts whole, which CLIP does not.

Of the answer the first token is taken, over the whole vocabulary. Any token counts that reads "yes", whatever its case
and whether a blank stands before it, because judges differ in that: Qwen says "Yes", InstructBLIP "yes". The official
code takes one spelling each, and for its CLIP-FlanT5 the geometric mean with the token that ends the answer, so that
its scores are nearly the square roots of these.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

from llm4gen_core import LLM4GENError

from ..judges import Judge
from ..prompts import Prompt
from .base import Context, ImageMetric, Scores
from .judge_model import chosen_dtype, chosen_folder, description, load_model, read_part

VQA = Judge(
    "vqa",
    "Qwen/Qwen2.5-VL-7B-Instruct (or another image-text-to-text model of transformers)",
    (
        "config.json",
        "model.safetensors|model.safetensors.index.json|pytorch_model.bin|pytorch_model.bin.index.json",
        "tokenizer.json|tokenizer.model|spiece.model|vocab.json",
        "preprocessor_config.json|processor_config.json",
    ),
    "Apache-2.0",
    "16.6 GB",
)

QUESTION = 'Does this figure show "{text}"? Please answer yes or no.'

BATCH = 8
"""Images with a question that go through the model at once."""


@dataclass(frozen=True)
class Answer:
    """Probabilities that the first token of the answer reads "yes" or "no". The rest went to other tokens."""

    yes: float
    no: float


class VQAJudge:
    """An image-text-to-text model of transformers that is asked questions of yes or no.

    A model with an encoder for text, such as InstructBLIP or BLIP-2 with FlanT5, answers by its decoder's first token.
    One that only decodes, such as LLaVA or Qwen2.5-VL, is asked by its chat template and answers by the token behind
    it. Encoder-decoders with a chat template are asked by it too.

    Args:
        folder: with model, tokenizer and processor.
        device: torch's name of a device.
        dtype: of the weights.

    Raises:
        LLM4GENError: it is another kind of model or damaged, or cannot be asked.
    """

    def __init__(self, folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.folder, self.device, self.dtype = folder, device, dtype
        self._model = load_model(AutoModelForImageTextToText, folder, dtype, device)
        self._processor: Any = read_part(
            folder, "processor", lambda: AutoProcessor.from_pretrained(folder, local_files_only=True)
        )
        # Without this the pixels would depend on whether torchvision is installed.
        self._processor.image_processor = read_part(
            folder,
            "preprocessor",
            lambda: AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil"),
        )
        text: Any = self._model.config.get_text_config()
        self._encodes = bool(text.is_encoder_decoder)
        self._chats = bool(getattr(self._processor, "chat_template", None))
        if not self._encodes and not self._chats:
            raise LLM4GENError(
                f"Judge {folder} only decodes and has no chat template, so that it is not known how it is asked; "
                f"expected a model with one, such as {VQA.repository}."
            )
        # Padding behind the text changes nothing before it in a causal model, wherever positions are counted from.
        self._processor.tokenizer.padding_side = "right"
        if self._processor.tokenizer.pad_token_id is None:
            self._processor.tokenizer.pad_token = self._processor.tokenizer.eos_token
        self._keeps = "logits_to_keep" in inspect.signature(self._model.forward).parameters
        positions = None if self._encodes else getattr(text, "max_position_embeddings", None)
        self._longest = min(positions or self._processor.tokenizer.model_max_length, 1 << 30)
        former = getattr(self._model.config, "qformer_config", None)
        self._longest_for_former = getattr(former, "max_position_embeddings", 1 << 30)
        self._start: int = self._first_of_answer(text) if self._encodes else 0
        self._words = {word: self._tokens_of(word) for word in ("yes", "no")}

    def describe(self) -> dict[str, Any]:
        read = self._processor.tokenizer.convert_ids_to_tokens
        answers = {word: read(ids.tolist()) for word, ids in self._words.items()}
        return {**description(self.folder, self.dtype), "answers": answers}

    def ask(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[Answer | None]:
        """The answers.

        Args:
            images: in RGB, of any sizes.
            questions: one for each.

        Returns:
            One for each; None where the question is longer than the model reads.
        """
        pairs = list(zip(images, questions, strict=True))
        parts = (pairs[start : start + BATCH] for start in range(0, len(pairs), BATCH))
        return [answer for part in parts for answer in self._ask_batch(part)]

    def _ask_batch(self, pairs: list[tuple[Image.Image, str]]) -> Iterator[Answer | None]:
        inputs = self._read(pairs)
        fits = self._fits(inputs)
        kept = [pair for pair, fit in zip(pairs, fits, strict=True) if fit]
        if kept and len(kept) < len(pairs):
            inputs = self._read(kept)
        answers = iter(self._answer(inputs) if kept else ())
        for fit in fits:
            yield next(answers) if fit else None

    def _read(self, pairs: list[tuple[Image.Image, str]]) -> Any:
        settings: dict[str, Any] = {"padding": True, "return_tensors": "pt"}
        if not self._chats:
            images, texts = [image for image, _ in pairs], [question for _, question in pairs]
            return self._processor(images=images, text=texts, **settings)
        talks = [
            [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]
            for image, question in pairs
        ]
        return self._processor.apply_chat_template(
            talks, add_generation_prompt=True, tokenize=True, return_dict=True, processor_kwargs=settings
        )

    def _fits(self, inputs: Any) -> list[bool]:
        fits = inputs["attention_mask"].sum(1) <= self._longest
        if "qformer_attention_mask" in inputs:
            fits &= inputs["qformer_attention_mask"].sum(1) <= self._longest_for_former
        return fits.tolist()

    @torch.no_grad()
    def _answer(self, inputs: Any) -> list[Answer]:
        inputs = inputs.to(self.device, self.dtype)
        rows = torch.arange(len(inputs["input_ids"]), device=self.device)
        if self._encodes:
            start = torch.full((len(rows), 1), self._start, device=self.device)
            logits = self._model(**inputs, decoder_input_ids=start).logits[:, 0]
        else:
            last = inputs["attention_mask"].sum(1) - 1
            if self._keeps:  # the whole vocabulary for every token of the image would take gigabytes
                kept, place = last.unique(return_inverse=True)
                logits = self._model(**inputs, use_cache=False, logits_to_keep=kept).logits[rows, place]
            else:
                logits = self._model(**inputs, use_cache=False).logits[rows, last]
        shares = logits.float().softmax(-1)
        yes, no = (shares[:, self._words[word].to(self.device)].sum(-1).tolist() for word in ("yes", "no"))
        return [Answer(*pair) for pair in zip(yes, no, strict=True)]

    def _first_of_answer(self, text: Any) -> int:
        """The token that a decoder begins with."""
        named = getattr(text, "decoder_start_token_id", None), self._model.generation_config.decoder_start_token_id
        return next((token for token in named if token is not None), text.pad_token_id)

    def _tokens_of(self, word: str) -> Tensor:
        """Tokens that read `word`, in any case, with or without a blank before it."""
        tokenizer = self._processor.tokenizer
        found = [
            token
            for piece, token in tokenizer.get_vocab().items()
            if word in piece.lower() and tokenizer.decode([token]).strip().lower() == word
        ]
        if not found:
            raise LLM4GENError(
                f"Judge {self.folder}: no token of its vocabulary reads {word!r}, so that it cannot answer by one; "
                f"expected a model that speaks English, such as {VQA.repository}."
            )
        return torch.tensor(sorted(found))


class VQAScore(ImageMetric):
    """The probability of "yes" to `QUESTION`."""

    name = "vqa_score"
    title = "VQAScore"
    share = True
    judges_needed = (VQA,)

    def __init__(self, judge: VQAJudge) -> None:
        self._judge = judge

    @classmethod
    def load(cls, context: Context) -> VQAScore:
        return cls(load_vqa_judge(context))

    def describe(self) -> dict[str, Any]:
        return {"question": QUESTION, **self._judge.describe()}

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Scores]:
        answers = self._judge.ask(images, [QUESTION.format(text=prompt.text) for prompt in prompts])
        return [
            {"score": None, "truncated": True, "reason": "The prompt is longer than the judge reads."}
            if answer is None
            else {"score": answer.yes, "no": answer.no, "truncated": False}
            for answer in answers
        ]


def load_vqa_judge(context: Context) -> VQAJudge:
    """The judge in the folder "vqa"; in half precision (bfloat16) on a GPU.

    Raises:
        LLM4GENError: see `VQAJudge`, `chosen_folder` and `chosen_dtype`.
    """
    return VQAJudge(chosen_folder(context, VQA), context.device, chosen_dtype(context, on_gpu=torch.bfloat16))
