"""Random models in the real file formats, and images to train on.

The images they make are abstract patterns. Everything else about them is real: folder layout, key names,
tokenizer files, and the pickled state dict of the release. The same seed gives the same weights.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from llm4gen_core import CrossAdapter, CrossAdapterConfig
from llm4gen_core.files import write_json
from llm4gen_diffusers.schedule import BETA_END, BETA_START
from miniature import base, language
from miniature.base import save_clip
from miniature.captions import listing
from miniature.scenes import CELL, draw_objects, place, render

PathLike = str | os.PathLike[str]

WORDS = (
    "a an and are bird black blue boat cat chair circle cross dog four gray green hat in is man of on orange purple "
    "red sky square the three triangle two white woman yellow"
)
"""Words that the tokenizers know as one token; anything else is split further."""
T5_WORDS = (*(word for word in WORDS.split() if len(word) > 1), "pre")
"""Words of the T5-like tokenizer; "pre" is RankGen's prefix."""

write_clip_tokenizer = partial(base.write_clip_tokenizer, words=WORDS.split())
write_t5_tokenizer = partial(language.write_t5_tokenizer, words=T5_WORDS)


def make_world(path: PathLike, images: int = 64, seed: int = 0) -> Path:
    """Random models of the miniature family in `base` and `llm`, and PNG files with captions as .txt in `images`.

    Args:
        path: made if it does not exist.
        images: how many; three of four are 32 pixels on their longer side, the others 16.
        seed: of weights and images.

    Returns:
        `path`.
    """
    path = Path(path)
    make_miniature_folder(path / "base", seed=seed)
    make_t5_folder(path / "llm", seed=seed)
    (path / "images").mkdir()
    rng = random.Random(seed)
    for number in range(images):
        rows, columns = rng.choice(((32, 32), (24, 32), (32, 24), (16, 16)))
        things = draw_objects(rng, rng.choice((1, 2)))
        while any(word not in WORDS.split() for thing in things for word in (thing.color, thing.shape)):
            things = draw_objects(rng, len(things))
        scene = place(rng, things, rows // CELL, columns // CELL)
        file = path / "images" / f"{number:05}.png"
        Image.fromarray(render(scene)).save(file)
        caption = listing(scene, rng, told=("color",))
        file.with_suffix(".txt").write_text(caption.text + "\n", encoding="utf-8")
    return path


def make_diffusers_folder(path: PathLike, d_text: int = 64, channels: Sequence[int] = (32, 64), seed: int = 0) -> Path:
    """A diffusers folder with everything that SD1.5's has: UNet, VAE, CLIP with its tokenizer, scheduler.

    Args:
        path: made if it does not exist.
        d_text: width of CLIP and of the UNet's context; a multiple of 64.
        channels: of the UNet's levels, each a multiple of 32; the last level has no cross-attention, as in SD1.5.
        seed: of the weights.

    Returns:
        `path`.
    """
    path = Path(path)
    vocabulary_size = write_clip_tokenizer(path / "tokenizer")
    write_clip(path / "text_encoder", d_text, vocabulary_size, seed)
    make_unet_folder(path / "unet", d_text, channels, seed)
    _write_vae(path / "vae", 0.18215, seed)
    write_scheduler(path / "scheduler")
    write_model_index(path, "StableDiffusionPipeline", vae=("diffusers", "AutoencoderKL"))
    return path


def make_sdxl_folder(
    path: PathLike, widths: tuple[int, int] = (64, 128), channels: Sequence[int] = (64, 64), seed: int = 0
) -> Path:
    """A diffusers folder with everything that SDXL's has, both text encoders and tokenizers among it.

    Args:
        path: made if it does not exist.
        widths: of CLIP-L and of bigG, multiples of 64; together the UNet's context.
        channels: of the UNet's levels, multiples of 64; the first level has no cross-attention, as in SDXL.
        seed: of the weights.

    Returns:
        `path`.
    """
    path = Path(path)
    for name, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        vocabulary_size = write_clip_tokenizer(path / name, pad=pad)
    write_clip(path / "text_encoder", widths[0], vocabulary_size, seed)
    write_clip(path / "text_encoder_2", widths[1], vocabulary_size, seed + 1, is_big=True)
    with _seeded(seed):
        unet = UNet2DConditionModel(
            sample_size=128,
            block_out_channels=tuple(channels),
            down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * (len(channels) - 1),
            up_block_types=("CrossAttnUpBlock2D",) * (len(channels) - 1) + ("UpBlock2D",),
            layers_per_block=1,
            transformer_layers_per_block=(1,) + (2,) * (len(channels) - 1),
            cross_attention_dim=sum(widths),
            attention_head_dim=tuple(width // 64 for width in channels),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=widths[1] + 6 * 256,
        )
    unet.save_pretrained(path / "unet")
    _write_vae(path / "vae", 0.13025, seed)
    write_scheduler(path / "scheduler")
    write_model_index(
        path,
        "StableDiffusionXLPipeline",
        vae=("diffusers", "AutoencoderKL"),
        text_encoder_2=("transformers", "CLIPTextModelWithProjection"),
        tokenizer_2=("transformers", "CLIPTokenizer"),
    )
    return path


def make_miniature_folder(
    path: PathLike, d_text: int = 64, channels: Sequence[int] = (32, 64), size: int = 32, seed: int = 0
) -> Path:
    """The miniature's base: a UNet with cross-attention in every level, CLIP, and a VAE that loses nothing.

    Args:
        path: made if it does not exist.
        d_text: width of CLIP and of the UNet's context; a multiple of 64.
        channels: of the UNet's levels, each a multiple of 32.
        size: pixels on a side of the images that it is meant for.
        seed: of the weights.

    Returns:
        `path`.
    """
    path = Path(path)
    factor = 2
    vocabulary_size = write_clip_tokenizer(path / "tokenizer")
    write_clip(path / "text_encoder", d_text, vocabulary_size, seed)
    with _seeded(seed):
        unet = UNet2DConditionModel(
            sample_size=size // factor,
            in_channels=3 * factor**2,
            out_channels=3 * factor**2,
            block_out_channels=tuple(channels),
            down_block_types=("CrossAttnDownBlock2D",) * len(channels),
            up_block_types=("CrossAttnUpBlock2D",) * len(channels),
            layers_per_block=1,
            cross_attention_dim=d_text,
            attention_head_dim=4,
            norm_num_groups=8,
        )
    unet.save_pretrained(path / "unet")
    (path / "vae").mkdir(parents=True, exist_ok=True)
    vae = {"_class_name": "PixelUnshuffle", "factor": factor, "latent_channels": 3 * factor**2}
    write_json(path / "vae" / "config.json", vae)
    write_scheduler(path / "scheduler")
    write_model_index(path, "LLM4GENMiniaturePipeline", vae=("llm4gen_diffusers.families.miniature", "PixelUnshuffle"))
    return path


def make_unet_folder(path: PathLike, d_text: int = 64, channels: Sequence[int] = (32, 64), seed: int = 0) -> Path:
    """A diffusers UNet folder alone, like the fine-tuned one of the release.

    Args: as of `make_diffusers_folder`.
    """
    path = Path(path)
    attending = len(channels) - 1
    with _seeded(seed):
        unet = UNet2DConditionModel(
            sample_size=64,
            block_out_channels=tuple(channels),
            down_block_types=("CrossAttnDownBlock2D",) * attending + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * attending,
            layers_per_block=1,
            cross_attention_dim=d_text,
            attention_head_dim=8,
        )
    unet.save_pretrained(path)
    return path


def make_t5_folder(path: PathLike, width: int = 96, layers: int = 2, rankgen: bool = True, seed: int = 0) -> Path:
    """A Hugging Face folder of a T5-v1.1 encoder with a fast tokenizer that appends `</s>`.

    Args:
        path: made if it does not exist.
        width: d_llm, a multiple of 4.
        layers: transformer blocks.
        rankgen: store it as RankGen does, a pickled state dict with the prefix `t5_encoder.` and an unused
            projection; otherwise as T5 itself, in safetensors.
        seed: of the weights.

    Returns:
        `path`.
    """
    path = Path(path)
    vocabulary_size = write_t5_tokenizer(path)
    config = T5Config(
        vocab_size=vocabulary_size,
        d_model=width,
        d_kv=width // 4,
        d_ff=2 * width,
        num_layers=layers,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
        architectures=["T5EncoderModel"],
    )
    config.save_pretrained(path)
    with _seeded(seed):
        encoder = T5EncoderModel(config)
        # T5's own initialisation is made for training at full size; at this one, all prompts would look alike.
        torch.nn.init.normal_(encoder.shared.weight)
        projection = torch.randn(width, width)
    state = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    if rankgen:
        state = {f"t5_encoder.{name}": tensor for name, tensor in state.items()}
        torch.save({**state, "projection.weight": projection}, path / "pytorch_model.bin")
    else:
        del state["encoder.embed_tokens.weight"]  # safetensors stores what is shared once, as transformers does
        save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    return path


def make_projector(path: PathLike, d_text: int = 64, d_llm: int = 96, seed: int = 0) -> Path:
    """A CAM of 8 heads as the release stores it: a pickled state dict, keys `CrossFusionModule.0.*`.

    Args:
        path: such as `projector.pth`; its folder is made if it does not exist.
        d_text: width of the text context, a multiple of 8.
        d_llm: width of the LLM's hidden states.
        seed: of the weights.

    Returns:
        `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _seeded(seed):
        adapter = CrossAdapter(CrossAdapterConfig(d_text=d_text, d_llm=d_llm, heads=8))
    torch.save({f"CrossFusionModule.0.{name}": tensor for name, tensor in adapter.state_dict().items()}, path)
    return path


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Weights made inside come from `seed`; the caller's random numbers go on as if nothing had happened."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _write_vae(path: Path, scaling_factor: float, seed: int) -> None:
    with _seeded(seed):
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(32, 32, 32, 32),
            layers_per_block=1,
            latent_channels=4,
            sample_size=512,
            scaling_factor=scaling_factor,
        )
    vae.save_pretrained(path)


def write_scheduler(path: Path) -> None:
    DDIMScheduler(
        beta_start=BETA_START,
        beta_end=BETA_END,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    ).save_pretrained(path)


def write_model_index(path: Path, pipeline: str, **others: tuple[str, str]) -> None:
    parts = {
        "scheduler": ("diffusers", "DDIMScheduler"),
        "text_encoder": ("transformers", "CLIPTextModel"),
        "tokenizer": ("transformers", "CLIPTokenizer"),
        "unet": ("diffusers", "UNet2DConditionModel"),
        **others,
    }
    write_json(path / "model_index.json", {"_class_name": pipeline, **dict(sorted(parts.items()))})


def write_clip(path: Path, d_text: int, vocabulary_size: int, seed: int, is_big: bool = False) -> None:
    """CLIP-L, or OpenCLIP's bigG with its projection; heads are 64 wide, as in both."""
    kind = CLIPTextModelWithProjection if is_big else CLIPTextModel
    config = CLIPTextConfig(
        vocab_size=vocabulary_size,
        hidden_size=d_text,
        intermediate_size=4 * d_text,
        num_hidden_layers=3,
        num_attention_heads=max(1, d_text // 64),
        max_position_embeddings=77,
        hidden_act="gelu" if is_big else "quick_gelu",
        projection_dim=d_text,
        bos_token_id=vocabulary_size - 2,
        eos_token_id=vocabulary_size - 1,
        pad_token_id=vocabulary_size - 1,
        architectures=[kind.__name__],
    )
    with _seeded(seed):
        model = kind(config)
    save_clip(model, path)
