"""The demonstration, and the random miniatures of tests."""

import contextlib
import io
import json
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from short_runs import forget_accelerate
from small_models import make_diffusers_folder, make_projector, make_t5_folder
from transformers import AutoTokenizer, CLIPTokenizer

import miniature.demo
from llm4gen_core import LLMEncoder, load_adapter
from miniature.demo import demo
from miniature.showcase import _GAP, _LINE, _SIDE, _TEXT
from train.__main__ import main
from train.recipe_file import load_recipe
from train.run_folder import RunFolder

QUICK = {"PROMPTS": 2, "WORLD_IMAGES": 8, "TRAIN_STEPS": 8, "PAINT_STEPS": 2, "STOP_AT": 2}


@dataclass(frozen=True)
class Shown:
    """A demo of a few seconds: its folder, the files that it gave, and what it printed."""

    folder: Path
    files: list[Path]
    lines: list[str]

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.folder / miniature.demo.TRAINING / "run")

    def command(self, name: str) -> list[str]:
        """The arguments of a printed `python -m train NAME ...`."""
        start = f"python -m train {name} "
        [line] = [line for line in self.lines if line.removeprefix("$ ").startswith(start)]
        return shlex.split(line.removeprefix("$ ").removeprefix("python -m train"))


def show(folder: Path) -> Shown:
    forget_accelerate()
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        for name, value in QUICK.items():
            patch.setattr(miniature.demo, name, value)
        files = demo(folder)
    return Shown(folder, files, printed.getvalue().splitlines())


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    return show(tmp_path_factory.mktemp("demo: first"))  # ": " means something in YAML


def test_the_demo_shows_base_and_llm4gen_side_by_side(shown: Shown) -> None:
    pixels = np.asarray(Image.open(shown.files[0])).astype(int)
    rows = [pixels[top : top + _SIDE, _TEXT:] for top in (2 * _LINE, 2 * _LINE + _SIDE + 2 * _LINE + _GAP)]
    for row in rows:
        images = [row[:, left : left + _SIDE] for left in (_GAP + n * (_SIDE + _GAP) for n in range(3))]
        assert all(image.std() > 5 for image in images)
        assert all(np.abs(a - b).max() > 100 for i, a in enumerate(images) for b in images[:i])


def test_the_demo_shows_where_both_looked(shown: Shown) -> None:
    pixels = np.asarray(Image.open(shown.files[1])).astype(int)
    base, llm4gen = np.split(pixels, 2)
    assert base.std() > 5 and np.abs(base - llm4gen).max() > 100


def test_the_demo_says_that_its_models_are_miniatures(shown: Shown) -> None:
    printed = "\n".join(shown.lines)
    assert "miniatures" in printed and "says nothing of SD1.5" in printed and "still a pattern" in printed


def test_the_demo_says_what_the_judge_finds(shown: Shown) -> None:
    found = [line for line in shown.lines if line.lstrip().startswith(("base: ", "with LLM4GEN: "))]
    assert len(found) == 2 * QUICK["PROMPTS"] and all("% of the words are there" in line for line in found)


def test_the_command_that_the_demo_shows_works(shown: Shown, tmp_path: Path) -> None:
    assert main([*shown.command("generate"), "--output", str(tmp_path / "again.png")]) == 0
    assert (tmp_path / "again.png").read_bytes() == (shown.folder / "llm4gen.png").read_bytes()


def test_the_demo_trains_what_its_command_says(shown: Shown) -> None:
    _, name, *overrides = shown.command("run")
    assert shown.run.load() == load_recipe(name, overrides).absolute()


def test_the_demo_stops_its_run_and_goes_on(shown: Shown) -> None:
    steps = sorted(int(path.name.removeprefix("step-")) for path in shown.run.checkpoints.iterdir())
    assert len(steps) == 2 and QUICK["STOP_AT"] <= steps[0] < steps[1] == QUICK["TRAIN_STEPS"]
    assert shown.command("resume") == ["resume", str(shown.run.path)]
    assert f"left a checkpoint after step {steps[0]}." in "\n".join(shown.lines)
    losses = [json.loads(line)["loss"] for line in shown.run.metrics.read_text().splitlines()]
    assert len(losses) == QUICK["TRAIN_STEPS"]
    assert f"the loss fell from {losses[0]:.3f} to {losses[-1]:.3f}" in "\n".join(shown.lines)


def test_the_demo_paints_with_what_it_trained(shown: Shown) -> None:
    before, after = shown.files[3:]
    assert "llm" not in json.loads(Image.open(before).text["llm4gen"])
    settings = json.loads(Image.open(after).text["llm4gen"])
    adapter = shown.folder / miniature.demo.TRAINING / "adapter" / "adapter.safetensors"
    assert settings["adapter"] == adapter.name
    assert load_adapter(adapter).metadata.training["steps"] == QUICK["TRAIN_STEPS"]
    assert np.abs(np.asarray(Image.open(before)).astype(int) - np.asarray(Image.open(after))).max() > 0


def test_a_second_demo_keeps_the_images_and_the_run_of_the_first(shown: Shown) -> None:
    metrics = shown.run.metrics.read_bytes()
    second = show(shown.folder)
    assert len(set(shown.files + second.files)) == 10 and all(file.is_file() for file in shown.files)
    assert shown.run.metrics.read_bytes() == metrics


def test_the_same_seed_gives_the_same_weights_and_leaves_the_callers_noise_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    states = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        base = make_diffusers_folder(tmp_path / name, seed=seed)
        states.append(load_file(base / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"])
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])
    assert torch.equal(torch.rand(2), expected)


def test_key_names_are_those_of_released_files(models):
    clip = load_file(models.base / "text_encoder" / "model.safetensors")
    assert "text_model.encoder.layers.0.self_attn.q_proj.weight" in clip and "text_model.final_layer_norm.bias" in clip
    rankgen = torch.load(models.llm / "pytorch_model.bin", weights_only=True)
    assert "t5_encoder.encoder.block.0.layer.0.SelfAttention.q.weight" in rankgen and "projection.weight" in rankgen
    assert "CrossFusionModule.0.FFN.2.bias" in torch.load(models.adapter, weights_only=True)


def test_the_projector_has_the_keys_of_the_releases(models):
    release = torch.load(Path(__file__).parents[1] / "data" / "official_projector.pth", weights_only=True)
    ours = torch.load(models.adapter, weights_only=True)
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in release.items()}


@pytest.mark.parametrize("text", ["a red cat", "Ünïcode 猫 and 'quotes'", ""])
def test_tokenizers_read_any_text(models, text):
    clip = CLIPTokenizer.from_pretrained(models.base / "tokenizer")
    ids = clip(text)["input_ids"]
    assert ids[0] == clip.bos_token_id == len(clip) - 2 and ids[-1] == clip.eos_token_id == len(clip) - 1
    t5 = AutoTokenizer.from_pretrained(models.llm)
    assert t5(text)["input_ids"][-1] == 1 and (t5.pad_token_id, t5.eos_token_id, t5.is_fast) == (0, 1, True)


def test_known_words_are_one_token(models):
    ids = CLIPTokenizer.from_pretrained(models.base / "tokenizer")("a red cat")["input_ids"]
    assert len(ids) == 5
    assert len(AutoTokenizer.from_pretrained(models.llm)("red cat")["input_ids"]) == 3


def test_rankgens_layout_and_t5s_own_give_the_same_encoder(models, tmp_path):
    own = LLMEncoder.from_folder(make_t5_folder(tmp_path / "t5", 96, rankgen=False))
    rankgen = LLMEncoder.from_folder(models.llm)
    assert (own.spec.prefix, rankgen.spec.prefix) == ("", "pre ")
    assert torch.equal(own.encode(["pre a red cat"]).hidden, rankgen.encode(["a red cat"]).hidden)


def test_sizes_are_as_asked_for(tmp_path):
    projector = torch.load(make_projector(tmp_path / "p.pth", 32, 48), weights_only=True)
    assert projector["CrossFusionModule.0.llm_proj.weight"].shape == (32, 48)
    assert LLMEncoder.from_folder(make_t5_folder(tmp_path / "t5", 48, layers=3)).spec.layers == 3
