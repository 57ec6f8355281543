"""The pairs with their votes as JSONL, for other people's programs."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import Any

from llm4gen_core.files import write_json_lines

from .results import aliases
from .study import PairImage, StudyFolder
from .votes import Vote, counted, read_votes


def export(folder: StudyFolder, output: Path, *, names: bool = False) -> int:
    """Write a row for each pair, whether it has votes or not.

    A row has id, prompt (its id), text, category and seed of the pair; `images`, for both models the file, as seen from
    the output's folder, and its hash; and `votes`, those that count, each with the rater, the question, the preferred
    model (or "tie"), the side on which each model stood, the seconds taken, the time, and whether it was the second
    showing.

    Args:
        folder: of the study.
        output: .jsonl to write.
        names: call raters by their names, not "rater 1" and so on.

    Returns:
        Number of votes written.

    Raises:
        LLM4GENError: the study or its votes are damaged.
    """
    study = folder.study
    rows = list(read_votes(study, folder.votes))
    called = aliases(rows, names)
    of_pair: dict[str, list[Vote]] = defaultdict(list)
    for vote in counted(rows):
        of_pair[vote.pair].append(vote)

    def image(one: PairImage) -> dict[str, Any]:
        path = folder.file(study, one).resolve()
        try:
            shown = Path(os.path.relpath(path, output.resolve().parent)).as_posix()
        except ValueError:  # other drives of Windows
            shown = path.as_posix()
        return {"model": one.model, "file": shown, "sha256": one.sha256}

    write_json_lines(
        output,
        (
            {
                "id": pair.id,
                "prompt": pair.prompt,
                "text": pair.text,
                "category": pair.category,
                "seed": pair.seed,
                "images": [image(pair.first), image(pair.second)],
                "votes": [
                    {
                        "rater": called[vote.rater],
                        "question": vote.question,
                        "preferred": vote.winner or "tie",
                        "left": vote.left,
                        "right": vote.right,
                        "seconds": vote.seconds,
                        "time": vote.time,
                        "repeat": vote.repeat,
                    }
                    for vote in of_pair[pair.id]
                ],
            }
            for pair in study.pairs
        ),
    )
    return sum(map(len, of_pair.values()))
