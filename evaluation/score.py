"""Scores of image sets: an image that the same judge has scored is not scored again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from PIL import Image
from tqdm import tqdm

from llm4gen_core import LLM4GENError
from llm4gen_core.files import read_json, write_json
from llm4gen_diffusers.machine import fingerprint

from .benchmarks import find_metric
from .image_set import ImageRow, ImageSet, Prompt, is_own, process_state, read_scores
from .metrics.base import Context, ImageMetric, SetMetric, check_options


def check_metrics(metrics: Iterable[str], context: Context) -> None:
    """Check judges and options of metrics before hours of generation.

    Raises:
        LLM4GENError: a metric or an option is unknown, an option's value is wrong, or judges are missing.
    """
    kinds = [find_metric(name).load_class() for name in metrics]
    check_options(kinds, context.options)
    missing: dict[str, str] = {}
    for kind in kinds:
        for judge in kind.judges_needed:
            try:
                context.folder(judge)
            except LLM4GENError as error:
                missing[judge.folder] = str(error)
        kind.check(context)
    if missing:
        raise LLM4GENError(" ".join(missing.values()))


def score(images: ImageSet, metrics: Sequence[str], context: Context, batch: int = 8) -> None:
    """Score every image of a set by every metric, into `scores/` of the set.

    A metric of single images writes `NAME.jsonl` (a row for each image) and `NAME.about.json`; a metric of whole sets
    writes `NAME.set.json`. Under `accelerate launch` the processes share the images of the former; the first process
    computes the latter.

    Args:
        images: the set.
        metrics: keys of `METRICS`.
        context: folder of the judges, device and options.
        batch: number of images scored at once.

    Raises:
        LLM4GENError: a judge is missing, or no image can be scored.
    """
    for name in metrics:
        kind = find_metric(name).load_class()
        rows = _rows_to_score(images, kind, name)
        if issubclass(kind, ImageMetric):
            _score_images(images, rows, kind.load(context), batch)
        elif process_state().is_main_process:
            _score_set(images, rows, kind.load(context), batch)
        process_state().wait_for_everyone()


def _rows_to_score(images: ImageSet, kind: type[ImageMetric] | type[SetMetric], name: str) -> list[ImageRow]:
    rows = [row for row in images.rows() if (images.path / row.file).is_file()]
    if not rows:
        raise LLM4GENError(f"{images.path} has no images yet; run `generate` first.")
    if issubclass(kind, ImageMetric):
        applies = {prompt.id for prompt in images.prompts if kind.applies(prompt)}
        rows = [row for row in rows if row.prompt in applies]
        if not rows:
            raise LLM4GENError(
                f"Metric {name} applies to none of the prompts of {images.path}, which lack the information that it "
                "needs; expected prompts of its benchmark."
            )
    return rows


def _score_images(images: ImageSet, rows: Sequence[ImageRow], metric: ImageMetric, batch: int) -> None:
    describe = metric.describe()
    judge = fingerprint(describe)
    if process_state().is_main_process:
        title = find_metric(metric.name).title
        record = {"judge": judge, "describe": describe, "title": title, "share": metric.share}
        write_json(images.scores / f"{metric.name}.about.json", record)
    scored = read_scores(images, metric.name, judge)
    missing = [row for number, row in enumerate(rows) if is_own(number) and (row.id, row.sha256) not in scored]
    file = images.score_file(metric.name)
    for part, opened, prompts in _batches(images, missing, metric.name, batch):
        file.append(
            *(
                {"image": row.id, "sha256": row.sha256, "scores": dict(found), "judge": judge}
                for row, found in zip(part, metric.score(opened, prompts), strict=True)
            )
        )


def _score_set(images: ImageSet, rows: Sequence[ImageRow], metric: SetMetric, batch: int) -> None:
    describe = metric.describe()
    record: dict[str, Any] = {
        "judge": fingerprint(describe),
        # A changed or further image makes the number outdated.
        "images": fingerprint([[row.id, row.sha256] for row in rows]),
        "describe": describe,
        "title": find_metric(metric.name).title,
    }
    path = images.scores / f"{metric.name}.set.json"
    if path.is_file():
        old = read_json(path, "Scores", "delete it and score the set again")
        if all(old.get(key) == record[key] for key in ("judge", "images")):
            return
    for part, opened, prompts in _batches(images, rows, metric.name, batch):
        metric.update(opened, prompts, [row.seed for row in part])
    write_json(path, {**record, "scores": {name: asdict(found) for name, found in metric.compute().items()}})


def _batches(
    images: ImageSet, rows: Sequence[ImageRow], name: str, batch: int
) -> Iterator[tuple[Sequence[ImageRow], list[Image.Image], list[Prompt]]]:
    """Yield rows with their images and prompts, `batch` at a time."""
    prompts = {prompt.id: prompt for prompt in images.prompts}
    with tqdm(total=len(rows), unit="image", desc=name, disable=None) as bar:
        for first in range(0, len(rows), batch):
            part = rows[first : first + batch]
            yield part, [images.open(row) for row in part], [prompts[row.prompt] for row in part]
            bar.update(len(part))
