"""A fake ComfyUI, and pipelines that are connected to it."""

from __future__ import annotations

import json

import pytest
from fake_comfyui import FakeComfyUI, plain

from evaluation.comfyui import ComfyUIPipeline
from evaluation.comfyui import pipeline as pipeline_module


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """Look at the queue more often than once in a second."""
    monkeypatch.setattr(pipeline_module, "_LOOK", 0.05)


@pytest.fixture
def comfy():
    server = FakeComfyUI()
    yield server
    server.stop()


@pytest.fixture
def connect(comfy, tmp_path):
    pipelines = []

    def connect(graph=None, **options):
        file = tmp_path / "workflow.json"
        file.write_text(json.dumps(plain() if graph is None else graph), encoding="utf-8")
        options = {"patience": 5, "prompt_inputs": ["2.text"], **options}
        pipelines.append(ComfyUIPipeline.connect(comfy.url, file, **options))
        return pipelines[-1]

    yield connect
    for pipeline in pipelines:
        pipeline.close()
