"""The world itself needs neither torch nor the trainer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_the_world_needs_neither_trainer_nor_models() -> None:
    script = (
        "import json, sys, miniature.dataset, miniature.facts, miniature.judge; print(json.dumps(sorted(sys.modules)))"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert "miniature" in loaded and not loaded & {"torch", "train", "evaluation", "llm4gen_core", "transformers"}
