"""The world's language models: a T5-like encoder and a Llama-like decoder that have read much and seen nothing.

What they read are captions followed by sentences that repeat what was said (`miniature.facts`): whoever is to
predict the last word of "a red circle and a blue square. the square is blue." has to know which colour belongs to which
shape. That is the knowledge that CLIP lacks and that LLM4GEN brings to the pipeline.

The encoder predicts masked words, as BERT does; the decoder the next word. Both are saved in the format of their
big brothers.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from miniature.captions import listing
from miniature.dataset import documents
from miniature.facts import color_of, facts
from miniature.scenes import draw_objects, place
from miniature.words import FACT_WORDS, WORDS

from .clip import warm_cosine
from .small_models import write_t5_tokenizer

WIDTH = 128
LAYERS = 4
RATE = 1e-3
"""Learning rate; with three times as much, single facts were still half unknown after 500 steps."""
CHARACTERS = 11_000
"""Of a batch, padding included: about 64 short documents or 16 long ones."""
PRIMER = 0.2
"""Share of the steps in which language models read nothing but the simplest documents. What binds is found there within
some hundred steps; in the variety of all documents it was not found in more than a thousand."""
ANSWER = 10.0
"""Weight of an answer among the decoder's next words, most of which no one can know."""
_MASKED_WORDS = 0.03
"""Share of the words of a caption that the encoder does not see."""
_IGNORED = -100


@dataclass(frozen=True)
class Document:
    """A text to learn from.

    Attributes:
        text: a caption and the sentences that repeat it.
        answers: (start, end, kind) of what these sentences tell, in characters; see `miniature.facts.Fact`.
    """

    text: str
    answers: tuple[tuple[int, int, str], ...]


def read(seed: int, primer: bool = False) -> Iterator[Document]:
    """Documents without end.

    Args:
        seed: another one gives other documents.
        primer: of two coloured objects each, and one sentence that repeats the colour of one of them.
    """
    draws = random.Random(f"read {seed}")
    captions = documents(seed)
    while True:
        if primer:
            caption = listing(place(draws, draw_objects(draws, 2)), draws, told=("color",))
            said = [color_of(draws.choice(caption.asks))]
        else:
            caption = next(captions)
            said = facts(caption, draws, draws.choice((3, 6, 9) if caption.category == "dense" else (2, 3, 4)))
        text, answers = caption.text if caption.text.endswith(".") else f"{caption.text}.", []
        for fact in said:
            start = len(text) + 1
            text = f"{text} {fact.text}"
            answers.append((start + fact.answer[0], start + fact.answer[1], fact.kind))
        yield Document(text, tuple(answers))


def batches(seed: int, primer: bool = False) -> Iterator[list[Document]]:
    """Documents of about the same length together, in random order."""
    draws = random.Random(f"batches {seed}")
    source = read(seed, primer)
    while True:
        documents = sorted(islice(source, 512), key=lambda document: len(document.text))
        found: list[list[Document]] = [[]]
        for document in documents:
            if (len(found[-1]) + 1) * len(document.text) > CHARACTERS:
                found.append([])
            found[-1].append(document)
        draws.shuffle(found)
        yield from found


def train_encoder(folder: Path, steps: int, seed: int = 0, device: torch.device | str = "cpu") -> dict[str, float]:
    """A T5-like encoder, trained to predict masked words, saved as a Hugging Face folder of T5 v1.1.

    Args:
        folder: to write.
        steps: optimizer steps.
        seed: of weights and documents.
        device: to train on.

    Returns:
        By kind of fact, the share of new ones that it completes.
    """
    size = write_t5_tokenizer(folder, WORDS + FACT_WORDS, sentinels=1)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    config = T5Config(
        vocab_size=size,
        d_model=WIDTH,
        d_kv=16,
        d_ff=3 * WIDTH,
        num_layers=LAYERS,
        num_heads=8,
        relative_attention_max_distance=64,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        architectures=["T5EncoderModel"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = T5EncoderModel(config)
        _look_at_neighbours(model)
        head = nn.Linear(WIDTH, size)
        both = nn.ModuleList((model, head)).to(device)

        def answers(tokens: _Tokens) -> tuple[Tensor, Tensor]:
            hidden = model(input_ids=tokens.ids, attention_mask=tokens.mask).last_hidden_state
            asked = tokens.labels != _IGNORED
            return head(hidden[asked]), asked

        sentinel = tokenizer.convert_tokens_to_ids("<extra_id_0>")
        draws = random.Random(f"masks {seed}")

        def tokens(documents: Sequence[Document], words: float = 0.0) -> _Tokens:
            return _masked(tokenizer, documents, sentinel, draws, words).to(device)

        def loss(documents: Sequence[Document], is_primer: bool) -> Tensor:
            return _loss(answers, tokens(documents, 0 if is_primer else _MASKED_WORDS))

        _fit(both, loss, steps, seed)
        model.eval()
        known = _known(answers, tokens, seed)
    model.config.save_pretrained(folder)
    state = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    del state["encoder.embed_tokens.weight"]  # the same tensor as shared.weight, which safetensors stores once
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return known


def train_decoder(folder: Path, steps: int, seed: int = 0, device: torch.device | str = "cpu") -> dict[str, float]:
    """A Llama-like decoder, trained to predict the next word, saved as a Hugging Face folder.

    Args and Returns: as of `train_encoder`.
    """
    size = write_t5_tokenizer(folder, WORDS + FACT_WORDS, sentinels=1)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
        architectures=["LlamaForCausalLM"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = LlamaForCausalLM(config)
        model.to(device)

        def everything(tokens: _Tokens) -> tuple[Tensor, Tensor]:
            logits = model(input_ids=tokens.ids, attention_mask=tokens.mask).logits
            # What stands at a place is predicted from the place before it.
            logits = torch.cat((logits[:, :1], logits[:, :-1]), 1)
            asked = tokens.labels != _IGNORED
            return logits[asked], asked

        def tokens(documents: Sequence[Document], everywhere: bool = False) -> _Tokens:
            return _next_words(tokenizer, documents, everywhere).to(device)

        def loss(documents: Sequence[Document], is_primer: bool) -> Tensor:
            return _loss(everything, tokens(documents, everywhere=not is_primer))

        _fit(model, loss, steps, seed)
        model.eval()
        known = _known(everything, tokens, seed)
    model.cpu().save_pretrained(folder)
    return known


@dataclass(frozen=True)
class _Tokens:
    """A batch: ids, mask and labels [B, L] each, the kind of fact that a label belongs to, and how much it weighs."""

    ids: Tensor
    mask: Tensor
    labels: Tensor
    kinds: list[list[str]]
    weights: Tensor

    def to(self, device: torch.device | str) -> _Tokens:
        ids, mask, labels, weights = (t.to(device) for t in (self.ids, self.mask, self.labels, self.weights))
        return _Tokens(ids, mask, labels, self.kinds, weights)


def _tokenize(tokenizer: Any, documents: Sequence[Document]) -> tuple[Tensor, Tensor, list[list[tuple[int, int]]]]:
    encoded = tokenizer([document.text for document in documents], padding=True, return_offsets_mapping=True)
    return torch.tensor(encoded["input_ids"]), torch.tensor(encoded["attention_mask"]), encoded["offset_mapping"]


def _masked(
    tokenizer: Any, documents: Sequence[Document], sentinel: int, draws: random.Random, words: float
) -> _Tokens:
    """Answers, and a share of all words, give way to the sentinel."""
    ids, mask, offsets = _tokenize(tokenizer, documents)
    labels = torch.full_like(ids, _IGNORED)
    kinds = [[""] * ids.shape[1] for _ in documents]
    for row, document in enumerate(documents):
        spans = list(document.answers)
        if words:
            spans += [(*match.span(), "") for match in re.finditer("[a-z-]+", document.text) if draws.random() < words]
        for column, kind in _columns(offsets[row], spans):
            labels[row, column] = ids[row, column]
            kinds[row][column] = kind
    return _Tokens(torch.where(labels == _IGNORED, ids, sentinel), mask, labels, kinds, torch.ones(ids.shape))


def _next_words(tokenizer: Any, documents: Sequence[Document], everywhere: bool) -> _Tokens:
    """Every token but the first is to be predicted, an answer above all; or only the answers."""
    ids, mask, offsets = _tokenize(tokenizer, documents)
    labels = torch.where(mask.bool(), ids, _IGNORED) if everywhere else torch.full_like(ids, _IGNORED)
    labels[:, 0] = _IGNORED
    kinds = [[""] * ids.shape[1] for _ in documents]
    weights = torch.ones(ids.shape)
    for row, document in enumerate(documents):
        for column, kind in _columns(offsets[row], document.answers):
            labels[row, column] = ids[row, column]
            kinds[row][column] = kind
            weights[row, column] = ANSWER
    return _Tokens(ids, mask, labels, kinds, weights)


def _columns(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int, str]]) -> Iterator[tuple[int, str]]:
    """Tokens that share a character with a span, and its kind."""
    for column, (start, end) in enumerate(offsets):
        for first, last, kind in spans:
            if start < last and first < end:
                yield column, kind


def _look_at_neighbours(model: Any) -> None:
    """Half of the heads begin by looking one, two or three tokens back, or one ahead.

    T5's positions are a table of biases that begins flat and, at the learning rates that suit everything else, takes
    thousands of steps to become sharp; nothing can be bound before that. With this start a few hundred suffice. All
    of it goes on learning.
    """
    table = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    half = table.shape[0] // 2
    with torch.no_grad():
        nn.init.normal_(model.shared.weight)
        nn.init.normal_(table, std=0.3)
        # Rows: 1, 2, 3 are the tokens before; the second half of the table is for those after.
        for head, row in enumerate((1, 2, 3, half + 1)):
            table[row, head] += 5


def _fit(model: nn.Module, loss_of: Any, steps: int, seed: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, steps, 100))
    primer, source = batches(seed, primer=True), batches(seed)
    model.train()
    for step in (bar := tqdm(range(steps), desc="LLM", unit="step", dynamic_ncols=True)):
        is_primer = step < PRIMER * steps
        loss = loss_of(next(primer if is_primer else source), is_primer)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


def _loss(answers: Any, tokens: _Tokens) -> Tensor:
    logits, asked = answers(tokens)
    weights = tokens.weights[asked]
    return (weights * F.cross_entropy(logits, tokens.labels[asked], reduction="none")).sum() / weights.sum()


@torch.no_grad()
def _known(answers: Any, tokenize: Any, seed: int) -> dict[str, float]:
    """Share of facts completed, by kind, over new documents."""
    right: dict[str, list[bool]] = {}
    source = batches(seed + 1_000_000)
    for batch in islice(source, 30):
        tokens = tokenize(batch)
        logits, asked = answers(tokens)
        hits = (logits.argmax(1) == tokens.labels[asked]).tolist()
        for (row, column), hit in zip(asked.nonzero().tolist(), hits, strict=True):
            right.setdefault(tokens.kinds[row][column], []).append(hit)
    return {kind: sum(hits) / len(hits) for kind, hits in sorted(right.items()) if kind}
