"""Dependencies point one way, and the command lines answer before anything heavy is imported."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
USES: dict[str, set[str]] = {
    "llm4gen_core": set(),
    "llm4gen_diffusers": {"llm4gen_core"},
    "train": {"llm4gen_core", "llm4gen_diffusers"},
    "evaluation": {"llm4gen_core", "llm4gen_diffusers"},
    "miniature": {"llm4gen_core", "llm4gen_diffusers", "train", "evaluation"},
}
"""Project packages that each package may import."""


@pytest.mark.parametrize("package", USES)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    found = set()
    for file in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add((node.module or "").partition(".")[0])
    assert found & {*USES, "nodes", "comfy"} <= USES[package] | {package}


@pytest.mark.parametrize(
    "module", ["llm4gen_diffusers.__main__", "train.__main__", "evaluation.__main__", "miniature.__main__"]
)
def test_the_command_line_imports_nothing_heavy(module: str) -> None:
    script = f"import json, sys, {module}; {module}.build_parser(); print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert not loaded & {"transformers", "diffusers", "accelerate", "torch_fidelity", "aiohttp", "spacy"}
