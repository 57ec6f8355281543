"""Language models of the miniature: a T5-like encoder and a Llama-like decoder, trained on text alone.

Their documents are captions followed by sentences that repeat them (`facts`): to predict the last word of "a red circle
and a blue square. the square is blue." a model has to know which colour belongs to which shape. That is the knowledge
that CLIP lacks and LLM4GEN brings in.

The encoder predicts masked words, as BERT does; the decoder predicts the next word. Both are saved in the format of
T5 v1.1 and Llama.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from llm4gen_core.files import write_json

from .base import fit
from .captions import WORDS, listing
from .dataset import documents
from .facts import FACT_WORDS, color_of, facts
from .scenes import draw_objects, place

D_LLM = 128
LAYERS = 4
LEARNING_RATE = 1e-3
"""With three times as much, half of the facts were still unknown after 500 steps."""
CHARACTERS = 11_000
"""Characters of a batch, padding included: about 64 short documents or 16 long ones."""
PRIMER = 0.2
"""Share of the steps, the first ones, on the simplest documents alone. Binding is learned there within some hundred
steps, and was not learned from the mix of all documents in more than a thousand."""
ANSWER_WEIGHT = 10.0
"""Loss weight of an answer among the decoder's next words, most of which cannot be known."""
MASKED_WORDS = 0.03
"""Share of the words of a document that the encoder has to predict, beside the answers."""
_IGNORED = -100


@dataclass(frozen=True)
class Document:
    """A text to learn from.

    Attributes:
        text: a caption and sentences that repeat it.
        answers: (start, end, kind) of what these sentences tell, in characters; see `facts.Fact`.
    """

    text: str
    answers: tuple[tuple[int, int, str], ...]


def read(seed: int, primer: bool = False) -> Iterator[Document]:
    """Yield documents without end.

    Args:
        seed: seed of the documents.
        primer: only documents of two coloured objects, and one sentence that repeats the colour of one of them.
    """
    rng = random.Random(f"read {seed}")
    captions = documents(seed)
    while True:
        if primer:
            caption = listing(place(rng, draw_objects(rng, 2)), rng, told=("color",))
            said = [color_of(rng.choice(caption.asks))]
        else:
            caption = next(captions)
            said = facts(caption, rng, rng.choice((3, 6, 9) if caption.category == "dense" else (2, 3, 4)))
        text, answers = caption.text if caption.text.endswith(".") else f"{caption.text}.", []
        for fact in said:
            start = len(text) + 1
            text = f"{text} {fact.text}"
            answers.append((start + fact.answer[0], start + fact.answer[1], fact.kind))
        yield Document(text, tuple(answers))


def batches(seed: int, primer: bool = False) -> Iterator[list[Document]]:
    """Yield batches of documents of about the same length, in random order."""
    rng = random.Random(f"batches {seed}")
    source = read(seed, primer)
    while True:
        found: list[list[Document]] = [[]]
        for document in sorted(islice(source, 512), key=lambda document: len(document.text)):
            if (len(found[-1]) + 1) * len(document.text) > CHARACTERS:
                found.append([])
            found[-1].append(document)
        rng.shuffle(found)
        yield from found


def train_encoder(folder: Path, steps: int, seed: int = 0, device: torch.device | str = "cpu") -> dict[str, float]:
    """Train a T5-like encoder to predict masked words and save it as a Hugging Face folder of T5 v1.1.

    Args:
        folder: folder to write.
        steps: optimizer steps.
        seed: seed of weights and documents.
        device: device to train on.

    Returns:
        By kind of fact, the share of new facts that it completes.
    """
    size = write_t5_tokenizer(folder, WORDS + FACT_WORDS, sentinels=1)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    sentinel = tokenizer.convert_tokens_to_ids("<extra_id_0>")
    config = T5Config(
        vocab_size=size,
        d_model=D_LLM,
        d_kv=16,
        d_ff=3 * D_LLM,
        num_layers=LAYERS,
        num_heads=8,
        relative_attention_max_distance=64,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        architectures=["T5EncoderModel"],
    )
    rng = random.Random(f"masks {seed}")

    def masked_words(document: Document) -> list[tuple[int, int, str]]:
        return [(*m.span(), "") for m in re.finditer("[a-z-]+", document.text) if rng.random() < MASKED_WORDS]

    def batch(documents: Sequence[Document], everywhere: bool) -> _Batch:
        found = _batch(tokenizer, documents, masked_words if everywhere else None)
        return replace(found, ids=torch.where(found.labels == _IGNORED, found.ids, sentinel))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = T5EncoderModel(config)
        _look_at_neighbours(model)
        head = nn.Linear(D_LLM, size)

        def predict(batch: _Batch) -> Tensor:
            hidden = model(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state
            return head(hidden[batch.labels != _IGNORED])

        known = _train(nn.ModuleList((model, head)).to(device), predict, batch, steps, seed, device)
    model.config.save_pretrained(folder)
    state = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    del state["encoder.embed_tokens.weight"]  # the same tensor as shared.weight, which safetensors stores once
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return known


def train_decoder(folder: Path, steps: int, seed: int = 0, device: torch.device | str = "cpu") -> dict[str, float]:
    """Train a Llama-like decoder to predict the next word and save it as a Hugging Face folder.

    Args and Returns: see `train_encoder`.
    """
    size = write_t5_tokenizer(folder, WORDS + FACT_WORDS, sentinels=1)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=D_LLM,
        intermediate_size=3 * D_LLM,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
        architectures=["LlamaForCausalLM"],
    )

    def batch(documents: Sequence[Document], everywhere: bool) -> _Batch:
        found = _batch(tokenizer, documents)
        if not everywhere:
            return found
        labels = torch.where(found.mask.bool(), found.ids, _IGNORED)
        labels[:, 0] = _IGNORED
        return replace(found, labels=labels, weights=torch.where(found.labels == _IGNORED, 1.0, ANSWER_WEIGHT))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = LlamaForCausalLM(config)

        def predict(batch: _Batch) -> Tensor:
            logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits
            # The token at a position is predicted from the position before it.
            return torch.cat((logits[:, :1], logits[:, :-1]), 1)[batch.labels != _IGNORED]

        known = _train(model.to(device), predict, batch, steps, seed, device)
    model.cpu().save_pretrained(folder)
    return known


@dataclass(frozen=True)
class _Batch:
    """Tokens of documents.

    Attributes:
        ids, mask: inputs [B, L].
        labels: tokens to predict [B, L], else `_IGNORED`.
        weights: weight of each label in the loss [B, L].
        kinds: kind of fact that a label belongs to, else "", [B][L].
    """

    ids: Tensor
    mask: Tensor
    labels: Tensor
    weights: Tensor
    kinds: list[list[str]]

    def to(self, device: torch.device | str) -> _Batch:
        tensors = {name: getattr(self, name).to(device) for name in ("ids", "mask", "labels", "weights")}
        return replace(self, **tensors)


def _batch(
    tokenizer: Any,
    documents: Sequence[Document],
    more: Callable[[Document], Sequence[tuple[int, int, str]]] | None = None,
) -> _Batch:
    """Batch whose labels are the tokens of the answers, and of what `more` finds in a document, as (start, end, "")."""
    encoded = tokenizer([document.text for document in documents], padding=True, return_offsets_mapping=True)
    ids = torch.tensor(encoded["input_ids"])
    labels = torch.full_like(ids, _IGNORED)
    kinds = [[""] * ids.shape[1] for _ in documents]
    for row, document in enumerate(documents):
        spans = [*document.answers, *(more(document) if more else ())]
        for column, (start, end) in enumerate(encoded["offset_mapping"][row]):
            for first, last, kind in spans:
                if start < last and first < end:
                    labels[row, column] = ids[row, column]
                    kinds[row][column] = kind
    return _Batch(ids, torch.tensor(encoded["attention_mask"]), labels, torch.ones(ids.shape), kinds)


def _train(
    model: nn.Module,
    predict: Callable[[_Batch], Tensor],
    batch: Callable[[Sequence[Document], bool], _Batch],
    steps: int,
    seed: int,
    device: torch.device | str,
) -> dict[str, float]:
    """Train a language model; the share of new facts that it completes, by kind.

    Args:
        model: the modules to train.
        predict: logits [N, V] of the N labels of a batch.
        batch: makes a batch of documents; the flag asks for other words than the answers, too.
        steps, seed, device: see `train_encoder`.
    """
    primer, source = batches(seed, primer=True), batches(seed)

    def loss(step: int) -> Tensor:
        is_primer = step < PRIMER * steps
        tokens = batch(next(primer if is_primer else source), not is_primer).to(device)
        asked = tokens.labels != _IGNORED
        weights = tokens.weights[asked]
        losses = F.cross_entropy(predict(tokens), tokens.labels[asked], reduction="none")
        return (weights * losses).sum() / weights.sum()

    adamw: Any = {"lr": LEARNING_RATE, "betas": (0.9, 0.98), "weight_decay": 0.01}
    fit("LLM", model, loss, steps, warmup=100, max_norm=1.0, **adamw)
    right: dict[str, list[bool]] = {}
    with torch.no_grad():
        for new in islice(batches(seed + 1_000_000), 30):
            tokens = batch(new, False).to(device)
            asked = tokens.labels != _IGNORED
            hits = (predict(tokens).argmax(1) == tokens.labels[asked]).tolist()
            for (row, column), hit in zip(asked.nonzero().tolist(), hits, strict=True):
                right.setdefault(tokens.kinds[row][column], []).append(hit)
    return {kind: sum(hits) / len(hits) for kind, hits in sorted(right.items()) if kind}


def _look_at_neighbours(model: Any) -> None:
    """Initialize four of the eight heads to look one, two or three tokens back, or one ahead.

    T5's position biases start flat and, at the learning rate that suits everything else, take thousands of steps to
    become sharp; nothing can be bound before that. From this start a few hundred suffice. All of it goes on learning.
    """
    table = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    half = table.shape[0] // 2
    with torch.no_grad():
        nn.init.normal_(model.shared.weight)
        nn.init.normal_(table, std=0.3)
        # Rows: 1, 2, 3 are the tokens before; the second half of the table is for those after.
        for head, row in enumerate((1, 2, 3, half + 1)):
            table[row, head] += 5


def write_t5_tokenizer(path: Path, words: Sequence[str], sentinels: int = 0) -> int:
    """Write a Unigram tokenizer with T5's special tokens: `<pad>` 0, `</s>` 1, `<unk>` 2, last `<extra_id_0>`, ...

    Args:
        path: folder; made if it does not exist.
        words: one token each, with the space before them; anything else is split into letters.
        sentinels: how many tokens stand for masked text.

    Returns:
        Size of the vocabulary.
    """
    special = ["<pad>", "</s>", "<unk>"]
    extra = [f"<extra_id_{number}>" for number in range(sentinels)]
    pieces = [(token, 0.0) for token in special]
    pieces += [(f"▁{word}", -2.0) for word in words]
    pieces.append(("▁", -4.0))
    pieces += [(chr(code), -6.0) for code in range(ord("!"), ord("~") + 1)]
    pieces += [(token, 0.0) for token in extra]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special + extra])
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    options = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512}
    tokens = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(path / "tokenizer_config.json", {**options, **tokens})
    return len(pieces)
