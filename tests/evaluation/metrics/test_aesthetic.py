"""Aesthetic score: both heads against their own arithmetic, and refusal of other weights."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from evaluation.image_set import Prompt
from evaluation.metrics.base import Context
from evaluation.metrics.clip import HEADS, Aesthetic, AestheticHead, ClipJudge
from llm4gen_core import LLM4GENError

WIDTH = 24
"""Size of the tiny CLIP's embeddings, in place of 768."""
PROMPTS = [Prompt(id=str(number), text="cat") for number in range(3)]


class ReleasedHead(nn.Module):
    """Head v2 as it was trained."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(WIDTH, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )


@pytest.fixture
def judges(clip_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(clip_folder, tmp_path / "clip")
    (tmp_path / "aesthetic").mkdir()
    return tmp_path


def test_version_2_is_the_released_network(judges: Path, pictures: list[Image.Image]) -> None:
    torch.manual_seed(0)
    head = ReleasedHead().eval()
    torch.save(head.state_dict(), judges / "aesthetic" / HEADS[0])
    metric = Aesthetic.load(Context(judges=judges))
    embeddings = ClipJudge(judges / "clip").embed_images(pictures)
    assert torch.allclose(embeddings.norm(dim=-1), torch.ones(3))
    expected = head.layers(embeddings).squeeze(-1).tolist()
    scores = [one["score"] for one in metric.score(pictures, PROMPTS)]
    assert scores == pytest.approx(expected, abs=1e-5) and len(set(scores)) == 3
    assert metric.describe()["head"] == "v2"


def test_version_1_is_one_layer(judges: Path, pictures: list[Image.Image]) -> None:
    torch.manual_seed(1)
    layer = nn.Linear(WIDTH, 1)
    torch.save(layer.state_dict(), judges / "aesthetic" / HEADS[1])
    metric = Aesthetic.load(Context(judges=judges))
    [row] = ClipJudge(judges / "clip").embed_images(pictures[:1]).tolist()
    by_hand = sum(x * w for x, w in zip(row, layer.weight[0].tolist(), strict=True)) + layer.bias.item()
    assert metric.score(pictures[:1], PROMPTS[:1])[0]["score"] == pytest.approx(by_hand, abs=1e-5)
    assert metric.describe()["head"] == "v1"


def test_batches_score_as_single_images(judges: Path, pictures: list[Image.Image]) -> None:
    torch.save(nn.Linear(WIDTH, 1).state_dict(), judges / "aesthetic" / HEADS[1])
    metric = Aesthetic.load(Context(judges=judges))
    together = [one["score"] for one in metric.score(pictures, PROMPTS)]
    assert together == pytest.approx([metric.score([one], PROMPTS[:1])[0]["score"] for one in pictures], abs=1e-5)


def test_other_weights_are_refused() -> None:
    with pytest.raises(LLM4GENError, match=r"layers\.0\.weight"):
        AestheticHead({"layers.0.weight": torch.zeros(1, WIDTH)}, "x.pth")
    with pytest.raises(LLM4GENError, match="to end in one number"):
        AestheticHead({"weight": torch.zeros(2, WIDTH), "bias": torch.zeros(2)}, "x.pth")


def test_a_head_of_another_clip_is_refused(judges: Path) -> None:
    torch.save(nn.Linear(WIDTH + 1, 1).state_dict(), judges / "aesthetic" / HEADS[1])
    with pytest.raises(LLM4GENError, match="embeddings of 24 numbers"):
        Aesthetic.load(Context(judges=judges))


def test_a_pickle_that_would_run_code_is_refused(judges: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    class Bad:
        def __reduce__(self) -> tuple:
            return (Path.touch, (ran,))

    (judges / "aesthetic" / HEADS[0]).write_bytes(pickle.dumps({"weight": Bad()}, protocol=2))
    with pytest.raises(LLM4GENError, match="needs to run code"):
        Aesthetic.load(Context(judges=judges))
    assert not ran.exists()


def test_a_missing_head_is_named(tmp_path: Path, clip_writer: Callable[..., Path]) -> None:
    clip_writer(tmp_path / "clip")
    with pytest.raises(LLM4GENError, match="improved-aesthetic-predictor"):
        Aesthetic.load(Context(judges=tmp_path))
