"""The page of a report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .build import BenchmarkReport, Report
from .columns import Column
from .examples import Example, Picture, WinsAndLosses
from .layout import ReportPage, card
from .numbers import Count
from .pictures import Pictures
from .read import EvaluatedSet
from .shown import number
from .tables import WHOLE_SETS, Row, Table

EXAMPLE_DIGITS = 3


def report_page(report: Report) -> str:
    """The page's HTML; the same for the same report and images."""
    page = ReportPage(f"Evaluation: {', '.join(one.group.benchmark.title for one in report.benchmarks)}")
    pictures = Pictures(list(_pictures(report)))
    _head(page, report)
    for one in report.benchmarks:
        _benchmark(page, one, pictures)
    _cost(page, report)
    _provenance(page, report)
    return page.html()


def _pictures(report: Report) -> Iterator[Picture]:
    """All that the page shows, in its order."""
    for one in report.benchmarks:
        for sample in one.samples:
            yield from sample.pictures
        for found in one.wins_and_losses:
            for example in (*found.wins, *found.losses):
                yield from example.pictures


def _head(page: ReportPage, report: Report) -> None:
    notices = [notice for one in report.benchmarks for notice in one.notices]
    gaps = [notice.text for notice in notices if notice.kind in ("missing_images", "missing_scores", "stale_scores")]
    others = [notice.text for notice in notices if notice.text not in gaps]
    if gaps:
        page.notices("This report is incomplete", gaps)
    if others:
        page.notices("Before you compare", others)
    page.text(
        "Every mean and difference stands with its 95 % interval and the number of images behind it; scores of single "
        "images stand under their pictures as they are. Prompts are the "
        "sample: the images of a prompt count as one cluster, so that an interval says what other prompts of the same "
        "kind would give, for the same trained model. It says nothing about a second training. *Differences* are of "
        "the same prompt and seed in both sets. What others have published stands in frames of its own, marked as "
        "quoted; no number of theirs is part of a computation."
    )


def _benchmark(page: ReportPage, one: BenchmarkReport, pictures: Pictures) -> None:
    group = one.group
    page.heading(group.benchmark.title)
    page.text(
        f"{'Sets' if len(group.sets) > 1 else 'Set'}: "
        + "; ".join(
            f"**{_plain(images.label)}**, {images.asked - len(images.missing):,} of {images.asked:,} images "
            f"({_counted(len(images.prompts), 'prompt')}, {_counted(len(images.settings.seeds), 'seed')})"
            for images in group.sets
        )
        + (f". Compared with **{_plain(group.baseline.label)}**, the first." if len(group.sets) > 1 else ".")
    )
    if group.benchmark.note:
        page.text(group.benchmark.note)
    if notes := _notes(group.sets):
        page.text("\n".join(f"- {note}" for note in notes))
    if not one.tables:
        page.text("Nothing has been scored yet.")
    for number_of, table in enumerate(one.tables):
        if number_of:
            page.heading(table.title, 3)
        _table(page, one, table)
        if number_of == 0:
            for quoted in one.quoted:
                page.quoted(quoted)
    if not one.tables:
        for quoted in one.quoted:
            page.quoted(quoted)
    _samples(page, one, pictures)
    if one.wins_and_losses:
        page.heading(f"{group.benchmark.title}: wins and losses", 3)
        page.text(
            "Chosen by the largest mean differences over all seeds that both sets have; the pair that is shown has the "
            "seed whose difference is closest to that mean. These are the extremes: how often a set gains and loses "
            "stands beside them."
        )
        for found in one.wins_and_losses:
            _wins_and_losses(page, found, pictures)


def _notes(sets: Sequence[EvaluatedSet]) -> list[str]:
    """What the sets say of how they were painted, each sentence once, with the sets that say it unless all do."""
    said: dict[str, list[str]] = {}
    for images in sets:
        for note in images.settings.notes:
            said.setdefault(note, []).append(_plain(images.label))
    return [note if len(labels) == len(sets) else f"{', '.join(labels)}: {note}" for note, labels in said.items()]


def _table(page: ReportPage, one: BenchmarkReport, table: Table) -> None:
    page.numbers(table.columns, table.rows, f"Measured here: {_plain(table.title)}.")
    if table.comparisons:
        baseline = _plain(one.group.baseline.label)
        page.numbers(
            table.compared_columns,
            table.comparisons,
            f"Difference to {baseline}: {_plain(table.title)}, over images of the same prompt and seed.",
        )
    for note in table.notes:
        page.text(note)
    if table.key == WHOLE_SETS:
        _set_details(page, one, table)


def _set_details(page: ReportPage, one: BenchmarkReport, table: Table) -> None:
    """Sample counts, sizes, formats and whatever else a number of a whole set depends on."""
    sets = one.group.sets
    for column in table.columns:
        scores = [
            images.set_metrics[column.metric].scores if column.metric in images.set_metrics else {} for images in sets
        ]
        details = [dict(found[column.part].details) if column.part in found else {} for found in scores]
        keys = sorted({key for found in details for key in found})
        rows = {key: [found.get(key, "not said") for found in details] for key in keys}
        if rows:
            page.facts(f"{column.title}: what it was made from", [images.label for images in sets], rows)


def _samples(page: ReportPage, one: BenchmarkReport, pictures: Pictures) -> None:
    page.heading(f"{one.group.benchmark.title}: samples that nobody has chosen", 3)
    page.text(
        "The first prompt of each category, then the second of each, and so on, all with the first seed. No score "
        "plays a part."
    )
    cards = [
        card(
            _prompt(sample.text, sample.category),
            "",
            [
                (pictures.html(shown, f"{shown.label}: {sample.text}"), f"{shown.label}, seed {shown.seed}")
                for shown in sample.pictures
            ],
        )
        for sample in one.samples
    ]
    page.cards(cards, "samples")


def _wins_and_losses(page: ReportPage, found: WinsAndLosses, pictures: Pictures) -> None:
    page.heading(f"{found.title}: {found.label} against {found.baseline}", 4)
    page.text(
        f"Better on {_of(found.better)}, worse on {_of(found.worse)}, equal on {_of(found.equal)} of "
        f"{found.better.whole:,} prompts."
    )
    for name, examples in (("Largest gains", found.wins), ("Largest losses", found.losses)):
        if examples:
            page.text(f"**{name}**")
            page.cards([_example(found, example, pictures) for example in examples])
        else:
            page.text(f"**{name}**: none.")


def _example(found: WinsAndLosses, example: Example, pictures: Pictures) -> str:
    def told(value: float | None, sign: bool = False) -> str:
        if value is None:
            return "no score"
        return number(value, found.share, 1 if found.share else EXAMPLE_DIGITS, sign) + " %" * found.share

    seeds = f"mean of {example.seeds} seeds" if example.seeds > 1 else "one seed"
    score = f"{told(example.baseline)} → {told(example.ours)} ({told(example.change, True)}; {seeds})"
    shown = [
        (pictures.html(one, f"{one.label}: {example.text}"), f"{one.label}, seed {one.seed}: {told(one.score)}")
        for one in example.pictures
    ]
    return card(_prompt(example.text, example.category), score, shown)


def _cost(page: ReportPage, report: Report) -> None:
    page.heading("Cost")
    page.text(
        "From the seconds that were waited for each image. Models of diffusers are loaded before that; a ComfyUI "
        "server loads its own during the first image. Hours are those of processes: two that run side by side count "
        "twice."
    )
    columns = (
        Column("images_per_second", "Images a second", ""),
        Column("seconds", "Seconds an image", "", lower_is_better=True),
        Column("hours", "All together", "", counted=True),
    )
    rows = [
        Row(f"{cost.label}, {one.group.benchmark.title}, on {cost.device}", (cost.per_second, cost.seconds, cost.hours))
        for one in report.benchmarks
        for cost in one.costs
    ]
    if rows:
        page.numbers(columns, rows, "Measured here: the cost of painting.", first="Model, prompts, device")
    else:
        page.text("No image has been painted yet.")
    for table in report.quoted_costs:
        page.quoted(table)


def _provenance(page: ReportPage, report: Report) -> None:
    page.heading("What was measured, by whom")
    for one in report.benchmarks:
        sets, title = one.group.sets, one.group.benchmark.title
        page.heading(title, 3)
        labels = [images.label for images in sets]
        page.facts(
            "Sets of images",
            labels,
            {
                "folder": [images.images.path.resolve().name for images in sets],
                "prompts": [len(images.prompts) for images in sets],
                "seeds": [images.settings.seeds for images in sets],
                "images asked for": [images.asked for images in sets],
                "images there": [images.asked - len(images.missing) for images in sets],
                "hash of the images": [images.images_hash for images in sets],
                "hash of the settings": [images.settings.fingerprint for images in sets],
            },
        )
        keys = sorted({key for images in sets for key in images.settings.generation})
        settings = {key: [images.settings.generation.get(key, "not said") for images in sets] for key in keys}
        page.facts("Settings of the painting; rows that differ are bold", labels, settings)
        made = sorted({key for images in sets for key in images.painted_by})
        painted = {key: [_single(images.painted_by.get(key, [])) for images in sets] for key in made}
        page.facts("What painted", labels, painted)
        for judge in one.judges:
            scored = "; ".join(f"{label}: {n:,}" for label, n in zip(judge.sets, judge.images, strict=True))
            about = {
                "fingerprint": [judge.judge],
                "images scored": [scored],
                **{k: [v] for k, v in judge.describe.items()},
            }
            page.facts(f"Judge: {judge.title} ({judge.metric}, {judge.judge})", ["value"], about)
    page.heading("This report", 3)
    page.facts("Versions of what made it", ["value"], {key: [value] for key, value in report.program.items()})


def _single(values: Sequence[object]) -> object:
    return values[0] if len(values) == 1 else values


def _prompt(text: str, category: str) -> str:
    return f"{category}: {text}" if category else text


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _of(count: Count) -> str:
    return f"{count.part:,}"


def _plain(text: str) -> str:
    """Without what `Page.text` would take for markup."""
    return text.replace("*", "∗").replace("`", "'").replace("[", "(").replace("]", ")")
