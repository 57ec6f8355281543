"""Models from folders: real ones of transformers, tiny and with random weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaForCausalLM

from evaluation.dense.local_model import LocalModel
from evaluation.dense.writing import Request
from llm4gen_core import LLM4GENError

CPU = torch.device("cpu")


def test_the_likeliest_answer_is_that_of_a_loop_by_hand(writer_folder: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(writer_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(writer_folder)
    tokens = tokenizer("write a prompts <answer>", return_tensors="pt")["input_ids"]
    start = tokens.shape[1]
    with torch.no_grad():
        for _ in range(6):
            tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], 1)
    expected = tokenizer.decode(tokens[0, start:], skip_special_tokens=True).strip()
    found = LocalModel(writer_folder, False, CPU, torch.float32).write(Request("write a prompts", 1, 6, 0.0))
    assert found == expected != ""


def test_sampling_follows_the_seed_and_leaves_torchs_own(writer_folder: Path) -> None:
    model = LocalModel(writer_folder, False, CPU, torch.float32)
    state = torch.get_rng_state()
    answers = [model.write(Request("write prompts", seed, 12, 1.0)) for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_the_image_counts(vision_folder: Path) -> None:
    model = LocalModel(vision_folder, True, CPU, torch.float32)
    colors = ((255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0))
    answers = {model.write(Request("describe this image", 1, 12, 0.0, Image.new("RGB", (48, 40), c))) for c in colors}
    assert len(answers) > 1
    assert model.describe["model"] == "vision" and len(model.describe["hash"]) == 16


def test_what_cannot_be_asked_is_refused(writer_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LLM4GENError, match="does not exist"):
        LocalModel(tmp_path / "none", False, CPU, torch.float32)
    with pytest.raises(LLM4GENError, match="cannot be read as a vision-language model"):
        LocalModel(writer_folder, True, CPU, torch.float32)
    silent = tmp_path / "silent"
    shutil.copytree(writer_folder, silent)
    (silent / "chat_template.jinja").unlink()
    with pytest.raises(LLM4GENError, match="no chat template"):
        LocalModel(silent, False, CPU, torch.float32)
    holed = tmp_path / "holed"
    shutil.copytree(writer_folder, holed)
    weights = load_file(holed / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, holed / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LLM4GENError, match="lacks 1 of its weights"):
        LocalModel(holed, False, CPU, torch.float32)
