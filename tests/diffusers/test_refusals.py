"""Input that does not fit: one sentence that names it, before large files are read."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import make_projector, make_t5_folder, make_unet_folder

from llm4gen_core import LLM4GENError, LLMSpec, load_adapter, save_adapter
from llm4gen_core.adapter_file import AdapterMetadata
from llm4gen_diffusers.generate import generate
from llm4gen_diffusers.machine import choose_device
from llm4gen_diffusers.options import GenerateSettings, ModelFiles, options_from
from llm4gen_diffusers.sampling import Pipeline


@pytest.fixture
def base(models, tmp_path):
    """A copy to break."""
    return shutil.copytree(models.base, tmp_path / "sd15")


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(base, **files):
    with pytest.raises(LLM4GENError) as caught:
        Pipeline.from_files(options_from(ModelFiles, {"base": base, **files}))
    return str(caught.value)


def metadata(**changes):
    return AdapterMetadata(**({"base_family": "sd15", "llm": None} | changes))


def test_adapter_without_llm(models):
    assert "no LLM" in refusal(models.base, adapter=models.adapter)


def test_llm_without_adapter(models):
    assert "no adapter" in refusal(models.base, llm=models.llm)


def test_base_that_is_not_there(tmp_path):
    assert f"{tmp_path / 'none' / 'model_index.json'} does not exist" in refusal(tmp_path / "none")


def test_base_that_is_a_broken_file(tmp_path):
    (tmp_path / "sd15.safetensors").write_bytes(b"x")
    assert "sd15.safetensors (1 bytes) cannot be read" in refusal(tmp_path / "sd15.safetensors")


def test_base_of_another_family(base):
    edit_json(base / "model_index.json", _class_name="StableDiffusionXLPipeline")
    assert "is a StableDiffusionXLPipeline; expected a StableDiffusionPipeline" in refusal(base, family="sd15")


def test_base_of_no_family(base):
    edit_json(base / "model_index.json", _class_name="FluxPipeline")
    message = refusal(base)
    assert "is a FluxPipeline; expected one of StableDiffusionPipeline (SD1.5), StableDiffusionXLPipeline" in message


def test_family_that_is_unknown(models):
    assert "Family 'sd2' is not known; expected sd15, sdxl, miniature" in refusal(models.base, family="sd2")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("prediction_type", "sample", "'epsilon' or 'v_prediction'"),
        ("beta_schedule", "squaredcos_cap_v2", "'scaled_linear' or 'linear'"),
        ("num_train_timesteps", 500, "1000"),
        ("trained_betas", [0.1, 0.2], "none"),
        ("_class_name", "EDMEulerScheduler", "1000 timesteps"),
    ],
)
def test_base_with_another_noise_schedule(base, name, value, expected):
    edit_json(base / "scheduler" / "scheduler_config.json", **{name: value})
    message = refusal(base)
    assert f"{name} is {value!r}" in message and expected in message


def test_configuration_that_is_not_json(base):
    (base / "unet" / "config.json").write_text("{")
    assert "config.json is not valid JSON" in refusal(base)


def test_unet_that_is_a_file(models):
    assert "expected the UNet of SD1.5 or SDXL as ComfyUI stores it" in refusal(models.base, unet=models.adapter)


def test_unet_that_is_a_file_out_of_a_diffusers_folder(models):
    message = refusal(models.base, unet=models.unet / "diffusion_pytorch_model.safetensors")
    assert "is a single model out of a diffusers folder" in message and "Give the folder that it is in" in message


def test_folder_without_unet(models, tmp_path):
    assert f"UNet {tmp_path / 'config.json'} does not exist" in refusal(models.base, unet=tmp_path)


def test_vae_in_the_place_of_the_unet(models):
    assert "is a AutoencoderKL; expected a UNet2DConditionModel" in refusal(models.base, unet=models.base / "vae")


def test_inpainting_unet(base):
    edit_json(base / "unet" / "config.json", in_channels=9)
    assert "reads 9 channels; expected 4" in refusal(base)


def test_unet_of_another_width(models, tmp_path):
    unet = make_unet_folder(tmp_path / "unet", d_text=32)
    message = refusal(models.base, unet=unet)
    assert "width 32" in message and "writes 64" in message


def test_unet_of_sd2(base):
    edit_json(base / "unet" / "config.json", cross_attention_dim=1024)
    assert "is that of SD2" in refusal(base)


def test_unet_of_sdxl_in_an_sd15(base):
    edit_json(base / "unet" / "config.json", addition_embed_type="text_time")
    assert "needs conditions of type 'text_time', as SDXL's does; expected SD1.5" in refusal(base)


def test_vae_that_scales_its_channels(base):
    edit_json(base / "vae" / "config.json", latents_mean=[0, 0, 0, 0])
    assert "latents_mean" in refusal(base)


def test_text_encoder_of_another_width(models):
    message = refusal(models.base, clip=models.sdxl / "text_encoder_2")
    assert "width 64" in message and "writes 128" in message


def test_sdxl_with_bigg_of_another_width(models, tmp_path):
    base = shutil.copytree(models.sdxl, tmp_path / "sdxl")
    edit_json(base / "text_encoder_2" / "config.json", projection_dim=32)
    assert "pooled text embedding of width 128" in refusal(base)


def test_sdxl_with_the_unet_of_sd15(models, tmp_path):
    base = shutil.copytree(models.sdxl, tmp_path / "sdxl")
    edit_json(base / "unet" / "config.json", addition_embed_type=None)
    assert "conditions of type None; expected 'text_time'" in refusal(base)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_that_are_missing(base, part):
    next((base / part).glob("*.safetensors")).unlink()
    assert f"{base / part} should hold its weights as .safetensors; found none" in refusal(base)


def test_weights_that_are_truncated(base):
    file = base / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    assert f"VAE {file} (5,000 bytes) cannot be read" in refusal(base)


def test_weights_that_are_incomplete(base):
    file = base / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    save_file({n: t for n, t in tensors.items() if ".layers.1." not in n}, file, metadata={"format": "pt"})
    assert "lacks 16 of its weights" in refusal(base)


def test_weights_that_have_another_shape(base):
    file = base / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.weight"] = tensors["conv_in.weight"][:16].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    assert "UNet2DConditionModel" in (message := refusal(base)) and "conv_in.weight" in message


def test_pickled_weights_of_the_base(base):
    (base / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({}, base / "unet" / "diffusion_pytorch_model.bin")
    assert "a pickle that could run code" in refusal(base)


def test_tokenizer_that_is_incomplete(base):
    (base / "tokenizer" / "vocab.json").unlink()
    assert f"Tokenizer {base / 'tokenizer'} cannot be loaded" in refusal(base)


def test_adapter_of_another_text_width(models, tmp_path):
    adapter = make_projector(tmp_path / "wide.pth", d_text=128, d_llm=96)
    message = refusal(models.base, adapter=adapter, llm=models.llm)
    assert "width 128" in message and "has 64" in message


def test_adapter_of_another_family(models, tmp_path):
    path = tmp_path / "a.safetensors"
    save_adapter(load_adapter(models.adapter).module, path, metadata(base_family="sdxl"))
    assert "was trained for sdxl; expected sd15" in refusal(models.base, adapter=path, llm=models.llm)


def test_llm_of_another_width(models, tmp_path):
    llm = make_t5_folder(tmp_path / "llm", width=64)
    message = refusal(models.base, adapter=models.adapter, llm=llm)
    assert "width 64" in message and "expects 96" in message


def test_llm_other_than_the_adapters(models, tmp_path):
    path = tmp_path / "a.safetensors"
    spec = LLMSpec(model="", architecture="t5", layers=3, width=96)
    save_adapter(load_adapter(models.adapter).module, path, metadata(llm=spec))
    message = refusal(models.base, adapter=path, llm=models.llm)
    assert "2 layers" in message and "was trained with t5, 3 layers" in message


def test_llm_folder_that_is_not_there(models, tmp_path):
    assert str(tmp_path / "none") in refusal(models.base, adapter=models.adapter, llm=tmp_path / "none")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": ()}, "Prompts is"),
        ({"seed": -1}, "Seed is -1"),
        ({"seed": 2**64}, "Seed is 18446744073709551616"),
        ({"steps": 0}, "Steps is 0"),
        ({"steps": 1001}, "Steps is 1001"),
        ({"guidance": 0.5}, "Guidance is 0.5"),
        ({"guidance": float("nan")}, "Guidance is nan"),
        ({"width": 100}, "Width is 100; it should be a multiple of 8"),
        ({"height": 0}, "Height is 0; it should be greater than or equal to 16"),
        ({"batch": 0}, "Batch is 0"),
        ({"dtype": "int8"}, "Dtype is 'int8'"),
        ({"strength": 1.0}, "Strength is 1.0, but there is no adapter"),
        ({"strength": -1.0, "adapter": "a", "llm": "b"}, "Strength is -1.0"),
        ({"family": 3}, "Family is 3; it should be a valid string"),
        ({"stepz": 3}, "stepz is not an option; expected one of"),
    ],
)
def test_impossible_settings(changes, message):
    with pytest.raises(LLM4GENError, match=message):
        options_from(GenerateSettings, {"base": "none", "prompts": ("a cat",), "output": "out"} | changes)


def test_output_inside_a_file(models):
    with pytest.raises(LLM4GENError, match="which is a file"):
        generate(GenerateSettings(base="none", prompts=("a cat",), output=models.adapter / "images"))


def test_output_of_another_format():
    with pytest.raises(LLM4GENError, match="expected a name ending in .png"):
        generate(GenerateSettings(base="none", prompts=("a cat",), output="image.jpg"))


@pytest.mark.parametrize("name", ["cuda:77", "toaster"])
def test_device_that_is_not_there(name):
    with pytest.raises(LLM4GENError, match=f"Device '{name}' cannot be used"):
        choose_device(name)
