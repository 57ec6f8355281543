"""Recipes: everything about a training run, in one YAML.

A recipe is read, extended by the recipe it names, changed by `key=value` from the command line, and checked as a
whole before anything large is opened. An unknown key is an error, and so is an impossible value.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.dataclasses import dataclass as checked
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from llm4gen_core import LLM4GENError
from llm4gen_core.adapter import FUSIONS, CrossAdapterConfig
from llm4gen_core.entity_guidance import GuidanceOptions

RECIPES = Path(__file__).parent / "recipes"
"""The recipes that come with the project; `run sd15` finds `sd15.yaml` here."""

Precision = Literal["float32", "float16", "bfloat16"]
Parts = Literal["cam", "cam+cross_attention_kv", "cam+lora", "cam+unet", "text_encoder"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Beta = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]

REQUIRED = "???"
"""Stands in a recipe for a value that each run has to give."""


if TYPE_CHECKING:
    Guidance = GuidanceOptions
else:
    Guidance = checked(GuidanceOptions, config=ConfigDict(extra="forbid"), frozen=True)
    """The method's own options, with an error for unknown keys."""


# What the sections call while the module loads, for their defaults are checked too, stands above them.


def _require(ok: bool, name: str, found: Any, expected: str) -> None:
    if not ok:
        raise ValueError(f"{name} is {_show(found)}; expected {expected}")


def _show(value: Any) -> str:
    """As it would stand in YAML, not too long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _list_of_sources(value: Any) -> Any:
    """A path stands for a source of its own, and one source for a list of one."""
    found = value if isinstance(value, list) else [value]
    return [{"path": source} if isinstance(source, str) else source for source in found]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _not_true_for_one(cls, value: Any, info: ValidationInfo) -> Any:
        """`flip: yes` is not 1.0: pydantic would mirror every image."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise PydanticCustomError("truth", "a number or a word, not true or false (yes, no, on, off)")
        return value


class Model(Section):
    """What is trained on; paths of local files, from the folder in which the command runs.

    Attributes:
        base: diffusers folder, or a single checkpoint as ComfyUI loads it.
        unet, vae, tokenizer: diffusers folders in place of the base's. `tokenizer` is needed for a checkpoint only.
        llm: Hugging Face folder; none when `trainable.parts` is text_encoder.
        adapter: file of an adapter to go on from, such as stage 1's; its UNet part too.
        unet_dtype: precision of a UNet that is not trained as a whole; a trained one is kept in float32.
        vae_dtype, text_dtype, llm_dtype: precision of these frozen models.
    """

    base: str
    unet: str | None = None
    vae: str | None = None
    tokenizer: str | None = None
    llm: str | None = None
    adapter: str | None = None
    unet_dtype: Precision = "float32"
    vae_dtype: Precision = "float32"
    text_dtype: Precision = "float32"
    llm_dtype: Precision = "float32"


class LLM(Section):
    """How prompts are prepared for the LLM; stored with the adapter as its `LLMSpec`.

    Attributes:
        model: name of the weights, such as a Hugging Face id, so that users of the adapter find it.
        prefix: put before every prompt, the empty one too; None takes the model's own ("pre " for RankGen).
        max_length: tokens; every prompt is padded to it (the paper: 128, the release: 256).
        padding_side, layer: see `LLMSpec`.
    """

    model: str | None = None
    prefix: str | None = None
    max_length: Count = 128
    padding_side: Literal["right", "left"] = "right"
    layer: int | Literal["last", "mean"] = "last"


class Adapter(Section):
    """The Cross-Adapter.

    Attributes:
        fusion: the method, or a row of Table 4; see `CrossAdapterConfig`.
        heads: of its attention. The layers start as PyTorch initialises them; the paper says nothing else.
    """

    fusion: str = "cross_adapter"
    heads: Count = 8

    @model_validator(mode="after")
    def _check(self) -> Adapter:
        _require(self.fusion in FUSIONS, "fusion", self.fusion, f"one of {', '.join(FUSIONS)}")
        return self


class Trainable(Section):
    """What is trained. The release trained the CAM and the full UNet.

    Attributes:
        parts: cam | cam+cross_attention_kv | cam+lora | cam+unet | text_encoder (Table 4's row 2).
        lora_rank, lora_alpha: of cam+lora, on the UNet's attention projections; the update is alpha / rank * B A.
    """

    parts: Parts = "cam+unet"
    lora_rank: Count = 32
    lora_alpha: Positive = 32.0


class Source(Section):
    """Where image-text pairs come from.

    Attributes:
        path: a folder, a .jsonl file, a data set saved by Hugging Face's `save_to_disk`, or webdataset shards
            (.tar, or a pattern with braces or stars).
        type: told by the path unless given.
        image, caption: field, column or file extension of each; None takes the usual names.
        repeats: how often an epoch sees each pair.
    """

    path: str
    type: Literal["auto", "folder", "jsonl", "dataset", "webdataset"] = "auto"
    image: str | None = None
    caption: str | None = None
    repeats: Count = 1


class Buckets(Section):
    """Aspect-ratio buckets: an image goes to the size of its shape, each of about resolution² pixels.

    Attributes:
        enabled: otherwise every image is cut to a square.
        step: sides are multiples of it, in pixels.
        max_ratio: of the longer to the shorter side; what is longer is cut.
    """

    enabled: bool = False
    step: Count = 64
    max_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 2.0


class Cache(Section):
    """What is computed once and kept.

    Attributes:
        folder: None is `cache` inside the run's folder; give one to share it between runs.
        latents: mean and standard deviation of the VAE's distribution for each image.
        crops: with `crop: random`, how many different cuts of each image are cached; epochs take them in turn.
        text: hidden states of CLIP and LLM for each caption. Large: 128 tokens of T5-XL are 512 KiB in bfloat16.
    """

    folder: str | None = None
    latents: bool = False
    crops: Count = 1
    text: bool = False


class Data(Section):
    """Image-text pairs and how they become samples.

    Attributes:
        sources: one or several; a path alone is enough.
        resolution: pixels of a side of the square, or of the square as large as a bucket.
        crop: where an image is cut that does not have the sample's shape.
        flip: share of samples that are mirrored. Captions with left and right become wrong: off by default.
        min_size: images with a shorter side below this many pixels are left out (None: half of the resolution).
        max_ratio: images with a longer side of more than this many times the shorter are left out.
        caption_dropout: share of samples that see the empty prompt in both encoders; drawn anew at every step.
        llm_dropout: share of samples whose LLM alone sees the empty prompt.
        clip_chunks: chunks of 77 CLIP tokens; a longer caption is cut.
        entities: parser of attribute-entity pairs where the data gives none; see `parse_entities`.
        buckets, cache: see there.
        workers: processes that read and decode images.
    """

    sources: Annotated[list[Source], Field(min_length=1), BeforeValidator(_list_of_sources)]
    resolution: Annotated[int, Field(ge=16, le=4096)] = 512
    crop: Literal["center", "random"] = "center"
    flip: Share = 0.0
    min_size: Count | None = None
    max_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 8.0
    caption_dropout: Share = 0.1
    llm_dropout: Share = 0.0
    clip_chunks: Count = 1
    entities: str = "auto"
    buckets: Buckets = Buckets()
    cache: Cache = Cache()
    workers: Annotated[int, Field(ge=0)] = 4

    @model_validator(mode="after")
    def _check(self) -> Data:
        total = self.caption_dropout + self.llm_dropout
        _require(total <= 1, "caption_dropout + llm_dropout", total, "at most 1")
        known = re.fullmatch(r"auto|rules|spacy(:.+)?", self.entities) is not None
        _require(known, "entities", self.entities, "auto, rules, spacy or spacy:PACKAGE")
        return self


class Loss(Section):
    """The objective beside entity guidance; every correction is off unless asked for, as in the paper.

    Attributes:
        prediction: what the UNet predicts; "base" is what its base model says.
        min_snr_gamma: weight min(SNR, gamma) / SNR of a timestep (arXiv 2303.09556; for v-prediction the
            denominator is SNR + 1); 5 is usual.
        zero_terminal_snr: rescale the noise schedule so that the last timestep is pure noise (arXiv 2305.08891);
            needs v_prediction.
        noise_offset: standard deviation of a constant added to each channel of the noise; 0.05 is usual.
    """

    prediction: Literal["base", "epsilon", "v_prediction"] = "base"
    min_snr_gamma: Positive | None = None
    zero_terminal_snr: bool = False
    noise_offset: NotNegative = 0.0


class Optimizer(Section):
    """Attributes:
    name: adamw, adamw_8bit (bitsandbytes), adafactor (transformers), prodigy (prodigyopt).
    learning_rate: the paper's 2e-5 for SD1.5 and 1e-5 for SDXL; prodigy finds its own and wants 1.
    unet_learning_rate: of the UNet's trained part, if it is to differ.
    weight_decay, betas, eps: of the optimizer. PyTorch's defaults; the paper does not say. Parameters of one
        dimension (norms, biases) are never decayed. Adafactor has neither betas nor this eps.
    max_grad_norm: gradients are clipped to it over all parameters; None is no clipping.
    schedule: of the learning rate, as diffusers and transformers name them.
    warmup_steps: optimizer steps.
    """

    name: Literal["adamw", "adamw_8bit", "adafactor", "prodigy"] = "adamw"
    learning_rate: Positive = 2e-5
    unet_learning_rate: Positive | None = None
    weight_decay: NotNegative = 0.01
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: Positive = 1e-8
    max_grad_norm: Positive | None = 1.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _check(self) -> Optimizer:
        if self.name == "adafactor":
            for name in ("betas", "eps"):
                default = type(self).model_fields[name].default
                _require(getattr(self, name) == default, name, getattr(self, name), "nothing: adafactor has none")
        if self.name == "prodigy":
            _require(
                self.unet_learning_rate in (None, self.learning_rate),
                "unet_learning_rate",
                self.unet_learning_rate,
                "nothing: prodigy finds one learning rate for all",
            )
        return self


class Ema(Section):
    """Exponential moving average of what is trained (diffusers' EMAModel); what `export` writes if it is on.

    Attributes:
        enabled: whether there is one.
        decay: at its highest; it grows from 0 as (1 + step) / (10 + step).
        device: where it is kept; cpu spares memory on the accelerator.
    """

    enabled: bool = False
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.9999
    device: Literal["accelerator", "cpu"] = "accelerator"


class Train(Section):
    """The loop.

    Attributes:
        steps: optimizer steps.
        batch_size: samples an optimizer step, over all processes and accumulation steps.
        micro_batch: samples that one process computes at once; accumulation follows from the three.
        precision: of the forward and backward pass (autocast); trained weights stay in float32.
        gradient_checkpointing: recompute activations in the backward pass.
        compile: torch.compile of the UNet's blocks.
        tf32: let float32 matrix products on NVIDIA GPUs round to TF32.
    """

    steps: Count
    batch_size: Count
    micro_batch: Count
    precision: Precision = "bfloat16"
    gradient_checkpointing: bool = False
    compile: bool = False
    tf32: bool = True
    ema: Ema = Ema()

    @model_validator(mode="after")
    def _check(self) -> Train:
        _require(
            self.batch_size % self.micro_batch == 0,
            "micro_batch",
            self.micro_batch,
            f"a divisor of batch_size {self.batch_size}",
        )
        return self


class Checkpoints(Section):
    """Attributes:
    every: optimizer steps between two.
    keep: how many of the newest stay; None keeps all.
    """

    every: Count = 1000
    keep: Count | None = 3


class Logging(Section):
    """Attributes:
    every: optimizer steps between two lines of metrics.jsonl and TensorBoard.
    gradient_ratio_every: optimizer steps between two measurements of |grad L_reg| / |grad L_diff|; each costs
        about two more backward passes of one micro-batch. 0 is never.
    tensorboard: event files in the run's folder.
    wandb: project name at Weights & Biases; None is off. Needs the package wandb.
    """

    every: Count = 10
    gradient_ratio_every: Annotated[int, Field(ge=0)] = 200
    tensorboard: bool = True
    wandb: str | None = None


class Validation(Section):
    """Images painted during the run, always from the same prompts and seeds.

    Attributes:
        every: optimizer steps between two times; 0 is never.
        prompts: texts; seeds: one image of each prompt for each.
        steps, guidance: of DDIM; size: pixels of a side, None for the data's resolution.
    """

    every: Annotated[int, Field(ge=0)] = 1000
    prompts: list[str] = []
    seeds: Annotated[list[int], Field(min_length=1)] = [0]
    steps: Annotated[int, Field(ge=1, le=1000)] = 50
    guidance: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 7.5
    size: Count | None = None


class Recipe(Section):
    """A training run. The sections are described at their classes.

    Attributes:
        family: sd15, sdxl or miniature.
        output: folder of the run; must not hold another run.
        seed: of everything random.
        guidance: entity guidance, eq. 5 and 6; see `GuidanceOptions`.
        title, author, description: stored in the adapter, shown by model managers.
    """

    family: Literal["sd15", "sdxl", "miniature"]
    output: str
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    title: str = ""
    author: str = ""
    description: str = ""
    model: Model
    llm: LLM = LLM()
    adapter: Adapter = Adapter()
    trainable: Trainable = Trainable()
    data: Data
    loss: Loss = Loss()
    guidance: Guidance = Guidance()
    optimizer: Optimizer = Optimizer()
    train: Train
    checkpoints: Checkpoints = Checkpoints()
    logging: Logging = Logging()
    validation: Validation = Validation()

    @field_validator("guidance", mode="before")
    @classmethod
    def _no_truth_in_guidance(cls, value: Any) -> Any:
        for key, found in value.items() if isinstance(value, dict) else ():
            _require(not isinstance(found, bool), key, found, "a number or a word")
        return value

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        uses_llm = self.trainable.parts != "text_encoder"
        if uses_llm:
            if self.model.llm is None:
                raise ValueError(_missing("model.llm"))
        else:
            _require(
                self.model.llm is None and self.model.adapter is None,
                "model.llm" if self.model.llm else "model.adapter",
                self.model.llm or self.model.adapter,
                "nothing, because trainable.parts text_encoder trains CLIP without an LLM",
            )
            _require(self.data.llm_dropout == 0, "data.llm_dropout", self.data.llm_dropout, "0 without an LLM")
            _require(not self.data.cache.text, "data.cache.text", True, "false: the text encoder is what is trained")
        if self.loss.zero_terminal_snr:
            _require(
                self.loss.prediction != "epsilon",
                "loss.prediction",
                self.loss.prediction,
                "v_prediction with zero_terminal_snr: at pure noise there is no epsilon to predict",
            )
        _require(
            self.optimizer.warmup_steps < self.train.steps,
            "optimizer.warmup_steps",
            self.optimizer.warmup_steps,
            f"less than train.steps {self.train.steps}",
        )
        if self.guidance.alpha:
            kinds = _copies_of_words(self.adapter) if uses_llm else {"clip"}
            _require(
                self.guidance.tokens in ("both", *kinds),
                "guidance.tokens",
                self.guidance.tokens,
                f"both or {' or '.join(kinds)}: the UNet sees no other tokens with "
                + (f"adapter.fusion {self.adapter.fusion}" if uses_llm else "trainable.parts text_encoder"),
            )
        _require(
            self.model.unet_dtype == "float32" or self.trainable.parts != "cam+unet",
            "model.unet_dtype",
            self.model.unet_dtype,
            "float32, because the UNet is trained",
        )
        _require(
            self.model.unet_dtype in ("float32", self.train.precision),
            "model.unet_dtype",
            self.model.unet_dtype,
            f"float32 or train.precision, which is {self.train.precision}",
        )
        step = self.data.buckets.step if self.data.buckets.enabled else 8 if self.family != "miniature" else 2
        _require(self.data.resolution % step == 0, "data.resolution", self.data.resolution, f"a multiple of {step}")
        return self

    def absolute(self) -> Recipe:
        """With every path from the root, so that the run can go on from any folder."""
        model = {
            name: str(Path(path).absolute())
            for name in ("base", "unet", "vae", "tokenizer", "llm", "adapter")
            if (path := getattr(self.model, name)) is not None
        }
        sources = [s.model_copy(update={"path": str(Path(s.path).absolute())}) for s in self.data.sources]
        cache = self.data.cache
        if cache.folder is not None:
            cache = cache.model_copy(update={"folder": str(Path(cache.folder).absolute())})
        return self.model_copy(
            update={
                "output": str(Path(self.output).absolute()),
                "model": self.model.model_copy(update=model),
                "data": self.data.model_copy(update={"sources": sources, "cache": cache}),
            }
        )

    def to_yaml(self) -> str:
        """The whole recipe with its defaults, as it is stored with the run."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=120)

    def to_dict(self) -> dict[str, Any]:
        return json.loads(self.model_dump_json())


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        name: a YAML file, or the name of one that comes with the project ("sd15").
        overrides: "key=value" with dots between sections ("train.steps=100"); the value is YAML.

    Raises:
        LLM4GENError: names the file and the key, what was found and what was expected.
    """
    path = find_recipe(name)
    content = _read(path)
    for override in overrides:
        _override(content, override)
    return parse_recipe(content, f"Recipe {path.name}")


def parse_recipe(content: Mapping[str, Any], what: str) -> Recipe:
    """Check the content of a recipe; `what` names it in errors."""
    content, unfilled = _without_unfilled(content)
    problems = [_missing(name) for name in unfilled]
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        problems += _explain(error)
    if problems:
        raise LLM4GENError(f"{what}: {'. '.join(dict.fromkeys(problems))}.")
    return recipe


def find_recipe(name: str) -> Path:
    """The file of that name, or the project's own recipe of that name."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    own = RECIPES / f"{path.stem if path.suffix in ('.yaml', '.yml') else path.name}.yaml"
    if path.parent == Path(".") and own.is_file():
        return own
    known = ", ".join(sorted(file.stem for file in RECIPES.glob("*.yaml")))
    raise LLM4GENError(f"Recipe {name} does not exist; expected a YAML file, or one of the project's: {known}.")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without two of its traps: 2e-5 is a number, and a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"the key {key} is no name", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path.resolve() in seen:
        raise LLM4GENError(f"Recipe {path} extends itself; remove `extends` from one of {[p.name for p in seen]}.")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise LLM4GENError(f"Recipe {path} cannot be read ({error}); expected a UTF-8 text file.") from error
    except yaml.YAMLError as error:
        raise LLM4GENError(f"Recipe {path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise LLM4GENError(f"Recipe {path} holds no keys; expected sections such as model, data and train.")
    parent = content.pop("extends", None)
    if parent is None:
        return content
    beside = [folder / parent for folder in (path.parent, RECIPES)] if isinstance(parent, str) else []
    found = next((file for file in beside if file.is_file()), None)
    if found is None:
        raise LLM4GENError(
            f"Recipe {path}: extends is {parent!r}; expected the name of a recipe beside it, or of one of the "
            "project's, such as sd15.yaml."
        )
    return _merge(_read(found, (*seen, path.resolve())), content)


def _merge(below: Any, above: Any) -> Any:
    """`above` over `below`; sections are merged key by key, anything else is replaced."""
    if isinstance(below, dict) and isinstance(above, dict):
        return {**below, **{key: _merge(below.get(key), value) for key, value in above.items()}}
    return above


def _override(content: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    keys = name.split(".")
    if not equals or not all(keys):
        raise LLM4GENError(f"Override {override!r} is not understood; expected key=value, such as train.steps=100.")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise LLM4GENError(f"Override {override!r}: the value is not valid YAML ({error}).") from error
    section = content
    for depth, key in enumerate(keys[:-1]):
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise LLM4GENError(f"Override {override!r}: {'.'.join(keys[: depth + 1])} has no keys inside it.")
    section[keys[-1]] = value


def _copies_of_words(adapter: Adapter) -> set[str]:
    """Which text encoders' tokens the fused context holds, in `GuidanceOptions.tokens`' words."""
    layout = CrossAdapterConfig(d_text=adapter.heads, d_llm=1, heads=adapter.heads, fusion=adapter.fusion)
    return {"clip" if part == "text" else part for part in layout.context_layout}


def _without_unfilled(content: Mapping[str, Any], place: str = "") -> tuple[dict[str, Any], list[str]]:
    """The content without the keys whose value is `REQUIRED`, and those keys."""
    kept: dict[str, Any] = {}
    unfilled: list[str] = []
    for key, value in content.items():
        if value == REQUIRED:
            unfilled.append(place + key)
            continue
        if isinstance(value, dict):
            value, below = _without_unfilled(value, f"{place}{key}.")
            unfilled += below
        kept[key] = value
    return kept, unfilled


def _missing(name: str) -> str:
    if any(part.isdigit() for part in name.split(".")):
        return f"{name} is missing; write it into the recipe"
    is_folder = name in ("output", "data.sources")
    example = "FOLDER" if is_folder else "PATH" if name.startswith("model.") else "VALUE"
    return f"{name} is missing; give {name}={example} or write it into the recipe"


def _explain(error: ValidationError) -> list[str]:
    """Pydantic's errors as sentences that begin with the key; what one key may be stands in one sentence."""
    sentences: list[str] = []
    expected: dict[str, list[str]] = {}
    for problem in error.errors():
        kind, place = problem["type"], problem["loc"]
        if kind == "missing" and isinstance(place[-1], int):
            place = place[:-1]  # a list that is too short
        name, section = _find(place)
        if kind == "value_error":
            # The sections' own checks name their key themselves; the section stands before it.
            sentences.append(".".join(filter(None, (name, str(problem["ctx"]["error"])))))
        elif kind == "missing" and place == problem["loc"]:
            sentences += [_missing(key) for key in _required(name, section)]
        elif kind in ("extra_forbidden", "unexpected_keyword_argument"):
            key, known = name.rpartition(".")[2], list(_fields(section))
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"closest is {close[0]}" if close else f"expected one of {', '.join(known)}"
            sentences.append(f"{name} is not a key of recipes; {hint}")
        else:
            expected.setdefault(f"{name} is {_show(problem['input'])}; expected ", []).append(_expectation(problem))
    return sentences + [start + " or ".join(dict.fromkeys(ends)) for start, ends in expected.items()]


_WORDS = {
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid string": "text",
    "a valid boolean": "true or false",
    "a valid tuple": "a list",
    "a valid list": "a list",
    " after validation": "",
    "Input should be ": "",
    "List should have ": "",
    "Tuple should have ": "",
    "'": "",
}
"""Pydantic's words and ours."""


def _expectation(problem: Any) -> str:
    if problem["type"] in ("model_type", "model_attributes_type", "dataclass_type"):
        return "keys with values"
    if problem["type"] == "missing":
        return "more values"
    message = problem["msg"].partition(", unable to")[0]
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    return message


def _find(place: Sequence[int | str]) -> tuple[str, Any]:
    """Pydantic's location as a dotted key, and the section that the key stands in.

    A location also names the choices of a union, after the key; they are left out.
    """
    names: list[str] = []
    section, inside = None, Recipe
    for part in place:
        if isinstance(part, str):
            if inside is None:
                break
            section, inside = inside, _section(inside, part)
        names.append(str(part))
    return ".".join(names), section


def _fields(section: Any) -> Mapping[str, FieldInfo]:
    return getattr(section, "__pydantic_fields__", {})


def _section(section: Any, key: str) -> Any:
    """The section that stands under a key, alone or in a list; None for a value."""
    field = _fields(section).get(key)
    choices = (field.annotation, *get_args(field.annotation)) if field else ()
    return next((choice for choice in choices if _fields(choice)), None)


def _required(name: str, section: Any) -> list[str]:
    """What has to be given where a key is missing: the key, or what is required in the section under it."""
    inside = _fields(section)[name.rpartition(".")[2]].annotation
    required = [key for key, field in _fields(inside).items() if field.is_required()]
    return [found for key in required for found in _required(f"{name}.{key}", inside)] or [name]
