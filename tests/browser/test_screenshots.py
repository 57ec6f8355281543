"""Take the screenshots of the documentation, on request.

    LLM4GEN_SCREENSHOT=. python -m pytest tests/browser/test_screenshots.py

writes docs/images/canvas.png, canvas_sdxl.png and the workflows' thumbnails under the given folder. The small random
models generate an abstract pattern whatever the number of steps, so two steps are enough, and 512 pixels for SDXL; the
shipped numbers are on the canvas again when the screenshot is taken.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from comfy_server import PACK_FOLDER, REPOSITORY
from PIL import Image
from playwright.sync_api import expect

TARGET = Path(os.environ["LLM4GEN_SCREENSHOT"]).resolve()

SHOW_IN = """([[left, top, right, bottom], [x, y, width, height]]) => {
    const { ds } = app.canvas
    ds.scale = Math.min(width / (right - left), height / (bottom - top))
    ds.offset[0] = (x + width / 2) / ds.scale - (left + right) / 2
    ds.offset[1] = (y + height / 2) / ds.scale - (top + bottom) / 2
    app.canvas.setDirty(true, true)
}"""


@pytest.fixture(scope="session")
def base(base):
    """The pack under the folder name that an ordinary installation gives it: the front end shows it on the nodes."""
    custom_nodes = base / "custom_nodes"
    (custom_nodes / PACK_FOLDER).rename(custom_nodes / "llm4gen")
    return base


def take(canvas, area, nodes=""):
    """Screenshot of the page, with the graph, or the named nodes, scaled to the area [x, y, width, height]."""
    rectangles = (place for name, place in canvas.rectangles().items() if name.split()[0] in nodes or not nodes)
    left, top, right, bottom = zip(*rectangles, strict=True)
    canvas.page.evaluate(SHOW_IN, [[min(left), min(top), max(right), max(bottom)], area])
    # The view moves smoothly; it has arrived when two screenshots are the same.
    shot = previous = None
    while shot is None or shot != previous:
        canvas.page.wait_for_timeout(300)
        previous, shot = shot, canvas.page.screenshot()
    return Image.open(io.BytesIO(shot)).convert("RGB")


def only_the_graph(canvas):
    """Hide the boxes that the front end puts over a corner of the canvas."""
    for setting in ("Comfy.Minimap.Visible", "Comfy.Graph.CanvasInfo"):
        canvas.page.evaluate("(setting) => app.extensionManager.setting.set(setting, false)", setting)


SCREENSHOTS = [("llm4gen_sd15", "canvas", 512), ("llm4gen_sdxl", "canvas_sdxl", 1024)]


@pytest.mark.parametrize(("workflow", "name", "size"), SCREENSHOTS)
def test_screenshot_after_run(open_canvas, workflow, name, size):
    """Page after Run, for the README."""
    canvas = open_canvas()
    only_the_graph(canvas)
    canvas.drop(REPOSITORY / "workflows" / f"{workflow}.json")
    for side in ("width", "height"):
        canvas.edit("EmptyLatentImage", side, 512)
    canvas.edit("KSampler", "steps", 2)
    result = canvas.run(timeout=1200)
    assert result.error is None, result.error
    (image,) = result.images()
    assert canvas.shown_image(image) == [512, 512]
    canvas.edit("KSampler", "steps", 50)
    for side in ("width", "height"):
        canvas.edit("EmptyLatentImage", side, size)
    expect(canvas.page.get_by_text("Job completed")).to_have_count(0, timeout=30_000)
    target = TARGET / "docs" / "images" / f"{name}.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    taken = take(canvas, [80, 100, 1820, 940])
    taken.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(target, optimize=True)
    assert target.stat().st_size < 400_000
    canvas.page.close()


@pytest.mark.parametrize("workflow", sorted((REPOSITORY / "workflows").glob("*.json")), ids=lambda file: file.stem)
def test_thumbnail(open_canvas, workflow):
    """Middle of the graph, in a square, for the template browser."""
    canvas = open_canvas()
    only_the_graph(canvas)
    canvas.drop(workflow)
    canvas.page.evaluate("app.extensionManager.command.execute('Workspace.ToggleFocusMode')")
    canvas.page.evaluate("app.extensionManager.setting.set('Comfy.Graph.CanvasMenu', false)")
    nodes = "LLM4GENTextEncode KSampler KSamplerAdvanced"
    shot = take(canvas, [530, 110, 860, 860], nodes=nodes).crop((510, 90, 1410, 990))
    thumbnail = TARGET / "workflows" / f"{workflow.stem}.jpg"
    thumbnail.parent.mkdir(exist_ok=True)
    shot.resize((512, 512), Image.Resampling.LANCZOS).save(thumbnail, quality=85, optimize=True)
    assert thumbnail.stat().st_size < 100_000
    canvas.page.close()
