"""A sample's random numbers depend on (seed, sample, epoch, purpose) and on nothing else."""

from __future__ import annotations

import pytest
import torch

from train.data.order import draw_seed, generator, uniform


def test_the_same_on_every_machine() -> None:
    """A number of record: were it to change, runs could not go on exactly."""
    assert draw_seed(7, "photos/cat.jpg", 2, "noise") == 4051743009899145983


@pytest.mark.parametrize(
    "other", [(8, "a", 2, "noise"), (7, "b", 2, "noise"), (7, "a", 3, "noise"), (7, "a", 2, "crop")], ids=str
)
def test_everything_named_has_an_influence(other: tuple[int, str, int, str]) -> None:
    assert draw_seed(7, "a", 2, "noise") != draw_seed(*other)


def test_what_is_drawn_elsewhere_has_none() -> None:
    first = torch.randn(4, generator=generator(1, "a", 0, "noise"))
    torch.manual_seed(5)
    torch.randn(100)
    assert torch.equal(torch.randn(4, generator=generator(1, "a", 0, "noise")), first)


def test_names_of_any_script_can_be_samples() -> None:
    assert draw_seed(0, "写真/猫.jpg", 0, "x") != draw_seed(0, "写真/犬.jpg", 0, "x")
    assert draw_seed(0, "broken\udcff", 0, "x") >= 0


def test_uniform_numbers_are_uniform() -> None:
    numbers = torch.tensor([uniform(0, str(i), 0, "timestep") for i in range(4000)])
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = torch.histc(numbers, bins=10, min=0, max=1)
    assert ((counts - 400).abs() < 100).all()
