"""What the data is like, and what was left out of it and why: for `plan`, and beside every run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from .buckets import assign, bucket_sizes
from .manifest import Manifest, Problem

SUMMARY, LEFT_OUT, UNREADABLE = "data.json", "data_left_out.jsonl", "data_unreadable.jsonl"

SHOWN = 10
"""Pairs that are named on the console; the file has all."""


@dataclass(frozen=True)
class Bucket:
    """A size, how many images have it, how many samples of an epoch, and the share of their area that is cut off."""

    height: int
    width: int
    images: int
    samples: int
    cut_off: float


@dataclass(frozen=True)
class Summary:
    """Numbers of the usable pairs, and of what was left out.

    Attributes:
        samples: of an epoch, repeats included.
        left_out: pairs by kind of problem; handled: images by what was done to them.
        words: 5th, 50th and 95th percentile of a caption's words, and the mean.
        different_captions: how many.
        other_scripts: captions without one letter from a to z.
        with_pairs, pairs: captions with at least one entity pair, and all pairs; None where they were not looked for.
        sides: 5th, 50th and 95th percentile of the shorter side in pixels.
        enlarged: images that have fewer pixels than their sample.
    """

    pairs_found: int
    usable: int
    samples: int
    left_out: dict[str, int]
    handled: dict[str, int]
    words: dict[str, float]
    different_captions: int
    other_scripts: int
    with_pairs: int | None
    pairs: int | None
    sides: dict[str, float]
    enlarged: int
    buckets: list[Bucket]
    fingerprint: str


def summarize(manifest: Manifest) -> Summary:
    """The numbers of a manifest; some seconds for a million pairs."""
    widths, heights = manifest.sizes()
    sizes = bucket_sizes(manifest.data)
    bucket_of = assign(widths, heights, sizes)
    targets = np.array(sizes)[bucket_of]
    scale = np.maximum(targets[:, 0] / heights, targets[:, 1] / widths)
    seen = targets[:, 0] * targets[:, 1] / (heights * widths * scale**2)
    repeats = manifest.repeats()
    words, with_pairs, pairs, other, different = _captions(manifest)
    left_out = manifest.left_out()
    buckets = []
    for number, (height, width) in enumerate(sizes):
        own = bucket_of == number
        if own.any():
            cut_off = round(float(1 - seen[own].mean()), 4)
            buckets.append(Bucket(height, width, int(own.sum()), int(repeats[own].sum()), max(0.0, cut_off)))
    looked = manifest.entities_file is not None
    return Summary(
        pairs_found=len(manifest) + left_out.total(),
        usable=len(manifest),
        samples=int(repeats.sum()),
        left_out=dict(left_out.most_common()),
        handled=dict(manifest.notes().most_common()),
        words={**_percentiles(words), "mean": round(float(words.mean()), 2)},
        different_captions=different,
        other_scripts=other,
        with_pairs=with_pairs if looked else None,
        pairs=pairs if looked else None,
        sides=_percentiles(np.minimum(widths, heights)),
        enlarged=int((scale > 1).sum()),
        buckets=buckets,
        fingerprint=manifest.fingerprint,
    )


def write_report(manifest: Manifest, folder: Path, later: Iterable[Problem] = ()) -> Summary:
    """Write the summary and the whole list of what was left out into a run's folder.

    Args:
        manifest: the pairs.
        folder: of the run.
        later: images that turned out to be unusable after the scan, when latents were cached.
    """
    summary = summarize(manifest)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(summary), indent=2, ensure_ascii=False)
    (folder / SUMMARY).write_text(text + "\n", encoding="utf-8")
    with (folder / LEFT_OUT).open("w", encoding="utf-8") as file:
        for problems in (manifest.problems(), later):
            file.writelines(_line(problem) for problem in problems)
    return summary


def describe(summary: Summary, problems: Iterable[Problem] = ()) -> list[str]:
    """The summary as lines for a console; of `problems`, the first few are named."""
    lines = [f"{summary.usable:,} of {summary.pairs_found:,} pairs can be used, {summary.samples:,} samples an epoch"]
    if summary.left_out:
        lines.append("left out: " + ", ".join(f"{number:,} {kind}" for kind, number in summary.left_out.items()))
    if summary.handled:
        lines.append("handled: " + ", ".join(f"{number:,} {note}" for note, number in summary.handled.items()))
    for number, problem in enumerate(problems):
        if number == SHOWN:
            lines.append(f"  ... and more; all are listed in {LEFT_OUT} of the run")
            break
        lines.append(f"  {problem}")
    words = summary.words
    lines.append(
        f"captions: {summary.different_captions:,} different, {words['50%']:g} words "
        f"({words['5%']:g} to {words['95%']:g}), {summary.other_scripts:,} without Latin letters"
    )
    if summary.with_pairs is not None and summary.pairs is not None:
        share = summary.with_pairs / summary.usable
        lines.append(f"entity pairs: {summary.pairs:,}, in {share:.1%} of the captions")
    sides = summary.sides
    lines.append(
        f"images: shorter side {sides['50%']:g} pixels ({sides['5%']:g} to {sides['95%']:g}), "
        f"{summary.enlarged:,} have to be enlarged"
    )
    for bucket in summary.buckets:
        lines.append(
            f"  {bucket.width:>5} x {bucket.height:<5} {bucket.images:>10,} images  {bucket.cut_off:.1%} cut off"
        )
    return lines


class ProblemLog:
    """Images that could not be read during a run, appended once each to a list that outlives its restarts.

    Args:
        folder: of the run. Only one process writes.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / UNREADABLE
        self._known: set[tuple[str, str]] = set()
        if self._file.is_file():
            for line in self._file.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                    self._known.add((entry["source"], entry["key"]))
                except (ValueError, LookupError, TypeError):
                    continue  # the last line of a run that was killed

    def add(self, problems: Iterable[Problem]) -> list[Problem]:
        """Those of the problems that are new."""
        new = []
        for problem in problems:
            if (problem.source, problem.key) not in self._known:
                self._known.add((problem.source, problem.key))
                new.append(problem)
        if new:
            with self._file.open("a", encoding="utf-8") as file:
                file.writelines(_line(problem) for problem in new)
                file.flush()
                os.fsync(file.fileno())
        return new


def _line(problem: Problem) -> str:
    return json.dumps(problem._asdict(), ensure_ascii=False) + "\n"


def _captions(manifest: Manifest) -> tuple[np.ndarray, int, int, int, int]:
    """Words of each caption; captions with pairs, pairs, captions without Latin letters, different captions."""
    words, with_pairs, pairs, other = [], 0, 0, 0
    for block in manifest.blocks(["caption", "pairs"]):
        words.append(pc.count_substring_regex(block["caption"], r"\S+").to_numpy())
        other += int(pc.sum(pc.invert(pc.match_substring_regex(block["caption"], "[A-Za-z]"))).as_py() or 0)
        numbers = pc.fill_null(pc.list_value_length(block["pairs"]), 0).to_numpy()
        with_pairs += int((numbers > 0).sum())
        pairs += int(numbers.sum()) // 4
    return np.concatenate(words), with_pairs, pairs, other, manifest.different_captions()


def _percentiles(values: np.ndarray) -> dict[str, float]:
    return {
        f"{share}%": float(value) for share, value in zip((5, 50, 95), np.percentile(values, (5, 50, 95)), strict=True)
    }
