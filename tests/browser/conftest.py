"""A real ComfyUI with its front end in a real Chromium, and small models under the shipped workflows' file names."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from comfy_server import COMFYUI, PACK_FOLDER, REPOSITORY, ComfyServer, Result, host_is_here, make_base

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Locator, Page

CHROMIUM = shutil.which("chromium")
CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

if not host_is_here() or CHROMIUM is None:
    collect_ignore_glob = ["test_*.py"]
elif "LLM4GEN_SCREENSHOT" not in os.environ:
    collect_ignore_glob = ["test_screenshots.py"]

# In a process of its own: the host reads its arguments at import, and the host tests may already have imported it
# into this process with another base directory.
MAKE_MODELS = """
import sys
from pathlib import Path

models, host = Path(sys.argv[1]), sys.argv[2]
sys.path.insert(0, host)
sys.argv = ["main.py", "--cpu"]
import comfy.options

comfy.options.enable_args_parsing()
import host_models
import sdxl_models
import torch

host_models.save_half(host_models.checkpoint_state(0), models / "checkpoints" / "v1-5-pruned-emaonly.safetensors")
host_models.save_half(host_models.unet_state(10), models / "diffusion_models" / "diffusion_pytorch_model.safetensors")
rankgen = models / "text_encoders" / "rankgen-t5-xl-all" / "pytorch_model.bin"
rankgen.parent.mkdir()
torch.save(host_models.rankgen_state(20), rankgen)
torch.save(host_models.adapter_state(30), models / "llm4gen" / "projector.pth")
sdxl_models.fill(models, models / "checkpoints" / "v1-5-pruned-emaonly.safetensors")
tokenizer = Path(host) / "comfy" / "text_encoders" / "t5_tokenizer"
host_models.save_hf_t5(host_models.t5_state(20), models / "text_encoders" / "t5-v1_1-xl", tokenizer)
"""

READY = """() => {
    const tabs = window.app?.extensionManager?.workflow
    return tabs?.activeWorkflow && !tabs.isBusy && app.vueAppReady && !document.querySelector('.p-blockui-mask')
}"""
"""Whether the front end has loaded, opened a workflow, and removed its waiting mask."""

DROP = """([name, mime, data]) => {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0))
    const dataTransfer = new DataTransfer()
    dataTransfer.items.add(new File([bytes], name, { type: mime }))
    window.nodeBeforeDrop = app.graph._nodes[0]
    document
        .querySelector('#graph-canvas')
        .dispatchEvent(new DragEvent('drop', { dataTransfer, bubbles: true, cancelable: true }))
}"""
DROPPED = "app.graph._nodes.length > 0 && app.graph._nodes[0] !== window.nodeBeforeDrop"

WIDGET_CENTRE = """([type, name]) => {
    const node = app.graph._nodes.find((node) => node.type === type)
    const widget = node.widgets.find((widget) => widget.name === name)
    const { scale, offset } = app.canvas.ds
    const canvas = app.canvas.canvas.getBoundingClientRect()
    return [
        canvas.left + (node.pos[0] + node.size[0] / 2 + offset[0]) * scale,
        canvas.top + (node.pos[1] + (widget.last_y ?? widget.y) + 10 + offset[1]) * scale,
    ]
}"""

SHOWN_IMAGE = """(name) => {
    const image = app.graph._nodes.find((node) => node.type === 'SaveImage').imgs?.[0]
    return image?.src.includes(name) && image.complete && [image.naturalWidth, image.naturalHeight]
}"""


class Canvas:
    """One page with the front end open, used as a person uses it: drop a file, click a number, press Run."""

    def __init__(self, page: Page, server: ComfyServer) -> None:
        self.page = page
        self.server = server
        self.errors: list[str] = []
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(server.url)
        page.wait_for_function(READY)
        self.errors_of_the_start, self.errors = self.errors, []

    def _note(self, message: ConsoleMessage) -> None:
        if message.type != "error":
            return
        text = f"{message.text} {message.location.get('url', '')}"
        # Not an error of the page: a new user has no saved files yet, and there may be no internet.
        elsewhere = "Failed to load resource" in text or "api.comfy.org" in text
        if not elsewhere or PACK_FOLDER in message.location.get("url", ""):
            self.errors.append(text)

    def drop(self, path: Path, content: bytes | None = None) -> None:
        """Drop a file on the canvas, as from a file manager; its content may be given in place of the file's."""
        mime = {".json": "application/json", ".png": "image/png"}[path.suffix]
        data = path.read_bytes() if content is None else content
        self.page.evaluate(DROP, [path.name, mime, base64.b64encode(data).decode()])
        self.page.wait_for_function(DROPPED)
        self.page.wait_for_function(READY)

    def edit(self, node_type: str, widget: str, value: int) -> None:
        """Click on a number of a node and type another."""
        self.page.mouse.click(*self.page.evaluate(WIDGET_CENTRE, [node_type, widget]))
        box = self.page.locator(".graphdialog input")
        box.fill(str(value))
        box.press("Enter")
        box.wait_for(state="detached")

    def run(self, timeout: float = 120) -> Result:
        """Press Run and wait for the server's result; `timeout` in seconds."""
        queue = self.page.get_by_test_id("queue-button")
        # The queue button itself; in older front ends the button Run within it, beside a menu's.
        button = queue.and_(self.page.locator("button")).or_(queue.get_by_role("button", name="Run", exact=True))
        with self.page.expect_response(lambda answer: answer.url.endswith("/api/prompt")) as posted:
            button.click()
        prompt_id = posted.value.json()["prompt_id"]
        deadline = time.monotonic() + timeout
        while prompt_id not in (history := self.server.get(f"/history/{prompt_id}")):
            assert time.monotonic() < deadline, self.server.log.read_text()[-4000:]
            self.page.wait_for_timeout(100)
        return Result.of(history[prompt_id])

    def shown_image(self, name: str) -> list[int]:
        """Wait until the Save Image node shows that image; its width and height."""
        return self.page.wait_for_function(SHOWN_IMAGE, arg=name).json_value()

    def graph(self) -> dict[str, Any]:
        """Graph that Run would send."""
        graph = self.page.evaluate("async () => (await app.graphToPrompt()).output")
        return {node_id: {key: node[key] for key in ("class_type", "inputs")} for node_id, node in graph.items()}

    def saved(self) -> dict[str, Any]:
        """Workflow that Save would write."""
        return json.loads(self.page.evaluate("JSON.stringify(app.graph.serialize())"))

    def rectangles(self) -> dict[str, list[float]]:
        """[left, top, right, bottom] of each node on the canvas, with its title bar."""
        return self.page.evaluate(
            """Object.fromEntries(app.graph._nodes.map(({ id, type, pos: [left, top], size: [width, height] }) =>
                [`${type} ${id}`, [left, top - LiteGraph.NODE_TITLE_HEIGHT, left + width, top + height]]))"""
        )

    def overlaps(self) -> list[tuple[str, str]]:
        """Pairs of nodes that overlap."""
        return [
            (name, other)
            for (name, a), (other, b) in itertools.combinations(self.rectangles().items(), 2)
            if a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
        ]

    def complaints(self) -> Locator:
        """Dialogs, error boxes and messages over the canvas."""
        return self.page.locator("[role=dialog], [data-testid=error-overlay], .p-toast-message, .comfy-modal:visible")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A base directory with the pack, a returning user's settings, and every file that the shipped workflows name."""
    base = make_base(tmp_path_factory.mktemp("browser") / "base")
    settings = base / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(parents=True)
    # The first start's welcome has been seen; everything else is as a new user of this front end has it.
    seen = {"Comfy.TutorialCompleted": True, "Comfy.InstalledVersion": version("comfyui_frontend_package")}
    settings.write_text(json.dumps(seen), encoding="utf-8")
    path = [str(REPOSITORY), str(REPOSITORY / "tests" / "support"), *filter(None, [os.environ.get("PYTHONPATH")])]
    subprocess.run(
        [sys.executable, "-c", MAKE_MODELS, str(base / "models"), str(COMFYUI)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        check=True,
    )
    yield base
    shutil.rmtree(base / "models")  # gigabytes, and pytest keeps the folders of three sessions


@pytest.fixture(scope="session")
def server(base: Path) -> Iterator[ComfyServer]:
    with ComfyServer(base) as running:
        yield running


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    # Imported here, so that tests without a browser need no playwright.
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def open_canvas(browser: Browser, server: ComfyServer) -> Iterator[Callable[[], Canvas]]:
    """Function that opens a new page; all pages share one cache."""
    context = browser.new_context(viewport={"width": 1920, "height": 1080})
    yield lambda: Canvas(context.new_page(), server)
    context.close()


@pytest.fixture(scope="session")
def shared_canvas(open_canvas: Callable[[], Canvas]) -> Canvas:
    return open_canvas()


@pytest.fixture(scope="session")
def workflow_file() -> Path:
    """Workflow of the tests that name no other."""
    return REPOSITORY / "workflows" / "llm4gen_sd15.json"


@pytest.fixture
def canvas(shared_canvas: Canvas, workflow_file: Path) -> Canvas:
    """Shipped workflow, freshly dropped; starting the front end takes seconds, so the page is shared."""
    shared_canvas.errors.clear()
    shared_canvas.drop(workflow_file)
    return shared_canvas
