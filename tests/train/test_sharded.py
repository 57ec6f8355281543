"""FSDP through accelerate: the same losses, resumable, exportable."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from short_runs import REPOSITORY, go_on, losses, recipe_content, train
from small_models import make_world

from llm4gen_core import LLM4GENError, load_adapter
from train.recipe_file import parse_recipe
from train.run import ExportSettings, export


def run_sharded(*arguments: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(REPOSITORY / "tests" / "support" / "fsdp_on_cpu.py"), *arguments]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
def test_fsdp_trains_resumes_and_exports(tmp_path: Path) -> None:
    make_world(tmp_path / "world", images=12)
    short: dict[str, Any] = {"train": {"steps": 2}, "checkpoints": {"every": 1}}
    alone = train(recipe_content(tmp_path / "world", tmp_path / "alone", guidance={"alpha": 100.0}, **short))
    content = recipe_content(tmp_path / "world", tmp_path / "sharded", guidance={"alpha": 100.0}, **short)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(parse_recipe(content, "test").to_yaml())
    folder = tmp_path / "sharded"
    run_sharded("run", str(recipe))
    assert losses(folder) == pytest.approx(losses(alone), rel=1e-5)
    expected = load_file(folder / "checkpoints" / "step-00000002" / "trained.safetensors")

    shutil.rmtree(folder / "checkpoints" / "step-00000002")
    run_sharded("resume", str(folder))
    assert losses(folder) == pytest.approx(losses(alone), rel=1e-5)
    again = load_file(folder / "checkpoints" / "step-00000002" / "trained.safetensors")
    assert again.keys() == expected.keys()
    assert max(float((again[name] - tensor).abs().max()) for name, tensor in expected.items()) < 1e-5

    export(ExportSettings(source=str(folder)))
    assert load_adapter(folder / "export" / "adapter.safetensors").config.heads == 4
    with pytest.raises(LLM4GENError, match="resume it with them"):
        shutil.rmtree(folder / "export")
        go_on(folder)
