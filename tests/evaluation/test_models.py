"""Models: files of one model, YAML files of several, diffusers pipelines; and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import make_diffusers_folder

from evaluation.image_set import Prompt
from evaluation.models import ModelFiles, PipelineFiles, PresetOptions, model_files, open_model, read_models
from llm4gen_core import LLM4GENError

CAT, DOG = Prompt(id="cat", text="a cat"), Prompt(id="dog", text="a dog on a hat")


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_diffusers_folder(tmp_path_factory.mktemp("models") / "sd15")


@pytest.fixture(scope="module")
def settings() -> PresetOptions:
    return PresetOptions(steps=2, guidance=3.0, width=64, height=64)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, int)


def test_a_pipeline_generates_the_images_of_diffusers(sd15: Path, settings: PresetOptions) -> None:
    from diffusers import StableDiffusionPipeline

    model = open_model(PipelineFiles(pipeline=str(sd15), batch=2), settings, "cpu")
    batches = [*model.generate([CAT, DOG, CAT], [3, 4, 5])]
    assert [len(batch) for batch in batches] == [2, 1]
    images = [image for batch in batches for image in batch]
    pipeline = StableDiffusionPipeline.from_pretrained(sd15, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    for image, prompt, seed in zip(images, (CAT, DOG, CAT), (3, 4, 5), strict=True):
        expected = pipeline(
            prompt.text,
            num_inference_steps=2,
            guidance_scale=3.0,
            width=64,
            height=64,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]
        assert np.abs(pixels(image) - pixels(expected)).max() <= 1
    assert np.abs(pixels(images[0]) - pixels(images[2])).max() > 1, "the seed counts"
    assert model.describe()["sampler"] == type(pipeline.scheduler).__name__


def test_a_pipeline_uses_the_sampler_of_the_preset_or_its_own(sd15: Path, settings: PresetOptions, monkeypatch) -> None:
    from diffusers import PNDMScheduler

    monkeypatch.setattr(
        "diffusers.pipelines.pipeline_utils.DiffusionPipeline.from_pretrained",
        _with_scheduler(sd15, PNDMScheduler(skip_prk_steps=True)),
    )

    def sampler(wanted: str | None, of_preset: str) -> str:
        options = settings.model_copy(update={"sampler": of_preset})
        return open_model(PipelineFiles(pipeline=str(sd15), sampler=wanted), options, "cpu").describe()["sampler"]

    assert sampler(None, "ddim") == sampler("ddim", "") == "DDIMScheduler"
    assert sampler(None, "") == sampler("own", "ddim") == "PNDMScheduler"


def test_a_sampler_that_ddim_cannot_replace_stays_and_is_noted(
    sd15: Path, settings: PresetOptions, monkeypatch
) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    monkeypatch.setattr(
        "diffusers.pipelines.pipeline_utils.DiffusionPipeline.from_pretrained",
        _with_scheduler(sd15, FlowMatchEulerDiscreteScheduler()),
    )
    model = open_model(PipelineFiles(pipeline=str(sd15)), settings, "cpu")
    assert model.describe()["sampler"] == "FlowMatchEulerDiscreteScheduler"
    assert any("which DDIM cannot replace" in note for note in model.notes)
    with pytest.raises(LLM4GENError, match="which DDIM cannot replace; leave the sampler out"):
        open_model(PipelineFiles(pipeline=str(sd15), sampler="ddim"), settings, "cpu")


def _with_scheduler(folder: Path, scheduler: object):
    """`from_pretrained` of the folder with another scheduler in its place."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)

    def from_pretrained(*args: object, **options: object) -> StableDiffusionPipeline:
        pipeline.scheduler = scheduler
        return pipeline

    return from_pretrained


def test_settings_change_the_description(sd15: Path, settings: PresetOptions) -> None:
    files = ModelFiles(base=str(sd15))
    other = settings.model_copy(update={"guidance": 4.0})
    assert open_model(files, settings, "cpu").describe() != open_model(files, other, "cpu").describe()
    chunks = [
        open_model(ModelFiles(base=str(sd15), chunks=chunks), settings, "cpu").describe()["chunks"]
        for chunks in (1, 2, 0, None)
    ]
    assert chunks == [1, 2, None, None], "0 and null are as many as a prompt needs"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "model_index.json does not exist"),
        ("{}", "model_index.json has no _class_name"),
        ('{"_class_name": "NoSuchPipeline"}', "cannot be loaded by diffusers"),
        ('{"_class_name": ["mine", "Mine"]}', r"contains its own code \(mine\)"),
        ('{"_class_name": "StableDiffusionPipeline", "unet": ["mine", "Mine"]}', r"contains its own code \(unet\)"),
    ],
)
def test_a_folder_that_is_not_a_pipeline_is_refused(
    tmp_path: Path, settings: PresetOptions, content: str | None, says: str
) -> None:
    for name in (".", "unet"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "mine.py").write_text("raise SystemExit('executed')")
    if content is not None:
        (tmp_path / "model_index.json").write_text(content)
    with pytest.raises(LLM4GENError, match=says):
        open_model(PipelineFiles(pipeline=str(tmp_path)), settings, "cpu")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "has neither base nor pipeline nor workflow"),
        ({"base": "a", "pipeline": "b"}, "has base and pipeline; expected exactly one"),
        ({"base": "a", "adapter": "b"}, "an adapter but no LLM"),
        ({"base": "a", "strength": 1}, "there is no adapter"),
        ({"base": "a", "lambda_mode": "embeding"}, "Lambda mode is 'embeding'"),
        ({"base": "a", "unett": "b"}, "unett is not an option; expected one of base"),
        ({"workflow": "a", "adapter": "b"}, "adapter is not an option; expected one of workflow"),
        ("models/sd15", "expected fields such as base"),
    ],
)
def test_wrong_files_of_a_model_are_refused_by_name(fields: object, says: str) -> None:
    with pytest.raises(LLM4GENError, match=f"Model 'x'.*{says}"):
        model_files("Model 'x'", fields)


def test_relative_paths_start_at_the_folder_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text(
        "SD1.5: {base: sd15, chunks: null}\nLLM4GEN: {base: sd15, adapter: /abs/a.safetensors, llm: t5, batch: 4}\n"
    )
    models = read_models(tmp_path / "models.yaml")
    assert [*models] == ["SD1.5", "LLM4GEN"]
    assert models["SD1.5"].base == str(tmp_path / "sd15") and models["SD1.5"].chunks is None
    assert models["LLM4GEN"].adapter == "/abs/a.safetensors" and models["LLM4GEN"].llm == str(tmp_path / "t5")


@pytest.mark.parametrize(
    ("text", "says"), [("[1, 2]", "contains list"), ("a: {b: [}", "cannot be read"), ("", "NoneType")]
)
def test_a_file_without_models_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "models.yaml").write_text(text)
    with pytest.raises(LLM4GENError, match=says):
        read_models(tmp_path / "models.yaml")
