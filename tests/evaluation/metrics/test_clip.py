"""CLIP scores: cosines against the parts of the model, pooled at EOS for texts of any length."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoImageProcessor, CLIPModel, CLIPTokenizer

from evaluation.image_set import Prompt
from evaluation.metrics.base import Context
from evaluation.metrics.clip import CLIP_L, ClipJudge, ClipScore, LongClipScore, NonSpatial
from llm4gen_core import LLM4GENError

SHORT = "a green bench and a blue bowl"
LONG = "a red cat on a green bench and " * 20
TEXTS = (SHORT, LONG, "cat")


def prompts_of(*texts: str, category: str = "") -> list[Prompt]:
    return [Prompt(id=str(number), text=text, category=category) for number, text in enumerate(texts)]


@torch.no_grad()
def cosine_by_hand(folder: Path, image: Image.Image, ids: list[int], place: int) -> float:
    """Cosine between an image and the text encoder's output at a token."""
    model: Any = CLIPModel.from_pretrained(folder)
    pixels = AutoImageProcessor.from_pretrained(folder, backend="pil")(image, return_tensors="pt").pixel_values
    hidden = model.text_model(input_ids=torch.tensor([ids])).last_hidden_state[:, place]
    seen = model.get_image_features(pixel_values=pixels).pooler_output
    return float(F.cosine_similarity(model.text_projection(hidden), seen))


def test_score_is_a_hundred_times_the_cosine_and_never_negative(clip_folder: Path, pictures: list[Image.Image]) -> None:
    metric = ClipScore.load(Context(judges=clip_folder.parent))
    ids = CLIPTokenizer.from_pretrained(clip_folder)(SHORT).input_ids
    scores = metric.score(pictures, prompts_of(SHORT, SHORT, SHORT))
    for picture, score in zip(pictures, scores, strict=True):
        cosine = cosine_by_hand(clip_folder, picture, ids, -1)
        assert score["cosine"] == pytest.approx(cosine, abs=1e-5)
        assert score["score"] == pytest.approx(100 * max(cosine, 0), abs=1e-3)
        assert score["tokens"] == len(ids) == 9 and score["truncated"] is False


def test_a_negative_cosine_scores_zero(
    clip_folder: Path, pictures: list[Image.Image], tmp_path: Path, clip_writer: Callable[..., Path]
) -> None:
    folder = clip_writer(tmp_path / "clip")
    model: Any = CLIPModel.from_pretrained(folder)
    for layer in (model.text_projection, model.visual_projection):
        layer.weight.data.zero_()
    model.text_model.final_layer_norm.bias.data.fill_(1)
    model.text_model.final_layer_norm.weight.data.zero_()
    model.vision_model.post_layernorm.bias.data.fill_(1)
    model.vision_model.post_layernorm.weight.data.zero_()
    model.text_projection.weight.data[0, 0], model.visual_projection.weight.data[0, 0] = 1, -1
    model.save_pretrained(folder)
    [score] = ClipScore.load(Context(judges=tmp_path)).score(pictures[:1], prompts_of("cat"))
    assert score["cosine"] == pytest.approx(-1) and score["score"] == 0
    [score] = NonSpatial(ClipJudge(folder)).score(pictures[:1], prompts_of("cat"))
    assert score["score"] == pytest.approx(-1)


def test_a_long_text_keeps_its_eos(clip_folder: Path, pictures: list[Image.Image]) -> None:
    """Truncating after 77 tokens leaves no EOS, and another token is compared (torchmetrics #2883)."""
    [score] = ClipScore.load(Context(judges=clip_folder.parent)).score(pictures[:1], prompts_of(LONG))
    tokenizer = CLIPTokenizer.from_pretrained(clip_folder)
    ids = tokenizer(LONG).input_ids
    assert score["tokens"] == len(ids) > 77 and score["truncated"] is True
    kept = tokenizer(LONG, truncation=True, max_length=77).input_ids
    assert kept[-1] == tokenizer.eos_token_id and len(kept) == 77
    assert score["cosine"] == pytest.approx(cosine_by_hand(clip_folder, pictures[0], kept, -1), abs=1e-5)
    for wrong_place in (0, -1):  # `CLIPModel` then finds no EOS and takes the first token
        wrong = cosine_by_hand(clip_folder, pictures[0], ids[:77], wrong_place)
        assert abs(score["cosine"] - wrong) > 1e-3


def test_77_tokens_fit_and_78_do_not(clip_folder: Path, pictures: list[Image.Image]) -> None:
    metric = ClipScore.load(Context(judges=clip_folder.parent))
    fits, cut = metric.score(pictures[:2], prompts_of("cat " * 75, "cat " * 76))
    assert (fits["tokens"], fits["truncated"]) == (77, False)
    assert (cut["tokens"], cut["truncated"]) == (78, True)


@pytest.mark.parametrize("eos_in_config", [None, 2])
def test_both_forms_of_configuration_pool_at_eos(
    eos_in_config: int | None, pictures: list[Image.Image], tmp_path: Path, clip_writer: Callable[..., Path]
) -> None:
    """EOS id 2, as in OpenAI's folders, and the tokenizer's own: both agree with `CLIPModel`."""
    folder = clip_writer(tmp_path / "clip", eos_in_config=eos_in_config)
    text = CLIPTokenizer.from_pretrained(folder)([SHORT, "cat"], padding=True, return_tensors="pt")
    model: Any = CLIPModel.from_pretrained(folder)
    with torch.no_grad():
        expected = model.get_text_features(**text).pooler_output
    found, _ = ClipJudge(folder).embed_texts([SHORT, "cat"])
    assert torch.allclose(found, F.normalize(expected, dim=-1), atol=1e-5)


def test_a_configuration_that_names_another_token_changes_nothing(
    clip_folder: Path, tmp_path: Path, clip_writer: Callable[..., Path]
) -> None:
    folder = clip_writer(tmp_path / "clip", eos_in_config=7)
    right, other = (ClipJudge(path).embed_texts(TEXTS)[0] for path in (clip_folder, folder))
    torch.testing.assert_close(right, other, rtol=1e-5, atol=1e-6)


def test_batches_score_as_single_images(clip_folder: Path, pictures: list[Image.Image]) -> None:
    metric = ClipScore.load(Context(judges=clip_folder.parent))
    together = metric.score(pictures, prompts_of(*TEXTS))
    alone = [metric.score([picture], prompts_of(text))[0] for picture, text in zip(pictures, TEXTS, strict=True)]
    assert [one["cosine"] for one in together] == pytest.approx([one["cosine"] for one in alone], abs=1e-5)
    assert len({round(one["cosine"], 4) for one in together}) == 3


def test_long_clip_reads_what_clip_does_not(clip_folder: Path, pictures: list[Image.Image]) -> None:
    metric = LongClipScore.load(Context(judges=clip_folder.parent))
    other_end = LONG + "a yellow vase"
    first, second = metric.score(pictures[:1] * 2, prompts_of(LONG, other_end))
    assert metric.describe()["length"] == 248
    assert first["truncated"] is False and abs(first["cosine"] - second["cosine"]) > 1e-4
    short = ClipScore.load(Context(judges=clip_folder.parent))
    first, second = short.score(pictures[:1] * 2, prompts_of(LONG, other_end))
    assert first["truncated"] is True and first["cosine"] == pytest.approx(second["cosine"], abs=1e-6)


def test_an_ordinary_clip_is_refused_as_long_clip(clip_folder: Path) -> None:
    with pytest.raises(LLM4GENError, match="reads 77 tokens"):
        LongClipScore.load(Context(judges=clip_folder.parent, options={"long-clip": "clip"}))


def test_non_spatial_is_the_cosine_of_its_category(clip_folder: Path, pictures: list[Image.Image]) -> None:
    metric = NonSpatial.load(Context(judges=clip_folder.parent))
    prompts = prompts_of(SHORT, category="non-spatial")
    assert NonSpatial.applies(prompts[0]) and not NonSpatial.applies(prompts_of(SHORT, category="spatial")[0])
    [score] = metric.score(pictures[:1], prompts)
    assert score["score"] == score["cosine"]
    assert metric.describe()["judge"] == "clip-b32"


def test_another_folder_by_option(clip_folder: Path) -> None:
    metric = ClipScore.load(Context(judges=clip_folder.parent, options={CLIP_L.folder: "long-clip"}))
    assert metric.describe()["judge"] == "long-clip" and metric.describe()["length"] == 248


def test_an_image_three_pixels_high_is_not_read_as_channels(clip_folder: Path) -> None:
    """It is prepared as any other: shortest side resized, then the center cropped."""
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (3, 40, 3), dtype=np.uint8))
    width = int(32 * 40 / 3)
    left = (width - 32) // 2
    middle = image.resize((width, 32), Image.Resampling.BICUBIC).crop((left, 0, left + 32, 32))
    judge = ClipJudge(clip_folder)
    assert torch.allclose(judge.embed_images([image]), judge.embed_images([middle]), atol=1e-4)


def test_a_missing_judge_is_named(tmp_path: Path) -> None:
    with pytest.raises(LLM4GENError, match="openai/clip-vit-large-patch14"):
        ClipScore.load(Context(judges=tmp_path))


def test_another_kind_of_model_is_refused(clip_folder: Path, tmp_path: Path, clip_writer: Callable[..., Path]) -> None:
    folder = clip_writer(tmp_path / "clip")
    file = folder / "config.json"
    file.write_text(file.read_text().replace('"model_type": "clip"', '"model_type": "siglip"'))
    with pytest.raises(LLM4GENError, match="type 'siglip'; expected type 'clip'"):
        ClipScore.load(Context(judges=tmp_path))


def test_a_damaged_file_is_named(clip_folder: Path, tmp_path: Path, clip_writer: Callable[..., Path]) -> None:
    folder = clip_writer(tmp_path / "clip")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(LLM4GENError, match="weights cannot be read"):
        ClipScore.load(Context(judges=tmp_path))


def test_description_changes_with_the_weights(
    clip_folder: Path, tmp_path: Path, clip_writer: Callable[..., Path]
) -> None:
    folder = clip_writer(tmp_path / "clip")
    before = ClipJudge(folder).describe()
    model: Any = CLIPModel.from_pretrained(folder)
    model.text_projection.weight.data[0, 0] += 1
    model.save_pretrained(folder)
    after = ClipJudge(folder).describe()
    assert before["hash"] != after["hash"]
    assert {**before, "hash": ""} == {**after, "hash": ""}


def test_a_missing_package_is_no_broken_download(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def needs_package(*args: object, **options: object) -> None:
        raise ImportError("\nCLIPTokenizer requires the ftfy library but it was not found.")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", needs_package)
    with pytest.raises(
        LLM4GENError, match="its tokenizer needs a package that is not installed .CLIPTokenizer requires"
    ):
        ClipJudge(clip_folder)
