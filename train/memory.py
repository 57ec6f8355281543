"""Estimate of the accelerator memory of a recipe, without an accelerator: models of the real sizes, no data.

PyTorch's fake tensors have a shape, a precision and a device, and no storage. The forward pass of `TrainingLoss` runs
on them, so that the tensors saved for the backward pass are counted, not guessed, and nothing is loaded.
"""

from __future__ import annotations

import copy
import dataclasses
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from llm4gen_core import CrossAdapter
from llm4gen_core.entity_guidance import GuidanceTargets
from llm4gen_diffusers.families import Family
from llm4gen_diffusers.machine import DTYPES

from .loss import StepInputs, TrainingLoss
from .models import Models
from .optimizers import optimizer_state_bytes

DEVICE = "cuda"
"""Device of the fake tensors; the accelerator need not exist."""


@dataclass(frozen=True)
class Part:
    """A model, or a LoRA of it.

    Attributes:
        name: "cam", "unet", "unet lora", "vae", "text encoders" or "llm".
        parameters, trained: number of parameters, and of trained ones.
        weight_bytes: of all parameters, in the precision that the trainer keeps them in.
    """

    name: str
    parameters: int
    trained: int
    weight_bytes: int


@dataclass(frozen=True)
class Memory:
    """Bytes on the accelerator of one process at the peak of a step.

    Their sum is an upper bound: with one micro-batch a step, gradients are allocated while activations are freed.

    Attributes:
        weights: all models, trained or frozen.
        gradients: of the trained parameters.
        buckets: DDP's copy of the gradients; 0 for one process.
        optimizer: state of the optimizer.
        ema: moving average; 0 if there is none or if it is kept on the CPU.
        copies: weights in the precision of autocast.
        activations: of a micro-batch, saved for the backward pass.
        guidance: part of `activations` that only entity guidance needs.
        recomputed: with gradient checkpointing, activations of the largest block while it is recomputed.
        workspace: temporary tensors of the forward pass beside that.
        encoding: memory of the VAE while it encodes a micro-batch of images, beyond `activations` to `workspace`, which
            do not exist at that time.
    """

    weights: int
    gradients: int
    buckets: int
    optimizer: int
    ema: int
    copies: int
    activations: int
    guidance: int
    recomputed: int
    workspace: int
    encoding: int

    @property
    def total(self) -> int:
        return sum(getattr(self, part.name) for part in dataclasses.fields(self) if part.name != "guidance")


@dataclass(frozen=True)
class Estimate:
    """Models and memory of a recipe.

    Attributes:
        parts: models of the recipe.
        memory: of one process.
        trained_bytes: trained weights, as a checkpoint stores them.
        optimizer_bytes: state of the optimizer.
        ema_bytes: moving average, on either device.
    """

    parts: list[Part]
    memory: Memory
    trained_bytes: int
    optimizer_bytes: int
    ema_bytes: int

    @property
    def checkpoint_bytes(self) -> int:
        return self.trained_bytes + self.optimizer_bytes + self.ema_bytes


@dataclass(frozen=True)
class Shapes:
    """Sizes of a micro-batch that do not follow from the models.

    Attributes:
        image: height and width in pixels.
        columns, pairs: C and P of `GuidanceTargets`.
    """

    image: tuple[int, int]
    columns: int
    pairs: int


def estimate(models: Models, shapes: Shapes, processes: int = 1) -> Estimate:
    """Count parameters and bytes of a recipe, as the trainer would build it.

    Args:
        models: from `open_models` without parts; not changed.
        shapes: of a micro-batch.
        processes: number of processes that share the samples.
    """
    recipe = models.recipe
    fake = FakeRun(models)
    trained = list(fake.trained.named_parameters().values())
    parts = fake.parts()
    optimizer = optimizer_state_bytes(recipe.optimizer, trained)
    size = recipe.train.micro_batch
    with fake.without_data():
        passes = _Passes(fake, shapes)
        activations = passes.measure(size)
        encoding = 0 if recipe.data.cache.latents else _encoding_bytes(fake.family, size, shapes.image)
    trained_bytes = sum(_bytes(parameter) for parameter in trained)
    ema = trained_bytes if recipe.train.ema.enabled else 0
    during = activations.copies + activations.kept + activations.recomputed + activations.workspace
    memory = Memory(
        weights=sum(part.weight_bytes for part in parts),
        gradients=trained_bytes,
        buckets=trained_bytes if processes > 1 else 0,
        optimizer=optimizer,
        ema=ema if recipe.train.ema.device == "accelerator" else 0,
        copies=activations.copies,
        activations=activations.kept,
        guidance=activations.guidance,
        recomputed=activations.recomputed,
        workspace=activations.workspace,
        encoding=max(0, encoding - during),
    )
    return Estimate(parts, memory, trained_bytes, optimizer, ema)


# Models without data


class FakeRun:
    """Models of a recipe without data, made from their configurations as the trainer sets them up.

    Attributes:
        models: source of the configurations.
        family: with all of its modules.
        adapter, llm: None without one.
        trained: parameters that are trained.
        training_loss: in training mode.
    """

    def __init__(self, models: Models) -> None:
        self.models = models
        recipe, model = models.recipe, models.recipe.model
        family = self.family = copy.copy(models.family)
        base = family.base
        # On the device meta first: modules of fake tensors cannot change their precision.
        with torch.device("meta"), _StaysOnMeta():
            family.unet = _make(UNet2DConditionModel, base.unet.config, DTYPES[model.unet_dtype])
            family.vae = _make(family.vae_kind, base.vae.config, DTYPES[model.vae_dtype])
            family.text_encoders = tuple(
                _make(kind, part.config, DTYPES[model.text_dtype])
                for kind, part in zip(family.text_classes, base.text, strict=True)
            )
            self.llm = None if model.llm is None else _make_llm(Path(model.llm), DTYPES[model.llm_dtype])
            self.adapter = None if models.adapter is None else CrossAdapter(models.adapter.config)
            fake = dataclasses.replace(models, family=family, adapter=self.adapter, start=None)
            self.trained = fake.trained_parts()
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        with self.without_data():
            for module in (family.unet, family.vae, *family.text_encoders, self.llm, self.adapter):
                if module is not None:
                    _replace_tensors(module)
        if models.trains_text:
            family.tokenizers = base.load_tokenizers()
            if recipe.train.gradient_checkpointing:
                for encoder in family.text_encoders:
                    encoder.gradient_checkpointing_enable()
        self.training_loss = TrainingLoss(fake).train()

    @contextmanager
    def without_data(self) -> Iterator[None]:
        """Make tensors without data, and compute attention in a fused kernel, as an accelerator does."""
        with self._mode, torch.device(DEVICE), _FusedAttention():
            yield

    def parts(self) -> list[Part]:
        """All models, the trained ones first."""
        family = self.family
        lora = [p for name, p in family.unet.named_parameters() if "lora_" in name]
        own = [p for name, p in family.unet.named_parameters() if "lora_" not in name]
        named: list[tuple[str, Iterable[Tensor]]] = [
            ("cam", self.adapter.parameters() if self.adapter is not None else ()),
            ("unet lora", lora),
            ("unet", own),
            ("text encoders", [p for encoder in family.text_encoders for p in encoder.parameters()]),
            ("llm", self.llm.parameters() if self.llm is not None else ()),
            ("vae", family.vae.parameters()),
        ]
        return [_part(name, list(parameters)) for name, found in named if (parameters := list(found))]

    def inputs(self, batch: int, shapes: Shapes, guided: bool) -> StepInputs:
        """Inputs of the training loss for a micro-batch of that many samples."""
        family = self.family
        factor = family.pixels_per_latent
        latents = torch.empty(batch, family.latent_channels, shapes.image[0] // factor, shapes.image[1] // factor)
        form = {
            name: torch.empty(batch, *shape, dtype=dtype) for name, (shape, dtype) in text_form(self.models).items()
        }
        targets = GuidanceTargets(
            columns=torch.zeros(batch, shapes.columns, dtype=torch.long),
            attribute=torch.empty(batch, shapes.pairs, shapes.columns),
            entity=torch.empty(batch, shapes.pairs, shapes.columns),
            pairs=torch.ones(batch, shapes.pairs, dtype=torch.bool),
            others=torch.zeros(batch, shapes.pairs, shapes.pairs, dtype=torch.bool),
        )
        return StepInputs(
            latents=latents,
            noise=torch.empty_like(latents),
            timesteps=torch.zeros(batch, dtype=torch.long),
            text=form.get("clip"),
            pooled=form.get("pooled"),
            llm=form.get("llm"),
            sizes=torch.empty(batch, 6),
            targets=targets if guided else None,
            captions=[""] * batch,
        )


def text_form(models: Models) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and precision of `Models.features` of one caption, which the text cache stores."""
    recipe, family = models.recipe, models.family
    form: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    if not models.trains_text:
        form["clip"] = ((recipe.data.clip_chunks * family.clip_length, family.d_text), torch.float32)
        if family.base.unet.config.get("addition_embed_type") == "text_time":
            form["pooled"] = ((family.base.text[-1].config["projection_dim"],), torch.float32)
    if models.spec is not None:
        form["llm"] = ((models.spec.max_length, models.spec.width), DTYPES[recipe.model.llm_dtype])
    return form


class _StaysOnMeta(TorchDispatchMode):
    """Keeps copies of meta tensors on meta; the trainer copies weights to the CPU whose change is exported."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default:
            kwargs = {**kwargs, "device": torch.device("meta")}
        return func(*args, **kwargs)


def _replace_tensors(module: nn.Module) -> None:
    """Replace the meta tensors of a module by ones on `DEVICE`; shared parameters stay shared."""
    made: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, own in part.named_parameters(recurse=False, remove_duplicate=False):
            if id(own) not in made:
                made[id(own)] = nn.Parameter(torch.empty(own.shape, dtype=own.dtype), own.requires_grad)
            setattr(part, name, made[id(own)])
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def _make(kind: Any, config: Any, dtype: torch.dtype) -> nn.Module:
    """Make a model as `Part.load` does, from its configuration."""
    if issubclass(kind, PreTrainedModel):
        model = kind(kind.config_class.from_dict(dict(config)))
    elif issubclass(kind, ModelMixin):
        model = kind.from_config(dict(config))
    else:  # the VAE of the miniature
        model = kind(config["factor"])
    return nn.Module.to(model, dtype).eval().requires_grad_(False)


def _make_llm(folder: Path, dtype: torch.dtype) -> nn.Module:
    """Make an LLM as `load_language_model` does, from its configuration, which has been checked before."""
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    auto_class = AutoModelForTextEncoding if config.model_type in MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES else AutoModel
    model = auto_class.from_config(config).to(dtype)
    if model.config.is_encoder_decoder and hasattr(model, "get_encoder"):
        model = model.get_encoder()
    if dtype == torch.float16:  # transformers keeps some modules in float32 then, such as T5's wo
        kept = model._keep_in_fp32_modules or ()
        for name, module in model.named_modules():
            if any(part in kept for part in name.split(".")):
                module.float()
    return model.eval().requires_grad_(False)


def _part(name: str, parameters: list[Tensor]) -> Part:
    return Part(
        name,
        parameters=sum(p.numel() for p in parameters),
        trained=sum(p.numel() for p in parameters if p.requires_grad),
        weight_bytes=sum(_bytes(p) for p in parameters),
    )


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


# Activations


@dataclass(frozen=True)
class _Activations:
    """Bytes of a micro-batch; see `Memory`."""

    kept: int
    guidance: int
    copies: int
    recomputed: int
    workspace: int


@dataclass
class _Counts:
    """Bytes of one forward pass.

    Attributes:
        kept: saved for the backward pass.
        inside: saved within all blocks that are recomputed.
        largest: saved within the largest of these blocks.
        workspace: peak above what remains at the end.
    """

    kept: int = 0
    inside: int = 0
    largest: int = 0
    workspace: int = 0


class _Passes:
    """Forward passes of the training loss of a recipe.

    Args:
        fake: models without data.
        shapes: of a micro-batch.
    """

    def __init__(self, fake: FakeRun, shapes: Shapes) -> None:
        self._fake, self._shapes = fake, shapes
        self._parameters = {StorageWeakRef(p.untyped_storage()) for p in fake.training_loss.parameters()}

    def measure(self, batch: int) -> _Activations:
        """Count the bytes of a micro-batch of that many samples.

        Autocast's copies of weights are saved like activations. They are the part that does not grow with the batch.
        """
        guided = self._fake.models.recipe.guidance.is_on
        first, second = self._count(batch, guided), self._count(batch + 1, guided)
        kept = batch * (second.kept - first.kept)
        copies = first.kept + first.inside - batch * (second.kept + second.inside - first.kept - first.inside)
        # Autocast keeps copies made in a block until the pass ends; and while a block is recomputed, the memory that it
        # needed the first time is available.
        remembered = copies if first.inside else 0
        workspace = first.workspace - remembered - first.largest
        guidance = first.kept - self._count(batch, False).kept if guided else 0
        return _Activations(kept, max(0, guidance), max(0, copies), first.largest, max(0, workspace))

    def _count(self, batch: int, guided: bool) -> _Counts:
        recipe, training_loss = self._fake.models.recipe, self._fake.training_loss
        counts = _Counts()
        if recipe.train.gradient_checkpointing:
            training_loss.unet.enable_gradient_checkpointing(self._checkpoint(counts))
        inputs = self._fake.inputs(batch, self._shapes, guided)
        saved = _Saved(self._parameters)
        with _autocast(recipe.train.precision), LiveBytes() as live, saved.watch():
            losses = training_loss(inputs)
        counts.kept = saved.bytes
        counts.workspace = max(0, live.peak - live.now)
        del losses
        return counts

    def _checkpoint(self, counts: _Counts) -> Callable[..., Any]:
        """Function for diffusers in place of torch's checkpoint, which saves the same and counts what is not saved."""

        def run(block: Any, *inputs: Any) -> Any:
            _Keep.apply(torch.empty(0, requires_grad=True), *(value for value in inputs if isinstance(value, Tensor)))
            inside = _Saved(self._parameters, keep=False)
            with inside.watch():
                result = block(*inputs)
            counts.inside += inside.bytes
            counts.largest = max(counts.largest, inside.bytes)
            return result

        return run


class _Saved:
    """Counts the bytes of the storages that are saved for the backward pass, each once.

    Args:
        ignored: storages that do not count, those of parameters.
        keep: False frees the saved tensors, as checkpointing does; then there is no backward pass.
    """

    def __init__(self, ignored: set[StorageWeakRef], keep: bool = True) -> None:
        self._ignored, self._keep = ignored, keep
        self._seen: set[StorageWeakRef] = set()
        self.bytes = 0

    @contextmanager
    def watch(self) -> Iterator[None]:
        with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda packed: packed):
            yield

    def _pack(self, tensor: Tensor) -> Any:
        storage = tensor.untyped_storage()
        reference = StorageWeakRef(storage)
        if reference not in self._ignored and reference not in self._seen:
            self._seen.add(reference)
            self.bytes += storage.nbytes()
        return tensor if self._keep else None


class _Keep(torch.autograd.Function):
    """Function that saves its inputs, as torch's checkpoint does for the recomputation."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, *others: Tensor) -> Tensor:
        ctx.save_for_backward(*others)
        return first.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError("only the forward pass is counted")


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside and not freed.

    Attributes:
        now: present bytes.
        peak: largest number so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        before = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage(), before)
        self.peak = max(self.peak, self.now)
        return result

    def _add(self, storage: Any, before: set[int]) -> None:
        key = id(storage)  # the object lives as long as the storage
        if key in self._known or key in before:
            return
        self._known.add(key)
        size = storage.nbytes()
        self.now += size
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class _FusedAttention(TorchFunctionMode):
    """Makes attention save what fused kernels save: query, key, value, result, and a number a row."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        names = ("query", "key", "value")
        query, key, value = (args[i] if i < len(args) else kwargs[name] for i, name in enumerate(names))
        if torch.is_autocast_enabled(DEVICE):  # as the operation itself does
            lower = torch.get_autocast_dtype(DEVICE)
            query, key, value = (tensor.to(lower) for tensor in (query, key, value))
        return _Attend.apply(query, key, value)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = torch.empty_like(query)  # with the same strides, so that joining heads copies nothing
        ctx.save_for_backward(query, key, value, result, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError("only the forward pass is counted")


@contextmanager
def _autocast(precision: str) -> Iterator[None]:
    """Autocast of a device that need not exist, which `torch.autocast` refuses."""
    if precision == "float32":
        yield
        return
    torch.set_autocast_enabled(DEVICE, True)
    torch.set_autocast_dtype(DEVICE, DTYPES[precision])
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled(DEVICE, False)


def _encoding_bytes(family: Family, batch: int, image: tuple[int, int]) -> int:
    """Peak memory of the VAE while it encodes a micro-batch, all of it temporary."""
    with LiveBytes() as live:
        family.encode_images(torch.empty(batch, 3, *image))
    return live.peak
