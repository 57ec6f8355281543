"""The shipped recipes train on small models of their family's real format, and their exports generate images.

Only sizes and paths are changed: steps, batch, resolution, and float32 in place of bfloat16, which many CPUs cannot
multiply. Optimizer, parts, guidance, buckets and checkpointing stay as in the recipe.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest
import torch
from checkpoint import write_checkpoint
from image_text import make_pairs, write_folder
from safetensors.torch import load_file
from short_runs import forget_accelerate, losses, metrics, prediction, relative_error, start_process
from small_models import make_diffusers_folder, make_sdxl_folder, make_t5_folder

from llm4gen_core import load_adapter
from llm4gen_diffusers.generate import generate
from llm4gen_diffusers.options import GenerateSettings, ModelFiles
from llm4gen_diffusers.sampling import Pipeline
from train.loop import Trainer, run
from train.recipe import Parts, Recipe
from train.recipe_file import RECIPES, load_recipe
from train.run import RunFolder

VARIANTS = {
    "table4-clip-query",
    "table4-cross-attention",
    "table4-cross-attention-concat",
    "table4-mlp",
    "table4-mlp-concat",
    "table4-no-regularisation",
}
"""Recipes that differ from sd15 by one value, compared in test_recipe.py; test_models.py trains the fusions."""
SHIPPED = sorted(
    path.stem for path in RECIPES.glob("*.yaml") if not path.stem.startswith("miniature") and path.stem not in VARIANTS
)
"""Recipes of this module; those of the miniature are trained in tests/miniature."""
CHAINED = {"sdxl-stage2-1024": "sdxl-stage1", "sdxl-stage2-1024-24gb": "sdxl-stage1-24gb"}
"""Recipes that start from the export of another."""
PROMPT = "a red cat on a blue chair"


@dataclass(frozen=True)
class Place:
    """Folder in which the recipes run, each with its own output."""

    path: Path

    def base(self, family: str, kind: str) -> str:
        return f"{family}.safetensors" if kind == "checkpoint" else family

    def overrides(self, name: str, kind: str, *more: str) -> list[str]:
        recipe = load_recipe(name, ["model.base=x", "model.llm=null", "data.sources=x", "trainable.parts=text_encoder",
                                    "model.adapter=null", "data.llm_dropout=0"])  # fmt: skip
        family = recipe.family
        changed = [
            f"model.base={self.base(family, kind)}",
            "data.sources=images",
            "data.workers=0",
            f"data.resolution={192 if recipe.data.buckets.enabled else 64}",
            "train.steps=2",
            "train.batch_size=4",
            "train.micro_batch=2",
            "train.precision=float32",
            *(f"model.{part}_dtype=float32" for part in ("llm", "text", "unet")),
            "llm.max_length=24",
            "logging.every=1",
            "logging.tensorboard=false",
            "validation.steps=2",
        ]
        if name not in ("sd15-finetune", "table4-finetuned-clip"):
            changed.append("model.llm=llm")
        if kind == "checkpoint":
            changed.append(f"model.tokenizer={family}/tokenizer")
        return changed + list(more)

    def recipe(self, name: str, kind: str = "folder", *more: str) -> Recipe:
        return load_recipe(name, self.overrides(name, kind, *more))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    path = tmp_path_factory.mktemp("recipes")
    for family, make in (("sd15", make_diffusers_folder), ("sdxl", make_sdxl_folder)):
        write_checkpoint(make(path / family), path / f"{family}.safetensors")
    make_t5_folder(path / "llm")
    pairs = make_pairs(8, [(160, 160), (224, 144), (128, 256)])
    write_folder(path / "images", [(image, f"a red cat and {n} blue chairs") for n, (image, _) in enumerate(pairs)])
    return Place(path)


@pytest.fixture(scope="module")
def trained(place: Place) -> Callable[..., tuple[Recipe, Path]]:
    """(name, kind of base) to the recipe and the folder of its run, each run once."""
    done: dict[tuple[str, str], tuple[Recipe, Path]] = {}

    def train(name: str, kind: str = "folder") -> tuple[Recipe, Path]:
        if (name, kind) not in done:
            more = [] if kind == "folder" else [f"output=runs/{name}-from-a-file"]
            if name in CHAINED and kind == "folder":
                train(CHAINED[name])
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(place.path)
                forget_accelerate()
                recipe = place.recipe(name, kind, *more)
                done[name, kind] = recipe, run(recipe)
        return done[name, kind]

    return train


def pipeline(place: Place, recipe: Recipe, export: Path | None, **options: object) -> Pipeline:
    """Pipeline of the recipe's base, alone or with the export."""
    files: dict[str, object] = {}
    if export is not None:
        for name, path in (("unet", "unet"), ("clip", "text_encoder"), ("adapter", "adapter.safetensors")):
            if (export / path).exists():
                files[name] = export if name == "clip" else export / path
        if "adapter" in files:
            files["llm"] = place.path / "llm"
    return Pipeline.from_files(ModelFiles(base=place.path / recipe.family, **files, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SHIPPED)
def test_the_recipe_trains_and_its_export_generates(
    place: Place, trained: Callable[..., tuple[Recipe, Path]], tmp_path: Path, name: str
) -> None:
    recipe, folder = trained(name)
    values = metrics(folder)
    assert [line["step"] for line in values] == [1, 2]
    assert all(math.isfinite(line["loss"]) and line["gradient_norm"] > 0 for line in values)
    guided = recipe.guidance.alpha != 0
    assert all(line.get("guidance", 0) > 0 if guided else "guidance" not in line for line in values)
    images = sorted((folder / "validation" / "step-00000002").glob("*.png"))
    assert len(images) == len(recipe.validation.prompts) > 0
    export = folder / "export"
    settings = {"adapter": None, "llm": None, "unet": None, "clip": None}
    for key, path in (("unet", "unet"), ("clip", "text_encoder"), ("adapter", "adapter.safetensors")):
        if (export / path).exists():
            settings[key] = str(export if key == "clip" else export / path)
    if settings["adapter"]:
        settings["llm"] = str(place.path / "llm")
    (image,) = generate(
        GenerateSettings(
            base=place.path / recipe.family,
            prompts=(PROMPT,),
            output=tmp_path / "image.png",
            **settings,
            steps=2,
            width=64,
            height=64,
            device="cpu",
        )
    )
    assert image.stat().st_size > 1000


@pytest.mark.parametrize("name", ["sd15", "sdxl-stage1-24gb"])
def test_a_checkpoint_file_is_the_same_base_as_a_folder(trained: Callable[..., tuple[Recipe, Path]], name: str) -> None:
    from_folder, from_file = trained(name)[1], trained(name, "checkpoint")[1]
    assert losses(from_file) == pytest.approx(losses(from_folder), rel=1e-6)
    ours, theirs = (load_file(folder / "export" / "adapter.safetensors") for folder in (from_file, from_folder))
    assert ours.keys() == theirs.keys()
    assert all((tensor - theirs[key]).abs().max() < 1e-6 for key, tensor in ours.items())


@pytest.mark.parametrize("name", list(CHAINED))
def test_the_second_stage_starts_from_the_first(
    place: Place, trained: Callable[..., tuple[Recipe, Path]], name: str
) -> None:
    """Its CAM is closer to the first stage's than the first stage's is to a new one."""
    (recipe, second), (_, first) = trained(name), trained(CHAINED[name])
    assert recipe.model.adapter == str(Path("runs") / CHAINED[name] / "export" / "adapter.safetensors")
    after, before = (load_file(folder / "export" / "adapter.safetensors") for folder in (second, first))
    moved = max(float((tensor - before[key]).abs().max()) for key, tensor in after.items())
    assert 0 < moved < 10 * recipe.optimizer.learning_rate * recipe.train.steps
    metadata = load_adapter(second / "export" / "adapter.safetensors").metadata
    assert metadata is not None and metadata.training["resolution"] == 192
    latents, timestep = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), 481
    noises = [
        model.predict_noise(latents, timestep, model.encode([PROMPT]))
        for model in (pipeline(place, recipe, folder) for folder in (second / "export", first / "export", None))
    ]
    assert 0 < (noises[0] - noises[1]).norm() < (noises[0] - noises[2]).norm()


def test_buckets_of_the_second_stage_are_used(trained: Callable[..., tuple[Recipe, Path]]) -> None:
    _, folder = trained("sdxl-stage2-1024")
    assert len(json.loads((folder / "data.json").read_text())["buckets"]) > 1


@pytest.mark.parametrize(
    ("name", "parts"),
    [("sd15", "cam+unet"), ("sd15", "text_encoder")] + [("sdxl-stage1", parts) for parts in get_args(Parts)],
)
def test_every_trained_part_of_the_real_formats(place: Place, tmp_path: Path, name: str, parts: str) -> None:
    """Gradients reach and change each parameter, and the export predicts the same."""
    llm = ["model.llm=null"] if not parts.startswith("cam") else []
    sizes = place.overrides(name, "folder", f"trainable.parts={parts}", f"output={tmp_path / 'run'}", *llm)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place.path)
        recipe = load_recipe(
            name, [*sizes, "validation.every=0", "guidance.alpha=0.1", "optimizer.learning_rate=1e-3"]
        ).absolute()
    forget_accelerate()
    folder = RunFolder(tmp_path / "run")
    folder.create(recipe)
    trainer = Trainer(recipe, folder)
    seen: set[str] = set()
    for key, parameter in trainer.parts.named_parameters().items():
        parameter.register_hook(lambda gradient, key=key: seen.add(key) if bool(gradient.any()) else None)
    before = {key: parameter.detach().clone() for key, parameter in trainer.parts.named_parameters().items()}
    first = prediction(trainer.training_loss, trainer.conditioner, [PROMPT, ""])[1]
    trainer.fit()
    assert seen == set(before)
    assert not [
        key for key, parameter in trainer.parts.named_parameters().items() if torch.equal(parameter, before[key])
    ]
    noisy, expected, timesteps = prediction(trainer.training_loss, trainer.conditioner, [PROMPT, ""])
    model = pipeline(place, recipe, folder.export)
    found = model.predict_noise(noisy, timesteps, model.encode([PROMPT, ""]))
    assert relative_error(found, expected) < 1e-5
    assert relative_error(first, expected) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("parts", ["cam+lora", "cam+cross_attention_kv"])
def test_bfloat16_as_in_the_recipe(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: str) -> None:
    """The frozen UNet is in bfloat16, the trained parts in float32, with autocast in training only."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")  # oneDNN assumes AVX-512's bfloat16 on some machines that lack it
    name = "sdxl-stage1-24gb"
    sizes = [line for line in place.overrides(name, "folder") if "dtype" not in line and "precision" not in line]
    arguments = [*sizes, f"trainable.parts={parts}", f"output={tmp_path / 'run'}", "validation.prompts=[a red cat]"]
    recipe = load_recipe(name, arguments)
    assert recipe.train.precision == recipe.model.unet_dtype == recipe.model.llm_dtype == "bfloat16"
    monkeypatch.chdir(place.path)
    (tmp_path / "recipe.yaml").write_text(recipe.absolute().to_yaml(), encoding="utf-8")
    process = start_process("run", str(tmp_path / "recipe.yaml"))
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    assert all(math.isfinite(loss) for loss in losses(tmp_path / "run"))
    assert len(list((tmp_path / "run" / "validation" / "step-00000002").glob("*.png"))) == 1
    stored = load_file(tmp_path / "run" / "checkpoints" / "step-00000002" / "trained.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
