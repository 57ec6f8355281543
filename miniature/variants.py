"""Variants that the reproduction trains: recipe, data, and the paper's numbers to compare them with."""

from __future__ import annotations

from dataclasses import dataclass

from llm4gen_core import LLM4GENError

CORE = ("finetune", "no_regularisation", "llm4gen")
"""Variants that the main claim rests on; they always run with several seeds."""

BASE_PAPER = (37.65, 35.76, 41.56)
"""Scores of SD1.5 in Tables 1, 3 and 4."""

EXPERIMENTS = {
    "core": "LLM4GEN against its base",
    "modules": "parts of the Cross-Adapter (Table 4)",
    "llms": "encoder against decoder (Table 3)",
    "data": "amount of training data (Fig. 8a)",
    "alpha": "weight of the regulariser",
    "tokens": "which copy of a word the regulariser binds",
    "lambda": "readings of λ (eq. 3)",
}
"""Comparisons, by the names that the command takes."""

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
"""Values of λ when generating, for `STRENGTH_VARIANTS`."""

STRENGTH_VARIANTS = {"llm4gen": "embedding", "value": "value", "decoupled": "decoupled"}
"""Variants whose images are generated with several λ, and their readings of eq. 3."""


@dataclass(frozen=True)
class Variant:
    """A way to train, with the base, steps, data and trainable UNet of the others.

    Attributes:
        name: name of the run folder and the image sets.
        title: title in the report.
        experiment: the comparison that it belongs to, a key of `EXPERIMENTS`.
        paper: the paper's T2I-CompBench scores of colour, shape and texture in percent, where it has this row.
        overrides: changes of the recipe.
        llm: "t5", "llama", or "" for none, which fine-tunes the base without an adapter.
        pairs: number of training pairs; None for all.
        trained_as: the variant whose training run this one uses; "" for one of its own.
        lambda_mode: reading of λ when generating; None for that of the training.
    """

    name: str
    title: str
    experiment: str
    paper: tuple[float, float, float] | None = None
    overrides: tuple[str, ...] = ()
    llm: str = "t5"
    pairs: int | None = None
    trained_as: str = ""
    lambda_mode: str | None = None

    @property
    def recipe(self) -> str:
        """Name of the recipe."""
        return "miniature-llm4gen" if self.llm else "miniature-finetune"

    @property
    def is_core(self) -> bool:
        """Whether the main claim rests on it."""
        return self.name in CORE


def _fusion(name: str, title: str, *paper: float) -> Variant:
    colour, shape, texture = paper
    return Variant(name, title, "modules", (colour, shape, texture), (f"adapter.fusion={name}",))


_TRAIN_CLIP = ("trainable.parts=text_encoder", "data.cache.text=false")
_MLP_OR_ATTENTION = (39.25, 37.68, 42.89)
_ALL = (
    Variant("finetune", "Base, fine-tuned", "core", llm=""),
    Variant(
        "no_regularisation", "LLM4GEN without the regulariser", "core", (46.10, 44.31, 54.81), ("guidance.alpha=0",)
    ),
    Variant("llm4gen", "LLM4GEN", "core", (47.34, 45.35, 55.39)),
    Variant("finetuned_clip", "Base with its CLIP fine-tuned", "modules", (38.76, 36.85, 42.56), _TRAIN_CLIP, llm=""),
    _fusion("mlp", "MLP in place of CLIP", *_MLP_OR_ATTENTION),
    _fusion("cross_attention", "Cross-attention in place of CLIP", *_MLP_OR_ATTENTION),
    _fusion("mlp_concat", "MLP, concatenated", 40.24, 38.23, 44.39),
    _fusion("cross_attention_concat", "Cross-attention, concatenated", 42.31, 39.43, 46.21),
    _fusion("clip_query", "CLIP as query, LLM as key and value", 43.69, 42.82, 49.56),
    Variant("llama", "Decoder, last layer", "llms", (44.98, 41.03, 49.21), llm="llama"),
    Variant("llama_mean", "Decoder, mean over its layers", "llms", overrides=("llm.layer=mean",), llm="llama"),
    *(Variant(f"pairs_{number}", f"{number:,} pairs", "data", pairs=number) for number in (300, 1000, 3000, 10000)),
    Variant("balance_0.03", "3 % of the diffusion gradient", "alpha", overrides=("guidance.balance=0.03",)),
    Variant("balance_0.3", "30 % of the diffusion gradient", "alpha", overrides=("guidance.balance=0.3",)),
    Variant("balance_1", "100 % of the diffusion gradient", "alpha", overrides=("guidance.balance=1",)),
    Variant("tokens_clip", "CLIP's tokens", "tokens", overrides=("guidance.tokens=clip",)),
    Variant("tokens_llm", "The LLM's tokens", "tokens", overrides=("guidance.tokens=llm",)),
    # λ is 1 in training, where a λ on the values is the same as one on the embedding.
    Variant("value", "λ on the values", "lambda", trained_as="llm4gen", lambda_mode="value"),
    Variant("decoupled", "λ decoupled", "lambda", overrides=("adapter.lambda_mode=decoupled",)),
)
VARIANTS = {variant.name: variant for variant in _ALL}
"""Variants by name, in the order of the report. `base` is not a variant: all of them start from it."""


def find_variant(name: str) -> Variant:
    """Return the variant of that name.

    Raises:
        LLM4GENError: there is none.
    """
    if name not in VARIANTS:
        raise LLM4GENError(f"Variant {name!r} is not known; expected one of {', '.join(VARIANTS)}.")
    return VARIANTS[name]
