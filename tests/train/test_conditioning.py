"""What the UNet is conditioned on: dropped captions, and the places of words in the fused context."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_models import make_world

from llm4gen_core import EntityPair, LLMEncoder, LLMSpec
from llm4gen_core.encoder import folder_spec
from llm4gen_core.entity_guidance import GuidanceOptions
from llm4gen_diffusers.families import Family, load_family
from train.conditioning import CaptionDropout, Conditioner, choose_dropout

CAPTION = "a Red  circle, a red square and a red circle"
PAIRS = [
    EntityPair.from_offsets(CAPTION, 2, 5, 7, 13),
    EntityPair.from_offsets(CAPTION, 17, 20, 21, 27),
    EntityPair.from_offsets(CAPTION, 34, 37, 38, 44),
]
LENGTH = 32


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_world(folder, images=2)
    return folder


@pytest.fixture(scope="module")
def family(world: Path) -> Family:
    return load_family("miniature", world / "base", parts=("text",))


@pytest.fixture(scope="module", params=["right", "left"])
def llm(world: Path, request: pytest.FixtureRequest) -> LLMEncoder:
    own = folder_spec(world / "llm")
    spec = LLMSpec(own.model, own.architecture, own.layers, own.width, "pre ", LENGTH, padding_side=request.param)
    return LLMEncoder.from_folder(world / "llm", spec)


def conditioner(family: Family, llm: LLMEncoder | None, layout: tuple[str, ...], **options: object) -> Conditioner:
    guidance = GuidanceOptions(**options)  # type: ignore[arg-type]
    return Conditioner(family, llm, layout, guidance, 1, False, torch.device("cpu"))


def words(
    conditioner: Conditioner, caption: str, drop: CaptionDropout = CaptionDropout.NOTHING
) -> list[tuple[str, str]]:
    """(attribute, entity) of each pair of the targets, as the tokens at their positions decode."""
    family, llm = conditioner.family, conditioner.llm
    clip_ids = family._clip_ids(0, [caption], 1, None).flatten().tolist()
    llm_ids = llm_tokens(llm, caption) if llm is not None else []
    context = []
    for position, part in enumerate(conditioner.layout):
        if part == "text":
            context += [(family.tokenizers[0], token) for token in clip_ids]
        else:
            assert llm is not None and position == len(conditioner.layout) - 1
            context += [(llm.tokenizer, token) for token in llm_ids]
    targets = conditioner.targets([caption], [PAIRS], [drop])

    def word(shares: torch.Tensor) -> str:
        positions = targets.columns[0, shares.nonzero().flatten()].tolist()
        return "".join(context[p][0].decode([context[p][1]]) for p in sorted(positions)).replace(" ", "")

    return [
        (word(targets.attribute[0, p]), word(targets.entity[0, p]))
        for p in range(len(targets.pairs[0]))
        if targets.pairs[0, p]
    ]


def llm_tokens(llm: LLMEncoder, caption: str) -> list[int]:
    from llm4gen_core.prompt_tokens import tokenize_prompt

    return tokenize_prompt(llm.tokenizer, caption, llm.spec).ids


CLIP = [("red", "circle"), ("red", "square"), ("red", "circle")]
LLM = [("Red", "circle"), ("red", "square"), ("red", "circle")]


@pytest.mark.parametrize(
    ("layout", "drop", "options", "expected"),
    [
        (("text", "llm"), CaptionDropout.NOTHING, {}, CLIP + LLM),
        (("text", "llm"), CaptionDropout.NOTHING, {"tokens": "llm"}, LLM),
        (("llm",), CaptionDropout.NOTHING, {}, LLM),
        (("text", "text"), CaptionDropout.NOTHING, {}, CLIP + CLIP),
        (("text",), CaptionDropout.NOTHING, {}, CLIP),
        (("text", "llm"), CaptionDropout.LLM, {}, CLIP),
        (("text", "llm"), CaptionDropout.CAPTION, {}, []),
    ],
    ids=str,
)
def test_the_positions_hold_the_words(
    family: Family, llm: LLMEncoder, layout: tuple[str, ...], drop: CaptionDropout, options: dict, expected: list
) -> None:
    uses_llm = llm if "llm" in layout else None
    assert words(conditioner(family, uses_llm, layout, **options), CAPTION, drop) == expected


def test_each_mention_has_its_own_tokens(family: Family, llm: LLMEncoder) -> None:
    targets = conditioner(family, llm, ("text", "llm")).targets([CAPTION], [PAIRS], [CaptionDropout.NOTHING])
    assert targets.pairs.sum() == 6
    circles = [targets.columns[0, targets.entity[0, p].nonzero().flatten()].tolist() for p in (0, 2)]
    assert not set(circles[0]) & set(circles[1])


def test_dropped_captions_see_the_pair_of_empty_prompts(family: Family, llm: LLMEncoder) -> None:
    made = conditioner(family, llm, ("text", "llm"))
    own, empty = made.features([CAPTION]), made.features([""])
    found = made.inputs([CAPTION] * 3, [CaptionDropout.NOTHING, CaptionDropout.LLM, CaptionDropout.CAPTION])
    assert found.text is not None and found.llm is not None
    for row, (clip, of_llm) in enumerate([(own, own), (own, empty), (empty, empty)]):
        torch.testing.assert_close(found.text[row], clip["clip"][0])
        torch.testing.assert_close(found.llm[row], of_llm["llm"][0])


def test_cached_features_are_taken_as_they_are(family: Family, llm: LLMEncoder) -> None:
    made = conditioner(family, llm, ("text", "llm"))
    cached = made.features([CAPTION, "a blue cross"])
    found = made.inputs(["not looked at", "either"], [CaptionDropout.NOTHING] * 2, cached)
    assert found.text is not None and torch.equal(found.text, cached["clip"])
    assert found.llm is not None and torch.equal(found.llm, cached["llm"])


def test_shares_of_drops() -> None:
    drops = [choose_dropout((i + 0.5) / 1000, 0.1, 0.05) for i in range(1000)]
    assert [drops.count(drop) for drop in (CaptionDropout.CAPTION, CaptionDropout.LLM, CaptionDropout.NOTHING)] == [
        100,
        50,
        850,
    ]
