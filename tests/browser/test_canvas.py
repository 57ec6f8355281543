"""The shipped workflows in the real front end: they load, SD1.5's runs, and errors are shown."""

from __future__ import annotations

import io
import json
import re
import urllib.request
from importlib.metadata import version

import pytest
from comfy_server import NODES, PACK_FOLDER, REPOSITORY, to_api_format
from PIL import Image
from playwright.sync_api import expect

FRONT_END = tuple(int(number) for number in version("comfyui_frontend_package").split(".")[:2])
WORKFLOWS = sorted((REPOSITORY / "workflows").glob("*.json"))
of_every_workflow = pytest.mark.parametrize("workflow_file", WORKFLOWS, ids=lambda file: file.stem)


def fetch(server, path):
    with urllib.request.urlopen(server.url + path, timeout=60) as answer:
        return answer.read()


def widget_values(workflow):
    return {str(node["id"]): node.get("widgets_values", []) for node in workflow["nodes"]}


@of_every_workflow
def test_template_is_offered_with_its_thumbnail(server, workflow_file):
    """The host serves the workflow as a template of the pack."""
    assert sorted(server.get("/api/workflow_templates")[PACK_FOLDER]) == [file.stem for file in WORKFLOWS]
    address = f"/api/workflow_templates/{PACK_FOLDER}/{workflow_file.stem}"
    assert fetch(server, f"{address}.json") == workflow_file.read_bytes()
    thumbnail = fetch(server, f"{address}.jpg")
    assert len(thumbnail) < 100_000
    image = Image.open(io.BytesIO(thumbnail))
    assert image.format == "JPEG" and image.size == (512, 512)


@pytest.mark.parametrize("node", NODES)
def test_help_page_is_served(server, node):
    """The address under which the front end looks for a node's help."""
    page = fetch(server, f"/extensions/{PACK_FOLDER}/docs/{node}.md").decode()
    assert len(page) > 200


def test_template_opens_from_the_template_browser(open_canvas, workflow_file):
    """Templates, the pack's name, the card with its thumbnail, a click: the workflow is on the canvas."""
    canvas = open_canvas()
    canvas.page.get_by_role("button", name="Templates").click()
    canvas.page.get_by_text(PACK_FOLDER).first.click()
    card = canvas.page.get_by_test_id(f"template-workflow-{workflow_file.stem}")
    thumbnail = card.get_by_role("img").first
    canvas.page.wait_for_function("(image) => image.naturalWidth === 512", arg=thumbnail.element_handle())
    card.click()
    canvas.page.wait_for_function("app.graph._nodes.some((node) => node.type === 'LLM4GENTextEncode')")
    canvas.page.close()


def test_every_node_can_be_put_on_the_canvas(canvas, server):
    """Each node's inputs arrive as the server declares them: as a widget or as a slot for a wire."""
    declared = server.get("/object_info")
    built = canvas.page.evaluate(
        """(types) => Object.fromEntries(types.map((type) => {
            const node = LiteGraph.createNode(type)
            const slots = node.inputs.map((slot) => slot.name)
            return [type, { title: node.title, names: [...slots, ...(node.widgets ?? []).map((w) => w.name)] }]
        }))""",
        NODES,
    )
    for node in NODES:
        inputs = declared[node]["input"]
        expected = {*inputs.get("required", {}), *inputs.get("optional", {})}
        assert set(built[node]["names"]) == expected
        assert built[node]["title"] == declared[node]["display_name"]


@of_every_workflow
def test_workflow_loads_clean(canvas, workflow_file):
    """No missing node, missing model or error; every input is wired or has a widget; no note needs scrolling."""
    nodes = canvas.page.evaluate(
        """app.graph._nodes.map((node) => ({
            type: node.type,
            known: node.type in LiteGraph.registered_node_types,
            error: Boolean(node.has_errors),
            open: (node.inputs ?? []).filter((slot) => slot.link == null && !slot.widget).map((slot) => slot.name),
        }))"""
    )
    shipped = [node["type"] for node in json.loads(workflow_file.read_text(encoding="utf-8"))["nodes"]]
    assert [node["type"] for node in nodes] == shipped
    for node in nodes:
        assert node["known"] and not node["error"] and not node["open"], node
    notes = canvas.page.locator(".comfy-markdown:visible .tiptap")
    expect(notes).to_have_count(shipped.count("MarkdownNote"))
    for note in notes.all():
        width, height, shown_width, shown_height = note.evaluate(
            "(note) => [note.scrollWidth, note.scrollHeight, note.clientWidth, note.clientHeight]"
        )
        assert width <= shown_width and height <= shown_height, note.inner_text()
    assert canvas.overlaps() == []
    expect(canvas.complaints()).to_have_text([])
    assert canvas.errors == []
    assert [error for error in canvas.errors_of_the_start if PACK_FOLDER in error or "llm4gen" in error.lower()] == []


@of_every_workflow
def test_workflow_survives_saving(canvas, server, workflow_file):
    """Saved again, nothing is lost: links, values in their order, places, titles; the host tests' conversion agrees."""
    shipped = json.loads(workflow_file.read_text(encoding="utf-8"))
    saved = canvas.saved()
    assert saved["links"] == shipped["links"]
    assert widget_values(saved) == widget_values(shipped)
    saved_nodes = {str(node["id"]): node for node in saved["nodes"]}
    for node in shipped["nodes"]:
        other = saved_nodes[str(node["id"])]
        assert other["type"] == node["type"]
        assert other.get("title", node["type"]) == node.get("title", other.get("title", node["type"]))
        assert list(other["pos"]) == node["pos"] and list(other["size"]) == node["size"]
    graph = canvas.graph()
    assert graph == to_api_format(shipped, server.get("/object_info"))
    canvas.drop(workflow_file, json.dumps(saved).encode())
    assert canvas.graph() == graph


@of_every_workflow
@pytest.mark.skipif(FRONT_END < (1, 41), reason="this front end's Nodes 2.0 is unfinished")
def test_workflow_fits_modern_nodes(canvas):
    """Nodes 2.0 draws larger nodes: they, too, do not overlap."""
    setting = "(on) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)"
    canvas.page.evaluate(setting, True)
    try:
        expect(canvas.page.locator("[data-node-id]")).to_have_count(len(canvas.rectangles()))
        expect(canvas.page.locator("[data-node-id]").filter(has_text="Text Encode (LLM4GEN)")).to_be_visible()
        assert canvas.overlaps() == []
        assert canvas.errors == []
    finally:
        canvas.page.evaluate(setting, False)


def test_run_generates_and_another_seed_encodes_nothing_again(canvas, server):
    """Run, pressed on the workflow as shipped but for size and steps: the image appears, and carries the workflow."""
    canvas.edit("KSampler", "steps", 2)
    canvas.edit("EmptyLatentImage", "width", 128)
    canvas.edit("EmptyLatentImage", "height", 128)
    first_graph, first_saved = canvas.graph(), canvas.saved()
    first = canvas.run()
    assert first.error is None, first.error
    assert first.executed == set(first_graph)
    (first_name,) = first.images()
    assert canvas.shown_image(first_name) == [128, 128]
    image = Image.open(server.base / "output" / first_name)
    assert image.size == (128, 128)
    assert len(image.convert("L").getcolors()) > 16, "the image is flat"
    for said in (r"T5 encoder \(3 layers, width 64", r"Adapter for sd15", r"positive: \d+ of 256 LLM tokens"):
        expect(canvas.page.get_by_text(re.compile(said)).first).to_be_visible()
    # Nodes that say something after a run grow. An old front end saves what they say behind their values.
    assert canvas.overlaps() == []
    saved = widget_values(canvas.saved())
    for node, values in widget_values(first_saved).items():
        assert saved[node][: len(values)] == values

    canvas.edit("KSampler", "seed", 43)
    second_graph = canvas.graph()
    second = canvas.run()
    assert second.error is None, second.error
    classes = {second_graph[node]["class_type"] for node in second.executed}
    assert classes == {"KSampler", "VAEDecode", "SaveImage"}
    (second_name,) = second.images()
    assert canvas.shown_image(second_name) == [128, 128]
    assert Image.open(server.base / "output" / second_name).tobytes() != image.tobytes()

    canvas.drop(server.base / "output" / first_name)
    assert canvas.graph() == first_graph
    expect(canvas.complaints()).to_have_text([])
    assert canvas.errors == []


def test_missing_llm_is_explained_in_the_page(open_canvas, workflow_file):
    """Without the LLM's file the front end shows our sentence."""
    workflow = json.loads(workflow_file.read_text(encoding="utf-8"))
    (loader,) = (node for node in workflow["nodes"] if node["type"] == "LLM4GENLoadLLM")
    loader["widgets_values"][0] = "not-here.safetensors"
    canvas = open_canvas()
    canvas.drop(workflow_file, json.dumps(workflow).encode())
    result = canvas.run()
    assert result.error is not None and "not-here.safetensors" in result.error
    sentence = canvas.page.get_by_text("LLM 'not-here.safetensors' was not found in").first
    # The current front end says first how many errors there are, and has the sentences behind a button.
    details = canvas.page.get_by_test_id("error-overlay-see-errors")
    expect(sentence.or_(details).first).to_be_visible()
    expect(canvas.complaints()).not_to_have_count(0)
    if details.is_visible():
        details.click()
    expect(sentence).to_be_visible()
    expect(sentence).to_contain_text("press R to refresh the lists")
    canvas.page.close()
