"""Captions a second of the entity parsers on this machine, and how well each does on the generated gold set.

    python benchmarks/parse.py [--count 20000] [--workers 2] [--backend spacy:en_core_web_sm]

One line a parser, for one process and for several. Processes are timed with their start, which a large data set does
not notice. A spaCy pipeline is measured if one is installed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from itertools import cycle, islice
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / "tests" / "support"), str(REPOSITORY)]

from gold_captions import gold_captions, score, table  # noqa: E402

from llm4gen_core import LLM4GENError, entity_backend  # noqa: E402
from train.parse import parse_captions  # noqa: E402


def captions_a_second(captions: list[str], backend: str, workers: int) -> float:
    """The median of three runs in this process, one run with others."""
    seconds = []
    for _ in range(1 if workers else 3):
        started = time.perf_counter()
        for _ in parse_captions(captions, backend, workers):
            pass
        seconds.append(time.perf_counter() - started)
    return len(captions) / statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000, help="captions to time")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--backend", action="append", help="may be given several times (default: rules and spacy)")
    options = parser.parse_args()
    gold = gold_captions(100)
    captions = [caption.text for caption in islice(cycle(gold_captions(500)), options.count)]
    results = []
    for backend in options.backend or ["rules", "spacy"]:
        try:
            name = entity_backend(backend)
        except LLM4GENError as error:
            print(f"{backend}: not measured. {error}\n")
            continue
        found = parse_captions((caption.text for caption in gold), backend)
        scores = score(gold, ([pair.offsets for pair in pairs] for pairs in found))
        print(f"{name}\n{table(scores)}\n")
        for workers in (0, options.workers):
            rate = captions_a_second(captions, backend, workers)
            results.append({"parser": name, "processes": workers or 1, "captions_a_second": round(rate)})
    words = statistics.mean(len(caption.split()) for caption in captions)
    print(json.dumps({"captions": len(captions), "words_a_caption": round(words, 1), "results": results}, indent=2))


if __name__ == "__main__":
    main()
