"""Metrics that ask a vision-language model yes-no questions about an image: BLIP-VQA, VQAScore and DPG-Bench."""

from __future__ import annotations

import inspect
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, BlipForQuestionAnswering

from llm4gen_core import LLM4GENError
from llm4gen_core.errors import first_problem

from ..image_set import Prompt
from .base import Context, ImageMetric, Judge, JudgeOptions, Scores
from .judge_model import CONFIG, PREPROCESSOR, SHARDED_WEIGHTS, WEIGHTS, JudgeModel, load_part
from .noun_chunks import Chunker, find_chunker

BLIP = Judge(
    "blip-vqa",
    "Salesforce/blip-vqa-capfilt-large",
    (CONFIG, WEIGHTS, "tokenizer.json|vocab.txt", PREPROCESSOR),
    "BSD-3-Clause",
    "1.5 GB",
)
VQA = Judge(
    "vqa",
    "Qwen/Qwen2.5-VL-7B-Instruct (or another image-text-to-text model of transformers)",
    (CONFIG, SHARDED_WEIGHTS, "tokenizer.json|tokenizer.model|spiece.model|vocab.json", PREPROCESSOR),
    "Apache-2.0",
    "16.6 GB",
)

CATEGORIES = ("color", "shape", "texture", "complex")
"""Categories of T2I-CompBench that BLIP-VQA scores."""
NOT_ASKED = ("top", "the side", "the left", "the right")
MOST_CHUNKS = 8
SIZE = 480
"""Side of BLIP's input in pixels."""
_DROPPED = re.compile(r'[.!"()*#:;~]')
_MOST_WORDS, _MOST_TOKENS = 50, 35
_BLIP_BATCH = 32
"""Questions in a batch, as in the official script."""

QUESTION = 'Does this figure show "{text}"? Please answer yes or no.'
ASKED = "{question} Please answer yes or no."
BATCH = 8
"""Pairs of image and question in a batch of the VQA judge."""


def question_of(chunk: str) -> str:
    """BLIP's question about a noun chunk: lower case, without . ! " ( ) * # : ; ~, at most 50 words."""
    question = _DROPPED.sub("", f"{chunk}?".lower()).rstrip(" ")
    return " ".join(question.split(" ")[:_MOST_WORDS])


def asked_chunks(chunks: Sequence[str]) -> tuple[list[str], int]:
    """First eight noun chunks that are asked about, and the number of further ones."""
    kept = [chunk for chunk in chunks if chunk not in NOT_ASKED]
    return kept[:MOST_CHUNKS], max(0, len(kept) - MOST_CHUNKS)


class BlipJudge(JudgeModel):
    """BLIP for visual question answering from a folder; see `JudgeModel`."""

    loader = BlipForQuestionAnswering
    kind = "blip"

    def __init__(self, folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        super().__init__(folder, device, dtype)
        self._tokenizer, self._images = self._tokenizer_and_images()
        self._tokenizer.truncation_side = "right"
        text = self._model.config.text_config
        # BLIP appends [DEC], which starts an answer, and [ENC] to BERT's vocabulary; transformers names only [DEC].
        self._start, self._encode = text.bos_token_id, text.bos_token_id + 1
        self._answers = [self._tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no")]
        if self._encode >= text.vocab_size or self._tokenizer.unk_token_id in self._answers:
            raise LLM4GENError(
                f"Judge {folder} lacks BLIP's token [ENC] or the words yes and no; expected {BLIP.repository}."
            )

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "size": SIZE}

    @torch.no_grad()
    def yes(self, images: Sequence[Image.Image], questions: Sequence[Sequence[str]]) -> list[list[float]]:
        """P(yes) of each question about each image.

        Args:
            images: B RGB images of any sizes.
            questions: B lists of questions, one list per image.
        """
        seen = self._see(images)
        owners = [place for place, asked in enumerate(questions) for _ in asked]
        flat = [question for asked in questions for question in asked]
        tokens = self._tokenizer(flat, truncation=True, max_length=_MOST_TOKENS).input_ids if flat else []
        # A batch holds questions of one length: BLIP's decoder in transformers 5 ignores the mask of its
        # cross-attention, so padding would change the answers.
        order = sorted(range(len(flat)), key=lambda place: len(tokens[place]))
        found = [0.0] * len(flat)
        for _, group in groupby(order, key=lambda place: len(tokens[place])):
            places = list(group)
            for part in (places[start : start + _BLIP_BATCH] for start in range(0, len(places), _BLIP_BATCH)):
                answers = self._ask(seen[[owners[place] for place in part]], [tokens[place] for place in part])
                for place, answer in zip(part, answers, strict=True):
                    found[place] = answer
        rest = iter(found)
        return [[next(rest) for _ in asked] for asked in questions]

    def _see(self, images: Sequence[Image.Image]) -> Tensor:
        """Image features [B, 1 + patches, d]."""
        side = {"height": SIZE, "width": SIZE}
        pixels = self._images(list(images), size=side, do_center_crop=False, return_tensors="pt").pixel_values
        seen = self._model.vision_model(pixel_values=pixels.to(self.device, self.dtype), interpolate_pos_encoding=True)
        return seen.last_hidden_state

    def _ask(self, seen: Tensor, tokens: list[list[int]]) -> list[float]:
        """P(yes) of Q questions of one length, each about its own image features [Q, 1 + patches, d]."""
        ids = torch.tensor(tokens, device=self.device)
        ids[:, 0] = self._encode
        read = self._model.text_encoder(input_ids=ids, encoder_hidden_states=seen).last_hidden_state
        start = torch.full((len(ids), 1), self._start, device=self.device)
        logits = self._model.text_decoder(input_ids=start, encoder_hidden_states=read).logits[:, 0, self._answers]
        # The softmax over the two answers equals p(yes) / (p(yes) + p(no)) of that over the vocabulary.
        return logits.float().softmax(-1)[:, 0].tolist()


class BlipOptions(JudgeOptions):
    """Options of `BlipVQA`."""

    pipeline: str | None = None


class BlipVQA(ImageMetric):
    """T2I-CompBench's score of attribute binding (Huang et al. 2023, arXiv 2307.06350).

    Each noun chunk of the prompt becomes a question, "a green bench?". The score is the product of the probabilities
    that BLIP answers yes, p(yes) / (p(yes) + p(no)) of the answer's first token. As in the official `BLIPvqa_eval`:
    - the chunks `NOT_ASKED` are left out, and the first eight of the others count;
    - a question (`question_of`) has at most 35 tokens, and its first token is BLIP's [ENC], where transformers leaves
      BERT's [CLS];
    - images are resized to 480 x 480 pixels, whatever their shape.

    What differs:
    - `Salesforce/blip-vqa-capfilt-large` is the official checkpoint with a position table that was resized from 480 to
      384 pixels at its conversion. It is resized back here, which does not restore the same table exactly.
    - A prompt without noun chunks scores 1 there and has no score here.
    - The official script rounds each probability and product to four digits, and reads prompts from file names.

    Scores beside "score": "chunks" that were asked about, P(yes) of each as "probabilities", the number of chunks that
    were "left_out" after the eighth, and "note" if the chunker has one.

    Options: `pipeline`, see `find_chunker`; `dtype`.
    """

    name = "blip_vqa"
    judges_needed = (BLIP,)
    Options = BlipOptions

    def __init__(self, judge: BlipJudge, chunker: Chunker) -> None:
        self._judge, self._chunker = judge, chunker

    @classmethod
    def check(cls, context: Context) -> None:
        super().check(context)
        find_chunker(cls.options(context).pipeline)

    @classmethod
    def load(cls, context: Context) -> BlipVQA:
        return cls(BlipJudge.from_context(context, BLIP), find_chunker(cls.options(context).pipeline))

    @classmethod
    def applies(cls, prompt: Prompt) -> bool:
        return prompt.category in CATEGORIES

    def describe(self) -> dict[str, Any]:
        return {"chunks": self._chunker.name, "most_chunks": MOST_CHUNKS, **self._judge.describe()}

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Scores]:
        found = [self._chunker.chunks(prompt.text) for prompt in prompts]
        asked = [asked_chunks(chunks or []) for chunks in found]
        answers = self._judge.yes(images, [[question_of(chunk) for chunk in chunks] for chunks, _ in asked])
        note = {"note": self._chunker.note} if self._chunker.note else {}
        unknown = "The prompt does not follow the template, and without a spaCy pipeline its noun chunks are not known."
        none = "The prompt has no noun chunk to ask about."
        return [
            {"score": math.prod(yes), "chunks": chunks, "probabilities": yes, "left_out": left_out, **note}
            if chunks
            else {"score": None, "reason": unknown if cut is None else none, **note}
            for cut, (chunks, left_out), yes in zip(found, asked, answers, strict=True)
        ]


@dataclass(frozen=True)
class Answer:
    """Probabilities that the first token of the answer reads "yes" or "no"; other tokens have the rest."""

    yes: float
    no: float


class VQAJudge(JudgeModel):
    """Image-text-to-text model of transformers that answers yes-no questions; see `JudgeModel`.

    A model with a text encoder, such as InstructBLIP or BLIP-2 with FlanT5, answers with its decoder's first token. A
    decoder-only model, such as LLaVA or Qwen2.5-VL, is asked with its chat template and answers with the token after
    it. Encoder-decoders with a chat template are asked with it too.

    Any token counts as an answer that reads "yes" in any case, with or without a space before it, because models
    differ: Qwen says "Yes", InstructBLIP "yes".
    """

    loader = AutoModelForImageTextToText
    gpu_dtype = torch.bfloat16

    def __init__(self, folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        super().__init__(folder, device, dtype)
        self._processor = load_part(AutoProcessor, folder, "processor")
        # Otherwise the pixels would depend on whether torchvision is installed.
        self._processor.image_processor = load_part(AutoImageProcessor, folder, "preprocessor", backend="pil")
        text: Any = self._model.config.get_text_config()
        self._encodes = bool(text.is_encoder_decoder)
        self._chats = bool(getattr(self._processor, "chat_template", None))
        if not self._encodes and not self._chats:
            raise LLM4GENError(
                f"Judge {folder} is a decoder-only model without a chat template, so there is no known way to ask it; "
                f"expected a model with one, such as {VQA.repository}."
            )
        # In a causal model, padding after the text changes nothing before it, however positions are counted.
        self._processor.tokenizer.padding_side = "right"
        if self._processor.tokenizer.pad_token_id is None:
            self._processor.tokenizer.pad_token = self._processor.tokenizer.eos_token
        self._keeps = "logits_to_keep" in inspect.signature(self._model.forward).parameters
        positions = None if self._encodes else getattr(text, "max_position_embeddings", None)
        self._longest = min(positions or self._processor.tokenizer.model_max_length, 1 << 30)
        former = getattr(self._model.config, "qformer_config", None)
        self._longest_for_former = getattr(former, "max_position_embeddings", 1 << 30)
        if self._encodes:
            named = getattr(text, "decoder_start_token_id", None), self._model.generation_config.decoder_start_token_id
            self._start = next((token for token in named if token is not None), text.pad_token_id)
        self._words = {word: self._tokens_of(word) for word in ("yes", "no")}

    def describe(self) -> dict[str, Any]:
        read = self._processor.tokenizer.convert_ids_to_tokens
        return {**super().describe(), "answers": {word: read(ids.tolist()) for word, ids in self._words.items()}}

    def ask(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[Answer | None]:
        """Answers to B questions, one about each of B RGB images; None for a question longer than the model reads."""
        pairs = list(zip(images, questions, strict=True))
        parts = (pairs[start : start + BATCH] for start in range(0, len(pairs), BATCH))
        return [answer for part in parts for answer in self._ask_batch(part)]

    def _ask_batch(self, pairs: list[tuple[Image.Image, str]]) -> Iterator[Answer | None]:
        inputs = self._read(pairs)
        fits = inputs["attention_mask"].sum(1) <= self._longest
        if "qformer_attention_mask" in inputs:
            fits &= inputs["qformer_attention_mask"].sum(1) <= self._longest_for_former
        kept = [pair for pair, fit in zip(pairs, fits, strict=True) if fit]
        if kept and len(kept) < len(pairs):
            inputs = self._read(kept)
        answers = iter(self._answer(inputs) if kept else ())
        for fit in fits.tolist():
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

    @torch.no_grad()
    def _answer(self, inputs: Any) -> list[Answer]:
        inputs = inputs.to(self.device, self.dtype)
        rows = torch.arange(len(inputs["input_ids"]), device=self.device)
        if self._encodes:
            start = torch.full((len(rows), 1), self._start, device=self.device)
            logits = self._model(**inputs, decoder_input_ids=start).logits[:, 0]
        else:
            last = inputs["attention_mask"].sum(1) - 1
            if self._keeps:  # logits over the vocabulary for every image token would take gigabytes
                kept, place = last.unique(return_inverse=True)
                logits = self._model(**inputs, use_cache=False, logits_to_keep=kept).logits[rows, place]
            else:
                logits = self._model(**inputs, use_cache=False).logits[rows, last]
        shares = logits.float().softmax(-1)
        yes, no = (shares[:, self._words[word].to(self.device)].sum(-1).tolist() for word in ("yes", "no"))
        return [Answer(*pair) for pair in zip(yes, no, strict=True)]

    def _tokens_of(self, word: str) -> Tensor:
        """Tokens that read `word` in any case, with or without a space before it."""
        tokenizer = self._processor.tokenizer
        found = [
            token
            for piece, token in tokenizer.get_vocab().items()
            if word in piece.lower() and tokenizer.decode([token]).strip().lower() == word
        ]
        if not found:
            raise LLM4GENError(
                f"Judge {self.folder}: no token of its vocabulary reads {word!r}, so it cannot answer with one token; "
                f"expected a model of English, such as {VQA.repository}."
            )
        return torch.tensor(sorted(found))


class _VQAMetric(ImageMetric):
    """Metric by the VQA judge, in bfloat16 on a GPU unless the option `dtype` says otherwise."""

    judges_needed = (VQA,)
    Options = JudgeOptions

    def __init__(self, judge: VQAJudge) -> None:
        self._judge = judge

    @classmethod
    def load(cls, context: Context) -> _VQAMetric:
        return cls(VQAJudge.from_context(context, VQA))


class VQAScore(_VQAMetric):
    """Probability of "yes" to `QUESTION` (Lin et al. 2024, arXiv 2404.01291); long prompts are read whole.

    It is the probability of the first token of the answer over the whole vocabulary, see `VQAJudge`. The official code
    takes one spelling of each answer, and for its CLIP-FlanT5 the geometric mean with the token that ends the answer,
    so its scores are close to the square roots of these.
    """

    name = "vqa_score"

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


class Question(BaseModel):
    """A question of DPG-Bench about a prompt.

    Attributes:
        id: unique in its prompt.
        category: global, entity, attribute, relation or other; of "entity - whole" the first part counts.
        text: the question.
        parents: ids of the questions that it depends on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: int
    category: str
    text: str = Field(min_length=1)
    parents: list[int] = Field(default_factory=list)

    @property
    def group(self) -> str:
        """Category without its subdivision."""
        return self.category.split("-")[0].strip()


_QUESTIONS = TypeAdapter(Annotated[list[Question], Field(min_length=1)])


def questions_of(prompt: Prompt) -> list[Question]:
    """Questions of a prompt, each after those that it depends on.

    Raises:
        LLM4GENError: there are none, two have the same id, or one depends on a question that is missing or on itself.
    """
    try:
        questions = _QUESTIONS.validate_python(prompt.about.get("questions"))
    except ValidationError as error:
        raise LLM4GENError(
            f"Prompt {prompt.id!r} has no questions that DPG-Bench can ask ({first_problem(error)}); expected "
            'about.questions as a list of {"id": 1, "category": "entity", "text": "Is there a cat?", "parents": []}.'
        ) from error
    by_id = {question.id: question for question in questions}
    if len(by_id) < len(questions):
        raise LLM4GENError(f"Prompt {prompt.id!r} has two questions with the same id; expected unique ids.")
    try:
        ordered = list(TopologicalSorter({one.id: one.parents for one in questions}).static_order())
    except CycleError as error:
        raise LLM4GENError(
            f"Prompt {prompt.id!r}: its questions {', '.join(map(str, error.args[1]))} depend on each other in a "
            "circle; expected none to depend on itself."
        ) from error
    if missing := [number for number in ordered if number not in by_id]:
        raise LLM4GENError(
            f"Prompt {prompt.id!r}: its questions depend on question {missing[0]}, which is missing; expected ids of "
            "other questions of the prompt."
        )
    return [by_id[number] for number in ordered]


class DPG(_VQAMetric):
    """DPG-Bench (Hu et al. 2024, ELLA, arXiv 2403.05135): share of a dense prompt's questions that count.

    A question counts if the answer is yes and all questions that it depends on count; asking for the colour of a cat
    says nothing if there is no cat. The score of a model is the mean over images.

    This is "DPG by <judge>", not the official number. What differs from `compute_dpg_bench.py`:
    - The official judge is mPLUG-large of modelscope, which cannot be installed next to current packages. It is asked
      the bare question for free text that must equal "yes". Here a `VQAJudge` is asked to answer yes or no, and says
      yes if that is the more likely answer.
    - Officially four images of a prompt come as one 2x2 grid, which is cut into crops. Here an image is a file.
    - The official script drops the first row of its table of questions as if it were a header, takes the answers for
      categories from the last crop only, and leaves out failed images silently. Here no question is dropped, and
      categories are counted for every image.
    - If a question comes before the one it depends on, the official script uses that one's own answer; here
      dependencies are always settled first.
    As there, categories count the bare answers, before dependencies.

    Scores beside "score": "answers", for the id of each question whether the judge said "yes" and whether it "counts";
    "categories", by name how many questions were "asked" and how many answered "yes" before dependencies.
    """

    name = "dpg"

    @classmethod
    def applies(cls, prompt: Prompt) -> bool:
        return "questions" in prompt.about

    def describe(self) -> dict[str, Any]:
        judge = self._judge.describe()
        return {"protocol": f"DPG by {judge['judge']}, one image at a time", "question": ASKED, **judge}

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Scores]:
        graphs = [questions_of(prompt) for prompt in prompts]
        asked = [(image, question) for image, graph in zip(images, graphs, strict=True) for question in graph]
        answers = iter(
            self._judge.ask(
                [image for image, _ in asked], [ASKED.format(question=question.text) for _, question in asked]
            )
        )
        return [_settled(graph, [next(answers) for _ in graph]) for graph in graphs]


def _settled(questions: Sequence[Question], answers: Sequence[Answer | None]) -> Scores:
    """Scores of one image, from its questions in the order of `questions_of`."""
    if any(answer is None for answer in answers):
        return {"score": None, "reason": "A question is longer than the judge reads."}
    said: Mapping[int, bool] = {
        question.id: answer.yes > answer.no
        for question, answer in zip(questions, answers, strict=True)
        if answer is not None
    }
    counts: dict[int, bool] = {}
    categories: dict[str, dict[str, int]] = defaultdict(lambda: {"asked": 0, "yes": 0})
    for question in questions:
        counts[question.id] = said[question.id] and all(counts[parent] for parent in question.parents)
        categories[question.group]["asked"] += 1
        categories[question.group]["yes"] += said[question.id]
    return {
        "score": sum(counts.values()) / len(counts),
        "answers": {str(one): {"yes": said[one], "counts": counts[one]} for one in sorted(said)},
        "categories": dict(sorted(categories.items())),
    }
