"""Numbers that others have published: shown beside what was measured, never part of a computation.

Every value is text, as its source prints it (shares as percent, by moving the point), so that nobody can take a mean
of it by mistake. Sources: the LLM4GEN paper (AAAI 2025, arXiv 2407.00737v2), ELLA (arXiv 2403.05135), T2I-CompBench
(NeurIPS 2023) and T2I-CompBench++, PixArt-alpha (arXiv 2310.00426), GenEval's repository.
"""

from __future__ import annotations

from dataclasses import dataclass

NOT_GIVEN = "–"


@dataclass(frozen=True)
class Quotation:
    """A row of a table of somebody else's.

    Attributes:
        model: as the source names it.
        values: one for each column of the table; `NOT_GIVEN` where the source has none.
        source: where it is printed.
    """

    model: str
    values: tuple[str, ...]
    source: str

    def __post_init__(self) -> None:
        if not self.source or not all(isinstance(value, str) for value in self.values):
            raise TypeError(f"{self.model}: quoted values are text, and have a source")


@dataclass(frozen=True)
class QuotedTable:
    """Published numbers of one kind.

    Attributes:
        key: stable name.
        benchmark: key of the benchmark they belong to (`benchmarks.BENCHMARKS`), or "cost".
        title, unit: of the table.
        columns: what the values are.
        rows: with their sources.
        warnings: what a reader has to know before comparing anything with them.
    """

    key: str
    benchmark: str
    title: str
    unit: str
    columns: tuple[str, ...]
    rows: tuple[Quotation, ...]
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.values) != len(self.columns):
                raise TypeError(f"{self.key}, {row.model}: {len(row.values)} values for {len(self.columns)} columns")


def _rows(source: str, *rows: tuple[str, str]) -> tuple[Quotation, ...]:
    return tuple(Quotation(model, tuple(values.split()), source) for model, values in rows)


_PAPER, _ELLA = "LLM4GEN paper", "ELLA paper"
_CATEGORIES = ("Colour", "Shape", "Texture", "Spatial", "Non-spatial", "Complex")

_T2I = QuotedTable(
    "llm4gen_table_1",
    "t2i-compbench",
    "T2I-CompBench, as the LLM4GEN paper prints it (Table 1)",
    "%",
    _CATEGORIES,
    _rows(
        f"{_PAPER}, Table 1",
        ("Composable Diffusion", "40.63 32.99 36.45 8.00 29.80 28.98"),
        ("Structured Diffusion", "49.90 42.18 49.00 13.86 31.11 33.55"),
        ("Attn-Exct v2", "64.00 45.17 59.63 14.55 31.09 34.01"),
        ("GORS", "66.03 47.85 62.87 18.15 31.93 33.28"),
        ("DALL-E 2", "57.50 54.64 63.74 12.83 30.43 36.96"),
        ("PixArt-α", "68.86 55.82 70.44 20.82 31.79 41.17"),
        ("SUR-Adapter", "38.93 36.73 39.21 13.21 30.81 31.43"),
        ("ELLA SDXL", "72.60 56.34 66.86 22.14 30.69 –"),
        ("“SD1.5” (really SD v1.4)", "37.65 35.76 41.56 12.46 30.79 30.80"),
        ("LLM4GEN SD1.5", "47.34 45.35 55.39 14.79 31.00 33.97"),
        ("SDXL (first version's table)", "63.69 54.08 56.37 20.32 31.10 40.91"),
        ("LLM4GEN SDXL", "76.59 59.24 70.86 24.12 32.10 42.19"),
    ),
    (
        "The row that the paper calls SD1.5 holds T2I-CompBench's values for SD v1.4, digit by digit; ELLA's Table 3 "
        "has both models. Compare LLM4GEN with a baseline that was measured here, by the same judge.",
        "Two SDXL baselines are in print that do not fit together: 63.69 for colour in the first version of "
        "T2I-CompBench, 58.79 in T2I-CompBench++, which counts noun phrases in another way. Rows of the two never "
        "belong into one comparison.",
        "The paper's text says 73.29 for LLM4GEN SDXL's colour, the value of its first version (63.69 + 9.60); its "
        "Table 1 says 76.59.",
        "The paper leaves out ELLA SD1.5, which is far above LLM4GEN SD1.5 (see the next table), trained on "
        "some 13 times as many samples.",
        "No row comes with an interval; with 300 prompts a gain of one point is close to chance.",
    ),
)

_T2I_OTHERS = QuotedTable(
    "t2i_compbench_others",
    "t2i-compbench",
    "T2I-CompBench in other papers",
    "%",
    _CATEGORIES,
    (
        *_rows("T2I-CompBench (first version)", ("SD v1.4", "37.65 35.76 41.56 12.46 30.79 30.80")),
        *_rows(
            f"{_ELLA}, Table 3",
            ("SD v1.5", "37.50 37.24 41.59 12.04 30.88 –"),
            ("ELLA SD1.5", "69.11 49.38 63.08 18.67 30.62 –"),
            ("ELLA SDXL", "72.60 56.34 66.86 22.14 30.69 –"),
        ),
        *_rows("An independent run of SD v1.5 with a fork of the official code", ("SD v1.5", "35.6 – 40.6 – – 30.6")),
        *_rows("PixArt-α paper (first version's table)", ("SDXL", "63.69 54.08 56.37 20.32 31.10 40.91")),
        *_rows(
            "T2I-CompBench++, Table XIII (known from an excerpt)",
            ("SDXL, measured again", "58.79 46.87 52.99 21.33 31.19 32.37"),
            ("PixArt-α, measured again", "66.90 – – – – –"),
            ("SD3-medium", "81.32 58.85 73.34 – – –"),
        ),
        *_rows(
            f"{_ELLA}, ablation at 140,000 steps",
            ("ELLA with TinyLlama", "41.68 39.22 46.39 – – –"),
            ("ELLA with LLaMA2-13B", "44.68 39.83 51.37 – – –"),
            ("ELLA with T5-XL", "55.70 45.22 51.95 – – –"),
        ),
    ),
    (
        "Rows of the first version and of T2I-CompBench++ were judged in different ways: do not compare them with "
        "each other.",
    ),
)

_COCO = QuotedTable(
    "llm4gen_table_2",
    "coco",
    "MS-COCO, as the LLM4GEN paper prints it (Table 2)",
    "FID and IS as they are, CLIP score in %",
    ("FID, lower is better", "IS", "CLIP score"),
    _rows(
        f"{_PAPER}, Table 2",
        ("SD1.5", "26.89 32.24 28.66"),
        ("SD1.5, fine-tuned on the same data", "25.48 33.53 29.10"),
        ("LLM4GEN SD1.5", "25.20 34.24 29.45"),
        ("SDXL", "24.75 34.91 30.10"),
        ("LLM4GEN SDXL", "24.21 35.10 30.91"),
    ),
    (
        "The paper says neither how many images nor which captions, which size and which filter. Each of them moves "
        "FID by more than the difference of these rows (26.89 to 25.20): do not compare a FID from here with them.",
        "The paper's text says that FID falls by 1.79 against SD1.5; its table's rows differ by 1.69.",
        "Most of the gain in FID is the data's: the fine-tuned SD1.5 has it without LLM4GEN (26.89 to 25.48).",
    ),
)

_DENSE = QuotedTable(
    "llm4gen_figure_5",
    "dense-prompts",
    "DensePrompts, as the LLM4GEN paper shows it (Fig. 5)",
    "order only",
    ("Aesthetic score", "CLIP score"),
    (
        Quotation("LLM4GEN SDXL", ("highest of the five", "highest of the five"), f"{_PAPER}, Fig. 5 and its text"),
        Quotation(
            "PixArt-α, Playground v2, SDXL, SD1.5",
            ("below LLM4GEN SDXL; PixArt-α above SDXL", "below LLM4GEN SDXL; PixArt-α above SDXL"),
            f"{_PAPER}, Fig. 5 and its text",
        ),
    ),
    (
        "Fig. 5 is a drawing of bars; its numbers are printed nowhere in the text, and reading them off would be "
        "guessing. The text says no more than this order.",
        "The paper's 7,000 prompts were never published. What is measured here is another set.",
        "CLIP reads 77 tokens. Of a longer prompt it judges the beginning alone: see the share that is cut off.",
    ),
)

_DPG = QuotedTable(
    "dpg_bench",
    "dpg-bench",
    "DPG-Bench in print",
    "points of 100",
    ("Overall", "Global", "Entity", "Attribute", "Relation", "Other"),
    (
        *_rows(
            f"{_ELLA} (mPLUG-large as the judge)",
            ("SD1.5", "63.18 74.63 74.23 75.39 73.49 67.81"),
            ("SD v2", "68.09 – – – – –"),
            ("PixArt-α", "71.11 – – – – –"),
            ("Playground v2", "74.54 – – – – –"),
            ("SDXL", "74.65 83.27 82.43 80.91 86.76 80.41"),
            ("ELLA SD1.5", "74.91 84.03 84.61 83.48 84.03 80.79"),
            ("ELLA SDXL", "80.23 85.90 85.34 86.67 86.16 87.41"),
            ("DALL-E 3", "83.50 – – – – –"),
        ),
        *_rows(
            f"{_ELLA}, ablation at 140,000 steps",
            ("ELLA with TinyLlama", "70.27 – – – – –"),
            ("ELLA with LLaMA2-13B", "72.05 – – – – –"),
            ("ELLA with T5-XL", "71.70 – – – – –"),
        ),
    ),
    (
        "Another judge than mPLUG-large gives numbers on another scale, and the official script itself has been "
        "reported as irreproducible (78.48 and 84.30 for the same model).",
        "LLM4GEN has never published a DPG-Bench number.",
    ),
)

_GENEVAL = QuotedTable(
    "geneval",
    "geneval",
    "GenEval in print",
    "%",
    ("Overall",),
    _rows(
        "GenEval's repository (Mask2Former and CLIP ViT-L/14 as judges)",
        ("SD1.5", "43"),
        ("SD2.1", "50"),
        ("SDXL", "55"),
        ("IF-XL", "61"),
    ),
    (
        "Another detector than Mask2Former gives numbers on another scale.",
        "LLM4GEN has never published a GenEval number.",
    ),
)

_COST = QuotedTable(
    "llm4gen_table_5",
    "cost",
    "What training has cost others (Table 5 of the LLM4GEN paper, and ELLA)",
    "millions of images, GPU-days, colour on T2I-CompBench in %",
    ("Images (M)", "GPU-days", "Colour"),
    (
        *_rows(
            f"{_PAPER}, Table 5",
            ("PixArt-α", "25 753 68.86"),
            ("ParaDiffusion", "500 392 –"),
            ("ELLA SDXL", "30 112 72.60"),
            ("LLM4GEN SDXL", "10 50 76.59"),
        ),
        *_rows(_ELLA, ("ELLA SD1.5", "34 56 69.11"), ("ELLA SDXL", "34 112 72.60")),
    ),
    (
        "These are costs of training; what was measured above is the cost of painting. They are no two sides of one "
        "comparison.",
        "Table 5 gives ELLA 30 million images, ELLA itself says 34. For LLM4GEN SDXL the 10 million leave out the 2 "
        "million of its second stage at 1024, and the text of that section says 73.29 where the table has 76.59.",
    ),
)

QUOTED = (_T2I, _T2I_OTHERS, _COCO, _DENSE, _DPG, _GENEVAL, _COST)


def quoted(benchmark: str) -> list[QuotedTable]:
    """The tables that belong beside a benchmark."""
    return [table for table in QUOTED if table.benchmark == benchmark]
