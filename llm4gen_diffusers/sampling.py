"""Image generation with a base model, alone or with an LLM4GEN adapter: the images of the ComfyUI workflow.

Its images are written as PNG files that contain what generated them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor, nn
from tqdm import tqdm

from llm4gen_core import Adapter, LLM4GENError, LLMEncoder, UNetPart, load_adapter
from llm4gen_core.attention import LAMBDA_MODES, LLMTokens
from llm4gen_core.encoder import folder_spec
from llm4gen_core.entity_guidance import GuidanceOptions

from .attention import install_cross_attention
from .families import Family, TextFeatures, family_class
from .machine import choose_dtype
from .options import GenerationOptions, ModelFiles, PathLike, require_adapter_and_llm
from .schedule import DDIMUniformScheduler, unit_noise

DEFAULTS = GenerationOptions()


class Pipeline:
    """A base model, alone or with an adapter and its LLM.

    CLIP, the adapter, guidance and the sampler compute in float32; the UNet, the VAE and the LLM in the precision
    they were loaded in. ComfyUI does the same.

    The modules may be in training: they are in evaluation mode while images are generated and back afterwards, nothing
    stays attached to them, and no random number but the pipeline's own is drawn.

    Args:
        family: base model with all of its parts.
        adapter: adapter of width d_text.
        llm: LLM of that adapter. Both or neither.
        lambda_mode: one of `LAMBDA_MODES`; None for the adapter's.
        strength: λ of eq. 3; None for the adapter's default. 0 is plain CLIP.
        chunks: chunks of CLIP tokens that a prompt may have. 1 cuts it as diffusers' pipelines do, and as training
            does unless its recipe says more; None, as ComfyUI, takes as many as the longest prompt needs.

    Attributes:
        strength, chunks: as above; may be changed at any time.

    Raises:
        LLM4GENError: only one of adapter and LLM is given, or the mode does not fit.
    """

    def __init__(
        self,
        family: Family,
        adapter: Adapter | None = None,
        llm: LLMEncoder | None = None,
        lambda_mode: str | None = None,
        strength: float | None = None,
        chunks: int | None = None,
    ) -> None:
        require_adapter_and_llm(adapter, llm)
        default = 1.0 if adapter is None else adapter.metadata.default_strength
        self.family = family
        self.adapter = adapter
        self.llm = llm
        self.lambda_mode = _lambda_mode(adapter, lambda_mode)
        self.strength = default if strength is None else strength
        self.chunks = chunks

    @classmethod
    def from_files(cls, files: ModelFiles, device: torch.device | str = "cpu", chunks: int | None = None) -> Pipeline:
        """Load everything from this machine; nothing is downloaded.

        Configuration files and headers are checked before any large file is read. A VAE that overflows in float16
        stays in float32. What the adapter stores of the UNet is added to the UNet.

        Raises:
            LLM4GENError: a file is missing or broken, or two of them do not fit each other.
        """
        dtype = choose_dtype(files.dtype, device)
        kind = family_class(files.family, files.base)
        family = kind.open(files.base, unet=files.unet, clip=files.clip, tokenizer=files.tokenizer)
        adapter = llm = None
        if files.adapter is not None and files.llm is not None:
            adapter = load_adapter(files.adapter)
            _check_files(family, adapter, files.adapter, files.llm)
            _lambda_mode(adapter, files.lambda_mode)
            training = adapter.metadata.training
            if "prediction" in training:
                family.change_schedule(training["prediction"], bool(training.get("zero_terminal_snr")))
        family.load_parts(unet_dtype=dtype, vae_dtype=dtype if kind.vae_in_half else torch.float32)
        if adapter is not None and files.llm is not None:
            if adapter.unet_part is not None:
                add_unet_part(family.unet, adapter.unet_part, f"Adapter {files.adapter}")
            adapter.module.to(device=device, dtype=torch.float32)
            llm = LLMEncoder.from_folder(files.llm, adapter.metadata.llm, dtype, device)
        return cls(family.to(device), adapter, llm, files.lambda_mode, files.strength, chunks)

    @property
    def device(self) -> torch.device:
        return next(self.family.unet.parameters()).device

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], chunks: int | None = None) -> TextFeatures:
        """Encode prompts to the context that the UNet's cross-attention reads.

        Prompts that are encoded together are equally long; both sides of guidance have to be.

        Args:
            prompts: B texts.
            chunks: k chunks of CLIP tokens; None for `Pipeline.chunks`.

        Returns:
            hidden: concat(c_t, λ c'_l) [B, L k + L_llm, d_text] in float32, for L tokens in a chunk, or the context of
            the adapter's other fusion; c_t [B, L k, d_text] without an adapter. pooled: the base's own. llm: for the
            λ modes other than "embedding", where λ is not in `hidden`.
        """
        with _evaluation(*self.family.text_encoders, *([self.adapter.module] if self.adapter else ())):
            text = self.family.encode_text(prompts, self.chunks if chunks is None else chunks)
            if self.adapter is None or self.llm is None:
                return text
            adapted = self.adapter(text.hidden, self.llm.encode(prompts).hidden.to(text.hidden))
            if self.lambda_mode == "embedding" or self.strength == 0:
                return TextFeatures(self.adapter.module.combine(text.hidden, adapted, self.strength), text.pooled)
            inside = LLMTokens(self.lambda_mode, text.hidden.shape[1], self.strength)
            return TextFeatures(self.adapter.module.combine(text.hidden, adapted), text.pooled, inside)

    @torch.no_grad()
    def predict_noise(
        self, latents: Tensor, timestep: int | Tensor, context: TextFeatures, sizes: Tensor | None = None
    ) -> Tensor:
        """Predict the noise in latents; a UNet that predicts velocity is converted.

        Args:
            latents: [B, C, h, w], x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) noise.
            timestep: 0 to 999, one for all or [B].
            context: context of B prompts.
            sizes: see `Family.predict`; None for an uncropped image of the latents' size.

        Returns:
            [B, C, h, w] in float32.
        """
        with self._unet(context.llm):
            sizes = self._sizes(latents, len(latents)) if sizes is None else sizes
            prediction = self.family.predict(latents, timestep, context.hidden, context.pooled, sizes)
        if self.family.prediction_type == "epsilon":
            return prediction
        alpha_bar = self.family.alphas_cumprod.to(prediction)[timestep].reshape(-1, 1, 1, 1)
        return alpha_bar.sqrt() * prediction + (1 - alpha_bar).sqrt() * latents.to(prediction)

    @torch.no_grad()
    def generate(
        self,
        prompt: str,
        options: GenerationOptions = DEFAULTS,
        *,
        seed: int = 0,
        batch: int = 1,
        output: Literal["images", "latents"] = "images",
        progress: bool = True,
    ) -> Tensor:
        """Generate images of one prompt, as ComfyUI's KSampler does with `ddim` and `ddim_uniform`.

        Args:
            prompt: text, taken literally, as is the negative prompt.
            options: size, steps, guidance scale and negative prompt.
            seed: 0 to 2**64 - 1.
            batch: number of images, all from one draw of noise.
            output: "latents" leaves out the VAE.
            progress: show a bar on a terminal.

        Returns:
            images [batch, 3, height, width] from 0 to 1, or latents [batch, C, h, w]; float32, on the CPU.
        """
        texts = [options.negative, prompt] if options.guidance > 1 else [prompt]
        count = self.chunks_for(texts)
        sides = [self.encode([text], count) for text in texts]
        noise = unit_noise(seed, (batch, *self._latent_shape(options)))
        latents = self._denoise(noise, sides, options, progress)
        return latents.cpu() if output == "latents" else self.family.decode_latents(latents).cpu()

    @torch.no_grad()
    def generate_prompts(
        self,
        prompts: Sequence[str],
        options: GenerationOptions = DEFAULTS,
        *,
        seeds: Sequence[int],
        batch: int = 64,
        progress: bool = True,
    ) -> Tensor:
        """Generate an image of each prompt, as `generate` does with the prompt's own seed, in batches.

        Without `Pipeline.chunks`, prompts share a batch if they need equally many chunks, so that no prompt changes
        another's image.

        Args:
            prompts: N texts, taken literally.
            options: options of all images.
            seeds: one for each prompt.
            batch: number of prompts in a batch.
            progress: show a bar on a terminal.

        Returns:
            images [N, 3, height, width] from 0 to 1, in the order of the prompts; float32, on the CPU.

        Raises:
            LLM4GENError: there is no prompt, not one seed for each, or `batch` is not at least 1.
        """
        if batch < 1:
            raise LLM4GENError(f"Batch is {batch}; expected a whole number of at least 1.")
        if isinstance(prompts, str) or not prompts or len(prompts) != len(seeds):
            raise LLM4GENError(
                f"There are {len(seeds)} seeds for the prompts {prompts!r:.80}; expected a list of at least one text "
                "and a seed for each."
            )
        shape = self._latent_shape(options)
        negative = [options.negative] if options.guidance > 1 else []
        groups: dict[int, list[int]] = {}
        for number, prompt in enumerate(prompts):
            groups.setdefault(self.chunks_for([prompt, *negative]), []).append(number)
        scale = self.family.pixels_per_latent
        images = torch.empty(len(prompts), 3, shape[1] * scale, shape[2] * scale)
        with tqdm(total=len(prompts), unit="image", disable=None if progress else True) as bar:
            for count, numbers in groups.items():
                common = [self.encode(negative, count)] if negative else []
                for first in range(0, len(numbers), batch):
                    part = numbers[first : first + batch]
                    noise = torch.cat([unit_noise(seeds[number], (1, *shape)) for number in part])
                    sides = [*common, self.encode([prompts[number] for number in part], count)]
                    latents = self._denoise(noise, sides, options, progress=False)
                    images[part] = self.family.decode_latents(latents).cpu()
                    bar.update(len(part))
        return images

    def chunks_for(self, prompts: Sequence[str]) -> int:
        """Number of chunks of CLIP tokens for prompts that are encoded to the same length."""
        return self.chunks or max(map(self.family.text_chunks, prompts))

    def _latent_shape(self, options: GenerationOptions) -> tuple[int, int, int]:
        """[C, h, w] of an image."""
        height, width = (side or self.family.native_size for side in (options.height, options.width))
        scale = self.family.pixels_per_latent
        return self.family.latent_channels, height // scale, width // scale

    def _sizes(self, latents: Tensor, count: int) -> Tensor:
        """Size condition [count, 6] of uncropped images with latents [..., h, w]; see `Family.predict`."""
        height, width = (side * self.family.pixels_per_latent for side in latents.shape[-2:])
        return torch.tensor([[height, width, 0, 0, height, width]]).expand(count, -1)

    def _denoise(
        self, noise: Tensor, sides: Sequence[TextFeatures], options: GenerationOptions, progress: bool
    ) -> Tensor:
        """Sample latents [B, C, h, w] from unit noise of that shape.

        Args:
            noise: noise, on the CPU.
            sides: contexts of the negative and the positive prompts, or of the positive ones alone; each of B prompts
                or of one for all.
            options, progress: see `generate`.
        """
        family, count = self.family, len(noise)
        scheduler = DDIMUniformScheduler.over(family.base.schedule)
        latents = scheduler.first_latents(noise, options.steps).to(self.device)
        # the negative prompt comes first, as in diffusers
        text = torch.cat([side.hidden.expand(count, -1, -1) for side in sides])
        pools = [side.pooled.expand(count, -1) for side in sides if side.pooled is not None]
        pooled = torch.cat(pools) if pools else None
        sizes = self._sizes(noise, len(text))
        [inside] = {side.llm for side in sides}
        with self._unet(inside):
            # disable=None: shown on a terminal, silent in a script
            for timestep in tqdm(scheduler.timesteps, disable=None if progress else True):
                batched = latents.repeat(len(sides), 1, 1, 1)
                prediction = family.predict(batched, timestep, text, pooled, sizes)
                if len(sides) == 2:
                    negative_side, positive_side = prediction.chunk(2)
                    prediction = negative_side + options.guidance * (positive_side - negative_side)
                latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
        return latents

    @contextmanager
    def _unet(self, inside: LLMTokens | None) -> Iterator[None]:
        """Make the UNet ready to predict, with λ in its attention; afterwards it is as it was."""
        unet = self.family.unet
        with _evaluation(unet), _one_precision(unet):
            if self.lambda_mode == "embedding":
                yield
                return
            before = dict(unet.attn_processors)
            install_cross_attention(unet, GuidanceOptions(alpha=0)).llm = inside
            try:
                yield
            finally:
                unet.set_attn_processor(before)


def add_unet_part(unet: nn.Module, part: UNetPart, what: str) -> None:
    """Add what an adapter stores of the UNet to the UNet's weights, computed in float32.

    Args: see `check_unet_part`.

    Raises:
        LLM4GENError: the UNet lacks a layer, or has it in another size; nothing is changed then.
    """
    weights = check_unet_part(unet, part, what)
    with torch.no_grad():
        for name, delta in part.deltas():
            weight = weights[name]
            weight.copy_(weight.float() + delta.to(weight.device).view_as(weight))


def check_unet_part(unet: nn.Module, part: UNetPart, what: str) -> dict[str, Tensor]:
    """Find the layers that an adapter changes.

    Args:
        unet: UNet2DConditionModel that the adapter was trained on, or a fine-tune of it.
        part: what the adapter stores of the UNet.
        what: name of the adapter, for errors.

    Returns:
        Weight of each of `part.modules`, [out, in], or [out, in, 1, 1] of a convolution.

    Raises:
        LLM4GENError: the UNet lacks a layer, or has it in another size.
    """
    layers = dict(unet.named_modules())
    weights = {}
    for name in part.modules:
        weight = getattr(layers.get(name), "weight", None)
        size = None if weight is None else tuple(weight.shape[:2] if set(weight.shape[2:]) <= {1} else weight.shape)
        if weight is None or size != part.shape(name):
            found = "lacks it" if weight is None else f"has it as {list(weight.shape)}"
            raise LLM4GENError(
                f"{what} changes the UNet's layer {name} {list(part.shape(name))}, but this UNet {found}; use the base "
                "that the adapter was trained for."
            )
        weights[name] = weight
    return weights


@contextmanager
def _evaluation(*modules: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode; every submodule goes back to its mode afterwards."""
    training = [module for top in modules for module in top.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _one_precision(unet: nn.Module) -> torch.autocast:
    """Autocast to half precision for a UNet that is frozen in it and keeps trained weights in float32."""
    dtypes = {parameter.dtype: parameter.device.type for parameter in unet.parameters()}
    half = next((dtype for dtype in dtypes if dtype in (torch.float16, torch.bfloat16)), None)
    device = next(iter(dtypes.values()))
    return torch.autocast(device, dtype=half, enabled=half is not None and len(dtypes) > 1)


def _lambda_mode(adapter: Adapter | None, wanted: str | None) -> str:
    """Return the wanted mode, or the adapter's, if the adapter can be used with it."""
    own = adapter.metadata.lambda_mode if adapter is not None else "embedding"
    mode = own if wanted is None else wanted
    if mode not in LAMBDA_MODES:
        raise LLM4GENError(f"The λ mode is {mode!r}; expected one of {', '.join(LAMBDA_MODES)}.")
    if wanted is not None and adapter is None:
        raise LLM4GENError(f"The λ mode is {mode!r}, but there is no adapter; give an adapter and its LLM.")
    if mode != "embedding" and adapter is not None and len(adapter.config.context_layout) == 1:
        raise LLM4GENError(
            f"The λ mode is {mode!r}, but the adapter's fusion {adapter.config.fusion!r} leaves no CLIP tokens in the "
            "context beside the LLM's; expected 'embedding'."
        )
    return mode


def _check_files(family: Family, adapter: Adapter, path: PathLike, llm: PathLike) -> None:
    """Raise LLM4GENError unless base, adapter and LLM fit each other, before weights of gigabytes are read."""
    config, metadata, found = adapter.config, adapter.metadata, folder_spec(Path(llm))
    if config.d_text != family.d_text:
        raise LLM4GENError(
            f"Adapter {path} is made for a text context of width {config.d_text}, but base {family.base.path} has "
            f"{family.d_text}; use an adapter that was trained for {family.title}."
        )
    if metadata.base_family not in (None, family.name):
        raise LLM4GENError(
            f"Adapter {path} was trained for {metadata.base_family}; expected {family.name}. Use an adapter for "
            f"{family.title}."
        )
    if metadata.llm and (reason := metadata.llm.mismatch(found)):
        raise LLM4GENError(
            f"LLM {llm} is {found.label}, but adapter {path} was trained with {metadata.llm.label}: {reason}. "
            "Use the LLM of the adapter."
        )
    if found.width != config.d_llm:
        raise LLM4GENError(
            f"LLM {llm} has hidden states of width {found.width}, but adapter {path} expects {config.d_llm}; use the "
            "LLM that the adapter was trained with."
        )


METADATA_KEY = "llm4gen"
"""PNG text with all settings as JSON. Not "prompt" or "parameters", which ComfyUI would read as a workflow."""


def check_output(output: str | os.PathLike[str]) -> None:
    """Raise LLM4GENError unless `save_png` can write to `output`."""
    path = Path(output)
    if path.suffix.lower() in (".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"):
        raise LLM4GENError(f"Output {path} ends in {path.suffix}; expected a name ending in .png, or a folder.")
    folder = path.parent if _is_png(path) else path
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise LLM4GENError(f"Output {path} is inside {existing}, which is a file; choose another folder.")
    if not os.access(existing, os.W_OK):
        raise LLM4GENError(f"Output {path} cannot be written: no permission for {existing}; choose another folder.")


def save_png(image: Tensor, output: str | os.PathLike[str], settings: Mapping[str, Any]) -> Path:
    """Write an image under the next free name; an existing file is never touched.

    Args:
        image: [3, H, W] from 0 to 1.
        output: name ending in .png, numbered from the second file on, or a folder for `llm4gen_00001.png`, ...
        settings: how the image was generated (JSON values), with "prompt"; stored as PNG text.

    Returns:
        The file.
    """
    text = PngInfo()
    text.add_itxt("Description", str(settings["prompt"]))
    text.add_itxt("Software", "LLM4GEN")
    text.add_itxt(METADATA_KEY, json.dumps(dict(settings), ensure_ascii=False))
    for name in _names(Path(output)):
        name.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = name.open("xb")
        except FileExistsError:
            continue
        with file:
            to_image(image).save(file, format="PNG", pnginfo=text)
        return name
    raise AssertionError("the numbers never end")


def to_image(image: Tensor) -> Image.Image:
    """Convert [3, H, W] from 0 to 1 to RGB; truncated, not rounded, as in ComfyUI's SaveImage, so both are equal."""
    return Image.fromarray((image.permute(1, 2, 0).numpy() * 255.0).clip(0, 255).astype(np.uint8))


def _is_png(path: Path) -> bool:
    return path.suffix.lower() == ".png"


def _names(path: Path) -> Iterator[Path]:
    if _is_png(path):
        yield path
        yield from (path.with_stem(f"{path.stem}_{number:05}") for number in count(2))
    yield from (path / f"llm4gen_{number:05}.png" for number in count(1))
