"""Weights in a single file, as ComfyUI loads them: a checkpoint of SD1.5 or SDXL, or a UNet or VAE by itself.

Such a file names its tensors as Stability AI's code does and holds no configuration. diffusers converts the names; the
configurations are inferred here from names and shapes, never downloaded. The header alone says what a file is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, PreTrainedModel

from llm4gen_core.errors import LLM4GENError, first_line
from llm4gen_core.files import SAFETENSORS_SUFFIXES, load_pickle, load_tensors, read_header

from ..schedule import NoiseSchedule
from .parts import Base, Part, load_tokenizer

Config = dict[str, Any]

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP_L = {"sd15": "cond_stage_model.transformer.", "sdxl": "conditioner.embedders.0.transformer."}
CLIP_G = "conditioner.embedders.1.model."
_UNUSED = ("position_ids", "logit_scale", "text_projection.weight")
"""Endings of the CLIP tensors in checkpoints that are not used."""
REPOSITORY = Path(__file__).parents[2]

SCALING_FACTORS = {"sd15": 0.18215, "sdxl": 0.13025}
SAMPLE_SIZES = {"sd15": 64, "sdxl": 128}
"""Latents on a side of the images that the family was trained on."""
HEADS = 8
"""Attention heads of SD1.5's UNet at every width; SDXL has heads of 64 channels instead, as have both CLIPs."""
HEAD_WIDTH = 64
TIME_EMBEDDING = 256
"""Width of the embedding of each of SDXL's six size conditions."""


class Shapes(dict[str, tuple[int, ...]]):
    """Shapes of tensors by name; a missing one raises LLM4GENError."""

    def __init__(self, where: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(shapes)
        self.where = where

    def __missing__(self, name: str) -> tuple[int, ...]:
        raise LLM4GENError(f"{self.where} lacks the tensor {name}; the file is incomplete. Download it again.")

    @classmethod
    def read(cls, path: Path, what: str) -> Shapes:
        """Read the shapes of all tensors in a file, without the tensors."""
        if path.suffix.lower() in SAFETENSORS_SUFFIXES:
            return cls(f"{what} {path}", {name: info.shape for name, info in read_header(path, what)[0].items()})
        tensors = load_pickle(path, what, device="meta")
        return cls(f"{what} {path}", {name: tuple(tensor.shape) for name, tensor in tensors.items()})

    def under(self, prefix: str) -> Shapes:
        """Shapes of the tensors under a prefix, without the prefix."""
        return Shapes(self.where, {n.removeprefix(prefix): shape for n, shape in self.items() if n.startswith(prefix)})

    def holds(self, part: str) -> bool:
        """Whether any name contains `part`."""
        return any(part in name for name in self)


def checkpoint_family(path: Path) -> str:
    """Return the family of a checkpoint, "sd15" or "sdxl", from its header.

    Raises:
        LLM4GENError: it cannot be read, or is another model or a part of one.
    """
    return _find_family(path, Shapes.read(path, "Base"))


def open_checkpoint(path: Path, family: str, tokenizer: Path | None) -> Base:
    """Open a checkpoint; its header is read, its tensors are not.

    Args:
        path: `.safetensors` or `.ckpt`.
        family: family that it must belong to.
        tokenizer: folder with CLIP's vocab.json and merges.txt, which a checkpoint lacks; None for the one of the
            ComfyUI that this clone is installed in.

    Raises:
        LLM4GENError: it cannot be read, is another model, or there is no tokenizer.
    """
    shapes = Shapes.read(path, "Base")
    found = _find_family(path, shapes)
    if found != family:
        raise LLM4GENError(f"Base {path} is a checkpoint of {found}; expected {family}.")
    is_sdxl = family == "sdxl"
    # ComfyUI knows these markers in SDXL alone.
    velocity = is_sdxl and "v_pred" in shapes
    schedule = NoiseSchedule.stable_diffusion(
        "v_prediction" if velocity else "epsilon", zero_terminal_snr=velocity and "ztsnr" in shapes
    )
    text = (_clip_l(path, family), _clip_g(path)) if is_sdxl else (_clip_l(path, family),)
    return Base(
        path=path,
        schedule=schedule,
        unet=unet_file(path, family),
        vae=vae_file(path, family),
        text=text,
        load_tokenizers=lambda: (load_tokenizer(tokenizer or _host_tokenizer(path)),) * len(text),
    )


# Which model a file holds


def _find_family(path: Path, shapes: Shapes) -> str:
    unet = shapes.under(UNET)
    if "input_blocks.0.0.weight" not in unet:
        raise LLM4GENError(f"Base {path} is {_other_model(shapes)}; expected a checkpoint of SD1.5 or SDXL.")
    context = next((shape[1] for name, shape in unet.items() if name.endswith("attn2.to_k.weight")), None)
    if unet["input_blocks.0.0.weight"][1] != 4:
        raise LLM4GENError(
            f"Base {path} reads {unet['input_blocks.0.0.weight'][1]} channels; expected 4. Inpainting models cannot "
            "be used here."
        )
    found = None
    if any(name.startswith("cond_stage_model.model.") for name in shapes) or context == 1024:
        found = "SD2"
    elif any(name.startswith("conditioner.embedders.0.model.") for name in shapes):
        found = "SDXL's refiner"
    elif "edm_mean" in shapes or "edm_vpred.sigma_max" in shapes:
        found = "an SDXL with EDM's noise schedule, such as Playground 2.5"
    if found:
        raise LLM4GENError(f"Base {path} is {found}; expected a checkpoint of SD1.5 or SDXL.")
    family = "sdxl" if "label_emb.0.0.weight" in unet else "sd15"
    encoders = (CLIP_L["sdxl"], CLIP_G) if family == "sdxl" else (CLIP_L["sd15"],)
    for prefix, what in ((VAE, "VAE"), *((prefix, "text encoder") for prefix in encoders)):
        if not any(name.startswith(prefix) for name in shapes):
            raise LLM4GENError(
                f"Base {path} has no {what} (no tensors {prefix}*); expected a whole checkpoint of {family}. A UNet by "
                "itself can replace that of a base, but is not a base."
            )
    return family


def _other_model(shapes: Shapes) -> str:
    """Name a file that is not a Stable Diffusion with a UNet."""
    known = {
        "joint_blocks.": "SD3",
        "double_blocks.": "Flux or a relative of it",
        "single_blocks.": "Flux or a relative of it",
        "input_blocks.": "a UNet by itself",
        "down_blocks.": "a single model out of a diffusers folder",
        "lora_": "a LoRA",
    }
    names = ", ".join(sorted(shapes)[:2]) or "no tensors"
    unknown = f"not a checkpoint of Stable Diffusion (it holds {names}, ...)"
    return next((what for part, what in known.items() if shapes.holds(part)), unknown)


def _host_tokenizer(checkpoint: Path) -> Path:
    folder = REPOSITORY.parent.parent / "comfy" / "sd1_tokenizer"
    if REPOSITORY.parent.name == "custom_nodes" and (folder / "vocab.json").is_file():
        return folder
    raise LLM4GENError(
        f"Base {checkpoint} is a checkpoint file, which holds no tokenizer; give --tokenizer (tokenizer in a recipe) "
        "with a folder of CLIP's vocab.json and merges.txt, such as comfy/sd1_tokenizer in ComfyUI's folder."
    )


# Models in a file


class FilePart(Part):
    """A model in a checkpoint, where its tensors' names have a prefix, or in a file of its own.

    Args:
        kind: class of the model.
        path: the file.
        what: role of the model, for errors.
        prefix: prefix of its tensors' names in a checkpoint.
        infer: infers the configuration from the tensors' shapes.
        convert: converts tensors, named without the prefix, to the model's names.
    """

    def __init__(
        self,
        kind: type[nn.Module],
        path: Path,
        what: str,
        prefix: str,
        infer: Callable[[Shapes], Config],
        convert: Callable[[dict[str, Tensor], Config], dict[str, Tensor]],
    ) -> None:
        super().__init__(path)
        self.kind, self.what, self.prefix = kind, what, prefix
        self._infer, self._convert = infer, convert

    @cached_property
    def config(self) -> Config:
        return self._infer(self.shapes)

    @cached_property
    def shapes(self) -> Shapes:
        """Shapes of the model's tensors, without the prefix."""
        shapes = Shapes.read(self.path, self.what)
        if not any(name.startswith(self.prefix) for name in shapes):
            self.prefix = ""
        return shapes.under(self.prefix)

    def check(self) -> None:
        """Do nothing: the header, read to find out what the file is, has said whether it is complete."""

    def load(self, dtype: torch.dtype) -> nn.Module:
        is_clip = issubclass(self.kind, PreTrainedModel)
        with init_empty_weights(include_buffers=False):  # random weights are never allocated
            model = self.kind(CLIPTextConfig(**self.config)) if is_clip else self.kind(**self.config)
        state = self._convert(self._read(), self.config)
        own = set(model.state_dict())
        if not any(name.startswith("text_model.") for name in own):  # as CLIPTextModel since transformers 5.6
            state = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
        if missing := sorted(own - set(state)):
            raise LLM4GENError(
                f"{self.what} {self.path} lacks {len(missing)} of its weights ({missing[0]}, ...); the file is "
                "incomplete. Download it again."
            )
        if unknown := sorted(name for name in set(state) - own if not name.endswith(_UNUSED)):
            raise LLM4GENError(
                f"{self.what} {self.path} has {len(unknown)} tensors that belong to none of its layers ({unknown[0]}, "
                "...), as quantised files with scales have; expected plain weights in float16, bfloat16 or float32."
            )
        try:
            model.load_state_dict({name: state[name].to(dtype) for name in own}, assign=True)
        except RuntimeError as error:
            raise LLM4GENError(
                f"{self.what} {self.path} has tensors of unexpected shapes ({first_line(error)})."
            ) from error
        return model.eval().requires_grad_(False)

    def _read(self) -> dict[str, Tensor]:
        """Read the model's tensors alone: a checkpoint may hold gigabytes of others, such as an EMA."""
        names = {self.prefix + name: name for name in self.shapes}
        if self.path.suffix.lower() in SAFETENSORS_SUFFIXES:
            with safe_open(str(self.path), framework="pt") as file:
                return {name: file.get_tensor(full) for full, name in names.items()}
        return {names[full]: tensor for full, tensor in load_tensors(self.path).items() if full in names}


def unet_file(path: Path, family: str) -> Part:
    """UNet of a checkpoint, or in a file of its own, as ComfyUI's *Load Diffusion Model* reads it."""

    def convert(tensors: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
        state = convert_ldm_unet_checkpoint({UNET + name: tensor for name, tensor in tensors.items()}, config)
        if len(state) != len(tensors):
            raise LLM4GENError(
                f"UNet {path} holds {len(tensors)} tensors, of which {len(state)} belong to a UNet of {family}; "
                "expected such a UNet and nothing else under its names."
            )
        return state

    return FilePart(UNet2DConditionModel, path, "UNet", UNET, lambda shapes: unet_config(shapes, family), convert)


def vae_file(path: Path, family: str) -> Part:
    """VAE of a checkpoint, or in a file of its own, as ComfyUI's *Load VAE* reads it."""

    def convert(tensors: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
        return convert_ldm_vae_checkpoint({VAE + name: tensor for name, tensor in tensors.items()}, config)

    return FilePart(AutoencoderKL, path, "VAE", VAE, lambda shapes: vae_config(shapes, family), convert)


def _clip_l(path: Path, family: str) -> Part:
    def convert(tensors: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
        return {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in tensors.items()}

    return FilePart(CLIPTextModel, path, "Text encoder", CLIP_L[family], clip_l_config, convert)


def _clip_g(path: Path) -> Part:
    def convert(tensors: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
        if "text_projection.weight" in tensors:  # some tools store it as a linear layer does
            tensors["text_projection"] = tensors.pop("text_projection.weight").T.contiguous()
        model = None  # diffusers asks it only where there is no projection, and then the file is incomplete
        return convert_open_clip_checkpoint(model, tensors, prefix="") if "text_projection" in tensors else {}

    return FilePart(CLIPTextModelWithProjection, path, "Text encoder", CLIP_G, clip_g_config, convert)


# Configurations


def unet_config(shapes: Shapes, family: str) -> Config:
    """Infer the configuration of UNet2DConditionModel.

    All levels must have equally many blocks, and the blocks of a level must be alike.
    """
    if "input_blocks.0.0.weight" not in shapes:
        is_diffusers = any(name.startswith("down_blocks.") for name in shapes)
        raise LLM4GENError(
            f"{shapes.where} is {_other_model(shapes)}; expected the UNet of SD1.5 or SDXL as ComfyUI stores it, or a "
            f"diffusers folder.{' Give the folder that it is in.' if is_diffusers else ''}"
        )
    levels: list[list[tuple[int, int]]] = [[]]  # (channels, transformer blocks) of each residual block
    for block in (f"input_blocks.{number}." for number in range(1, _count(shapes, "input_blocks."))):
        if f"{block}0.op.weight" in shapes:
            levels.append([])
        else:
            levels[-1].append((shapes[f"{block}0.out_layers.3.weight"][0], _depth(shapes, f"{block}1.")))
    output = [_depth(shapes, f"output_blocks.{n}.1.") for n in range(_count(shapes, "output_blocks."))]
    middle = _depth(shapes, "middle_block.1.")
    layers = len(levels[0])
    alike = all(len(level) == layers and len(set(level)) == 1 for level in levels)
    channels, depths = zip(*(level[0] for level in levels), strict=True) if alike else ((), ())
    expected = [depth for depth in reversed(depths) for _ in range(layers + 1)]
    if not alike or output != expected or not middle or (depths[-1] and depths[-1] != middle):
        raise LLM4GENError(
            f"{shapes.where} has {len(levels)} levels whose blocks are not alike, as pruned models such as SSD-1B "
            "have; expected SD1.5, SDXL or a fine-tune of them. Use it as a diffusers folder, which says how it is "
            "built."
        )
    to_k = next(shape for name, shape in shapes.items() if name.endswith("attn2.to_k.weight"))
    projection = next(shape for name, shape in shapes.items() if name.endswith(".1.proj_in.weight"))
    config: Config = {
        "sample_size": SAMPLE_SIZES[family],
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": list(channels),
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)],
        "layers_per_block": layers,
        # the last entry counts for the middle block as well
        "transformer_layers_per_block": [depth or 1 for depth in depths[:-1]] + [middle],
        "cross_attention_dim": to_k[1],
        "use_linear_projection": len(projection) == 2,
        # diffusers' name for the number of heads
        "attention_head_dim": [c // HEAD_WIDTH for c in channels] if family == "sdxl" else HEADS,
    }
    if "label_emb.0.0.weight" in shapes:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": TIME_EMBEDDING,
            "projection_class_embeddings_input_dim": shapes["label_emb.0.0.weight"][1],
        }
    return config


def vae_config(shapes: Shapes, family: str) -> Config:
    """Infer the configuration of AutoencoderKL."""
    if not {"encoder.down.0.block.0.conv2.weight", "decoder.conv_in.weight"} <= set(shapes):
        raise LLM4GENError(
            f"{shapes.where} is not a VAE of SD1.5 or SDXL as ComfyUI stores it (it holds "
            f"{', '.join(sorted(shapes)[:2]) or 'no tensors'}, ...); give such a file, or a diffusers folder."
        )
    levels = _count(shapes, "encoder.down.")
    return {
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "block_out_channels": [shapes[f"encoder.down.{level}.block.0.conv2.weight"][0] for level in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": _count(shapes, "encoder.down.0.block."),
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "scaling_factor": SCALING_FACTORS[family],
    }


def clip_l_config(shapes: Shapes) -> Config:
    """Infer the configuration of CLIPTextModel from transformers' names, which may lack `text_model.`."""
    prefix = "text_model." if any(name.startswith("text_model.") for name in shapes) else ""
    return _clip_config(
        embedding=shapes[f"{prefix}embeddings.token_embedding.weight"],
        positions=shapes[f"{prefix}embeddings.position_embedding.weight"][0],
        layers=_count(shapes, f"{prefix}encoder.layers."),
        hidden=shapes[f"{prefix}encoder.layers.0.mlp.fc1.weight"][0],
        activation="quick_gelu",
    )


def clip_g_config(shapes: Shapes) -> Config:
    """Infer the configuration of CLIPTextModelWithProjection from OpenCLIP's names."""
    return _clip_config(
        embedding=shapes["token_embedding.weight"],
        positions=shapes["positional_embedding"][0],
        layers=_count(shapes, "transformer.resblocks."),
        hidden=shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
        activation="gelu",
    )


def _clip_config(embedding: tuple[int, ...], positions: int, layers: int, hidden: int, activation: str) -> Config:
    vocabulary, width = embedding
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": width // HEAD_WIDTH,
        "max_position_embeddings": positions,
        "hidden_act": activation,
        "projection_dim": width,  # square in both CLIPs
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }


def _count(names: Iterable[str], prefix: str) -> int:
    """Number of different numbers that follow `prefix` in names."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return len({found[1] for name in names if (found := pattern.match(name))})


def _depth(shapes: Shapes, block: str) -> int:
    return _count(shapes, f"{block}transformer_blocks.")
