"""Generation of prompt sets: every image once, none missing, whatever happens in between."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evaluation.__main__ import main
from evaluation.generate import generate
from evaluation.image_set import ImageSet, Prompt, image_id, write_prompts
from evaluation.models import LLM4GENModel, Model, ModelFiles, PresetOptions, open_model
from llm4gen_core import LLM4GENError
from llm4gen_diffusers.sampling import Pipeline

ROOT = Path(__file__).resolve().parents[2]


class Flat:
    """Generate images of one color, which prompt and seed decide, and record the calls."""

    notes = ()

    def __init__(self, fail_after: int | None = None, style: str = "flat") -> None:
        self.generated: list[tuple[str, int]] = []
        self.fail_after = fail_after
        self.style = style

    def describe(self) -> dict[str, Any]:
        return {"kind": "flat", "style": self.style}

    def made(self) -> dict[str, Any]:
        return {"device": "brush"}

    def generate(self, prompts, seeds):
        requested = [(prompt.id, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        for first in range(0, len(requested), 4):
            if self.fail_after is not None and len(self.generated) >= self.fail_after:
                raise KeyboardInterrupt
            part = requested[first : first + 4]
            self.generated += part
            yield [Image.new("RGB", (16, 16), tuple(hashlib.sha256(str(one).encode()).digest()[:3])) for one in part]


@pytest.fixture
def generate_flat(tmp_path):
    """Call `generate` in a folder of the test."""

    def run(model: Model, prompts: list[Prompt], seeds: list[int]) -> ImageSet:
        return generate(tmp_path / "set", "flat", model, prompts, seeds)

    return run


def test_every_prompt_is_generated_with_every_seed_and_has_a_row(generate_flat, prompts: list[Prompt]) -> None:
    model = Flat()
    images = generate_flat(model, prompts, [7, 3])
    rows = images.rows()
    assert [(row.prompt, row.seed) for row in rows] == [(prompt.id, seed) for prompt in prompts for seed in (3, 7)]
    assert sorted(model.generated) == sorted((row.prompt, row.seed) for row in rows)
    for row in rows:
        content = (images.path / row.file).read_bytes()
        assert hashlib.sha256(content).hexdigest() == row.sha256
        assert images.open(row).size == (row.width, row.height) == (16, 16)
    assert {row.text for row in rows} == {prompt.text for prompt in prompts}


def test_an_interrupted_set_continues_where_it_stopped(generate_flat, prompts: list[Prompt]) -> None:
    first = Flat(fail_after=8)
    with pytest.raises(KeyboardInterrupt):
        generate_flat(first, prompts, [0, 1, 2])
    second = Flat()
    images = generate_flat(second, prompts, [0, 1, 2])
    assert len(first.generated) == 8 and not {*first.generated} & {*second.generated}
    assert len(images.rows()) == len(prompts) * 3


def test_a_missing_file_is_generated_again(generate_flat, prompts: list[Prompt]) -> None:
    images = generate_flat(Flat(), prompts, [0])
    row = images.rows()[2]
    (images.path / row.file).unlink()
    again = Flat()
    assert len(generate_flat(again, prompts, [0]).rows()) == len(prompts)
    assert again.generated == [(row.prompt, 0)] and (images.path / row.file).is_file()


def test_seeds_and_prompts_can_be_added(generate_flat, prompts: list[Prompt]) -> None:
    generate_flat(Flat(), prompts[:2], [0])
    more = Flat()
    images = generate_flat(more, prompts[1:3], [1])
    assert {(row.prompt, row.seed) for row in images.rows()} == {(p.id, s) for p in prompts[:3] for s in (0, 1)}
    assert (prompts[0].id, 0) not in more.generated


def test_other_settings_and_other_prompts_are_refused(generate_flat, prompts: list[Prompt]) -> None:
    images = generate_flat(Flat(), prompts[:1], [0])
    before = images.manifest.path.read_bytes()
    with pytest.raises(LLM4GENError, match=r"other settings \(style\)"):
        generate_flat(Flat(style="other"), prompts[:1], [0])
    with pytest.raises(LLM4GENError, match="another prompt with the id"):
        generate_flat(Flat(), [prompts[0].model_copy(update={"text": "something else"})], [0])
    assert images.manifest.path.read_bytes() == before


def test_settings_of_an_older_set_have_the_same_fingerprint(generate_flat, prompts: list[Prompt]) -> None:
    """Older sets store `generation` as `painting`."""
    images = generate_flat(Flat(), prompts[:1], [0])
    file = images.path / "settings.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({"painting": content.pop("generation"), **content}))
    assert images.settings.generation == Flat().describe()
    more = Flat()
    assert len(generate_flat(more, prompts[:2], [0]).rows()) == 2 and len(more.generated) == 1
    assert "generation" in json.loads(file.read_text())


def test_the_seed_of_a_prompt_is_added(generate_flat) -> None:
    model = Flat()
    generate_flat(model, [Prompt(id="caption", text="x", about={"seed": 500})], [0, 1])
    assert model.generated == [("caption", 500), ("caption", 501)]


def test_the_images_are_those_of_the_pipeline(
    tmp_path: Path, prompts, llm4gen: ModelFiles, quick: PresetOptions
) -> None:
    images = generate(tmp_path / "set", "LLM4GEN", open_model(llm4gen, quick, "cpu"), prompts, [5])
    pipeline = Pipeline.from_files(llm4gen, chunks=1)
    for row, prompt in zip(images.rows(), prompts, strict=True):
        expected = pipeline.generate(prompt.text, quick, seed=5, progress=False)[0]
        expected = (expected.permute(1, 2, 0).numpy() * 255).clip(0, 255).astype(int)
        assert np.abs(np.asarray(images.open(row), int) - expected).max() <= 1, "batches of four change the last bits"
    generation = images.settings.generation
    assert generation["adapter"]["name"] == "adapter.safetensors" and generation["strength"] == 1.0
    assert generation["steps"] == 2 and "/" not in json.dumps(generation["base"]), "no paths of this machine"


def test_an_opened_pipeline_is_a_model(tmp_path: Path, prompts, base: ModelFiles, quick: PresetOptions) -> None:
    pipeline = Pipeline.from_files(base, chunks=1)
    model = LLM4GENModel(pipeline, quick, batch=4, files={"step": 1}, notes=["step 1"])
    images = generate(tmp_path / "set", "base", model, prompts[:2], [0])
    assert len(images.rows()) == 2 and images.settings.notes == ["step 1"]
    assert model.describe() == {**LLM4GENModel(pipeline, quick).describe(), "step": 1}
    with pytest.raises(LLM4GENError, match=r"other settings \(step\)"):
        generate(tmp_path / "set", "base", LLM4GENModel(pipeline, quick, files={"step": 2}), prompts[:2], [0])


def test_another_adapter_under_the_same_name_has_another_hash(tmp_path: Path, llm4gen: ModelFiles, quick) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    other = tmp_path / "adapter.safetensors"
    with safe_open(llm4gen.adapter, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(llm4gen.adapter)
    name = sorted(tensors)[0]
    save_file({**tensors, name: tensors[name] + 1e-3}, other, metadata)
    one, two = (
        open_model(llm4gen.model_copy(update={"adapter": str(path)}), quick, "cpu").describe()
        for path in (llm4gen.adapter, other)
    )
    assert one["adapter"]["name"] == two["adapter"]["name"] and one["adapter"]["hash"] != two["adapter"]["hash"]


@pytest.mark.slow
def test_a_killed_set_is_completed_with_no_image_twice(tmp_path: Path, prompts, base: ModelFiles) -> None:
    write_prompts(tmp_path / "prompts.jsonl", prompts)
    command = [sys.executable, "-m", "evaluation", "generate", str(tmp_path / "set"), "--prompts"]
    command += [str(tmp_path / "prompts.jsonl"), "--base", base.base, "--seeds", "0-9", "--steps", "10", "--batch", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    images = ImageSet(tmp_path / "set")
    until = time.monotonic() + 600
    while not (images.manifest.path.is_file() and len(images.rows()) > 5):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    half = {row.id: row.sha256 for row in images.rows()}
    assert 5 < len(half) < 60
    assert main(command[3:]) == 0
    rows = images.rows()
    assert [row.id for row in rows] == [image_id(prompt.id, seed) for prompt in prompts for seed in range(10)]
    assert all({row.id: row.sha256 for row in rows}[name] == digest for name, digest in half.items())
    written = [json.loads(line)["id"] for _, line in images.manifest.lines()]
    assert len(written) == len({*written}), "no image twice"


@pytest.mark.slow
def test_two_processes_share_the_images(tmp_path: Path, prompts, base: ModelFiles) -> None:
    write_prompts(tmp_path / "prompts.jsonl", prompts)
    arguments = ["--prompts", str(tmp_path / "prompts.jsonl"), "--base", base.base, "--seeds", "0-2", "--steps", "2"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, "-m", "evaluation", "generate", str(tmp_path / "set"), *arguments]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    rows = ImageSet(tmp_path / "set").rows()
    assert len(rows) == 18
    shares = {process: {row.id for row in rows if row.made["process"] == process} for process in (0, 1)}
    assert len(shares[0]) == len(shares[1]) == 9 and not shares[0] & shares[1]
