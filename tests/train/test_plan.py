"""`plan`: its numbers against real modules, optimizer states, files and passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from short_runs import forget_accelerate, recipe_content, train
from small_models import make_diffusers_folder, make_sdxl_folder, make_t5_folder, make_world
from torch import Tensor

from train.loop import Trainer
from train.memory import FakeRun, LiveBytes, Shapes, estimate
from train.models import open_models
from train.plan import Plan, Speed, plan
from train.recipe import Parts, Recipe
from train.recipe_file import parse_recipe
from train.run import RunFolder

SHAPES = Shapes((32, 32), 8, 8)
PARTS = get_args(Parts)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_world(folder, images=12)
    (folder / "images" / "broken.png").write_bytes(b"")
    (folder / "images" / "broken.txt").write_text("a red cat")
    make_diffusers_folder(folder / "sd15")
    make_sdxl_folder(folder / "sdxl")
    make_t5_folder(folder / "t5", rankgen=False)
    return folder


@pytest.fixture
def recipe_of(world: Path, tmp_path: Path) -> Callable[..., Recipe]:
    def make(family: str = "miniature", **sections: Any) -> Recipe:
        base = {"base": str(world / ("base" if family == "miniature" else family))}
        without = sections.get("trainable", {}).get("parts") in ("unet", "text_encoder")
        llm = {} if without else {"llm": str(world / "t5")}
        model = {**base, **llm, **sections.pop("model", {})}
        content = recipe_content(world, tmp_path / "run", family=family, **sections)
        content["model"] = model
        return parse_recipe(content, "Recipe of the test")

    return make


def trainer_of(recipe: Recipe, path: Path) -> Trainer:
    forget_accelerate()
    folder = RunFolder(path)
    folder.create(recipe)
    return Trainer(recipe, folder)


def plan_of(recipe: Recipe) -> Plan:
    forget_accelerate()
    return plan(recipe)


@pytest.mark.parametrize("parts", PARTS)
def test_parameters_and_weights_are_those_of_the_models(recipe_of: Callable[..., Recipe], parts: str) -> None:
    recipe = recipe_of(
        "sdxl",
        trainable={"parts": parts},
        train={"steps": 1, "batch_size": 2, "micro_batch": 2, "precision": "bfloat16"},
        model={"vae_dtype": "bfloat16", "text_dtype": "float16"}
        | ({"unet_dtype": "bfloat16"} if parts in ("cam", "cam+lora", "cam+cross_attention_kv") else {})
        | ({"llm_dtype": "float16"} if parts.startswith("cam") else {}),
    )
    models = open_models(recipe)
    trained = models.trained_parts()
    models.load_llm("cpu")
    llm = models.llm
    family = models.family
    real = [family.unet, family.vae, *family.text_encoders]
    real += [llm.model] if llm is not None else []
    real += [models.adapter] if models.adapter is not None else []
    found = estimate(open_models(recipe, parts=()), SHAPES)
    counted = [parameter for module in real for parameter in module.parameters()]
    assert sum(part.parameters for part in found.parts) == sum(p.numel() for p in counted)
    assert found.memory.weights == sum(p.numel() * p.element_size() for p in counted)
    expected = sum(p.numel() for p in trained.named_parameters().values())
    assert sum(part.trained for part in found.parts) == expected
    assert found.memory.gradients == found.trained_bytes == 4 * expected


@pytest.mark.parametrize("name", ["adamw", "adafactor", "prodigy"])
def test_gradients_and_optimizer_are_those_after_a_step(
    recipe_of: Callable[..., Recipe], tmp_path: Path, name: str
) -> None:
    recipe = recipe_of(optimizer={"name": name}, train={"steps": 1, "batch_size": 2, "micro_batch": 2})
    trainer = trainer_of(recipe, tmp_path / "run")
    for number, batches in enumerate(trainer.data.steps(0, 1, 1), 1):
        trainer.optimizer_step(batches, number)
    state = [t for values in trainer.optimizer.state.values() for t in values.values() if isinstance(t, Tensor)]
    found = estimate(open_models(recipe, parts=()), SHAPES)
    assert found.optimizer_bytes == pytest.approx(sum(t.numel() * t.element_size() for t in state), rel=1e-3)


def test_a_checkpoint_is_as_large_as_estimated(world: Path, tmp_path: Path) -> None:
    content = recipe_content(world, tmp_path / "run")
    content["train"] |= {"steps": 1, "ema": {"enabled": True}}
    folder = train(content)
    [checkpoint] = (folder / "checkpoints").iterdir()
    size = sum(file.stat().st_size for file in checkpoint.iterdir())
    found = estimate(open_models(parse_recipe(content, "test"), parts=()), SHAPES)
    assert found.checkpoint_bytes == pytest.approx(size, rel=0.02)


def saved_bytes(trainer: Trainer, inputs: Any) -> int:
    """Bytes that the real training loss saves for its backward pass, each storage once, without parameters."""
    known = {p.untyped_storage().data_ptr() for p in trainer.training_loss.parameters()}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        losses = trainer.training_loss(inputs)
    assert losses[0].requires_grad
    return sum(t.untyped_storage().nbytes() for pointer, t in saved.items() if pointer not in known)


def real_inputs(fake: FakeRun, batch: int) -> Any:
    """Inputs of the estimate, with data."""
    guided = fake.inputs(batch, SHAPES, True)
    targets = guided.targets
    for name, value in list(vars(guided).items()):
        if isinstance(value, Tensor):
            setattr(guided, name, torch.zeros(value.shape, dtype=value.dtype))
    if targets is not None:
        for name, value in vars(targets).items():
            if isinstance(value, Tensor):
                object.__setattr__(targets, name, torch.ones(value.shape, dtype=value.dtype))
    return guided


@pytest.mark.parametrize("family", ["sd15", "sdxl", "miniature"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_what_a_real_pass_saves(
    recipe_of: Callable[..., Recipe], tmp_path: Path, family: str, checkpointing: bool
) -> None:
    settings = {"batch_size": 3, "micro_batch": 3, "steps": 1, "precision": "float32"}
    recipe = recipe_of(family, train={**settings, "gradient_checkpointing": checkpointing})
    found = estimate(open_models(recipe, parts=()), SHAPES).memory
    trainer = trainer_of(recipe, tmp_path / "run")
    inputs = real_inputs(FakeRun(open_models(recipe, parts=())), 3)
    assert found.activations + found.copies == pytest.approx(saved_bytes(trainer, inputs), rel=0.1)
    assert (found.recomputed > 0) == checkpointing


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_sum_is_near_the_peak_of_a_real_step(
    recipe_of: Callable[..., Recipe], tmp_path: Path, checkpointing: bool
) -> None:
    settings = {"batch_size": 8, "micro_batch": 8, "steps": 1, "precision": "float32"}
    recipe = recipe_of(train={**settings, "gradient_checkpointing": checkpointing})
    found = estimate(open_models(recipe, parts=()), SHAPES).memory
    trainer = trainer_of(recipe, tmp_path / "run")
    inputs = real_inputs(FakeRun(open_models(recipe, parts=())), 8)
    with LiveBytes() as live:
        error, guidance, _ = trainer.training_loss(inputs)
        (error.mean() + guidance.mean()).backward()
    computed = found.gradients + found.activations + found.recomputed + found.workspace
    assert 0.95 * live.peak < computed < 1.4 * live.peak


def test_activations_of_bfloat16_are_smaller_and_weights_are_copied(recipe_of: Callable[..., Recipe]) -> None:
    train = {"batch_size": 4, "micro_batch": 4, "steps": 1}
    whole, half = (
        estimate(open_models(recipe_of("sd15", train={**train, "precision": precision}), parts=()), SHAPES)
        for precision in ("float32", "bfloat16")
    )
    assert 0.5 < half.memory.activations / whole.memory.activations < 0.9
    assert whole.memory.copies == 0
    unet = next(part for part in half.parts if part.name == "unet")
    # All but norms, which stay in float32, and the CAM, which computes in it.
    assert half.memory.copies == pytest.approx(2 * unet.parameters, rel=0.05)


def test_guidance_activations(recipe_of: Callable[..., Recipe]) -> None:
    on, off = (
        estimate(open_models(recipe_of(guidance={"alpha": alpha}), parts=()), SHAPES).memory for alpha in (0.1, 0)
    )
    assert off.guidance == 0
    assert on.guidance == pytest.approx(on.activations - off.activations, rel=0.01)
    assert on.guidance > 0


def test_encoding_counts_if_latents_are_not_cached(recipe_of: Callable[..., Recipe]) -> None:
    def encoding(cached: bool) -> int:
        recipe = recipe_of(
            "sd15",
            data={"cache": {"latents": cached}},
            train={"batch_size": 8, "micro_batch": 8, "steps": 1, "gradient_checkpointing": True},
        )
        return estimate(open_models(recipe, parts=()), Shapes((128, 128), 8, 8)).memory.encoding

    assert encoding(True) == 0
    # More than one map of the widest level at full size, in float32.
    assert encoding(False) > 8 * 32 * 128 * 128 * 4 // 2


@pytest.mark.parametrize("crops", [1, 2])
def test_cache_files_are_as_large_as_estimated(
    recipe_of: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crops: int
) -> None:
    monkeypatch.setattr("train.plan.measure", lambda *_: Speed(1.0, 1.0, None, 3))
    cache = {"latents": True, "text": True, "crops": crops}
    recipe = recipe_of(
        "sd15", data={"cache": cache, "crop": "random" if crops > 1 else "center", "resolution": 64, "min_size": 8}
    )
    found = plan_of(recipe)
    trainer_of(recipe, tmp_path / "run")
    for name, expected in (("latents", found.disk.latents), ("text", found.disk.text)):
        files = (tmp_path / "run" / "cache" / name).rglob("*.safetensors")
        assert sum(file.stat().st_size for file in files) == pytest.approx(expected, rel=0.02), name


def test_the_output_is_complete_and_only_the_cache_is_written(
    recipe_of: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = plan_of(recipe_of(train={"steps": 30, "batch_size": 4, "micro_batch": 2}))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["cache"]
    output = capsys.readouterr().out
    assert "broken.png" in output and "12 of 13 pairs" in output
    for part in ("cam", "unet", "optimizer", "activations", "latent cache", "120, 10.00 epochs of 12", "rules/"):
        assert part in output, part
    assert found.speed is not None and found.speed.seconds > 0 and found.speed.steps == 3
    assert found.speed.images == pytest.approx(4 / found.speed.seconds)
    assert found.samples == 12


def test_the_run_reuses_the_cache_of_the_plan(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = recipe_of(data={"cache": {"latents": True}})
    plan_of(recipe)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    trainer_of(recipe, tmp_path / "run")
    assert any("latents" in path.parts for path in before)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_step_that_does_not_fit_is_not_measured(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("train.plan.free_memory", lambda: 2**20)
    monkeypatch.setattr("train.plan.measure", lambda *_: pytest.fail("measured"))
    assert plan_of(recipe_of()).speed is None
    assert "not measured" in capsys.readouterr().out


def test_long_accumulation_is_measured_in_part(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen micro-batches a step: four are run, and the time is four times as long."""
    seen: list[int] = []
    monkeypatch.setattr("train.plan._time_steps", lambda run: (seen.append(run.accumulation), (0.5, 3))[1])
    found = plan_of(recipe_of(train={"steps": 1, "batch_size": 16, "micro_batch": 1}))
    assert seen == [4]
    assert found.speed is not None
    assert (found.speed.seconds, found.speed.images) == (2.0, 8.0)
