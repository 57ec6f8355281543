"""Order of samples and random numbers of a sample, as functions of the seed."""

from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest
import torch

from train.data.order import GlobalOrder, draw_seed, generator, shuffled_places, uniform


def run_through(order: GlobalOrder, steps: int) -> list[list[tuple[int, int]]]:
    return [order.batch(step) for step in range(steps)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 100, 4097])
def test_a_permutation_reaches_every_place_once(size: int) -> None:
    for key in (0, 1, 2**63 - 1):
        assert sorted(shuffled_places(np.arange(size), size, key).tolist()) == list(range(size))


def test_permutations_are_even() -> None:
    """Chi-square over the 24 orders of 4 places; 49.7 is its 99.9th percentile with 23 degrees of freedom."""
    draws = 2400
    counts = Counter(tuple(shuffled_places(np.arange(4), 4, draw_seed(0, "b", e, "o")).tolist()) for e in range(draws))
    assert len(counts) == 24
    assert sum((count - draws / 24) ** 2 / (draws / 24) for count in counts.values()) < 49.7


def test_neighbours_of_a_large_permutation_are_unrelated() -> None:
    places = shuffled_places(np.arange(2000), 1_000_000, 5)
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 0.1
    assert abs(places.mean() / 500_000 - 1) < 0.05


@pytest.mark.parametrize("sizes", [[10], [64], [100, 3, 17], [1, 1, 1], [5, 0, 40], [2]])
@pytest.mark.parametrize("batch", [1, 4, 16])
def test_every_sample_is_seen_equally_often(sizes: list[int], batch: int) -> None:
    """At most one batch of its bucket ahead or behind; exactly, over B cycles."""
    order = GlobalOrder(np.repeat(np.arange(len(sizes)), sizes), batch, seed=3)
    steps = sum(sizes)  # B cycles of N samples
    seen = Counter(pair for step in run_through(order, steps) for pair in step)
    assert set(seen.values()) == {1}, "no sample twice in the same epoch"
    assert set(seen) == {(sample, epoch) for sample in range(sum(sizes)) for epoch in range(batch)}


@pytest.mark.parametrize("batch", [1, 4, 16])
def test_samples_of_a_batch_share_their_bucket(batch: int) -> None:
    buckets = np.random.default_rng(0).integers(0, 5, 137)
    order = GlobalOrder(buckets, batch, seed=0)
    for step in range(60):
        assert {int(buckets[sample]) for sample, _ in order.batch(step)} == {order.bucket(step)}


def test_a_step_does_not_depend_on_the_first_step() -> None:
    buckets = np.random.default_rng(1).integers(0, 4, 50)
    through = run_through(GlobalOrder(buckets, 8, seed=0), 80)
    other = GlobalOrder(buckets, 8, seed=0)
    for step in (79, 3, 41, 0, 63):
        assert other.batch(step) == through[step]


def test_fewer_samples_than_a_batch_repeat_in_later_epochs() -> None:
    batch = GlobalOrder(np.zeros(3, int), 8, seed=0).batch(0)
    assert len(set(batch)) == 8
    assert Counter(epoch for _, epoch in batch) == {0: 3, 1: 3, 2: 2}


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_parts_of_all_processes_are_the_batch(world_size: int) -> None:
    order = GlobalOrder(np.random.default_rng(0).integers(0, 3, 90), 16, seed=0)
    for step in (0, 7, 30):
        parts = [
            order.batch(step, order.part(accumulation, 16 // world_size // 2, rank, world_size))
            for accumulation in range(2)
            for rank in range(world_size)
        ]
        assert [pair for part in parts for pair in part] == order.batch(step)


def test_epochs_and_seeds_have_different_orders() -> None:
    zero, one = (GlobalOrder(np.zeros(64, int), 64, seed=seed) for seed in (0, 1))
    orders = [[sample for sample, _ in batch] for batch in (zero.batch(0), zero.batch(1), one.batch(0))]
    assert len({tuple(order) for order in orders}) == 3


def test_cycles_mix_the_buckets() -> None:
    order = GlobalOrder(np.repeat([0, 1], 40), 4, seed=0)
    cycles = [tuple(order.bucket(step) for step in range(start, start + 20)) for start in (0, 20, 40)]
    assert all(Counter(cycle) == {0: 10, 1: 10} for cycle in cycles)
    assert len(set(cycles)) == 3 and tuple(sorted(cycles[0])) != cycles[0]


def test_repeats_count_epochs_of_their_own() -> None:
    order = GlobalOrder(np.array([0, 1, 0, 1]), 2, seed=0, repeats=np.array([1, 3, 2, 1]))
    assert len(order) == 7
    seen = Counter(pair for step in run_through(order, 7) for pair in step)
    assert set(seen.values()) == {1}
    assert {sample: sorted(e for s, e in seen if s == sample) for sample in range(4)} == {
        0: [0, 1],
        1: [0, 1, 2, 3, 4, 5],
        2: [0, 1, 2, 3],
        3: [0, 1],
    }


def test_a_copy_in_another_process_has_the_same_order() -> None:
    order = GlobalOrder(np.random.default_rng(0).integers(0, 3, 20), 4, seed=9)
    order.batch(3)
    assert pickle.loads(pickle.dumps(order)).batch(11) == order.batch(11)


# Random numbers


def test_the_same_on_every_machine() -> None:
    """Recorded number: if it changed, runs could not be resumed exactly."""
    assert draw_seed(7, "photos/cat.jpg", 2, "noise") == 4051743009899145983


@pytest.mark.parametrize(
    "other", [(8, "a", 2, "noise"), (7, "b", 2, "noise"), (7, "a", 3, "noise"), (7, "a", 2, "crop")], ids=str
)
def test_every_argument_changes_the_seed(other: tuple[int, str, int, str]) -> None:
    assert draw_seed(7, "a", 2, "noise") != draw_seed(*other)


def test_draws_elsewhere_change_nothing() -> None:
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
