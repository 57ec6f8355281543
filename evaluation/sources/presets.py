"""How benchmarks are painted: the paper's way, and each benchmark's own, with what cannot be done in the same way."""

from __future__ import annotations

from dataclasses import dataclass, replace

from llm4gen_core import LLM4GENError

_NOISE = (
    "Noise is drawn on the CPU in float32, as ComfyUI does, and the official script draws it on the GPU: the same seed "
    "gives another image. Means over many prompts compare, single images do not."
)


@dataclass(frozen=True)
class Preset:
    """
    Attributes:
        title: for people.
        seeds: of the set, one image each for every prompt. What noise they give: `image_set.noise_seed`.
        steps, guidance: of the sampler and of classifier-free guidance.
        sampler: "ddim", or "" for the model's own.
        differs: what is not as in the official protocol, a sentence each, for the report.
    """

    title: str
    seeds: tuple[int, ...]
    steps: int
    guidance: float
    sampler: str
    differs: tuple[str, ...] = ()


_T2I_OFFICIAL = Preset(
    "T2I-CompBench's script",
    tuple(range(42, 52)),
    30,
    7.5,
    "ddim",
    (
        _NOISE,
        "The official script paints with SD2-base; the model here is the one that is measured.",
        "A base or an adapter of this project paints as ComfyUI's ddim_uniform, which takes 31 steps for 30; a "
        "pipeline of diffusers takes 30.",
    ),
)
_GENEVAL_OFFICIAL = Preset(
    "GenEval's script",
    (42, 43, 44, 45),
    50,
    9.0,
    "",
    (
        _NOISE,
        "The official script seeds one generator with 42 for each prompt and draws the noise of its four images from "
        "it in turn; here each image has a seed of its own, 42 to 45, the same four for every prompt.",
        "The official script uses the sampler that the model comes with (PNDM for SD1.5); a base or an adapter of this "
        "project paints with DDIM.",
    ),
)
_DPG_OFFICIAL = Preset(
    "DPG-Bench: four images a prompt",
    (0, 1, 2, 3),
    50,
    7.5,
    "",
    (
        "DPG-Bench asks for four images a prompt and leaves seeds, sampler, steps and guidance open; 0 to 3, 50 and "
        "7.5 are chosen here.",
        "Its script scores the four as a grid of 2 x 2 that it cuts again; here they are four images.",
    ),
)
_COCO_OFFICIAL = Preset(
    "MS-COCO: one image a caption, seed = caption id",
    (0,),
    50,
    7.5,
    "ddim",
    (
        "There is no official way to paint MS-COCO's captions; papers say neither which captions they drew nor their "
        "seeds. One image each with the caption's id as its seed, 50 steps and 7.5 are chosen here.",
    ),
)
_OFFICIAL = {
    "t2i-compbench": _T2I_OFFICIAL,
    "t2i-compbench++": replace(_T2I_OFFICIAL, title="T2I-CompBench++'s script"),
    "geneval": _GENEVAL_OFFICIAL,
    "dpg-bench": _DPG_OFFICIAL,
    "coco": _COCO_OFFICIAL,
}
PRESETS = ("paper", "bench-official")


def find_preset(name: str, source: str) -> Preset:
    """How a preset paints the prompts of a source.

    "paper" is LLM4GEN's: DDIM, 50 steps, guidance 7.5 ("Framework and Implementation Details"). The paper says neither
    seeds nor how many images a prompt it paints; both are those of the benchmark's own way, and a single image with
    seed 0 where it has none.

    Args:
        name: one of `PRESETS`.
        source: a key of `SOURCES`.

    Raises:
        LLM4GENError: there is no such preset, or no official way for this source.
    """
    if name not in PRESETS:
        raise LLM4GENError(f"Preset {name!r} is not known; expected {' or '.join(PRESETS)}.")
    official = _OFFICIAL.get(source)
    if name == "bench-official":
        if official is None:
            raise LLM4GENError(
                f"{source} has no official way to be painted, so that there is no preset bench-official for it; "
                f"expected paper, or one of {', '.join(_OFFICIAL)}."
            )
        return official
    return Preset(
        "LLM4GEN's paper: DDIM, 50 steps, guidance 7.5",
        official.seeds if official else (0,),
        50,
        7.5,
        "ddim",
        ("The paper says neither its seeds nor how many images a prompt it paints; they are the benchmark's here.",),
    )
