"""Scoring a set of images: what has been scored by the same judge is not scored again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState
from tqdm import tqdm

from llm4gen_core import LLM4GENError
from llm4gen_core.files import write_text
from llm4gen_diffusers.provenance import fingerprint

from .benchmarks import find_metric
from .image_set import ImageRow, ImageSet, read_scores
from .metrics.base import Context, ImageMetric, SetMetric
from .processes import process_state


def check_metrics(metrics: Iterable[str], context: Context) -> None:
    """Raise LLM4GENError if a metric, a judge or an option is missing, before hours of painting; all judges at once."""
    from .metrics.judge_model import chosen_folder

    missing: dict[str, str] = {}
    for name in metrics:
        for judge in find_metric(name).load_class().judges_needed:
            try:
                chosen_folder(context, judge)
            except LLM4GENError as error:
                missing[judge.folder] = str(error)
        find_metric(name).load_class().check(context)
    if missing:
        raise LLM4GENError(" ".join(missing.values()))


def score(images: ImageSet, metrics: Sequence[str], context: Context, batch: int = 8) -> None:
    """Score every image that is there by every metric, into `scores/` of the set.

    Written are, for a metric of single images, `NAME.jsonl` (a row for each image) and `NAME.about.json`; for one of
    whole sets `NAME.set.json`. Under `accelerate launch` the processes share the images of the former; the latter are
    made by the first.

    Args:
        images: the set.
        metrics: names, keys of `METRICS`.
        context: where the judges are.
        batch: images that are judged at once.

    Raises:
        LLM4GENError: a judge is missing, or no image can be scored.
    """
    state = process_state()
    for name in metrics:
        kind = find_metric(name).load_class()
        rows = _scorable(images, kind, name)
        if issubclass(kind, ImageMetric):
            _score_images(images, rows, kind.load(context), batch, state)
        elif state.is_main_process:
            _score_set(images, rows, kind.load(context), batch)
        state.wait_for_everyone()


def _scorable(images: ImageSet, kind: type[ImageMetric] | type[SetMetric], name: str) -> list[ImageRow]:
    prompts = {prompt.id: prompt for prompt in images.prompts}
    rows = [row for row in images.rows() if (images.path / row.file).is_file()]
    if not rows:
        raise LLM4GENError(f"{images.path} has no images yet; run `generate` first.")
    if issubclass(kind, ImageMetric):
        rows = [row for row in rows if kind.applies(prompts[row.prompt])]
        if not rows:
            raise LLM4GENError(
                f"Metric {name} applies to none of the prompts of {images.path}, which lack what it needs to know; "
                "expected prompts of its benchmark."
            )
    return rows


def _score_images(
    images: ImageSet, rows: Sequence[ImageRow], metric: ImageMetric, batch: int, state: PartialState
) -> None:
    about = metric.describe()
    judge = fingerprint(about)
    prompts = {prompt.id: prompt for prompt in images.prompts}
    if state.is_main_process:
        record = {"judge": judge, "describe": about, "title": find_metric(metric.name).title, "share": metric.share}
        _write(images.scores / f"{metric.name}.about.json", record)
    scored = read_scores(images, metric.name, judge)
    missing = [
        row
        for number, row in enumerate(rows)
        if number % state.num_processes == state.process_index and (row.id, row.sha256) not in scored
    ]
    file = images.score_file(metric.name)
    with tqdm(total=len(missing), unit="image", desc=metric.name, disable=None) as bar:
        for first in range(0, len(missing), batch):
            part = missing[first : first + batch]
            values = metric.score([images.open(row) for row in part], [prompts[row.prompt] for row in part])
            file.append(
                *(
                    {"image": row.id, "sha256": row.sha256, "scores": dict(found), "judge": judge}
                    for row, found in zip(part, values, strict=True)
                )
            )
            bar.update(len(part))


def _score_set(images: ImageSet, rows: Sequence[ImageRow], metric: SetMetric, batch: int) -> None:
    about = metric.describe()
    # What the number was made from: another image, or one more, makes it anew.
    record: dict[str, Any] = {
        "judge": fingerprint(about),
        "images": fingerprint([[row.id, row.sha256] for row in rows]),
        "describe": about,
        "title": find_metric(metric.name).title,
    }
    path = images.scores / f"{metric.name}.set.json"
    if path.is_file():
        old = json.loads(path.read_text(encoding="utf-8"))
        if all(old.get(key) == record[key] for key in ("judge", "images")):
            return
    prompts = {prompt.id: prompt for prompt in images.prompts}
    with tqdm(total=len(rows), unit="image", desc=metric.name, disable=None) as bar:
        for first in range(0, len(rows), batch):
            part = rows[first : first + batch]
            metric.update(
                [images.open(row) for row in part], [prompts[row.prompt] for row in part], [row.seed for row in part]
            )
            bar.update(len(part))
    _write(path, {**record, "scores": {name: asdict(found) for name, found in metric.compute().items()}})


def _write(path: Path, record: dict[str, Any]) -> None:
    write_text(path, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
