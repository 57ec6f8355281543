"""Base model of the miniature: CLIP, autoencoder and an untrained UNet, in the folder layout of diffusers.

The CLIP has CLIP's weakness for CLIP's reason. The other captions of a batch differ in the words they contain, so that
matching images and captions takes the words and not what they bind to (Yuksekgonul et al. 2023, arXiv 2210.01936).

The autoencoder takes the place of the VAE: one latent for each cell of an image. Learning such latents is easier for a
UNet than learning pixels: after 500 steps of 64 images, two-object prompts had .82 of their words in the image, and .42
with squares of 4 x 4 pixels as latents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig

from llm4gen_core.files import write_json
from llm4gen_diffusers.families import PatchAutoencoder
from llm4gen_diffusers.schedule import BETA_END, BETA_START, NoiseSchedule

from .captions import WORDS
from .dataset import Drawn, pairs
from .judge import read
from .scenes import CELL, GRID, render

D_TEXT = 64
CLIP_LENGTH = 32
"""Tokens that CLIP reads; a paragraph is longer."""
CHANNELS = (64, 128)
"""Channels of the UNet's levels, of 2 x 2 positions and of one; both have cross-attention."""
LATENT_CHANNELS = 16
LATENT_NOISE = 0.2
"""Standard deviation of the noise on latents (of variance 1) in training, so that the decoder tolerates errors of the
UNet."""


def fit(
    name: str,
    model: nn.Module,
    loss: Callable[[int], Tensor],
    steps: int,
    *,
    warmup: int,
    max_norm: float = math.inf,
    **adamw: Any,
) -> None:
    """Minimize `loss(step)` by AdamW, with linear warm-up and cosine decay of the learning rate.

    The model is in eval mode afterwards.

    Args:
        name: label of the progress bar.
        model: the module to train.
        loss: loss of a step, from 0.
        steps: optimizer steps.
        warmup: steps of the warm-up.
        max_norm: gradients are clipped to this norm.
        adamw: options of the optimizer.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    optimizer = torch.optim.AdamW(model.parameters(), **adamw)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    model.train()
    for step in tqdm(range(steps), desc=name, unit="step", dynamic_ncols=True):
        value = loss(step)
        optimizer.zero_grad()
        value.backward()
        if max_norm < math.inf:
            nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        schedule.step()
    model.eval()


def train_clip(
    text_encoder: Path, tokenizer: Path, steps: int, seed: int = 0, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Train CLIP by contrast on batches of 128 pairs and save its text side as a base's `text_encoder` and `tokenizer`.

    Args:
        text_encoder, tokenizer: folders to write.
        steps: optimizer steps.
        seed: seed of weights and pairs.
        device: device to train on.

    Returns:
        "retrieval": share of 1,000 new captions whose image is the closest among the 1,000.
    """
    size = write_clip_tokenizer(tokenizer, WORDS, CLIP_LENGTH)
    tokens = CLIPTokenizer.from_pretrained(tokenizer)
    blocks: Any = {
        "hidden_size": D_TEXT,
        "intermediate_size": 4 * D_TEXT,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "projection_dim": D_TEXT,
    }
    special: Any = {"bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1}
    text_config = CLIPTextConfig(vocab_size=size, max_position_embeddings=CLIP_LENGTH, **special, **blocks)
    vision_config = CLIPVisionConfig(image_size=GRID * CELL, patch_size=CELL, **blocks)
    config = CLIPConfig(text_config=text_config.to_dict(), vision_config=vision_config.to_dict(), projection_dim=D_TEXT)
    source = pairs(seed + 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = CLIPModel(config)
        model.to(device)

        def loss(step: int) -> Tensor:
            texts, images = _embed(model, tokens, list(islice(source, 128)))
            logits = model.logit_scale.exp().clamp(max=100) * texts @ images.T
            target = torch.arange(len(texts), device=model.device)
            return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

        fit("CLIP", model, loss, steps, warmup=50, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.1)
    text = CLIPTextModel(model.config.text_config)
    # In transformers 4 the encoder is inside the model, in 5 it is the model.
    getattr(text, "text_model", text).load_state_dict(model.text_model.state_dict())
    text.config.architectures = ["CLIPTextModel"]
    save_clip(text, text_encoder)
    with torch.no_grad():
        texts, images = _embed(model, tokens, list(islice(pairs(seed + 2), 1000)))
    return {"retrieval": float((texts @ images.T).argmax(1).cpu().eq(torch.arange(len(texts))).float().mean())}


def _embed(model: CLIPModel, tokens: CLIPTokenizer, drawn: Sequence[Drawn]) -> tuple[Tensor, Tensor]:
    """Embeddings of captions and images, [B, D_TEXT] each, of unit length."""
    text = tokens([caption.text for _, caption in drawn], padding=True, truncation=True, return_tensors="pt")
    inputs = {"input_ids": text.input_ids, "attention_mask": text.attention_mask, "pixel_values": _pixels(drawn)}
    out = model(**{name: tensor.to(model.device) for name, tensor in inputs.items()})
    return F.normalize(out.text_embeds, dim=-1), F.normalize(out.image_embeds, dim=-1)


def _pixels(drawn: Iterable[Drawn]) -> Tensor:
    """Images [N, 3, H, W] from -1 to 1."""
    return torch.from_numpy(np.stack([render(scene) for scene, _ in drawn])).permute(0, 3, 1, 2) / 127.5 - 1


def write_clip_tokenizer(path: Path, words: Sequence[str], length: int = 77, pad: str = "<|endoftext|>") -> int:
    """Write a CLIP tokenizer that knows `words` as one token each and splits anything else into letters.

    Args:
        path: folder; made if it does not exist.
        words: the words.
        length: tokens that the model reads.
        pad: padding token.

    Returns:
        Size of the vocabulary; its last two tokens are those of start and end.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = letters + [letter + "</w>" for letter in letters]
    merges: list[str] = []
    for word in sorted(words, key=len, reverse=True):  # a short one must not merge inside a long one
        left, *rest = [*word[:-1], word[-1] + "</w>"]
        for right in rest:
            if f"{left} {right}" not in merges:
                merges.append(f"{left} {right}")
                vocabulary.append(left + right)
            left += right
    start, end = "<|startoftext|>", "<|endoftext|>"
    vocabulary += [start, end]
    write_json(path / "vocab.json", {token: number for number, token in enumerate(vocabulary)})
    (path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": pad}
    write_json(path / "special_tokens_map.json", special)
    options = {"tokenizer_class": "CLIPTokenizer", "do_lower_case": True, "model_max_length": length}
    write_json(path / "tokenizer_config.json", {**options, "errors": "replace", **special})
    return len(vocabulary)


def save_clip(model: Any, path: Path) -> None:
    """Write a CLIP text model as a Hugging Face folder with the key names of released files.

    transformers 5 saves shorter key names of its own.
    """
    model.config.save_pretrained(path)
    state = {
        name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}": value.contiguous()
        for name, value in model.state_dict().items()
        if not name.endswith("position_ids")
    }
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})


def train_autoencoder(
    folder: Path, steps: int, images: int = 20_000, seed: int = 0, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Train on batches of 64 images and save as a base's `vae`; each latent channel has mean 0 and variance 1.

    Args:
        folder: folder to write.
        steps: optimizer steps.
        images: size of the training set.
        seed: seed of weights, images and order.
        device: device to train on.

    Returns:
        "objects": share of the objects of 1,000 new images that the judge finds unchanged in their reconstruction.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PatchAutoencoder(factor=CELL, latent_channels=LATENT_CHANNELS).to(device)
        pixels = _pixels(islice(pairs(seed), images))

        def loss(step: int) -> Tensor:
            chosen = pixels[torch.randint(len(pixels), (64,))].to(device)
            latents = F.batch_norm(model.encode(chosen).latent, None, None, training=True)
            noise = LATENT_NOISE * torch.randn(latents.shape).to(device)
            return F.mse_loss(model.decode(latents + noise).sample, chosen)

        fit("VAE", model, loss, steps, warmup=100, lr=2e-3, weight_decay=0)
    with torch.no_grad():
        _normalize(model.cpu(), pixels)
        model.save_pretrained(folder)
        new = _pixels(islice(pairs(seed + 1), 1000))
        made = model.decode(model.encode(new).latent).sample
    shown, kept = (
        [reading.scene.objects for reading in read((images.clamp(-1, 1) / 2 + 0.5).permute(0, 2, 3, 1).numpy())]
        for images in (new, made)
    )
    same = [len(set(before) & set(after)) for before, after in zip(shown, kept, strict=True)]
    return {"objects": sum(same) / sum(map(len, shown))}


def _normalize(model: PatchAutoencoder, pixels: Tensor) -> None:
    """Fold the batch normalization of training into the weights of the encoder's last layer."""
    latents = torch.cat([model.encode(part).latent for part in pixels.split(1000)])
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    last: Any = model.encoder[-1]
    last.weight /= deviation.view(-1, 1, 1, 1)
    last.bias.sub_(mean).div_(deviation)


def write_untrained_unet(folder: Path, seed: int = 0) -> None:
    """Write what a base has beside CLIP and autoencoder: a UNet with random weights, and the noise schedule.

    The schedule has velocity prediction and zero terminal SNR. SD1.5's own never shows the UNet an image without a
    trace of the answer, on so few pixels the mean of all of them (arXiv 2305.08891).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=GRID,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            block_out_channels=CHANNELS,
            down_block_types=("CrossAttnDownBlock2D",) * len(CHANNELS),
            up_block_types=("CrossAttnUpBlock2D",) * len(CHANNELS),
            layers_per_block=1,
            cross_attention_dim=D_TEXT,
            attention_head_dim=4,
            norm_num_groups=8,
        )
    unet.save_pretrained(folder / "unet")
    schedule = NoiseSchedule(BETA_START, BETA_END, "scaled_linear", "v_prediction", zero_terminal_snr=True)
    schedule.to_diffusers().save_pretrained(folder / "scheduler")
    write_json(
        folder / "model_index.json",
        {
            "_class_name": "LLM4GENMiniaturePipeline",
            "scheduler": ("diffusers", "DDIMScheduler"),
            "text_encoder": ("transformers", "CLIPTextModel"),
            "tokenizer": ("transformers", "CLIPTokenizer"),
            "unet": ("diffusers", "UNet2DConditionModel"),
            "vae": ("llm4gen_diffusers.families.miniature", "PatchAutoencoder"),
        },
    )
