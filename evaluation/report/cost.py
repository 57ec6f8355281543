"""What painting has cost, from the manifest: every image says what painted it and how long that took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..image_set import ImageRow
from .numbers import Absent, Measured, Total, mean
from .read import EvaluatedSet


@dataclass(frozen=True)
class Cost:
    """Of the images of a set that one kind of device has painted.

    Attributes:
        label: of the set.
        device: kind, such as "NVIDIA A100-SXM4-80GB" or "CPU".
        seconds: for an image, with the interval over prompts.
        per_second: images, the same turned over.
        hours: GPU-hours or CPU-hours of all these images together: time of processes, which may have run side by side.
    """

    label: str
    device: str
    seconds: Measured | Absent
    per_second: Measured | Absent
    hours: Total


def costs(sets: Sequence[EvaluatedSet]) -> list[Cost]:
    """Of each set, for each kind of device."""
    found = []
    for one in sets:
        devices: dict[tuple[str, str], list[ImageRow]] = {}
        for row in one.rows.values():
            devices.setdefault(_device(row), []).append(row)
        found += [_cost(one, *device, devices[device]) for device in sorted(devices)]
    return found


def _cost(one: EvaluatedSet, device: str, unit: str, rows: Sequence[ImageRow]) -> Cost:
    places = {prompt: n for n, prompt in enumerate(dict.fromkeys(row.prompt for row in rows))}
    seeds = {seed: n for n, seed in enumerate(sorted({row.seed for row in rows}))}
    values = np.full((len(places), len(seeds)), np.nan)
    for row in rows:
        values[places[row.prompt], seeds[row.seed]] = row.seconds
    seconds = mean(values, share=False, asked=len(rows))
    hours = Total(float(np.nansum(values)) / 3600, unit, len(rows))
    return Cost(one.label, device, seconds, _turned_over(seconds), hours)


def _turned_over(seconds: Measured | Absent) -> Measured | Absent:
    """Images a second; an interval that reaches down to no time at all has no end there."""
    if isinstance(seconds, Absent):
        return seconds
    if seconds.low <= 0:
        return Absent("times vary too much")
    how = f"one over the seconds of an image: {seconds.how}"
    low, high = 1 / seconds.high, 1 / seconds.low
    return Measured(1 / seconds.value, low, high, seconds.n, seconds.prompts, seconds.asked, how)


def _device(row: ImageRow) -> tuple[str, str]:
    """Kind of device, and the unit of its hours."""
    if server := row.made.get("server"):
        return f"ComfyUI at {server}", "hours"
    device = str(row.made.get("device") or "not said")
    if device == "cpu":
        return "CPU", "CPU-hours"
    return device, "hours" if device == "not said" else "GPU-hours"
