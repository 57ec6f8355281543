"""Importing the core is cheap and needs no host."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_import_loads_no_heavy_library_and_no_host() -> None:
    script = "import json, sys, llm4gen_core; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert "torch" in loaded
    assert not loaded & {"transformers", "tokenizers", "diffusers", "accelerate", "spacy", "comfy", "nodes", "train"}


def test_every_name_of_the_public_surface_exists() -> None:
    import llm4gen_core

    assert all(hasattr(llm4gen_core, name) for name in llm4gen_core.__all__)
