"""Random numbers of a sample, from (seed, sample, epoch) alone.

Neither the number of processes, nor the batch that a sample is in, nor what was drawn before has any influence, so
that a run which is resumed at a step draws what the run would have drawn that was never stopped. The idea of
stateless seeds is OneTrainer's; here a seed belongs to a sample instead of a step and process.
"""

from __future__ import annotations

import hashlib

import torch


def draw_seed(seed: int, sample: str, epoch: int, purpose: str) -> int:
    """A seed for one purpose ("noise", "timestep", "crop", ...), 0 to 2**63 - 1.

    Different purposes are independent: drawing one more number for one of them changes none of the others.
    """
    parts = "\0".join((str(seed), sample, str(epoch), purpose))
    return int.from_bytes(hashlib.blake2b(parts.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") >> 1


def generator(seed: int, sample: str, epoch: int, purpose: str) -> torch.Generator:
    """A generator on the CPU, the same on every machine; see `draw_seed`."""
    return torch.Generator("cpu").manual_seed(draw_seed(seed, sample, epoch, purpose))


def uniform(seed: int, sample: str, epoch: int, purpose: str) -> float:
    """One number in [0, 1)."""
    return draw_seed(seed, sample, epoch, purpose) / 2**63
