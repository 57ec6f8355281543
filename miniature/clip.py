"""The world's CLIP: text and image encoders trained together by contrast, of which the text encoder is kept.

It has CLIP's weakness for CLIP's reason. The other captions of a batch differ in what they name, so that telling which
image belongs to which caption needs the words and not what they bind (Yuksekgonul et al. 2023, arXiv 2210.01936).
"""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig

from miniature.dataset import pairs
from miniature.scenes import CELL, GRID, render
from miniature.words import WORDS

from .small_models import save_clip, write_clip_tokenizer

WIDTH = 64
LENGTH = 32
"""Tokens that it reads; a paragraph is longer."""
BATCH = 128


def train_clip(
    text_encoder: Path, tokenizer: Path, steps: int, seed: int = 0, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Train on the world's pairs and save as a base's `text_encoder` and `tokenizer`.

    Args:
        text_encoder, tokenizer: folders to write.
        steps: optimizer steps of `BATCH` pairs.
        seed: of weights and pairs.
        device: to train on.

    Returns:
        "retrieval": share of 1,000 held-back captions whose image it finds among them.
    """
    size = write_clip_tokenizer(tokenizer, words=WORDS, length=LENGTH)
    tokens = CLIPTokenizer.from_pretrained(tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = CLIPModel(_config(size))
        model.to(device)
        _fit(model, tokens, steps, seed)
    text = CLIPTextModel(model.config.text_config)
    # In transformers 4 the encoder is inside the model, in 5 it is the model.
    getattr(text, "text_model", text).load_state_dict(model.text_model.state_dict())
    text.config.architectures = ["CLIPTextModel"]
    save_clip(text, text_encoder)
    return {"retrieval": _retrieval(model, tokens, seed)}


def _config(vocabulary: int) -> CLIPConfig:
    blocks: Any = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    text = CLIPTextConfig(
        vocab_size=vocabulary,
        max_position_embeddings=LENGTH,
        projection_dim=WIDTH,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
        **blocks,
    )
    vision = CLIPVisionConfig(image_size=GRID * CELL, patch_size=CELL, projection_dim=WIDTH, **blocks)
    return CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=WIDTH)


def _fit(model: CLIPModel, tokens: CLIPTokenizer, steps: int, seed: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, steps, 50))
    source = pairs(seed + 1)
    model.train()
    for _ in tqdm(range(steps), desc="CLIP", unit="step", dynamic_ncols=True):
        drawn = list(islice(source, BATCH))
        texts, images = _embed(model, tokens, drawn)
        logits = model.logit_scale.exp().clamp(max=100) * texts @ images.T
        target = torch.arange(len(drawn), device=model.device)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()


def _embed(model: CLIPModel, tokens: CLIPTokenizer, drawn: list) -> tuple[Tensor, Tensor]:
    """Both of unit length, [B, d]."""
    text = tokens([caption.text for _, caption in drawn], padding=True, truncation=True, return_tensors="pt")
    pixels = torch.from_numpy(np.stack([render(scene) for scene, _ in drawn])).permute(0, 3, 1, 2) / 127.5 - 1
    inputs = {"input_ids": text.input_ids, "attention_mask": text.attention_mask, "pixel_values": pixels}
    out = model(**{name: tensor.to(model.device) for name, tensor in inputs.items()})
    return F.normalize(out.text_embeds, dim=-1), F.normalize(out.image_embeds, dim=-1)


@torch.no_grad()
def _retrieval(model: CLIPModel, tokens: CLIPTokenizer, seed: int) -> float:
    texts, images = _embed(model, tokens, list(islice(pairs(seed + 2), 1000)))
    return float((texts @ images.T).argmax(1).cpu().eq(torch.arange(len(texts))).float().mean())


def warm_cosine(step: int, steps: int, warmup: int) -> float:
    """Factor of the learning rate: linear warm-up, then a cosine down to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
