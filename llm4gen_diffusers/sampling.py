"""Painting with a base model, alone or with an LLM4GEN adapter: the image of the ComfyUI workflow."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from llm4gen_core import Adapter, LLM4GENError, LLMEncoder, UNetPart, load_adapter
from llm4gen_core.encoder import folder_spec
from llm4gen_core.entity_guidance import GuidanceOptions
from llm4gen_core.lambda_modes import LAMBDA_MODES, LLMTokens

from .attention import install_cross_attention
from .families import Family, TextFeatures, family_class
from .schedule import DDIMUniformScheduler, unit_noise

PathLike = str | os.PathLike[str]


class Pipeline:
    """A base model, alone or with an adapter and its LLM.

    CLIP and the adapter compute in float32, and so do guidance and the sampler; the UNet, the VAE and the LLM in
    the precision they were loaded in. ComfyUI divides the work in the same way.

    The modules may be in training: they are put into evaluation mode while they paint and back afterwards, nothing
    is attached to them, and no random number but the pipeline's own is drawn.

    Args:
        family: with all of its parts.
        adapter: of width d_text.
        llm: the LLM of that adapter. Both or neither.
        lambda_mode: one of `LAMBDA_MODES`; None for the adapter's.

    Raises:
        LLM4GENError: there is an adapter without an LLM, or the other way round, or a mode that does not fit.
    """

    def __init__(
        self,
        family: Family,
        adapter: Adapter | None = None,
        llm: LLMEncoder | None = None,
        lambda_mode: str | None = None,
    ) -> None:
        _require_both_or_neither(adapter, llm)
        self.family = family
        self.adapter = adapter
        self.llm = llm
        self.lambda_mode = _lambda_mode(adapter, lambda_mode)

    @classmethod
    def from_files(
        cls,
        base: PathLike,
        *,
        family: str | None = None,
        unet: PathLike | None = None,
        adapter: PathLike | None = None,
        llm: PathLike | None = None,
        clip: PathLike | None = None,
        tokenizer: PathLike | None = None,
        lambda_mode: str | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Pipeline:
        """Load everything from this machine; nothing is downloaded.

        What does not fit together is found from configuration files and headers, before any large file is read.

        Args:
            base, unet, clip, tokenizer: see `Family.load`.
            family: name of the base's; None for what the base says.
            adapter: any file that `load_adapter` reads. What it stores of the UNet is added to the UNet.
            llm: Hugging Face folder of the LLM.
            lambda_mode: one of `LAMBDA_MODES`; None for the adapter's.
            dtype: of UNet, VAE and LLM; a VAE that does not compute in float16 stays in float32.
            device: for everything.

        Raises:
            LLM4GENError: a file is missing or broken, or two of them do not belong together.
        """
        _require_both_or_neither(adapter, llm)
        opened = family_class(family, base).open(base, unet=unet, clip=clip, tokenizer=tokenizer)
        loaded_adapter = None
        if adapter is not None and llm is not None:
            loaded_adapter = load_adapter(adapter)
            _check_adapter(loaded_adapter, Path(adapter), opened)
            _check_llm(Path(llm), loaded_adapter, Path(adapter))
            training = loaded_adapter.metadata.training
            if "prediction" in training:
                opened.change_schedule(training["prediction"], bool(training.get("zero_terminal_snr")))
        vae_dtype = dtype if opened.vae_in_half else torch.float32
        loaded = opened.load_parts(unet_dtype=dtype, vae_dtype=vae_dtype)
        if loaded_adapter is None or llm is None:
            return cls(loaded.to(device), lambda_mode=lambda_mode)
        if loaded_adapter.unet_part is not None:
            add_unet_part(loaded.unet, loaded_adapter.unet_part, f"Adapter {adapter}")
        loaded_adapter.module.to(device=device, dtype=torch.float32)
        encoder = LLMEncoder.from_folder(llm, loaded_adapter.metadata.llm, dtype, device)
        return cls(loaded.to(device), loaded_adapter, encoder, lambda_mode)

    @property
    def device(self) -> torch.device:
        return next(self.family.unet.parameters()).device

    def default_strength(self) -> float:
        """λ that the adapter was made for; 1 if it does not say."""
        return self.adapter.metadata.default_strength if self.adapter else 1.0

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], strength: float | None = None, chunks: int | None = None) -> TextFeatures:
        """The context that the UNet's cross-attention reads.

        Prompts that are encoded together come out equally long; both sides of guidance have to be.

        Args:
            prompts: B texts.
            strength: λ of eq. 3; None for the adapter's default. 0 is plain CLIP.
            chunks: k, of CLIP tokens. 1 cuts a prompt as diffusers' pipelines do, and training unless its recipe
                says more; None, as ComfyUI, takes as many as the longest prompt needs.

        Returns:
            hidden: concat(c_t, λ c'_l) [B, L k + L_llm, d_text] in float32, L tokens a chunk, or as the adapter's
            fusion has it; c_t [B, L k, d_text] without an adapter. pooled: the base's own. llm: of the λ modes beside
            "embedding", where λ is not in `hidden`.
        """
        with _evaluation(*self.family.text_encoders, *([self.adapter.module] if self.adapter else ())):
            text = self.family.encode_text(prompts, chunks)
            if self.adapter is None or self.llm is None:
                return text
            adapted = self.adapter(text.hidden, self.llm.encode(prompts).hidden.to(text.hidden))
            strength = self.default_strength() if strength is None else strength
            if self.lambda_mode == "embedding" or strength == 0:
                return TextFeatures(self.adapter.module.combine(text.hidden, adapted, strength), text.pooled)
            inside = LLMTokens(self.lambda_mode, text.hidden.shape[1], strength)
            return TextFeatures(self.adapter.module.combine(text.hidden, adapted), text.pooled, inside)

    @torch.no_grad()
    def predict_noise(
        self, latents: Tensor, timestep: int | Tensor, context: TextFeatures, sizes: Tensor | None = None
    ) -> Tensor:
        """The noise in `latents`, as the UNet sees it; of one that predicts velocity, what that says of the noise.

        Args:
            latents: [B, C, h, w], x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) noise.
            timestep: 0 to 999, one for all or [B].
            context: of B prompts.
            sizes: see `Family.predict`; None is an uncropped image of the latents' size.

        Returns:
            [B, C, h, w] in float32.
        """
        if sizes is None:
            height, width = (side * self.family.pixels_per_latent for side in latents.shape[-2:])
            sizes = torch.tensor([[height, width, 0, 0, height, width]]).expand(len(latents), -1)
        with self._unet(context.llm):
            prediction = self.family.predict(latents, timestep, context.hidden, context.pooled, sizes)
        if self.family.prediction_type == "epsilon":
            return prediction
        alpha_bar = self.family.alphas_cumprod.to(prediction)[timestep].reshape(-1, 1, 1, 1)
        return alpha_bar.sqrt() * prediction + (1 - alpha_bar).sqrt() * latents.to(prediction)

    @torch.no_grad()
    def generate(
        self,
        prompt: str,
        negative: str = "",
        *,
        seed: int = 0,
        steps: int = 50,
        guidance: float = 7.5,
        width: int | None = None,
        height: int | None = None,
        batch: int = 1,
        strength: float | None = None,
        chunks: int | None = None,
        output: Literal["images", "latents"] = "images",
        progress: bool = True,
    ) -> Tensor:
        """Paint as ComfyUI's KSampler does with `ddim` and `ddim_uniform`.

        Args:
            prompt, negative: texts, taken literally.
            seed: 0 to 2**64 - 1.
            steps: where it does not divide 1000, more steps are made; see `schedule`.
            guidance: scale of classifier-free guidance; 1 switches it off.
            width, height: pixels, multiples of 8; None for the base's own size.
            batch: images of the same prompt, from one draw of noise.
            strength, chunks: see `encode`.
            output: "latents" leaves out the VAE.
            progress: show a bar on a terminal.

        Returns:
            images [batch, 3, height, width] from 0 to 1, or latents [batch, C, h, w]; float32, on the CPU.
        """
        shape = self._latent_shape(width, height)
        texts = [negative, prompt] if guidance > 1 else [prompt]
        count = max(map(self.family.text_chunks, texts)) if chunks is None else chunks
        sides = [self.encode([text], strength, count) for text in texts]
        latents = self._denoise(unit_noise(seed, (batch, *shape)), sides, steps, guidance, progress)
        return latents.cpu() if output == "latents" else self.family.decode_latents(latents).cpu()

    @torch.no_grad()
    def generate_prompts(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        negative: str = "",
        steps: int = 50,
        guidance: float = 7.5,
        width: int | None = None,
        height: int | None = None,
        strength: float | None = None,
        chunks: int | None = None,
        batch: int = 64,
        progress: bool = True,
    ) -> Tensor:
        """Paint many prompts, each as `paint` would with a seed of its own, several at a time.

        Args:
            prompts: N texts, taken literally.
            seeds: one for each prompt.
            negative: of all prompts.
            steps, guidance, width, height, strength: see `paint`.
            chunks: see `encode`. With None, prompts are painted together that need equally many chunks: what others
                need changes no image.
            batch: prompts that are painted at once.
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
        shape = self._latent_shape(width, height)
        groups: dict[int, list[int]] = {}
        least = self.family.text_chunks(negative) if guidance > 1 else 1
        for number, prompt in enumerate(prompts):
            count = max(least, self.family.text_chunks(prompt)) if chunks is None else chunks
            groups.setdefault(count, []).append(number)
        scale = self.family.pixels_per_latent
        images = torch.empty(len(prompts), 3, shape[1] * scale, shape[2] * scale)
        with tqdm(total=len(prompts), unit="image", disable=None if progress else True) as bar:
            for count, numbers in groups.items():
                common = [self.encode([negative], strength, count)] if guidance > 1 else []
                for first in range(0, len(numbers), batch):
                    part = numbers[first : first + batch]
                    noise = torch.cat([unit_noise(seeds[number], (1, *shape)) for number in part])
                    sides = [*common, self.encode([prompts[number] for number in part], strength, count)]
                    latents = self._denoise(noise, sides, steps, guidance, progress=False)
                    images[part] = self.family.decode_latents(latents).cpu()
                    bar.update(len(part))
        return images

    def _latent_shape(self, width: int | None, height: int | None) -> tuple[int, int, int]:
        """[C, h, w] of an image of that many pixels; None for the base's own size."""
        family, scale = self.family, self.family.pixels_per_latent
        return (
            family.latent_channels,
            (height or family.native_size) // scale,
            (width or family.native_size) // scale,
        )

    def _denoise(
        self, noise: Tensor, sides: Sequence[TextFeatures], steps: int, guidance: float, progress: bool
    ) -> Tensor:
        """Latents [B, C, h, w] from unit noise of that shape.

        Args:
            noise: on the CPU.
            sides: contexts of the negative and the positive prompts, or of the positive ones alone; each of B prompts
                or of one for all.
            steps, guidance, progress: see `paint`.
        """
        family, count = self.family, len(noise)
        scheduler = DDIMUniformScheduler.over(family.base.schedule)
        latents = scheduler.first_latents(noise, steps).to(self.device)
        # the negative prompt comes first, as in diffusers
        text = torch.cat([side.hidden.expand(count, -1, -1) for side in sides])
        pools = [side.pooled.expand(count, -1) for side in sides if side.pooled is not None]
        pooled = torch.cat(pools) if pools else None
        height, width = (side * family.pixels_per_latent for side in noise.shape[-2:])
        sizes = torch.tensor([[height, width, 0, 0, height, width]]).expand(len(text), -1)
        [inside] = {side.llm for side in sides}
        with self._unet(inside):
            # disable=None: shown on a terminal, silent in a script
            for timestep in tqdm(scheduler.timesteps, disable=None if progress else True):
                batched = latents.repeat(len(sides), 1, 1, 1)
                prediction = family.predict(batched, timestep, text, pooled, sizes)
                if len(sides) == 2:
                    negative_side, positive_side = prediction.chunk(2)
                    prediction = negative_side + guidance * (positive_side - negative_side)
                latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
        return latents

    @contextmanager
    def _unet(self, inside: LLMTokens | None) -> Iterator[None]:
        """The UNet ready to predict, with λ in its attention; afterwards it is as it was."""
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
    """Add what an adapter stores of the UNet to the UNet's weights, in float32 and then in the weights' precision.

    Args: as of `check_unet_part`.

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
        part: of the adapter.
        what: the adapter, for messages.

    Returns:
        The weight of every one of `part.modules`, [out, in], or [out, in, 1, 1] of a convolution.

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
def _evaluation(*modules: nn.Module | None) -> Iterator[None]:
    """Evaluation mode inside; every submodule goes back to the mode that it was in."""
    training = [module for top in modules if top is not None for module in top.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _one_precision(unet: nn.Module) -> torch.autocast:
    """Half precision for all of a UNet that is frozen in it and keeps what is trained in float32, as in training."""
    dtypes = {parameter.dtype: parameter.device.type for parameter in unet.parameters()}
    half = next((dtype for dtype in dtypes if dtype in (torch.float16, torch.bfloat16)), None)
    device = next(iter(dtypes.values()))
    return torch.autocast(device, dtype=half, enabled=half is not None and len(dtypes) > 1)


def _require_both_or_neither(adapter: object, llm: object) -> None:
    if (adapter is None) != (llm is None):
        given, missing = ("an LLM", "adapter") if adapter is None else ("an adapter", "LLM")
        raise LLM4GENError(
            f"There is {given} but no {missing}; LLM4GEN needs both. Give the {missing} as well, or leave out both "
            "for the plain base."
        )


def _check_adapter(adapter: Adapter, path: Path, family: Family) -> None:
    if adapter.config.d_text != family.d_text:
        raise LLM4GENError(
            f"Adapter {path} is made for a text context of width {adapter.config.d_text}, but base {family.base.path} "
            f"has {family.d_text}; use an adapter that was trained for {family.title}."
        )
    metadata = adapter.metadata
    if metadata.base_family not in (None, family.name):
        raise LLM4GENError(
            f"Adapter {path} was trained for {metadata.base_family}; expected {family.name}. Use an adapter for "
            f"{family.title}."
        )


def _lambda_mode(adapter: Adapter | None, wanted: str | None) -> str:
    """The mode that is asked for, or the adapter's."""
    own = adapter.metadata.lambda_mode if adapter is not None else "embedding"
    mode = own if wanted is None else wanted
    if mode not in LAMBDA_MODES:
        raise LLM4GENError(f"The λ mode is {mode!r}; expected one of {', '.join(LAMBDA_MODES)}.")
    if wanted is not None and adapter is None:
        raise LLM4GENError(f"The λ mode is {mode!r}, but there is no adapter; give an adapter and its LLM.")
    if mode != "embedding" and adapter is not None and len(adapter.config.context_layout) == 1:
        raise LLM4GENError(
            f"The λ mode is {mode!r}, but the adapter's fusion {adapter.config.fusion!r} leaves no CLIP tokens that "
            "the LLM's could stand beside; expected 'embedding'."
        )
    return mode


def _check_llm(folder: Path, adapter: Adapter, path: Path) -> None:
    """What `LLMEncoder` would find too, but before weights of gigabytes are read."""
    found = folder_spec(folder)
    expected = adapter.metadata.llm
    reason = expected.mismatch(found) if expected else None
    if expected and reason:
        raise LLM4GENError(
            f"LLM {folder} is {found.label}, but adapter {path} was trained with {expected.label}: {reason}. "
            "Use the LLM of the adapter."
        )
    if found.width != adapter.config.d_llm:
        raise LLM4GENError(
            f"LLM {folder} has hidden states of width {found.width}, but adapter {path} expects "
            f"{adapter.config.d_llm}; use the LLM that the adapter was trained with."
        )
