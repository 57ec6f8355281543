"""The random models of the tests have the files of real ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_models import make_diffusers_folder, make_projector, make_t5_folder
from transformers import AutoTokenizer, CLIPTokenizer

from llm4gen_core import LLMEncoder


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
