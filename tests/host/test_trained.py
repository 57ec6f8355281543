"""Exports of the trainer, loaded by the nodes of a real host: one set of files, one prediction.

Compared are the trainer's own modules, the pipeline of `generate`, which has the files alone, and the host's nodes.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import host_models
import pytest
import torch
from comfy_server import COMFYUI
from image_text import make_pairs, write_folder
from safetensors import safe_open
from short_runs import forget_accelerate, metrics, prediction, recipe_content, relative_error

PROMPT, NEGATIVE = "a red apple on a blue plate beside a green cup", ""
TOKENIZER = COMFYUI / "comfy" / "sd1_tokenizer"
IN_ONE_FILE = ("cam", "cam+cross_attention_kv", "cam+lora")


@dataclass(frozen=True)
class Trained:
    """A short run.

    Attributes:
        export: folder of what it wrote.
        latents, timesteps: x_t of two samples, one for each side of guidance.
        first, last: what the trainer's modules predicted before and after.
        pipeline: how `generate` loads the files.
    """

    export: Path
    latents: torch.Tensor
    timesteps: torch.Tensor
    first: torch.Tensor
    last: torch.Tensor
    pipeline: Mapping[str, Any]

    def painted(self) -> torch.Tensor:
        from llm4gen_diffusers.options import ModelFiles
        from llm4gen_diffusers.sampling import Pipeline

        pipeline = Pipeline.from_files(ModelFiles(**self.pipeline))
        return pipeline.predict_noise(self.latents, self.timesteps, pipeline.encode([PROMPT, NEGATIVE]))


@pytest.fixture(scope="module")
def train(models, tmp_path_factory):
    """(parts, and what is special about the recipe) to what came of it."""
    from train.loop import Trainer
    from train.recipe_file import parse_recipe
    from train.run import Checkpoints, RunFolder

    pairs = [(image, PROMPT) for image, _ in make_pairs(2)]
    images = write_folder(tmp_path_factory.mktemp("images"), pairs)
    base, llm = models / "checkpoints" / "sd15.safetensors", models / "llm" / "some" / "t5-folder"

    def run(parts, steps=2, loss=None, family="sd15", **model):
        output = tmp_path_factory.mktemp("run") / "run"
        content = recipe_content(
            output,
            output,
            family=family,
            model={"base": str(base), "tokenizer": str(TOKENIZER), "llm": str(llm), **model},
            loss=loss or {},
            adapter={"heads": 8},
            trainable={"parts": parts, "lora_rank": 4, "lora_alpha": 6.0},
            data={"sources": str(images), "resolution": 64, "caption_dropout": 0.0},
            guidance={"alpha": 0.1},
            optimizer={"name": "adafactor", "learning_rate": 3e-3},
            train={"steps": steps, "batch_size": 1, "micro_batch": 1},
            logging={"gradient_ratio_every": 0},
        )
        if parts == "text_encoder":
            content["model"]["llm"] = None
        recipe = parse_recipe(content, "Recipe of the test")
        folder = RunFolder(output)
        forget_accelerate()
        folder.create(recipe)
        trainer = Trainer(recipe, folder)
        first = prediction(trainer.training_loss, trainer.conditioner, [PROMPT, NEGATIVE])[1]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Checkpoints, "save", lambda *arguments: None)  # gigabytes that nobody reads
            trainer.fit()
        assert all(line["guidance"] > 0 for line in metrics(output))
        latents, last, timesteps = prediction(trainer.training_loss, trainer.conditioner, [PROMPT, NEGATIVE])
        forget_accelerate()
        files: dict[str, Any] = {"base": content["model"]["base"], "tokenizer": content["model"]["tokenizer"]}
        for name, path in (("unet", "unet"), ("clip", "text_encoder"), ("adapter", "adapter.safetensors")):
            if (folder.export / path).exists():
                files[name] = folder.export / path
        if "adapter" in files:
            files["llm"] = llm
        return Trained(folder.export, latents, timesteps, first, last, files)

    yield run
    gc.collect()


def graph(model, trained: Trained, path: Path, adapter: str | None = None) -> dict[str, Any]:
    """Nodes around `model`, the id of the one that gives it; "ckpt" gives CLIP."""
    torch.save({"latents": trained.latents, "timesteps": trained.timesteps}, path)
    nodes: dict[str, Any] = {
        "ckpt": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}},
        "probe": {
            "class_type": "ProbeNoise",
            "inputs": {"model": [model, 0], "positive": ["text", 0], "negative": ["text", 1], "path": str(path)},
        },
    }
    if adapter is not None:
        nodes["llm"] = {
            "class_type": "LLM4GENLoadLLM",
            "inputs": {"llm_name": "some/t5-folder/", "precision": "float32"},
        }
        nodes["adapter"] = {"class_type": "LLM4GENLoadAdapter", "inputs": {"adapter_name": adapter}}
        nodes["text"] = {
            "class_type": "LLM4GENTextEncode",
            "inputs": {
                "clip": ["ckpt", 1],
                "llm": ["llm", 0],
                "adapter": ["adapter", 0],
                "positive": PROMPT,
                "negative": NEGATIVE,
                "strength": 1.0,
            },
        }
    return nodes


def with_plain_text(nodes: dict[str, Any], clip: list[Any]) -> None:
    """The host's own nodes in place of this pack's."""
    for side, text in (("positive", PROMPT), ("negative", NEGATIVE)):
        nodes[side] = {"class_type": "CLIPTextEncode", "inputs": {"clip": clip, "text": text}}
        nodes["probe"]["inputs"][side] = [side, 0]


def offer(models: Path, folder: str, file: Path, name: str) -> str:
    """Put a file where the host looks for it; the name in its list."""
    target = models / folder / name
    target.unlink(missing_ok=True)
    target.symlink_to(file)
    return name


def predict(server, nodes) -> torch.Tensor:
    result = server.run(nodes)
    assert result.error is None, result.error
    return torch.load(f"{nodes['probe']['inputs']['path']}.out", weights_only=True)["noise"]


def assert_alike(trained: Trained, of_host: torch.Tensor) -> None:
    painted = trained.painted()
    assert relative_error(painted, trained.last) < 1e-5
    assert relative_error(of_host, painted) < 1e-4
    assert relative_error(trained.first, painted) > 1e-2, "the training must be seen"


@pytest.mark.slow
@pytest.mark.parametrize("parts", IN_ONE_FILE)
def test_one_adapter_file(server, models, train, tmp_path, parts):
    trained = train(parts)
    name = offer(models, "llm4gen", trained.export / "adapter.safetensors", f"trained {parts}.safetensors")
    nodes = graph("patch", trained, tmp_path / "given.pt", name)
    nodes["patch"] = {
        "class_type": "LLM4GENPatch",
        "inputs": {"model": ["ckpt", 0], "adapter": ["adapter", 0], "strength_model": 1.0},
    }
    found = predict(server, nodes)
    assert_alike(trained, found)
    del nodes["patch"]
    nodes["probe"]["inputs"]["model"] = ["ckpt", 0]
    without = predict(server, nodes)
    assert (relative_error(without, found) < 1e-6) == (parts == "cam"), "the patch matters if there is one"


@pytest.mark.slow
def test_a_fine_tuned_text_encoder(server, models, train, tmp_path):
    """Load CLIP instead of the checkpoint's, without nodes of this pack."""
    trained = train("text_encoder")
    name = offer(models, "text_encoders", trained.export / "text_encoder" / "model.safetensors", "tuned.safetensors")
    nodes = graph("ckpt", trained, tmp_path / "given.pt")
    nodes["clip"] = {"class_type": "CLIPLoader", "inputs": {"clip_name": name, "type": "stable_diffusion"}}
    with_plain_text(nodes, ["clip", 0])
    assert_alike(trained, predict(server, nodes))


@pytest.mark.slow
def test_a_change_of_what_is_predicted(server, models, train, tmp_path):
    """Velocity on a schedule that ends in pure noise; Load Adapter says which node of the host makes the model so."""
    trained = train("cam", loss={"prediction": "v_prediction", "zero_terminal_snr": True})
    name = offer(models, "llm4gen", trained.export / "adapter.safetensors", "trained velocity.safetensors")
    nodes = graph("sampling", trained, tmp_path / "given.pt", name)
    nodes["sampling"] = {
        "class_type": "ModelSamplingDiscrete",
        "inputs": {"model": ["ckpt", 0], "sampling": "v_prediction", "zsnr": True},
    }
    result, said = server.run_and_listen(nodes)
    assert result.error is None, result.error
    assert said["adapter"].endswith("connect ModelSamplingDiscrete (v_prediction, zsnr) too")
    found = torch.load(tmp_path / "given.pt.out", weights_only=True)["noise"]
    assert relative_error(found, trained.painted()) < 1e-4


@pytest.mark.slow
def test_an_adapter_of_sdxl_loads(server, models, train, tmp_path):
    """And is not mistaken for one of SD1.5."""
    from small_models import make_sdxl_folder

    base = make_sdxl_folder(tmp_path / "sdxl")
    trained = train("cam+lora", family="sdxl", base=str(base), tokenizer=str(base / "tokenizer"))
    assert relative_error(trained.painted(), trained.last) < 1e-5
    name = offer(models, "llm4gen", trained.export / "adapter.safetensors", "trained sdxl.safetensors")
    nodes = graph("patch", trained, tmp_path / "given.pt", name)
    nodes["patch"] = {
        "class_type": "LLM4GENPatch",
        "inputs": {"model": ["ckpt", 0], "adapter": ["adapter", 0], "strength_model": 1.0},
    }
    del nodes["text"]
    with_plain_text(nodes, ["ckpt", 1])
    result, said = server.run_and_listen(nodes)
    assert said["adapter"].startswith("Adapter for sdxl and t5, 3 layers, width 64")
    assert "UNet part (LoRA of" in said["adapter"]
    assert result.error is not None and "is for sdxl, whose UNet reads text of width" in result.error


@pytest.mark.slow
def test_a_whole_unet(server, models, train, tmp_path_factory):
    """At SD1.5's full size: the host's Load Diffusion Model knows diffusers' files of no other."""
    folder = tmp_path_factory.mktemp("full")
    host_models.save_half(host_models.unet_state(10, full=True), folder / "unet.safetensors")
    trained = train("cam+unet", steps=1, unet=str(folder / "unet.safetensors"))
    (folder / "unet.safetensors").unlink()
    adapter = offer(models, "llm4gen", trained.export / "adapter.safetensors", "trained cam+unet.safetensors")
    file = trained.export / "unet" / "diffusion_pytorch_model.safetensors"
    with safe_open(file, "pt") as header:
        shapes = [header.get_slice(name).get_shape() for name in header.keys()]
    assert sum(math.prod(shape) for shape in shapes) == 859_520_964
    unet = offer(models, "diffusion_models", file, "trained_unet.safetensors")
    nodes = graph("unet", trained, folder / "given.pt", adapter)
    nodes["unet"] = {"class_type": "UNETLoader", "inputs": {"unet_name": unet, "weight_dtype": "default"}}
    found = predict(server, nodes)
    assert_alike(trained, found)
    (models / "diffusion_models" / unet).unlink()
    file.unlink()
