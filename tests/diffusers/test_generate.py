"""Files that `generate` writes."""

import json

import numpy as np
import pytest
from checkpoint import write_checkpoint
from PIL import Image
from small_models import make_diffusers_folder

from llm4gen_diffusers.generate import generate
from llm4gen_diffusers.options import GenerateSettings, GenerationOptions
from llm4gen_diffusers.sampling import save_png


@pytest.fixture
def settings(models, tmp_path):
    def make(**changes):
        small = {"prompts": ("a red cat",), "width": 64, "height": 32, "steps": 2, "device": "cpu"}
        given = {"base": str(models.base), "output": str(tmp_path / "out")} | small | changes
        return GenerateSettings(**given)

    return make


def test_pixels_are_those_of_the_pipeline(settings, sd15, models):
    [file] = generate(settings(adapter=str(models.adapter), llm=str(models.llm), seed=9))
    image = sd15.generate("a red cat", GenerationOptions(width=64, height=32, steps=2), seed=9)[0]
    expected = (image * 255).permute(1, 2, 0).numpy().astype(np.uint8)  # truncated, as ComfyUI's SaveImage does
    assert np.array_equal(np.asarray(Image.open(file)), expected)


def test_the_png_says_how_it_was_made(settings, models):
    changes = {"negative": "dög", "seed": 9, "batch": 2, "strength": 0.5, "guidance": 3.0}
    files = generate(
        settings(adapter=str(models.adapter), llm=str(models.llm), unet=str(models.unet), prompts=("猫",), **changes)
    )
    for index, file in enumerate(files):
        text = Image.open(file).text
        record = json.loads(text["llm4gen"])
        assert text["Description"] == record["prompt"] == "猫"
        assert (
            record.items()
            >= {
                **changes,
                "index": index,
                "width": 64,
                "height": 32,
                "steps": 2,
                "sampler": "ddim",
                "scheduler": "ddim_uniform",
                "dtype": "float32",
                "family": "sd15",
                "base": "sd15",
                "unet": "unet",
                "adapter": "projector.pth",
                "llm": "t5, 2 layers, width 96",
            }.items()
        )


def test_a_checkpoint_file_and_a_folder_give_the_same_image(settings, models, tmp_path):
    checkpoint = write_checkpoint(models.sdxl, tmp_path / "sdxl.safetensors")
    files = generate(settings(base=str(models.sdxl)))
    files += generate(settings(base=str(checkpoint), tokenizer=str(models.base / "tokenizer"), family="sdxl"))
    assert np.array_equal(*(np.asarray(Image.open(file)) for file in files))
    assert json.loads(Image.open(files[1]).text["llm4gen"])["family"] == "sdxl"


def test_an_image_has_the_bases_own_size_unless_it_is_given(settings, models):
    [file] = generate(settings(base=str(models.miniature), width=None, height=None))
    image = Image.open(file)
    assert image.size == (32, 32)
    assert json.loads(image.text["llm4gen"]).items() >= {"width": 32, "height": 32, "family": "miniature"}.items()


def test_a_fine_tuned_text_encoder_is_used_and_named(settings, models, tmp_path):
    clip = make_diffusers_folder(tmp_path / "other", 64, seed=7) / "text_encoder"
    [usual], [tuned] = generate(settings()), generate(settings(clip=str(clip)))
    assert not np.array_equal(np.asarray(Image.open(usual)), np.asarray(Image.open(tuned)))
    assert json.loads(Image.open(tuned).text["llm4gen"])["clip"] == "text_encoder"


def test_comfyui_finds_no_workflow_in_the_png(settings):
    """Under "prompt" or "workflow" its frontend expects JSON graphs, under "parameters" another program's text."""
    [file] = generate(settings())
    assert not {"prompt", "workflow", "parameters"} & set(Image.open(file).text)


def test_a_plain_image_does_not_claim_an_adapter(settings):
    [file] = generate(settings())
    assert not {"adapter", "llm", "strength", "unet", "clip"} & set(json.loads(Image.open(file).text["llm4gen"]))


def test_a_folder_is_continued(settings, tmp_path, capsys):
    first = generate(settings(prompts=("a cat", "a dog")))
    bytes_before = [file.read_bytes() for file in first]
    second = generate(settings())
    names = [f"llm4gen_0000{number}.png" for number in (1, 2, 3)]
    assert [file.name for file in first + second] == names
    assert [file.read_bytes() for file in first] == bytes_before
    assert capsys.readouterr().out.split() == [str(tmp_path / "out" / name) for name in names]


def test_a_name_is_numbered_when_it_is_taken(settings, tmp_path):
    output = tmp_path / "new" / "cat.png"
    files = generate(settings(output=str(output), batch=2)) + generate(settings(output=str(output)))
    assert files == [output, output.with_name("cat_00002.png"), output.with_name("cat_00003.png")]


def test_a_gap_in_the_numbers_is_filled_and_nothing_else_touched(sd15, tmp_path):
    (tmp_path / "llm4gen_00002.png").write_bytes(b"mine")
    image = sd15.generate("a cat", GenerationOptions(width=32, height=32, steps=1))[0]
    names = [save_png(image, tmp_path, {"prompt": ""}).name for _ in range(2)]
    assert names == ["llm4gen_00001.png", "llm4gen_00003.png"]
    assert (tmp_path / "llm4gen_00002.png").read_bytes() == b"mine"
