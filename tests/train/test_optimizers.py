"""Optimizers: groups, decay, exact resumption, the size of their state."""

from __future__ import annotations

import copy
import io
import sys

import pytest
import torch
from torch import nn

from llm4gen_core import LLM4GENError
from train import recipe
from train.optimizers import build_optimizer, build_schedule, optimizer_state_bytes

NAMES = ("adamw", "adamw_8bit", "adafactor", "prodigy")


def settings(name: str, **values: object) -> recipe.Optimizer:
    rate = 1.0 if name == "prodigy" else 1e-3
    return recipe.Optimizer.model_validate({"name": name, "learning_rate": rate, "weight_decay": 0.1, **values})


def small_model() -> nn.Module:
    """With every kind of parameter: matrices above and below 8-bit's smallest size, a convolution, a norm, biases."""
    torch.manual_seed(0)
    parts = nn.Sequential(nn.Linear(96, 96), nn.LayerNorm(96), nn.Linear(96, 10))
    nn.init.normal_(parts[1].bias)  # Prodigy keeps less for a parameter that is all zero
    return nn.ModuleDict({"cam": parts, "unet": nn.Conv2d(16, 40, 3, bias=False)})


def groups(model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    return {
        name: {f"{name}.{key}": value for key, value in part.named_parameters()}
        for name, part in model.named_children()
    }


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_optimizer_is_bit_equal(name):
    whole = small_model()
    optimizer = build_optimizer(groups(whole), settings(name))
    train(whole, optimizer, range(5))
    file = io.BytesIO()
    torch.save({"model": whole.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(whole, optimizer, range(5, 10))

    file.seek(0)
    stored = torch.load(file, weights_only=True)
    resumed = small_model()
    resumed.load_state_dict(stored["model"])
    optimizer = build_optimizer(groups(resumed), settings(name))
    optimizer.load_state_dict(stored["optimizer"])
    train(resumed, optimizer, range(5, 10))
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


@pytest.mark.parametrize("name", NAMES)
def test_a_step_changes_every_parameter(name):
    model = small_model()
    before = copy.deepcopy(model.state_dict())
    train(model, build_optimizer(groups(model), settings(name)), range(2))
    assert not [key for key, value in model.state_dict().items() if torch.equal(value, before[key])]


@pytest.mark.parametrize("name", NAMES)
def test_weight_decay_applies_to_matrices_only(name):
    model = small_model()
    optimizer = build_optimizer(groups(model), settings(name))
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    found = {key for key, value in model.named_parameters() if id(value) in decayed}
    assert found == {"cam.0.weight", "cam.2.weight", "unet.weight"}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.1}


def test_the_unet_may_have_its_own_learning_rate():
    optimizer = build_optimizer(groups(small_model()), settings("adamw", unet_learning_rate=5e-5))
    assert {(group["name"], group["lr"]) for group in optimizer.param_groups} == {("cam", 1e-3), ("unet", 5e-5)}


@pytest.mark.parametrize("name", NAMES)
def test_predicted_size_of_the_state(name):
    model = small_model()
    optimizer = build_optimizer(groups(model), settings(name))
    train(model, optimizer, range(1))
    tensors = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    real = sum({tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in tensors}.values())
    with torch.device("meta"):
        assert optimizer_state_bytes(settings(name), small_model().parameters()) == real


def test_adamw_is_pytorchs():
    """Without the split by decay it takes the same steps as torch.optim.AdamW."""
    ours, theirs = small_model(), small_model()
    train(ours, build_optimizer(groups(ours), settings("adamw", weight_decay=0.0)), range(3))
    train(theirs, torch.optim.AdamW(theirs.parameters(), lr=1e-3, weight_decay=0.0), range(3))
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-5, atol=1e-7)


def rates(schedule: str, warmup: int, steps: int) -> list[float]:
    optimizer = build_optimizer(groups(small_model()), settings("adamw", warmup_steps=warmup, schedule=schedule))
    scheduler = build_schedule(optimizer, settings("adamw", warmup_steps=warmup, schedule=schedule), steps)
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0] / 1e-3)
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, [1, 1, 1, 1]),
        ("constant", 2, [0, 0.5, 1, 1]),
        ("linear", 0, [1, 0.75, 0.5, 0.25]),
        ("linear", 2, [0, 0.5, 1, 0.5]),
        ("cosine", 0, [1, 0.853553, 0.5, 0.146447]),
    ],
)
def test_schedules(schedule, warmup, expected):
    assert rates(schedule, warmup, 4) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("name", "package"), [("adamw_8bit", "bitsandbytes"), ("prodigy", "prodigyopt")])
def test_a_missing_package_is_named(monkeypatch, name, package):
    for module in [module for module in sys.modules if module.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(LLM4GENError, match=f"{name} needs the package {package}.*pip install {package}"):
        build_optimizer(groups(small_model()), settings(name))


def test_8bit_on_an_unsupported_device():
    with torch.device("meta"):
        model = small_model()
    with pytest.raises(LLM4GENError, match="adamw_8bit cannot run on meta"):
        build_optimizer(groups(model), settings("adamw_8bit"))


def test_nothing_to_train():
    with pytest.raises(LLM4GENError, match="nothing to train"):
        build_optimizer({}, settings("adamw"))
