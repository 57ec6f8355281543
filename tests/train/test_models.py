"""Every choice of trainable parts: changed parameters, exports, and equal predictions."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from short_runs import (
    checkpoint_tensors,
    forget_accelerate,
    go_on,
    metrics,
    prediction,
    recipe_content,
    relative_error,
)
from small_models import make_world
from torch import Tensor, nn

from llm4gen_core import AdapterMetadata, LLM4GENError, UNetPart, load_adapter
from llm4gen_core.adapter import FUSIONS
from llm4gen_diffusers.families import load_family
from llm4gen_diffusers.options import GenerationOptions, ModelFiles
from llm4gen_diffusers.sampling import Pipeline, add_unet_part
from llm4gen_diffusers.schedule import NoiseSchedule
from train.loop import Trainer
from train.models import LORA_LAYERS, TrainedParts, open_models
from train.recipe import Loss, Recipe, Trainable
from train.recipe_file import parse_recipe
from train.run import ExportSettings, RunFolder, export

WITH_ADAPTER = ("cam", "cam+cross_attention_kv", "cam+lora", "cam+unet")
PARTS = (*WITH_ADAPTER, "unet", "text_encoder")
CAPTIONS = ["a red circle and a blue square on white", "", "a green cross"]
CHOICES = [(parts, "cross_adapter") for parts in PARTS] + [("cam", fusion) for fusion in FUSIONS[1:]]


@dataclass
class Run:
    """A run of two steps, still in memory.

    Attributes:
        first: predictions of the untrained models.
        before: every tensor of every model before the run, by the names of `tensors`.
        gradients: the largest gradient that each parameter has seen.
    """

    world: Path
    recipe: Recipe
    trainer: Trainer
    first: Tensor
    before: dict[str, Tensor]
    gradients: dict[str, float]

    @property
    def folder(self) -> Path:
        return self.trainer.folder.path


def modules(trainer: Trainer) -> dict[str, nn.Module]:
    found: dict[str, Any] = {
        "unet": trainer.models.family.unet,
        "vae": trainer.models.family.vae,
        "adapter": trainer.models.adapter,
    }
    found |= {f"text_encoders.{i}": encoder for i, encoder in enumerate(trainer.models.family.text_encoders)}
    found["llm"] = trainer.models.llm.model if trainer.models.llm is not None else None
    return {name: module for name, module in found.items() if module is not None}


def tensors(trainer: Trainer) -> dict[str, Tensor]:
    return {f"{of}.{name}": t for of, module in modules(trainer).items() for name, t in module.state_dict().items()}


def parameters(trainer: Trainer) -> dict[str, nn.Parameter]:
    return {f"{of}.{name}": p for of, module in modules(trainer).items() for name, p in module.named_parameters()}


def make_recipe(world: Path, output: Path, parts: str, fusion: str = "cross_adapter", **sections: Any) -> Recipe:
    content = recipe_content(
        world,
        output,
        adapter={"fusion": fusion},
        trainable={"parts": parts, "lora_rank": 4, "lora_alpha": 6.0},
        guidance={"alpha": 0.1},
        data={"caption_dropout": 0.0},
        optimizer={"learning_rate": 3e-3},
        train={"steps": 2, "ema": {"enabled": True}},
        checkpoints={"every": 1},
        logging={"gradient_ratio_every": 0},
    )
    for name, section in sections.items():
        content[name] = {**content[name], **section}
    if parts not in WITH_ADAPTER:
        del content["model"]["llm"]
    return parse_recipe(content, "Recipe of the test")


def open_trainer(recipe: Recipe) -> Trainer:
    forget_accelerate()
    folder = RunFolder(Path(recipe.output))
    folder.create(recipe)
    return Trainer(recipe, folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("parts") / "world", images=8)


@pytest.fixture(scope="module", params=CHOICES, ids="-".join)
def run(request: pytest.FixtureRequest, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    recipe = make_recipe(world, tmp_path_factory.mktemp("runs") / "run", *request.param)
    trainer = open_trainer(recipe)
    gradients: dict[str, float] = {}

    def watch(name: str, parameter: nn.Parameter) -> None:
        def note(gradient: Tensor) -> None:
            gradients[name] = max(gradients.get(name, 0.0), float(gradient.abs().max()))

        parameter.register_hook(note)

    for name, parameter in parameters(trainer).items():
        if parameter.requires_grad:
            watch(name, parameter)
    first = prediction(trainer.training_loss, trainer.conditioner, CAPTIONS)[1]
    before = {name: tensor.clone() for name, tensor in tensors(trainer).items()}
    trainer.fit()
    yield Run(world, recipe, trainer, first, before, gradients)
    forget_accelerate()


def expected_parameters(run: Run) -> set[str]:
    """Parameters that the recipe's choice stands for, by the names in the models."""
    belongs = {
        "cam": lambda name: name.startswith("adapter."),
        "cam+cross_attention_kv": lambda name: (
            name.startswith("adapter.") or name.endswith((".attn2.to_k.weight", ".attn2.to_v.weight"))
        ),
        "cam+lora": lambda name: name.startswith("adapter.") or ".lora_A." in name or ".lora_B." in name,
        "cam+unet": lambda name: name.startswith(("adapter.", "unet.")),
        "unet": lambda name: name.startswith("unet."),
        "text_encoder": lambda name: name.startswith("text_encoders."),
    }[run.recipe.trainable.parts]
    return {name for name in parameters(run.trainer) if belongs(name)}


def test_exactly_the_trainable_parts_change(run: Run) -> None:
    changed = {name for name, tensor in tensors(run.trainer).items() if not torch.equal(tensor, run.before[name])}
    assert changed == expected_parameters(run)
    assert set(run.before) == set(tensors(run.trainer))


def test_gradients_reach_exactly_the_trainable_parts(run: Run) -> None:
    expected = expected_parameters(run)
    assert set(run.gradients) == expected
    assert [name for name, largest in run.gradients.items() if largest == 0] == []
    for name, parameter in parameters(run.trainer).items():
        assert parameter.requires_grad == (name in expected), name
        assert parameter.grad is None, name


def test_checkpoints_hold_exactly_the_trainable_parts(run: Run) -> None:
    stored = load_file(run.folder / "checkpoints" / "step-00000002" / "trained.safetensors")
    assert set(stored) == expected_parameters(run)
    now = tensors(run.trainer)
    assert all(torch.equal(tensor, now[name]) for name, tensor in stored.items())


@pytest.mark.parametrize("run", [("cam+lora", "cross_adapter")], indirect=True)
def test_lora_layers_are_all_attention_projections(run: Run) -> None:
    adapted = {name.partition(".lora_")[0] for name in expected_parameters(run) if ".lora_" in name}
    unet = load_family("miniature", run.world / "base", parts=["unet"]).unet
    attention = {name for name, _ in unet.named_modules() if name.endswith(tuple(f".{end}" for end in LORA_LAYERS))}
    assert adapted == {f"unet.{name}" for name in attention}
    assert len(attention) == 56  # 7 transformer blocks, self- and cross-attention, 4 projections


def test_only_an_adapter_has_an_llm(run: Run) -> None:
    without = run.recipe.trainable.parts not in WITH_ADAPTER
    assert (run.trainer.models.llm is None) == without
    assert (run.trainer.models.adapter is None) == without


@pytest.mark.parametrize("run", [(parts, "cross_adapter") for parts in PARTS], indirect=True)
def test_gradient_checkpointing_changes_nothing(run: Run, tmp_path: Path) -> None:
    """Gradients are not lost, although the frozen layers before a trained one require none."""
    parts = run.recipe.trainable.parts
    recipe = make_recipe(
        run.world, tmp_path / "run", parts, train={"steps": 2, "gradient_checkpointing": True, "ema": {"enabled": True}}
    )
    trainer = open_trainer(recipe)
    trainer.fit()
    assert trainer.models.family.unet.is_gradient_checkpointing
    for ours, theirs in zip(metrics(trainer.folder.path), metrics(run.folder), strict=True):
        for name in ("diffusion", "gradient_norm", "guidance"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name


# Exports


def pipeline(run: Run, folder: Path, **options: Any) -> Pipeline:
    """Pipeline from files alone."""
    files: dict[str, Any] = {}
    for name, path in (("unet", "unet"), ("clip", "text_encoder"), ("adapter", "adapter.safetensors")):
        if (folder / path).exists():
            files[name] = folder / path
    if "adapter" in files:
        files["llm"] = run.world / "llm"
    return Pipeline.from_files(ModelFiles(base=run.world / "base", **files, **options))


def painted(run: Run, folder: Path, noisy: Tensor, timesteps: Tensor, **options: Any) -> Tensor:
    model = pipeline(run, folder, **options)
    return model.predict_noise(noisy, timesteps, model.encode(CAPTIONS))


def trained(run: Run) -> tuple[Tensor, Tensor, Tensor]:
    """(x_t, prediction, timesteps) of the trainer's own modules as they are now."""
    return prediction(run.trainer.training_loss, run.trainer.conditioner, CAPTIONS)


FILES = {
    "cam": ["adapter.safetensors"],
    "cam+cross_attention_kv": ["adapter.safetensors"],
    "cam+lora": ["adapter.safetensors"],
    "cam+unet": ["adapter.safetensors", "scheduler", "unet"],
    "unet": ["scheduler", "unet"],
    "text_encoder": ["text_encoder"],
}


def test_the_export_of_the_run_predicts_as_its_average(run: Run) -> None:
    folder = run.folder / "export"
    assert sorted(path.name for path in folder.iterdir()) == FILES[run.recipe.trainable.parts]
    with run.trainer.averaged():
        noisy, expected, timesteps = trained(run)
    found = painted(run, folder, noisy, timesteps)
    assert relative_error(found, expected) < 1e-5
    assert relative_error(run.first, expected) > 1e-3
    assert relative_error(trained(run)[1], expected) > 1e-4, "the average is not the last weights"


def test_the_export_of_the_last_weights_predicts_as_they_do(run: Run, tmp_path: Path) -> None:
    files = export(ExportSettings(str(run.folder), output=str(tmp_path), ema=False))
    assert sorted(file.name for file in files) == FILES[run.recipe.trainable.parts]
    noisy, expected, timesteps = trained(run)
    assert relative_error(painted(run, tmp_path, noisy, timesteps), expected) < 1e-5


def test_export_writes_what_the_run_wrote(run: Run, tmp_path: Path) -> None:
    export(ExportSettings(str(run.folder), output=str(tmp_path)))
    found = [path.relative_to(tmp_path) for path in sorted(tmp_path.rglob("*.safetensors"))]
    assert found
    for name in found:
        ours, theirs = load_file(tmp_path / name), load_file(run.folder / "export" / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())


def test_export_of_one_checkpoint_is_of_that_step(run: Run, tmp_path: Path) -> None:
    checkpoint = run.folder / "checkpoints" / "step-00000001"
    export(ExportSettings(str(checkpoint), output=str(tmp_path), ema=False))
    last = {name: parameter.detach().clone() for name, parameter in run.trainer.parts.named_parameters().items()}
    run.trainer.parts.load(load_file(checkpoint / "trained.safetensors"))
    try:
        noisy, expected, timesteps = trained(run)
    finally:
        run.trainer.parts.load(last)
    assert relative_error(painted(run, tmp_path, noisy, timesteps), expected) < 1e-5
    assert relative_error(trained(run)[1], expected) > 1e-4
    if run.trainer.models.adapter is not None:
        metadata = load_adapter(tmp_path / "adapter.safetensors").metadata
        assert metadata is not None and metadata.training["steps"] == 1


def test_export_in_half_precision_rounds_and_nothing_else(run: Run, tmp_path: Path) -> None:
    export(ExportSettings(str(run.folder), output=str(tmp_path), dtype="float16"))
    for path in tmp_path.rglob("*.safetensors"):
        whole = load_file(run.folder / "export" / path.relative_to(tmp_path))
        halved = load_file(path)
        assert halved.keys() == whole.keys()
        for name, tensor in halved.items():
            assert torch.equal(tensor, whole[name].half()), name
    with run.trainer.averaged():
        noisy, expected, timesteps = trained(run)
    assert relative_error(painted(run, tmp_path, noisy, timesteps), expected) < 5e-3


def test_export_replaces_files_only_with_force(run: Run, tmp_path: Path) -> None:
    export(ExportSettings(str(run.folder), output=str(tmp_path)))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(LLM4GENError, match=r"exists already; give another --output"):
        export(ExportSettings(str(run.folder), output=str(tmp_path)))
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    export(ExportSettings(str(run.folder), output=str(tmp_path), ema=False, force=True))
    noisy, expected, timesteps = trained(run)
    assert relative_error(painted(run, tmp_path, noisy, timesteps), expected) < 1e-5


@pytest.mark.parametrize("run", [("cam+unet", "cross_adapter")], indirect=True)
def test_a_unet_is_one_file_however_large_it_is(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers splits above 10 GB, as SDXL's in float32; ComfyUI's Load Diffusion Model reads one file."""
    save = UNet2DConditionModel.save_pretrained

    def cut(self: Any, path: Path, max_shard_size: str = "1MB") -> None:
        save(self, path, max_shard_size=max_shard_size)

    monkeypatch.setattr(UNet2DConditionModel, "save_pretrained", cut)
    export(ExportSettings(str(run.folder), output=str(tmp_path)))
    assert sorted(p.name for p in (tmp_path / "unet").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]


@pytest.mark.parametrize("run", [("unet", "cross_adapter")], indirect=True)
def test_a_unet_without_adapter_resumes_to_the_same_weights(run: Run, tmp_path: Path) -> None:
    folder = shutil.copytree(run.folder, tmp_path / "run")
    shutil.rmtree(folder / "checkpoints" / "step-00000002")
    go_on(folder)
    expected, found = checkpoint_tensors(run.folder, 2), checkpoint_tensors(folder, 2)
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@pytest.mark.parametrize("parts", ["unet", "cam+unet"])
def test_an_exported_unet_has_its_noise_schedule(world: Path, tmp_path: Path, parts: str) -> None:
    """To `generate`, the next run and diffusers: velocity at zero terminal SNR, from a base that predicts noise."""
    loss = {"prediction": "v_prediction", "zero_terminal_snr": True}
    recipe = parse_recipe({**make_recipe(world, tmp_path / "run", parts).to_dict(), "loss": loss}, "Recipe of the test")
    trainer = open_trainer(recipe)
    trainer.parts.export(
        tmp_path / "out", "adapter", AdapterMetadata("miniature", None), trainer.models.family.base.schedule
    )
    schedule = trainer.models.family.base.schedule
    assert schedule.prediction_type == "v_prediction" and schedule.alphas_cumprod[-1] == 0
    for unet in (tmp_path / "out", tmp_path / "out" / "unet"):
        model = Pipeline.from_files(ModelFiles(base=world / "base", unet=unet))
        assert model.family.base.schedule == schedule
    small = GenerationOptions(steps=3, width=16, height=16)
    assert torch.equal(
        Pipeline(trainer.models.family).generate("a red circle", small, seed=2),
        model.generate("a red circle", small, seed=2),
    )
    assert not torch.equal(
        shifted(model, load_family("miniature", world / "base", parts=()).base.schedule).generate("a", small, seed=2),
        model.generate("a", small, seed=2),
    ), "a schedule makes a difference"
    following = recipe.model_copy(
        update={"loss": Loss(), "model": recipe.model.model_copy(update={"unet": str(tmp_path / "out" / "unet")})}
    )
    assert open_models(following, parts=()).family.base.schedule == schedule
    theirs = DDIMScheduler.from_pretrained(tmp_path / "out" / "scheduler")
    assert theirs.config.prediction_type == "v_prediction" and theirs.config.rescale_betas_zero_snr
    torch.testing.assert_close(theirs.alphas_cumprod, schedule.alphas_cumprod, rtol=1e-3, atol=1e-5)


def shifted(model: Pipeline, schedule: NoiseSchedule) -> Pipeline:
    """The same modules under another schedule."""
    family = copy.copy(model.family)
    family.base = replace(family.base, schedule=schedule)
    return Pipeline(family)


# Starting from an export


@pytest.fixture(scope="module")
def exports(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """{parts: export of a run without an average}."""
    folder = tmp_path_factory.mktemp("exports")
    found = {}
    for parts in WITH_ADAPTER:
        recipe = make_recipe(world, folder / parts, parts, train={"steps": 2, "ema": {"enabled": False}})
        open_trainer(recipe).fit()
        found[parts] = folder / parts / "export"
    return found


def going_on(world: Path, output: Path, start: Path, parts: str, **sections: Any) -> Recipe:
    model = {"adapter": str(start / "adapter.safetensors")}
    if (start / "unet").is_dir():
        model["unet"] = str(start / "unet")
    recipe = make_recipe(world, output, parts, **sections)
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=model)})


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("cam", "cam"),
        ("cam", "cam+unet"),
        ("cam+cross_attention_kv", "cam+cross_attention_kv"),
        ("cam+cross_attention_kv", "cam+unet"),
        ("cam+lora", "cam+lora"),
        ("cam+lora", "cam+unet"),
        ("cam+unet", "cam+unet"),
        ("cam+unet", "cam+lora"),
    ],
)
def test_a_run_starts_from_exactly_the_export(
    world: Path, exports: dict[str, Path], tmp_path: Path, before: str, after: str
) -> None:
    start = exports[before]
    trainer = open_trainer(going_on(world, tmp_path / "run", start, after))
    adapter, now = load_adapter(start / "adapter.safetensors"), tensors(trainer)
    assert all(torch.equal(now[f"adapter.{name}"], tensor) for name, tensor in adapter.module.state_dict().items())
    noisy, found, timesteps = prediction(trainer.training_loss, trainer.conditioner, CAPTIONS)
    unet = start / "unet" if (start / "unet").is_dir() else None
    model = Pipeline.from_files(
        ModelFiles(base=world / "base", unet=unet, adapter=start / "adapter.safetensors", llm=world / "llm")
    )
    expected = model.predict_noise(noisy, timesteps, model.encode(CAPTIONS))
    assert relative_error(found, expected) < 1e-5
    part, merged = adapter.unet_part, model.family.unet.state_dict()
    if part is not None and part.kind == "lora" and after == "cam+lora":
        for name, tensor in part.tensors.items():
            if not name.endswith(".alpha"):
                assert torch.equal(now[f"unet.{name.replace('.weight', '.default.weight')}"], tensor)
    elif after != "cam+lora":
        assert all(torch.equal(now[f"unet.{name}"], tensor) for name, tensor in merged.items())


@pytest.mark.parametrize("parts", ["cam+cross_attention_kv", "cam+lora"])
def test_the_second_export_holds_both_stages(world: Path, exports: dict[str, Path], tmp_path: Path, parts: str) -> None:
    """The change of the UNet is relative to the base, not to the start of the second stage."""
    recipe = going_on(world, tmp_path / "run", exports[parts], parts, train={"steps": 1, "ema": {"enabled": False}})
    trainer = open_trainer(recipe)
    trainer.fit()
    noisy, expected, timesteps = prediction(trainer.training_loss, trainer.conditioner, CAPTIONS)
    file = tmp_path / "run" / "export" / "adapter.safetensors"
    model = Pipeline.from_files(ModelFiles(base=world / "base", adapter=file, llm=world / "llm"))
    assert relative_error(model.predict_noise(noisy, timesteps, model.encode(CAPTIONS)), expected) < 1e-5
    first, second = load_adapter(exports[parts] / "adapter.safetensors").unet_part, load_adapter(file).unet_part
    assert first is not None and second is not None
    for (name, before), (_, after) in zip(first.deltas(), second.deltas(), strict=True):
        assert float((after - before).norm()) > 0, name


# Adapters that cannot be started from


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("cam+cross_attention_kv", "cam", "would neither train nor store; choose cam.cross_attention_kv or cam.unet"),
        ("cam+lora", "cam", "would neither train nor store; choose cam.lora or cam.unet"),
        ("cam+cross_attention_kv", "cam+lora", "kind cross_attention_kv, which trainable.parts cam.lora cannot"),
        ("cam+lora", "cam+cross_attention_kv", "kind lora, which trainable.parts cam.cross_attention_kv cannot"),
    ],
)
def test_a_unet_part_that_would_be_lost_is_refused(
    world: Path, exports: dict[str, Path], tmp_path: Path, before: str, after: str, message: str
) -> None:
    with pytest.raises(LLM4GENError, match=message):
        open_trainer(going_on(world, tmp_path / "run", exports[before], after))


@pytest.mark.parametrize(
    ("settings", "found"), [({"lora_rank": 8}, "lora_rank is 8"), ({"lora_alpha": 1.5}, "lora_alpha 1.5")]
)
def test_a_lora_of_another_size_is_refused(
    world: Path, exports: dict[str, Path], tmp_path: Path, settings: dict[str, Any], found: str
) -> None:
    recipe = going_on(world, tmp_path / "run", exports["cam+lora"], "cam+lora", trainable=settings)
    with pytest.raises(LLM4GENError, match=f"rank 4 and alpha 6, but .*{found}.*; make them equal"):
        open_trainer(recipe)


@pytest.fixture(scope="module")
def lora(exports: dict[str, Path]) -> UNetPart:
    part = load_adapter(exports["cam+lora"] / "adapter.safetensors").unet_part
    assert part is not None
    return part


def start_from(world: Path, part: UNetPart, parts: str) -> nn.Module:
    unet = load_family("miniature", world / "base", parts=["unet"]).unet
    TrainedParts(Trainable(parts=parts, lora_rank=4, lora_alpha=6.0), unet, (), None, part)  # type: ignore[arg-type]
    return unet


def test_a_lora_on_other_layers_can_only_be_added_to_the_whole_unet(world: Path, lora: UNetPart) -> None:
    """Also on 1x1 convolutions, which other trainers adapt."""
    layer = "down_blocks.0.attentions.0.proj_in"
    more = {
        f"{layer}.lora_A.weight": torch.randn(2, 32),
        f"{layer}.lora_B.weight": torch.randn(32, 2),
        f"{layer}.alpha": torch.tensor(2.0),
    }
    part = UNetPart("lora", {**lora.tensors, **more})
    with pytest.raises(LLM4GENError, match=r"LoRA on other layers than .*down_blocks\.0\.attentions\.0\.proj_in"):
        start_from(world, part, "cam+lora")
    expected = load_family("miniature", world / "base", parts=["unet"]).unet
    change = dict(part.deltas())[layer]
    before = expected.get_submodule(layer).weight.clone()
    add_unet_part(expected, part, "Adapter")
    assert torch.equal(expected.get_submodule(layer).weight, before + change.reshape(before.shape))
    found = start_from(world, part, "cam+unet").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.state_dict().items())


@pytest.mark.parametrize("parts", ["cam+lora", "cam+unet"])
def test_a_part_for_another_unet_is_refused(world: Path, lora: UNetPart, parts: str) -> None:
    deeper = {name.replace("down_blocks.0", "down_blocks.7"): tensor for name, tensor in lora.tensors.items()}
    with pytest.raises(LLM4GENError, match=r"layer down_blocks\.7\..*lacks it"):
        start_from(world, UNetPart("lora", deeper), parts)
    wider = {
        name: torch.randn(4, 48) if name.endswith(".lora_A.weight") else tensor for name, tensor in lora.tensors.items()
    }
    with pytest.raises(LLM4GENError, match=r"layer .* \[32, 48\], but this UNet has it as \[32, 32\]"):
        start_from(world, UNetPart("lora", wider), parts)
