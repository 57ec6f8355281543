"""The SDXL workflow, run in the real front end."""

from __future__ import annotations

import re

import pytest
from comfy_server import REPOSITORY
from PIL import Image
from playwright.sync_api import expect

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def workflow_file():
    return REPOSITORY / "workflows" / "llm4gen_sdxl.json"


def test_run_generates(canvas, server):
    """Run, pressed on the workflow as shipped but for size and steps: the image appears, and no node covers another."""
    canvas.edit("KSampler", "steps", 2)
    canvas.edit("EmptyLatentImage", "width", 128)
    canvas.edit("EmptyLatentImage", "height", 128)
    result = canvas.run(timeout=300)
    assert result.error is None, result.error
    (name,) = result.images()
    assert canvas.shown_image(name) == [128, 128]
    image = Image.open(server.base / "output" / name)
    assert len(image.convert("L").getcolors()) > 16, "the image is flat"
    for said in (r"Adapter for sdxl", r"UNet part \(LoRA of \d+ layers\) at strength 1", r"positive: \d+ of 256 LLM"):
        expect(canvas.page.get_by_text(re.compile(said)).first).to_be_visible()
    assert canvas.overlaps() == []
    expect(canvas.complaints()).to_have_text([])
    assert canvas.errors == []
