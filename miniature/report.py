"""The report of a reproduction: `report.html` and `report.md`, from the files of its folder alone.

What has not been run is named. Every sentence about a result is made from the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import combinations, pairwise, product
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from evaluation.report.page import Cell, Page, plain
from evaluation.statistics import Difference, Estimate, kendall
from llm4gen_core.files import read_json, write_text

from .captions import CATEGORIES
from .dataset import SETS
from .results import (
    ATTENTION_PROMPTS,
    MEASURES,
    SHORT_SETS,
    Contrast,
    Differences,
    Results,
    Values,
    attention_files,
    difference_of,
    image_set,
    mean_of,
    prompts_of,
    read_scale,
    restricted,
)
from .variants import BASE_PAPER, CORE, STRENGTH_VARIANTS, STRENGTHS, VARIANTS

ENCODERS = {"clip": "CLIP", "t5": "T5-like encoder", "llama": "Llama-like decoder", "chance": "Chance"}
CURVES = {"color": "short prompts (colour)", "dense": "dense prompts"}
"""Prompt sets of the main claims."""
CLAIMED = ("score", "words", "binding")
"""Measures of the main claims."""
ATTRIBUTES = ("color", "shape", "texture")
"""Prompt sets that are compared with T2I-CompBench's attribute binding."""
CONTRAST_SETS = ("color", "dense", "texture", "shape")
ALPHA, FLAT, SAMPLES, OTHER_STRENGTHS = 0.05, 0.1, 6, (0.5, 1.5)
"""Significance level, a rise that a flat curve must exclude, prompts shown of a set, λ that are compared with 1."""

TITLES = {"base": "Base"} | {name: variant.title for name, variant in VARIANTS.items()}
PAPER = {"base": BASE_PAPER} | {name: variant.paper for name, variant in VARIANTS.items() if variant.paper}
PAPER_MEANS = {name: fmean(scores) for name, scores in PAPER.items()}
CORE_ROWS = ("base", *CORE)
MODULES = ("base", *(v.name for v in VARIANTS.values() if v.experiment == "modules"), "no_regularisation", "llm4gen")
LLMS = ("base", "llama", "llama_mean", "llm4gen")
BALANCES = {"no_regularisation": "0", "balance_0.03": "0.03", "llm4gen": "0.1", "balance_0.3": "0.3", "balance_1": "1"}
TOKENS = {"llm4gen": "Both (LLM4GEN)", "tokens_clip": "CLIP's", "tokens_llm": "The LLM's"}
SET_NAMES = {name: one.title.split(": ")[name not in CATEGORIES].lower() for name, one in SETS.items()}
"""Prompt sets as they are called within a sentence."""

Columns: TypeAlias = "dict[str, Callable[[str], Cell]]"
"""Cell of a variant by header."""


def write_report(folder: Path) -> Path:
    """Write `report.html`, which is returned, and `report.md`, its Markdown without images."""
    report = Report(folder, Results.read(folder))
    for section in (
        report.summary,
        report.provenance,
        report.world,
        report.judge,
        report.base,
        report.core,
        report.curves,
        report.paper_tables,
        report.data_size,
        report.strengths,
        report.guidance,
        report.samples,
        report.attention,
        report.disagreements,
    ):
        section()
    report.page.write(folder / "report.html")
    write_text(folder / "report.md", report.page.markdown())
    return folder / "report.html"


class Report:
    """Sections of the report, each a method that adds to `page`.

    Args:
        folder: folder of the reproduction, which may lack anything.
        results: scores of its image sets.
    """

    def __init__(self, folder: Path, results: Results) -> None:
        self.folder = folder
        self.page = Page("LLM4GEN in miniature")
        self.results = results
        self.made = _json(folder / "world" / "world.json")
        self.scale = read_scale(folder) if (folder / "reproduction.json").is_file() else {}
        self.steps = self.scale.get("variant_steps", 0)
        pairs = (*combinations(CORE[::-1], 2), ("finetune", "base"))
        self.contrasts = {
            measure: self.results.differences(
                Contrast(a, b, measure, (name,)) for a, b in pairs for name in CONTRAST_SETS
            )
            for measure in CLAIMED
        }

    # ---- sections

    def summary(self) -> None:
        self.page.heading("Summary")
        self.page.text(
            "**These are miniature results.** Small models were trained from scratch on a synthetic world of images of "
            "16 × 16 pixels. They show the effect of LLM4GEN's parts there, and say nothing about SD1.5."
        )
        claims = {"finetune": "the fine-tuned base", "no_regularisation": "itself without its regulariser"}
        lines = [
            f"**LLM4GEN against {claim}**, {MEASURES[measure]} on {what}: "
            f"{_verdict(self.contrasts[measure].get(Contrast('llm4gen', b, measure, (name,))))}."
            for (b, claim), measure, (name, what) in product(claims.items(), CLAIMED, CURVES.items())
        ]
        adjusted = "with 95 % intervals and p adjusted as in the [tables of all of them](#the-core)"
        self.page.text(f"Differences paired by prompt and training seed, {adjusted}:", lines)
        self.page.text("See [what differs from the paper](#what-differs-from-the-paper).")

    def provenance(self) -> None:
        self.page.heading("How it was made")
        rows = [
            image_set(self.folder, name, seed).rows()[0] for name in TITLES for seed in self.results.seeds(name)[:1]
        ]
        seconds = {
            "the world": self.made.get("seconds"),
            "the base": _json(self.folder / "base" / "base.json").get("seconds"),
        }
        facts = {
            "Scale": [f"{name.replace('_', ' ')} {value:,}" for name, value in self.scale.items()],
            "The world was made on": self.made.get("machine", {}).get("devices") or ["CPU"] * bool(self.made),
            "Time": [f"{what} {taken:,} s" for what, taken in seconds.items() if taken is not None],
            "Images were generated on": sorted({str(row.made["device"]) for row in rows}),
            "With torch": sorted({str(row.made["torch"]) for row in rows}),
        }
        points = [f"{what}: {', '.join(values)}" for what, values in facts.items() if values]
        self.page.text("", points or ["Nothing yet"])
        seeds: Columns = {"Training seeds": lambda name: ", ".join(map(str, self.results.seeds(name)))}
        titles = {name: f"`{name}`: {title}" for name, title in TITLES.items()}
        self.variants(titles, seeds, "Variants that were trained to the end and measured.")

    def world(self) -> None:
        self.page.heading("The world and its encoders")
        if objects := self.made.get("vae", {}).get("objects"):
            self.page.text(f"The autoencoder reconstructs {plain(objects)} of the objects of new images unchanged.")
        if retrieval := self.made.get("clip", {}).get("retrieval"):
            self.page.text(f"CLIP finds the caption of an image among 1,000 in {plain(retrieval)} of the cases.")
        self.shares(self.made, ("t5", "llama"), "Share of facts about a caption that a language model completes.")
        probe = self.made.get("probe", {})
        self.shares(probe, ENCODERS, "Share of objects whose colour a linear probe finds in the state of their noun.")
        if llms := [name for name in ("t5", "llama") if name in probe and "clip" in probe]:
            clip = probe["clip"].items()
            lacking = [f"{ENCODERS[n]}, {kind}" for n in llms for kind, share in clip if probe[n].get(kind, 0) <= share]
            verdict = f"does not hold for: {'; '.join(lacking)}" if lacking else "holds here"
            self.page.text(f"LLM4GEN's premise, that the LLM knows more of binding than CLIP does, {verdict}.")
        else:
            self.page.text(f"The {'encoders have not been probed' if self.made else 'world has not been made'} yet.")

    def judge(self) -> None:
        self.page.heading("The judge")
        self.page.text(
            "It reads an image back into objects and compares them with the caption. **Requested content present** is "
            "the share of the requested objects, relations and numbers; it is compared with T2I-CompBench's attribute "
            "binding. **Requested words present** is the share of the words that fit something in the image, whichever "
            "belong together. **Binding** is, among objects whose words are all present, the share that has "
            "them together; as the selection of these objects depends on the image, models are compared on different "
            "objects."
        )
        if judge := _json(self.folder / "judge.json"):
            rows: list[list[Cell]] = [[name, *map(float, shares)] for name, shares in judge.items()]
            self.page.table(["Images", "Objects", "Whole images"], rows, "Share read correctly, where it is known.")
        else:
            self.page.text("The judge has not been tested yet.")

    def base(self) -> None:
        self.page.heading("The base")
        found = {kind: self.results.mean("words", (name,), "base") for kind, name in SHORT_SETS.items()}
        words = {kind: mean.mean for kind, mean in found.items() if mean}
        if not words:
            self.page.text("The base has not been trained yet.")
            return
        least = self.scale.get("words", 0.9)
        verdict = "enough" if min(words.values()) >= least else "**too few**"
        shares = " and ".join(f"{plain(share)} of the words of prompts of {kind}" for kind, share in words.items())
        self.page.text(f"Its images have {shares}, {verdict} to compare: at least {plain(least)} of each are required.")

    def core(self) -> None:
        self.page.heading("The core")
        self.page.text("All variants start from the base and train equally long, on the same data.")
        rows = {name: TITLES[name] for name in CORE_ROWS}
        columns: Columns = {}
        for measure in MEASURES:
            columns |= self.columns(measure, CURVES)
        self.variants(rows, columns, "LLM4GEN against its base, on short prompts (colour) and dense ones.")
        for measure, contrasts in self.contrasts.items():
            lines: list[list[Cell]] = [
                [
                    f"{TITLES[a]} − {TITLES[b]}",
                    *(contrasts.get(Contrast(a, b, measure, (name,))) for name in CONTRAST_SETS),
                ]
                for a, b in dict.fromkeys((one.a, one.b) for one in contrasts)
            ]
            if lines:
                adjusted = f"p is adjusted for all {len(contrasts)} (Holm), intervals are not"
                caption = f"Differences in {MEASURES[measure]}, paired by prompt and seed; {adjusted}."
                headers = ["Difference", *(SET_NAMES[name].capitalize() for name in CONTRAST_SETS)]
                self.page.table(headers, lines, caption)
        self.variants(rows, self.columns("score", CATEGORIES), "Requested content present, by category.")
        columns = {}
        for name in (name for name in SETS if name not in CATEGORIES):
            bound = any(self.results.mean("binding", (name,), row) for row in rows)
            columns |= self.columns("binding" if bound else "score", [name])
        self.variants(rows, columns, "Held out: kinds of prompts that no training showed.")

    def curves(self) -> None:
        self.page.heading("Training curves")
        self.page.text("The training of a variant is finished when its curve is flat.")
        for measure, name in product(CLAIMED, CURVES):
            y = f"{MEASURES[measure]}, {SET_NAMES[name]}"
            curves = {TITLES[row]: self.results.curve(row, measure, name, self.steps) for row in CORE}
            curves = {title: curve for title, curve in curves.items() if curve}
            found = {title: {at: mean_of(one) for at, one in curve.items()} for title, curve in curves.items()}
            keys = {key for curve in curves.values() for key in prompts_of(*curve.values())}
            base = mean_of(restricted(self.results.values("base", measure, (name,)), keys))
            missing = f"No training curve has been measured yet: {y}."
            references = {"Base": base.mean} if base else None
            if self.plot(found, "steps", y, f"During training: {y}.", missing, references=references):
                self.page.text(f"The last interval of {y}:", [f"{t}: {self.slope(c)}." for t, c in curves.items()])

    def slope(self, curve: Mapping[int, Values]) -> str:
        """Whether the last interval of a curve still rises."""
        *_, (before, earlier), (last, values) = [(0, {}), *curve.items()]
        if last != self.steps:
            return f"not finished, measured up to step {last:,}"
        if (difference := difference_of(values, earlier)) is None:
            return f"steps {before:,} and {last:,} have no seed in common"
        verdict = "**still rising**" if difference.mean > 0 else "**falling**"
        if difference.low <= 0 <= difference.high:
            flat = difference.high < FLAT
            verdict = "flat" if flat else "no change beyond chance, but too uncertain to be called flat"
        return f"from step {before:,} to {last:,} {plain(difference)}: {verdict}"

    def paper_tables(self) -> None:
        self.page.heading("The Cross-Adapter's parts (Table 4)")
        self.beside_paper(MODULES, "Module")
        ours = {name: mean.mean for name in MODULES if (mean := self.results.mean("score", ATTRIBUTES, name))}
        agreement = kendall(ours, {name: PAPER_MEANS[name] for name in ours}) if len(ours) > 1 else None
        if agreement and np.isfinite(agreement.tau):
            tau = f"{agreement.tau:.2f} (p = {agreement.p:.2g}) over {len(ours)} rows"
            tied = "The paper's “MLP or CrossAttention” is two rows here, which are tied in the paper."
            self.page.text(f"Kendall's τ between the means here and the paper's is {tau}. {tied}")
        self.page.heading("Encoder against decoder (Table 3)")
        self.page.text("LLM4GEN has the encoder; the decoder is compared with the paper's Llama-2/13B.")
        self.beside_paper(LLMS, "LLM")

    def beside_paper(self, rows: Sequence[str], head: str) -> None:
        """Add a table of the paper with our scores beside it, and the rows that come in another order."""
        columns = self.columns("score", ATTRIBUTES)
        columns["Mean of the three"] = partial(self.results.mean, "score", ATTRIBUTES)
        columns["Paper: colour, shape, texture"] = lambda row: " ".join(f"{x:.2f}" for x in PAPER.get(row, ())) or None
        columns["Paper: mean"] = lambda row: f"{PAPER_MEANS[row]:.2f}" if row in PAPER else None
        columns |= self.columns("binding", ("dense",))
        caption = "Requested content present and, on dense prompts, binding; the paper's scores in percent."
        self.variants({row: TITLES[row] for row in rows}, columns, caption, head)
        orders = self.orders(rows)
        lines = _sentences(orders)
        many = f"Of {len(orders)} pairs of rows, paired by prompt and the seeds that both have,"
        if lines:
            reversed_ = f"{len(lines)} are reversed against the paper (p adjusted for all of these pairs):"
            self.page.text(f"{many} {reversed_}", lines)
        else:
            self.page.text(f"{many} all are in the paper's order." if orders else "No two rows can be compared yet.")

    def data_size(self) -> None:
        self.page.heading("How much data it needs (Fig. 8a)")
        found: dict[str, Mapping[float, Estimate | None]] = {}
        for title, sets in (("colour, shape, texture", ATTRIBUTES), ("dense", ("dense",))):
            found[title] = {pairs: self.results.mean("score", sets, name) for name, pairs in self.sizes().items()}
        caption = "Requested content present by the number of training pairs; LLM4GEN has all of them."
        missing = "Fewer than two sizes of the training data have been run yet."
        if self.plot(found, "pairs", MEASURES["score"], caption, missing, log_x=True):
            lines = _sentences(self.growth(), below=np.inf)
            self.page.text(
                "From each size to the next (p adjusted for all of these):", lines or ["No two share a seed."]
            )

    def strengths(self) -> None:
        self.page.heading("λ when generating")
        self.page.text(
            "Eq. 3 can be read in three ways. *Embedding*: one attention over CLIP's tokens and λ times the LLM's, as "
            "in the official script. *Value*: λ scales the values of the LLM's tokens alone; in training, where λ is "
            "1, it is the same. *Decoupled*: a separate attention to the LLM's tokens, times λ, is added to that to "
            "CLIP's. At λ = 0 the LLM's tokens are left out in all of them."
        )
        columns: Columns = {}
        for name in CURVES:
            found = {
                mode: {at: self.results.mean("score", (name,), row, _image_set(at)) for at in STRENGTHS}
                for row, mode in STRENGTH_VARIANTS.items()
            }
            caption = f"Requested content present on {SET_NAMES[name]} prompts by λ; all were trained with λ = 1."
            missing = f"No other λ than 1 has been measured yet: {SET_NAMES[name]}."
            self.plot(found, "λ", MEASURES["score"], caption, missing)
            columns[f"{SET_NAMES[name].capitalize()}, λ = 1"] = partial(self.results.mean, "score", (name,))
            for other in OTHER_STRENGTHS:
                columns[f"{SET_NAMES[name].capitalize()}, λ = {other:g} less λ = 1"] = partial(self.change, name, other)
        titles = {row: mode.capitalize() for row, mode in STRENGTH_VARIANTS.items()}
        caption = "Requested content present at λ = 1, and the change with another λ, paired by prompt and seed (p as "
        self.variants(titles, columns, f"{caption}they are).", "Reading")

    def change(self, prompt_set: str, strength: float, variant: str) -> Difference | None:
        """Requested content present at another λ less that at 1."""
        values = partial(self.results.values, variant, "score", (prompt_set,))
        return difference_of(values(_image_set(strength)), values())

    def guidance(self) -> None:
        columns = self.columns("binding", CURVES)
        columns["Requested content present on colour, shape, texture"] = partial(self.results.mean, "score", ATTRIBUTES)
        self.page.heading("Weight of the regulariser")
        caption = "By the gradient that the regulariser adds, as a share of the diffusion loss's."
        self.variants(BALANCES, columns, caption, "Share")
        self.page.heading("Which copy of a word the regulariser binds")
        self.variants(TOKENS, columns, "By the tokens whose attention maps are guided.", "Tokens")

    def samples(self) -> None:
        self.page.heading("Samples")
        there = [row for row in CORE_ROWS if self.results.seeds(row)]
        if not there:
            self.page.text("No images have been generated yet.")
        for name in CURVES if there else ():
            rows, prompts = [], [""]
            for variant in there:
                images = image_set(self.folder, variant, self.results.seeds(variant)[0])
                chosen = [row for row in images.rows() if row.category == name][:SAMPLES]
                rows.append((TITLES[variant], [np.asarray(images.open(row)) for row in chosen]))
                prompts = [row.text for row in chosen]
            caption = f"{SETS[name].title}: the first prompts, the same noise in a column. First training seed."
            self.page.images(rows, prompts, caption)

    def attention(self) -> None:
        self.page.heading("Attention maps (Fig. 9)")
        files = {
            TITLES[name]: attention_files(self.folder, name, seed)
            for name in ("base", "llm4gen")
            for seed in self.results.seeds(name)[:1]
        }
        note = "First training seed. Every map has a scale of its own; in percent, the word's share of the attention."
        for index, (name, number) in enumerate(ATTENTION_PROMPTS):
            there = {title: paths[index] for title, paths in files.items() if paths[index].is_file()}
            if rows := [(title, [np.asarray(Image.open(file))]) for title, file in there.items()]:
                self.page.images(rows, [SETS[name].prompts(number + 1)[number].text], note, scale=1)
        if not any(file.is_file() for paths in files.values() for file in paths):
            self.page.text("No attention maps have been made yet.")

    def disagreements(self) -> None:
        self.page.heading("What differs from the paper")
        compared: dict[str, Differences] = {
            "Table 4": self.orders(MODULES),
            "Table 3": self.orders(LLMS, MODULES),
            "More data": self.growth(),
        }
        for measure, contrasts in self.contrasts.items():
            wanted = [Contrast("llm4gen", "no_regularisation", measure, (name,)) for name in CURVES]
            compared[f"The regulariser, {MEASURES[measure]}"] = {
                key: contrasts[key] for key in wanted if key in contrasts
            }
        made = sum(map(len, compared.values()))
        lines = [f"{what}: {line}" for what, differences in compared.items() for line in _sentences(differences)]
        if lines:
            self.page.text(f"Of {made} comparisons, {len(lines)} are the other way round than in the paper:", lines)
        else:
            self.page.text(f"None of {made} comparisons." if made else "Nothing can be compared with the paper yet.")

    # ---- comparisons and tables

    def orders(self, rows: Sequence[str], known: Sequence[str] = ()) -> Differences:
        """Differences of each two rows that the paper orders, its better one first, but for those both in `known`."""
        ordered = sorted((row for row in rows if row in PAPER), key=lambda row: -PAPER_MEANS[row])
        return self.results.differences(
            Contrast(a, b, "score", ATTRIBUTES)
            for a, b in combinations(ordered, 2)
            if PAPER[a] != PAPER[b] and not {a, b} <= {*known}
        )

    def sizes(self) -> dict[str, int]:
        """Numbers of training pairs of the variants that were run, ascending; LLM4GEN has all."""
        full = self.scale.get("pairs")
        sizes = {one.name: one.pairs for one in VARIANTS.values() if one.pairs and (full is None or one.pairs < full)}
        sizes |= {"llm4gen": full} if full else {}
        return {name: sizes[name] for name in sorted(sizes, key=lambda name: sizes[name]) if self.results.seeds(name)}

    def growth(self) -> Differences:
        """Differences between each number of pairs and the next smaller."""
        steps = pairwise(self.sizes())
        return self.results.differences(Contrast(more, less, "score", ATTRIBUTES) for less, more in steps)

    def columns(self, measure: str, sets: Iterable[str]) -> Columns:
        """Column of a measure for each prompt set."""
        title = MEASURES[measure]
        return {
            f"{title[0].upper()}{title[1:]}, {SET_NAMES[name]}": partial(self.results.mean, measure, (name,))
            for name in sets
        }

    def variants(self, titles: Mapping[str, str], columns: Columns, caption: str, head: str = "Variant") -> None:
        """Add a table with a row for each variant that was run; the others are named beneath."""
        there = [name for name in titles if self.results.seeds(name)]
        if there:
            rows = [[titles[name], *(cell(name) for cell in columns.values())] for name in there]
            highlight = [number for number, name in enumerate(there) if name == "llm4gen"]
            self.page.table([head, *columns], rows, caption, highlight)
        if missing := [title for name, title in titles.items() if name not in there]:
            self.page.text(f"Not run yet: {'; '.join(missing)}.")

    def shares(self, shares: Mapping[str, Any], encoders: Iterable[str], caption: str) -> None:
        """Add a table of shares by encoder and kind."""
        there = [name for name in encoders if name in shares]
        if kinds := list(dict.fromkeys(kind for name in there for kind in shares[name])):
            rows = [[ENCODERS[name], *(shares[name].get(kind) for kind in kinds)] for name in there]
            self.page.table(["Encoder", *kinds], rows, caption)

    def plot(
        self,
        found: Mapping[str, Mapping[Any, Estimate | None]],
        x: str,
        y: str,
        caption: str,
        missing: str,
        **options: Any,
    ) -> bool:
        """Add a plot of the lines with two points or more; if there are none, add a sentence and return False."""
        series = {name: [(at, mean) for at, mean in points.items() if mean] for name, points in found.items()}
        if series := {name: points for name, points in series.items() if len(points) > 1}:
            self.page.lines(series, x, y, caption, **options)
        else:
            self.page.text(missing)
        return bool(series)


def _json(path: Path) -> dict[str, Any]:
    return read_json(path, "Record") if path.is_file() else {}


def _image_set(strength: float) -> str:
    return "final" if strength == 1 else f"strength-{strength:g}"


def _verdict(difference: Difference | None) -> str:
    """Sentence on a difference that the paper has above 0."""
    if difference is None:
        return "not run yet"
    direction = f"significant, {'in' if difference.mean > 0 else 'against'} the paper's direction"
    verdict = direction if difference.p <= ALPHA else "not significant"
    return f"{plain(difference)} with {difference.seeds} training seed{'s' * difference.over_seeds}: {verdict}"


def _sentences(differences: Differences, below: float = 0) -> list[str]:
    """Sentences on the differences below 0 (or another number), where the paper has them above."""
    lines = []
    for one, difference in differences.items():
        names = f"*{TITLES[one.a]}* − *{TITLES[one.b]}* on {', '.join(SET_NAMES[name] for name in one.sets)}"
        known = {one.a, one.b} <= {*PAPER}
        paper = f"; in the paper +{PAPER_MEANS[one.a] - PAPER_MEANS[one.b]:.2f} points" if known else ""
        significant = "significant" if difference.p <= ALPHA else "not significant"
        if difference.mean < below:
            lines.append(f"{names}: {plain(difference)}, {significant}{paper}.")
    return lines
