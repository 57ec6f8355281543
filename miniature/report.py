"""The report of a reproduction: a page and its Markdown, from the files of one folder and nothing else.

What has not been run yet is said to be missing. Every sentence about how something came out is made from the numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from evaluation.report.html_page import ONE_SEED, Cell, Page, markdown_table, plain
from evaluation.statistics import Difference, Estimate, kendall
from miniature.captions import CATEGORIES
from miniature.dataset import SETS

from .report_data import (
    ATTRIBUTES,
    CALLED,
    CONTRAST_SETS,
    MEASURES,
    PAPER,
    PAPER_MEANS,
    TITLES,
    Columns,
    Differences,
    ReportData,
    difference_of,
    first_of,
    mean_of,
)
from .results import Result
from .variants import CORE, STRENGTH_VARIANTS, STRENGTHS, VARIANTS

TITLE = "LLM4GEN in miniature"
ENCODERS = {"clip": "CLIP", "t5": "T5-like encoder", "llama": "Llama-like decoder", "chance": "Chance"}
CURVES = {"color": "short prompts (colour)", "dense": "dense prompts"}
"""The two sets that the main claims are about."""
ALPHA, FLAT, SAMPLES = 0.05, 0.1, 6
"""The p value of what is beyond chance, a rise that a flat curve must exclude, and the prompts shown of a set."""
CORE_ROWS = ("base", *CORE)
MODULES = ("base", *(a.name for a in VARIANTS.values() if a.experiment == "modules"), "no_regularisation", "llm4gen")
LLMS = ("base", "llama", "llama_mean", "llm4gen")
BALANCES = {"no_regularisation": "0", "balance_0.03": "0.03", "llm4gen": "0.1", "balance_0.3": "0.3", "balance_1": "1"}
AWAY = (0.5, 1.5)
"""λ away from 1, at which the readings are compared."""
TOKENS = {"llm4gen": "Both (LLM4GEN)", "tokens_clip": "CLIP's", "tokens_llm": "The LLM's"}

Points: TypeAlias = "Mapping[float, Estimate | None]"


def write_report(folder: Path) -> Path:
    """Write `report.html`, which is returned, and without its images `report.md`; the folder may lack anything else."""
    data, report = ReportData(folder), _Report(TITLE)
    for section in (_summary, _how_it_was_made, _world, _judge, _base, _core, _curves, _paper_tables, _scaling):
        section(report, data)
    for section in (_strengths, _guidance, _samples, _maps, _what_differs):
        section(report, data)
    report.write(folder / "report.html")
    (folder / "report.md").write_text("\n".join(report.markdown), encoding="utf-8", newline="\n")
    return folder / "report.html"


class _Report(Page):
    """Writes the Markdown beside the page; plots and images are on the page alone."""

    def __init__(self, title: str) -> None:
        super().__init__(title)
        self.markdown = [f"# {title}\n"]

    def heading(self, text: str, level: int = 2) -> None:
        super().heading(text, level)
        if self.markdown[-1].startswith("##"):
            self.markdown.pop()  # nothing but images stood beneath it
        self.markdown.append(f"{'#' * level} {text}\n")

    def text(self, text: str, points: Sequence[str] = ()) -> None:
        """Paragraphs, the points of a list after them, and what a dagger in them means."""
        text = "\n\n".join([text, "\n".join(f"- {point}" for point in points)]).strip()
        text += f"\n\n{ONE_SEED}" * ("†" in text)
        super().text(text)
        self.markdown.append(f"{text}\n")

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[Cell]], caption: str, highlight: Collection[int] = ()
    ) -> None:
        super().table(columns, rows, caption, highlight)
        one_seed = any(isinstance(cell, Estimate) and not cell.over_seeds for row in rows for cell in row)
        self.markdown += [f"{caption}{f' {ONE_SEED}' * one_seed}\n", markdown_table(columns, rows)]

    def arms(
        self, data: ReportData, titles: Mapping[str, str], columns: Columns, caption: str, head: str = "Variant"
    ) -> None:
        """A row for each arm that has been run; the others are named beneath."""
        there = [arm for arm in titles if data.seeds(arm)]
        if there:
            rows = [[titles[arm], *(cell(arm) for cell in columns.values())] for arm in there]
            self.table([head, *columns], rows, caption, [n for n, arm in enumerate(there) if arm == "llm4gen"])
        if missing := [title for arm, title in titles.items() if arm not in there]:
            self.text(f"Not run yet: {'; '.join(missing)}.")

    def plot(self, found: Mapping[str, Points], x: str, y: str, caption: str, missing: str, **options: Any) -> bool:
        """As `lines`, of two points or more each; a sentence, and False, if there are none."""
        series = {name: [(at, mean) for at, mean in points.items() if mean] for name, points in found.items()}
        if series := {name: points for name, points in series.items() if len(points) > 1}:
            self.lines(series, x, y, caption, **options)
        else:
            self.text(missing)
        return bool(series)


def _said(differences: Differences, below: float = 0) -> list[str]:
    """Of those below 0, where the paper has them above, or another number."""
    lines = []
    for (a, b, sets), difference in differences.items():
        names = f"*{TITLES[a]}* − *{TITLES[b]}* on {', '.join(CALLED[name] for name in sets)}"
        paper = f"; in the paper +{PAPER_MEANS[a] - PAPER_MEANS[b]:.2f} points" if {a, b} <= {*PAPER} else ""
        beyond = "beyond" if difference.p <= ALPHA else "within"
        if difference.mean < below:
            lines.append(f"{names}: {plain(difference)}, {beyond} chance{paper}.")
    return lines


def _summary(report: _Report, data: ReportData) -> None:
    report.heading("Summary")
    report.text(
        "**These are miniature results.** Small models were trained from scratch on a synthetic world of pictures of "
        "16 × 16 pixels. They show what LLM4GEN's parts do there, and are no statement about SD1.5."
    )
    lines = [
        f"**LLM4GEN against {claim}**, {measure} on {what}: "
        f"{_verdict(data.contrasts[measure].get(('llm4gen', b, (name,))))}."
        for b, claim in (("finetune", "the fine-tuned base"), ("no_regularisation", "itself without its regulariser"))
        for measure in MEASURES
        for name, what in CURVES.items()
    ]
    adjusted = "with 95 % intervals and p adjusted as in the [tables of all of them](#the-core)"
    report.text(f"Differences paired by prompt and training seed, {adjusted}:", lines)
    report.text("See [what differs from the paper](#what-differs-from-the-paper).")


def _verdict(difference: Difference | None) -> str:
    """On a difference that the paper has above 0."""
    if difference is None:
        return "not run yet"
    direction = f"clearly {'in' if difference.mean > 0 else 'against'} the paper's direction"
    verdict = direction if difference.p <= ALPHA else "no difference that can be told from chance"
    return f"{plain(difference)} with {difference.seeds} training seed{'s' * difference.over_seeds}: {verdict}"


def _how_it_was_made(report: _Report, data: ReportData) -> None:
    report.heading("How it was made")
    made = {
        "Scale": [f"{name.replace('_', ' ')} {value:,}" for name, value in data.scale.items()],
        "The world was made on": data.world.get("machine", {}).get("devices") or ["CPU"] * bool(data.world),
        "Painted on": sorted({str(one.made["device"]) for one in data.results if "device" in one.made}),
        "With torch": sorted({str(one.made["torch"]) for one in data.results if "torch" in one.made}),
    }
    report.text("", [f"{what}: {', '.join(values)}" for what, values in made.items() if values] or ["Nothing yet"])
    seeds: Columns = {"Training seeds": lambda arm: ", ".join(map(str, data.seeds(arm)))}
    titles = {arm: f"`{arm}`: {title}" for arm, title in TITLES.items()}
    report.arms(data, titles, seeds, "What has been trained to the end and painted with.")


def _world(report: _Report, data: ReportData) -> None:
    report.heading("The world and its encoders")
    if objects := data.world.get("vae", {}).get("objects"):
        report.text(f"The autoencoder gives {plain(objects)} of the objects of new pictures back as they were.")
    if retrieval := data.world.get("clip", {}).get("retrieval"):
        report.text(f"CLIP finds the caption of a picture among 1,000 in {plain(retrieval)} of the cases.")
    _shares(report, data.world, ("t5", "llama"), "Share of facts about a caption that a language model completes.")
    probe = data.world.get("probe", {})
    _shares(report, probe, ENCODERS, "Share of objects whose colour a linear reader finds in the state of their noun.")
    if llms := [name for name in ("t5", "llama") if name in probe and "clip" in probe]:
        clip = probe["clip"].items()
        lacking = [f"{ENCODERS[n]}, {kind}" for n in llms for kind, share in clip if probe[n].get(kind, 0) <= share]
        verdict = f"does not hold for: {'; '.join(lacking)}" if lacking else "holds here"
        report.text(f"LLM4GEN's premise, that the LLM knows more of what belongs together than CLIP does, {verdict}.")
    else:
        report.text(f"The {'encoders have not been probed' if data.world else 'world has not been made'} yet.")


def _shares(report: _Report, shares: Mapping[str, Any], encoders: Iterable[str], caption: str) -> None:
    there = [name for name in encoders if name in shares]
    if kinds := list(dict.fromkeys(kind for name in there for kind in shares[name])):
        rows = [[ENCODERS[name], *(shares[name].get(kind) for kind in kinds)] for name in there]
        report.table(["Encoder", *kinds], rows, caption)


def _judge(report: _Report, data: ReportData) -> None:
    report.heading("The judge")
    report.text(
        "It reads an image back into objects and compares them with the caption. **Accuracy** is the share of what is "
        "asked for that is there; it stands beside T2I-CompBench's attribute binding. **Words** is the share of the "
        "words that fit something in the image, whatever belongs to what; **binding**, of the objects all of whose "
        "words are there, the share that has them together; **exact**, of images that show all of it and nothing else."
    )
    if data.judge:
        rows: list[list[Cell]] = [[name, *map(float, shares)] for name, shares in data.judge.items()]
        report.table(["Images", "Objects", "Whole images"], rows, "Share read right where the truth is known.")
    else:
        report.text("The judge has not been tested yet.")


def _base(report: _Report, data: ReportData) -> None:
    report.heading("The base")
    if (words := data.base.get("words")) is None:
        report.text("The base has not been trained yet.")
        return
    least = data.scale.get("words", 0.9)
    enough = min(words.values()) >= least
    verdict = f"{'enough' if enough else '**too few**'} to compare: at least {plain(least)} of each are required"
    found = " and ".join(f"{plain(share)} of the words of prompts of {kind}" for kind, share in words.items())
    report.text(f"It paints {found}, {verdict}.")


def _core(report: _Report, data: ReportData) -> None:
    report.heading("The core")
    report.text("All arms start from the base and train equally long, on the same data.")
    rows = {arm: TITLES[arm] for arm in CORE_ROWS}
    columns: Columns = {}
    for measure in (*MEASURES, "exact"):
        columns |= data.columns(measure, CURVES, f"{measure}, {{}}")
    report.arms(data, rows, columns, "LLM4GEN against its base, on short prompts (colour) and dense ones.")
    for measure, contrasts in data.contrasts.items():
        lines: list[list[Cell]] = [
            [f"{TITLES[a]} − {TITLES[b]}", *(contrasts.get((a, b, (name,))) for name in CONTRAST_SETS)]
            for a, b in dict.fromkeys((a, b) for a, b, _ in contrasts)
        ]
        if lines:
            adjusted = f"p is adjusted for all {len(contrasts)} (Holm), intervals are not"
            caption = f"Differences in {measure}, paired by prompt and seed; {adjusted}."
            report.table(["Difference", *(CALLED[name].capitalize() for name in CONTRAST_SETS)], lines, caption)
    report.arms(data, rows, data.columns("accuracy", CATEGORIES), "Accuracy by category.")
    columns = {}
    for name in (name for name in SETS if name not in CATEGORIES):
        bound = any(data.mean("binding", (name,), arm) for arm in rows)
        columns |= data.columns("binding" if bound else "accuracy", [name], "{}" if bound else "{} (accuracy)")
    report.arms(data, rows, columns, "Held out: binding on prompts of kinds that no training showed.")


def _curves(report: _Report, data: ReportData) -> None:
    report.heading("Learning curves")
    report.text("An arm is finished when its curve is flat.")
    for measure, name in product(MEASURES, CURVES):
        curves = {TITLES[arm]: curve for arm in CORE if (curve := data.curve(arm, name))}
        found: dict[str, Points] = {t: {x: mean_of([r], measure) for x, r in c.items()} for t, c in curves.items()}
        like = [results[0] for curve in curves.values() for results in curve.values()]
        base = mean_of([first_of(data.final("base", [name])[0], like[0])], measure) if like else None
        y, missing = (
            f"{measure}, {CALLED[name]}",
            f"No learning curve has been measured yet: {measure}, {CALLED[name]}.",
        )
        references = {"Base": base.mean} if base else None
        if report.plot(found, "steps", y, f"During training: {y}.", missing, references=references):
            slopes = [f"{title}: {_slope(data, c, measure)}." for title, c in curves.items()]
            report.text(f"The last interval of {y}:", slopes)


def _slope(data: ReportData, curve: Mapping[int, list[Result]], measure: str) -> str:
    """Whether the last interval of a curve still rises."""
    *_, (before, earlier), (last, results) = [(0, []), *curve.items()]
    if last != data.steps:
        return f"not finished, measured up to step {last:,}"
    if (difference := difference_of([results], [earlier], measure)) is None:
        return f"steps {before:,} and {last:,} have no seed in common"
    verdict = "**still rising**" if difference.mean > 0 else "**falling**"
    if difference.low <= 0 <= difference.high:
        verdict = "flat" if difference.high < FLAT else "no change beyond chance, but too uncertain to be called flat"
    return f"from step {before:,} to {last:,} {plain(difference)}: {verdict}"


def _paper_tables(report: _Report, data: ReportData) -> None:
    report.heading("The Cross-Adapter's parts (Table 4)")
    _beside_paper(report, data, MODULES, "Module")
    ours = {arm: mean.mean for arm in MODULES if (mean := data.mean("accuracy", ATTRIBUTES, arm))}
    agreement = kendall(ours, {arm: PAPER_MEANS[arm] for arm in ours}) if len(ours) > 1 else None
    if agreement and np.isfinite(agreement.tau):
        tau = f"{agreement.tau:.2f} (p = {agreement.p:.2g}) over {len(ours)} rows"
        tied = "The paper's “MLP or CrossAttention” is two rows here, which are tied in the paper."
        report.text(f"Kendall's τ between the means here and the paper's is {tau}. {tied}")
    report.heading("Encoder against decoder (Table 3)")
    report.text("LLM4GEN has the encoder; the decoder stands beside the paper's Llama-2/13B.")
    _beside_paper(report, data, LLMS, "LLM")


def _beside_paper(report: _Report, data: ReportData, arms: Sequence[str], head: str) -> None:
    """A table of the paper's, and which rows come in another order."""
    columns = data.columns("accuracy", ATTRIBUTES)
    columns["Mean of the three"] = partial(data.mean, "accuracy", ATTRIBUTES)
    columns["Paper: colour, shape, texture"] = lambda arm: " ".join(f"{x:.2f}" for x in PAPER.get(arm, ())) or None
    columns["Paper: mean"] = lambda arm: f"{PAPER_MEANS[arm]:.2f}" if arm in PAPER else None
    columns |= data.columns("binding", ("dense",), "binding, {}")
    caption = "Accuracy and, on dense prompts, binding here; the paper's scores in percent."
    report.arms(data, {arm: TITLES[arm] for arm in arms}, columns, caption, head)
    lines = _said(orders := data.orders(arms))
    many = f"Of {len(orders)} pairs of rows, paired by prompt and the seeds that both have,"
    if lines:
        report.text(f"{many} {len(lines)} are reversed against the paper (p adjusted for all of these pairs):", lines)
    else:
        report.text(f"{many} all are in the paper's order." if orders else "No two rows can be compared yet.")


def _scaling(report: _Report, data: ReportData) -> None:
    report.heading("How much data it needs (Fig. 8a)")
    found: dict[str, Points] = {}
    for title, sets in (("colour, shape, texture", ATTRIBUTES), ("dense", ("dense",))):
        found[title] = {pairs: data.mean("accuracy", sets, arm) for arm, pairs in data.sizes().items()}
    caption = "Accuracy by the number of training pairs; LLM4GEN has all of them."
    missing = "Fewer than two sizes of the training data have been run yet."
    if report.plot(found, "pairs", "accuracy", caption, missing, log_x=True):
        lines = _said(data.growth(), below=np.inf)
        report.text("From each size to the next (p adjusted for all of these):", lines or ["No two share a seed."])


def _strengths(report: _Report, data: ReportData) -> None:
    report.heading("λ at painting time")
    report.text(
        "Eq. 3 can be read in three ways. *Embedding*: one attention over CLIP's tokens and λ times the LLM's, as in "
        "the official script. *Value*: λ scales the values of the LLM's tokens alone; in training, where λ is 1, it is "
        "the same. *Decoupled*: an attention of its own to the LLM's tokens, times λ, beside that to CLIP's. At λ = 0 "
        "the LLM's tokens are left out in all of them."
    )
    for name in CURVES:
        found = {mode: _by_strength(data, arm, name) for arm, mode in STRENGTH_VARIANTS.items()}
        caption = f"Accuracy on {CALLED[name]} prompts by the λ that they are painted with; all were trained with 1."
        missing = f"No other λ than 1 has been painted with yet: {CALLED[name]}."
        report.plot(found, "λ", "accuracy", caption, missing)
    columns: Columns = {}
    for name in CURVES:
        columns[f"{CALLED[name].capitalize()}, λ = 1"] = partial(data.mean, "accuracy", (name,))
        for other in AWAY:
            columns[f"λ = {other:g}, less that"] = partial(_change, data, name, other)
    titles = {arm: mode.capitalize() for arm, mode in STRENGTH_VARIANTS.items()}
    caption = "Accuracy at λ = 1, and what painting with another λ changes, paired by prompt and seed (p as they are)."
    report.arms(data, titles, columns, caption, "Reading")


def _by_strength(data: ReportData, arm: str, name: str) -> dict[float, Estimate | None]:
    return {strength: data.mean("accuracy", (name,), arm, strength) for strength in STRENGTHS}


def _change(data: ReportData, name: str, strength: float, arm: str) -> Difference | None:
    """Accuracy at another λ less that at 1."""
    return difference_of(data.final(arm, (name,), strength), data.final(arm, (name,)), "accuracy")


def _guidance(report: _Report, data: ReportData) -> None:
    columns = data.columns("binding", CURVES, "binding, {}")
    columns["Accuracy on colour, shape, texture"] = partial(data.mean, "accuracy", ATTRIBUTES)
    report.heading("Weight of the regulariser")
    report.arms(data, BALANCES, columns, "By the gradient that it adds, as a share of the diffusion loss's.", "Share")
    report.heading("Which of a word's two tokens the regulariser binds")
    report.arms(data, TOKENS, columns, "By the token whose attention map is guided.", "Token")


def _samples(report: _Report, data: ReportData) -> None:
    report.heading("Samples")
    found = {arm: _arrays(data.folder / "samples", arm) for arm in CORE_ROWS}
    if not any(found.values()):
        report.text("No samples have been kept yet.")
    for name in CURVES:
        rows = [(TITLES[arm], list(arrays[name][:SAMPLES])) for arm, arrays in found.items() if name in arrays]
        if count := min((len(images) for _, images in rows), default=0):
            prompts = [caption.text for caption in SETS[name].prompts(count)]
            caption = f"{SETS[name].title}: the first prompts, the same noise in a column. First training seed."
            report.images([(title, images[:count]) for title, images in rows], prompts, caption)


def _maps(report: _Report, data: ReportData) -> None:
    report.heading("Attention maps (Fig. 9)")
    prompts: dict[tuple[str, ...], list[tuple[str, NDArray[np.uint8], list[NDArray[np.floating]]]]] = {}
    for arm in ("base", "llm4gen"):
        arrays = _arrays(data.folder / "maps", arm)
        for number in sorted(int(key.split(".")[0]) for key in arrays if key.endswith(".prompt")):
            image, maps, told, prompt = (arrays[f"{number}.{key}"] for key in ("image", "maps", "words", "prompt"))
            prompts.setdefault((str(prompt), *map(str, told)), []).append((TITLES[arm], image, list(maps)))
    if not prompts:
        report.text("No attention maps have been kept yet.")
    for (text, *words), rows in prompts.items():
        report.maps(rows, words, f"Where words were looked at: “{text}”. First training seed.")


def _arrays(folder: Path, arm: str) -> dict[str, NDArray[Any]]:
    """Of an arm's first seed; empty if there is no file."""
    files = {file.stem.removeprefix(f"{arm}-"): file for file in folder.glob(f"{arm}-*.npz")}
    if not (seeds := sorted((seed for seed in files if seed.isdecimal()), key=int)):
        return {}
    with np.load(files[seeds[0]], allow_pickle=False) as arrays:
        return dict(arrays)


def _what_differs(report: _Report, data: ReportData) -> None:
    report.heading("What differs from the paper")
    regulariser = [("llm4gen", "no_regularisation", (name,)) for name in CURVES]
    compared: dict[str, Differences] = {
        "Table 4, accuracy": data.orders(MODULES),
        "Table 3, accuracy": data.orders(LLMS, MODULES),
        "More data, accuracy": data.growth(),
    }
    for measure, contrasts in data.contrasts.items():
        compared[f"The regulariser, {measure}"] = {key: contrasts[key] for key in regulariser if key in contrasts}
    made = sum(len(differences) for differences in compared.values())
    lines = [f"{what}: {line}" for what, differences in compared.items() for line in _said(differences)]
    if lines:
        report.text(f"Of {made} comparisons, {len(lines)} are the other way round than in the paper:", lines)
    else:
        report.text(f"None of {made} comparisons." if made else "Nothing can be compared with the paper yet.")
