"""Samples of every optimizer step and random numbers of every sample, as functions of the seed.

Neither depends on the number of processes, on the batch that a sample is in, or on what was drawn before, so that a
resumed run draws what the run would have drawn without the stop.

Order: each bucket has an endless stream. With n samples, position p of it is sample `perm(seed, bucket, p // n)[p % n]`
in its epoch p // n, and the bucket's batch j takes the positions from jB to (j + 1)B - 1, so that every sample of a
global batch has the same shape, nothing is left over at the end of an epoch, and every sample is seen equally often.
In cycle c a bucket is given floor((c + 1) n / B) - floor(c n / B) batches: those that its samples of one epoch fill.
The batches of a cycle are shuffled. Nothing is stored, and any step is found at once, so that resuming needs one
integer. A deterministic order for any number of processes is the idea of MosaicML's StreamingDataset.

Random numbers: the idea of stateless seeds is OneTrainer's; here a seed belongs to (sample, epoch, purpose) instead of
a step and process.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import torch

_GOLDEN = 0x9E3779B97F4A7C15


def draw_seed(seed: int, sample: str, epoch: int, purpose: str) -> int:
    """Seed for one purpose ("noise", "timestep", "crop", ...), 0 to 2**63 - 1.

    Purposes are independent: drawing one more number for one of them changes none of the others.
    """
    parts = "\0".join((str(seed), sample, str(epoch), purpose))
    return int.from_bytes(hashlib.blake2b(parts.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") >> 1


def generator(seed: int, sample: str, epoch: int, purpose: str) -> torch.Generator:
    """Generator on the CPU, the same on every machine; see `draw_seed`."""
    return torch.Generator("cpu").manual_seed(draw_seed(seed, sample, epoch, purpose))


def uniform(seed: int, sample: str, epoch: int, purpose: str) -> float:
    """Number in [0, 1)."""
    return draw_seed(seed, sample, epoch, purpose) / 2**63


class GlobalOrder:
    """Order in which a run sees the samples of a data set.

    Args:
        bucket_of_sample: [N] bucket index of each sample.
        batch_size: B, samples of an optimizer step over all processes.
        seed: of the run.
        repeats: [N], number of times that an epoch sees each sample; None is once.
    """

    def __init__(
        self, bucket_of_sample: np.ndarray, batch_size: int, seed: int, repeats: np.ndarray | None = None
    ) -> None:
        buckets = np.asarray(bucket_of_sample)
        if len(buckets) == 0 or batch_size < 1:
            raise ValueError(f"{len(buckets)} samples in batches of {batch_size}")
        self.batch_size, self.seed = batch_size, seed
        samples = np.argsort(buckets, kind="stable").astype(np.uint32)
        self._repeats = None if repeats is None or np.all(repeats == 1) else np.asarray(repeats, np.int64)
        if self._repeats is not None:
            samples = np.repeat(samples, self._repeats[samples])
        self._samples = samples
        """Samples sorted by bucket; a repeated one is listed as often."""
        self._sizes = np.bincount(buckets[samples]).astype(np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)[:-1]])
        self._buckets_of_cycle = lru_cache(maxsize=4)(self._shuffled_cycle)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_buckets_of_cycle"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._buckets_of_cycle = lru_cache(maxsize=4)(self._shuffled_cycle)

    def __len__(self) -> int:
        """Number of samples of an epoch, repeats included."""
        return len(self._samples)

    def bucket(self, step: int) -> int:
        """Bucket of a step's samples."""
        return self._locate(step)[0]

    def batch(self, step: int, part: slice = slice(None)) -> list[tuple[int, int]]:
        """Samples of a step.

        Args:
            step: from 0.
            part: slice of the batch, if not all of it is needed.

        Returns:
            (sample, epoch) for each of the B places. The sample's random numbers depend on the epoch: a sample that
            an epoch sees twice has two epochs of its own there.
        """
        bucket, number = self._locate(step)
        size = int(self._sizes[bucket])
        positions = np.arange(number * self.batch_size, (number + 1) * self.batch_size, dtype=np.int64)[part]
        epochs, places = np.divmod(positions, size)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            key = draw_seed(self.seed, f"bucket {bucket}", int(epoch), "order")
            places[chosen] = shuffled_places(places[chosen], size, key)
        places += self._starts[bucket]
        samples = self._samples[places]
        if self._repeats is not None:
            # Repeats of a sample are neighbours: the distance to the first of them tells them apart.
            repeats = self._repeats[samples]
            first = np.searchsorted(self._first_places, places, side="right") - 1
            epochs = epochs * repeats + places - self._first_places[first]
        return list(zip(samples.tolist(), epochs.tolist(), strict=True))

    def part(self, accumulation_step: int, micro_batch: int, rank: int, world_size: int) -> slice:
        """Slice of a batch that a process computes in one of its accumulation steps."""
        start = (accumulation_step * world_size + rank) * micro_batch
        return slice(start, start + micro_batch)

    @property
    def _first_places(self) -> np.ndarray:
        if not hasattr(self, "_firsts"):
            assert self._repeats is not None
            changed = np.concatenate([[True], self._samples[1:] != self._samples[:-1]])
            self._firsts = np.flatnonzero(changed)
        return self._firsts

    def _locate(self, step: int) -> tuple[int, int]:
        """Bucket of a step, and the number of its batch within the bucket."""
        low, high = 0, (step + len(self._sizes) + 1) * self.batch_size // len(self._samples) + 1
        while high - low > 1:  # the cycle c with before(c) <= step < before(c + 1)
            middle = (low + high) // 2
            low, high = (middle, high) if self._before(middle) <= step else (low, middle)
        buckets = self._buckets_of_cycle(low)
        place = step - self._before(low)
        bucket = int(buckets[place])
        earlier = int(np.count_nonzero(buckets[:place] == bucket))
        return bucket, low * int(self._sizes[bucket]) // self.batch_size + earlier

    def _before(self, cycle: int) -> int:
        """Number of batches of all cycles before this one."""
        return int((cycle * self._sizes // self.batch_size).sum())

    def _shuffled_cycle(self, cycle: int) -> np.ndarray:
        counts = (cycle + 1) * self._sizes // self.batch_size - cycle * self._sizes // self.batch_size
        buckets = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        key = draw_seed(self.seed, "cycle", cycle, "order")
        return buckets[shuffled_places(np.arange(len(buckets)), len(buckets), key)] if len(buckets) else buckets


def shuffled_places(places: np.ndarray, size: int, key: int) -> np.ndarray:
    """Images of some places under a pseudorandom permutation of 0 ... size - 1, without computing the rest.

    The swap-or-not shuffle (Hoang, Morris, Rogaway, CRYPTO 2012): in each round a place and its partner, K - place,
    are both swapped or both not. Unlike a library's shuffle it needs no memory for 10 million samples in every
    worker, and gives the same order with every version of every library.

    Args:
        places: [n] int64 from 0 to size - 1.
        size: number of places of the permutation.
        key: seed of the permutation.

    Returns:
        [n] int64.
    """
    places = np.asarray(places, np.int64)
    rounds = 8 * max(4, size.bit_length())
    counters = np.arange(1, 2 * rounds + 1, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(key)
    numbers = _mix(counters)
    partners_of = (numbers[:rounds] % np.uint64(size)).astype(np.int64)
    for partner_of, bit_key in zip(partners_of, numbers[rounds:], strict=True):
        partner = partner_of - places
        partner += size * (partner < 0)
        swap = _mix(np.maximum(places, partner).astype(np.uint64) ^ bit_key) >> np.uint64(63)
        places = np.where(swap.astype(bool), partner, places)
    return places


def _mix(values: np.ndarray) -> np.ndarray:
    """Finalizer of splitmix64: each bit of the result depends on every bit of the value."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
