"""Painting through a ComfyUI server: a small one of aiohttp stands for it, with everything that can go wrong."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import socket
import threading
import time

import pytest
from aiohttp import web
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from evaluation.__main__ import main
from evaluation.comfyui import ComfyUIPainter
from evaluation.comfyui import painter as painter_module
from evaluation.comfyui.canvas import convert
from evaluation.comfyui.graph import Graph
from evaluation.comfyui.places import find_image, find_seeds, find_texts
from evaluation.image_set import ImageSet
from evaluation.models import WORKFLOW_NOTE
from evaluation.prompts import Prompt, write_prompts
from llm4gen_core import LLM4GENError

TEXT = ["STRING", {"multiline": True, "dynamicPrompts": True}]
SEED = ["INT", {"default": 0, "control_after_generate": True}]
SAMPLER = {"model": ["MODEL"], "positive": ["CONDITIONING"], "negative": ["CONDITIONING"], "latent_image": ["LATENT"]}


def kind(inputs, output, names=None, end=False, optional=None):
    """What /object_info says about a kind of nodes."""
    return {
        "input": {"required": inputs, "optional": optional or {}},
        "output": output,
        "output_name": names or output,
        "output_node": end,
        "python_module": "custom_nodes.llm4gen" if "llm" in inputs else "nodes",
    }


KINDS = {
    "Loader": kind({"ckpt_name": [["a.safetensors", "b.safetensors"]]}, ["MODEL", "CLIP", "VAE"]),
    "CLIPTextEncode": kind({"text": TEXT, "clip": ["CLIP"]}, ["CONDITIONING"]),
    "CLIPTextEncodeSDXL": kind(
        {"clip": ["CLIP"], "width": ["INT", {}], "text_g": TEXT, "text_l": TEXT}, ["CONDITIONING"]
    ),
    "LLM4GENTextEncode": kind(
        {"clip": ["CLIP"], "llm": ["LLM4GEN_LLM"], "positive": TEXT, "negative": TEXT, "strength": ["FLOAT", {}]},
        ["CONDITIONING", "CONDITIONING"],
        ["positive", "negative"],
    ),
    "LLM4GENEncodeCLIP": kind(
        {"clip": ["CLIP"], "text": TEXT}, ["CONDITIONING"], optional={"paired_text": ["STRING", {"forceInput": True}]}
    ),
    "LLM4GENEncodeLLM": kind({"llm": ["LLM4GEN_LLM"], "text": TEXT}, ["LLM4GEN_FEATURES"], ["LLM_FEATURES"]),
    "LLM4GENFuse": kind({"conditioning": ["CONDITIONING"], "llm_features": ["LLM4GEN_FEATURES"]}, ["CONDITIONING"]),
    "LLMLoader": kind({"llm_name": ["COMBO", {"options": ["t5/"]}]}, ["LLM4GEN_LLM"]),
    "ConditioningCombine": kind(
        {"conditioning_1": ["CONDITIONING"], "conditioning_2": ["CONDITIONING"]}, ["CONDITIONING"]
    ),
    "ConditioningZeroOut": kind({"conditioning": ["CONDITIONING"]}, ["CONDITIONING"]),
    "FluxGuidance": kind({"conditioning": ["CONDITIONING"], "guidance": ["FLOAT", {}]}, ["CONDITIONING"]),
    "ControlNetApplyAdvanced": kind(
        {"positive": ["CONDITIONING"], "negative": ["CONDITIONING"], "image": ["IMAGE"]},
        ["CONDITIONING", "CONDITIONING"],
        ["positive", "negative"],
    ),
    "PrimitiveString": kind({"value": ["STRING", {"multiline": False}]}, ["STRING"]),
    "StringConcatenate": kind({"string_a": TEXT, "string_b": TEXT, "delimiter": ["STRING", {}]}, ["STRING"]),
    "Text/from a pack (x)": kind({"text": ["STRING", {}]}, ["STRING"]),
    "PrimitiveInt": kind({"value": ["INT", {"control_after_generate": True}]}, ["INT"]),
    "EmptyLatentImage": kind({"width": ["INT", {}], "height": ["INT", {}], "batch_size": ["INT", {}]}, ["LATENT"]),
    "KSampler": kind({**SAMPLER, "seed": SEED, "steps": ["INT", {"default": 20}]}, ["LATENT"]),
    "KSamplerAdvanced": kind({**SAMPLER, "noise_seed": SEED}, ["LATENT"]),
    "RandomNoise": kind({"noise_seed": SEED}, ["NOISE"]),
    "BasicGuider": kind({"model": ["MODEL"], "conditioning": ["CONDITIONING"]}, ["GUIDER"]),
    "DualCFGGuider": kind(
        {"cond1": ["CONDITIONING"], "cond2": ["CONDITIONING"], "negative": ["CONDITIONING"]}, ["GUIDER"]
    ),
    "SamplerCustomAdvanced": kind({"noise": ["NOISE"], "guider": ["GUIDER"], "latent_image": ["LATENT"]}, ["LATENT"]),
    "BothSides": kind(
        {"text": TEXT, "negative_text": TEXT}, ["CONDITIONING", "CONDITIONING"], ["positive", "negative"]
    ),
    "OtherEncoder": kind({"prompt": TEXT, "negative_prompt": TEXT}, ["OTHER_EMBEDS"]),
    "OtherSampler": kind({"embeds": ["OTHER_EMBEDS"], "seed": ["INT", {}], "steps": ["INT", {}]}, ["LATENT"]),
    "VAEDecode": kind({"samples": ["LATENT"], "vae": ["VAE"]}, ["IMAGE"]),
    "LoadImage": kind({"image": [["a.png"], {"image_upload": True}]}, ["IMAGE", "MASK"]),
    "SaveImage": kind({"images": ["IMAGE"], "filename_prefix": ["STRING", {}]}, ["IMAGE"], end=True),
    "PreviewImage": kind({"images": ["IMAGE"]}, [], end=True),
}


def plain():
    """The graph that every user of ComfyUI knows."""
    return {
        "1": {"class_type": "Loader", "inputs": {"ckpt_name": "a.safetensors"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "old text", "clip": ["1", 1]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "ugly", "clip": ["1", 1]}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "5": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0],
                "positive": ["2", 0],
                "negative": ["3", 0],
                "latent_image": ["4", 0],
                "seed": 7,
                "steps": 20,
            },
        },
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "a"}},
    }


def changed(inputs=(), **nodes):
    """The plain graph with other nodes (`n8=("Class", {...})`) and other inputs {"5.seed": value}."""
    graph = plain()
    graph.update({name[1:]: {"class_type": node[0], "inputs": node[1]} for name, node in nodes.items()})
    for place, value in dict(inputs).items():
        node, _, name = place.partition(".")
        graph[node]["inputs"][name] = value
    return graph


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """Look at the queue more often than once in a second."""
    monkeypatch.setattr(painter_module, "_LOOK", 0.05)


def colour(text, seed):
    return tuple(hashlib.sha256(f"{text}|{seed}".encode()).digest()[:3])


class FakeComfyUI:
    """Speaks the API of ComfyUI; an image of one colour of prompt and seed stands for a painting."""

    def __init__(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.version = "0.33.0"
        self.running, self.waiting, self.history = [], [], {}
        self.files, self.got, self.deleted = {}, [], []
        self.asked_to_interrupt, self.interrupted = [], []
        self.longest = 0
        self.seconds = 0.0
        self.outcome = lambda entry: None
        """Messages of the history for an entry that does not end well."""
        self.images_each = 1
        self.refusal = self.after_accepting = None
        self.stats_answer = None
        self.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def stop(self):
        """As a process that ends: what is in the queue and in the history is lost."""
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)
        self.running, self.waiting, self.history = [], [], {}

    def put(self, name, nodes=None):
        """An entry of somebody else."""
        self.waiting.append([len(self.got), name, nodes or {}, {}, []])

    async def _serve(self):
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application()
        app.add_routes(
            [
                web.get("/system_stats", self._stats),
                web.get("/object_info/{kind}", self._info),
                web.post("/prompt", self._prompt),
                web.get("/queue", self._queue),
                web.post("/queue", self._delete),
                web.post("/interrupt", self._interrupt),
                web.get("/history/{name}", self._history),
                web.get("/view", self._view),
            ]
        )
        runner = web.AppRunner(app, shutdown_timeout=0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port, reuse_address=True).start()
        worker = asyncio.create_task(self._work())
        self._ready.set()
        await self._end.wait()
        worker.cancel()
        await runner.cleanup()

    async def _work(self):
        while True:
            await asyncio.sleep(0.002)
            if not self.waiting:
                continue
            entry = self.waiting.pop(0)
            self.running.append(entry)
            end = time.monotonic() + self.seconds
            while time.monotonic() < end and entry[1] not in self.interrupted:
                await asyncio.sleep(0.005)
            messages = self.outcome(entry)
            if entry[1] in self.interrupted:
                messages = [["execution_interrupted", {"node_id": "5", "node_type": "KSampler"}]]
            self.running.remove(entry)
            outputs = {} if messages else self._outputs(entry[2])
            status = {"status_str": "error" if messages else "success", "messages": messages or []}
            self.history[entry[1]] = {"prompt": entry, "outputs": outputs, "status": status}

    def _outputs(self, nodes):
        outputs = {}
        for name, node in nodes.items():
            if node["class_type"] == "PreviewImage":
                files = []
                for _ in range(self.images_each):
                    file = f"{len(self.files):05}_.png"
                    buffer, metadata = io.BytesIO(), PngInfo()
                    metadata.add_text("prompt", json.dumps(nodes))
                    Image.new(
                        "RGBA", (4, 4), (*colour(nodes["2"]["inputs"]["text"], nodes["5"]["inputs"]["seed"]), 9)
                    ).save(buffer, format="PNG", pnginfo=metadata)
                    self.files[file] = buffer.getvalue()
                    files.append({"filename": file, "subfolder": "", "type": "temp"})
                outputs[name] = {"images": files}
        return outputs

    async def _stats(self, request):
        if self.stats_answer is not None:
            return self.stats_answer()
        system = {"comfyui_version": self.version, "pytorch_version": "2.9", "python_version": "3.11 (main)"}
        argv = ["main.py", "--port", "8188", "--fast", "fp16_accumulation", "--use-pytorch-cross-attention"]
        return web.json_response({"system": {**system, "argv": argv}, "devices": [{"name": "cuda:0 A card"}]})

    async def _info(self, request):
        name = request.match_info["kind"]
        return web.json_response({name: KINDS[name]} if name in KINDS else {})

    async def _prompt(self, request):
        body = await request.json()
        if self.refusal is not None:
            return web.json_response(self.refusal, status=400)
        self.got.append(body["prompt"])
        self.waiting.append([len(self.got), body["prompt_id"], body["prompt"], {}, []])
        self.longest = max(self.longest, len(self.waiting) + len(self.running))
        if self.after_accepting is not None:
            action, self.after_accepting = self.after_accepting, None
            action(request)
        return web.json_response({"prompt_id": body["prompt_id"], "number": len(self.got), "node_errors": {}})

    async def _queue(self, request):
        return web.json_response({"queue_running": self.running, "queue_pending": self.waiting})

    async def _delete(self, request):
        names = (await request.json())["delete"]
        self.deleted += names
        self.waiting = [entry for entry in self.waiting if entry[1] not in names]
        return web.Response()

    async def _interrupt(self, request):
        name = (await request.json()).get("prompt_id")
        self.asked_to_interrupt.append(name)
        self.interrupted += [entry[1] for entry in self.running if name in (None, entry[1])]
        return web.Response()

    async def _history(self, request):
        name = request.match_info["name"]
        return web.json_response({name: self.history[name]} if name in self.history else {})

    async def _view(self, request):
        file = self.files.get(request.query["filename"])
        return web.Response(status=404) if file is None else web.Response(body=file, content_type="image/png")


@pytest.fixture
def comfy():
    server = FakeComfyUI()
    yield server
    server.stop()


@pytest.fixture
def connect(comfy, tmp_path):
    painters = []

    def connect(graph=None, **options):
        file = tmp_path / "workflow.json"
        file.write_text(json.dumps(plain() if graph is None else graph), encoding="utf-8")
        options = {"patience": 5, **options}
        painters.append(ComfyUIPainter.connect(comfy.url, file, **options))
        return painters[-1]

    yield connect
    for painter in painters:
        painter.close()


def prompts(number):
    return [Prompt(id=f"p{place}", text=f"prompt {place}") for place in range(number)]


def painted(images):
    return [image.getpixel((0, 0)) for image in images]


def expected(number):
    return [colour(f"prompt {place}", place) for place in range(number)]


# What comes out


def test_one_image_for_each_pair_in_order(comfy, connect):
    images = list(connect().paint(prompts(5), range(5)))
    assert painted(images) == expected(5)
    assert {image.mode for image in images} == {"RGB"} and not any(image.info for image in images)
    assert [nodes["5"]["inputs"]["seed"] for nodes in comfy.got] == [0, 1, 2, 3, 4]


def test_the_command_paints_a_set_and_goes_on_where_the_server_failed(comfy, tmp_path, capsys):
    """`generate --workflow`: what is painted before a failure is kept, and painted once."""
    (tmp_path / "flow.json").write_text(json.dumps(plain()))
    write_prompts(tmp_path / "prompts.jsonl", prompts(3))
    command = ["generate", str(tmp_path / "set"), "--prompts", str(tmp_path / "prompts.jsonl"), "--seeds", "1-2"]
    command += ["--workflow", str(tmp_path / "flow.json"), "--server", comfy.url]
    failed = [["execution_error", {"node_id": "5", "node_type": "KSampler", "exception_message": "out of memory"}]]
    comfy.outcome = lambda entry: failed if len(comfy.history) >= 4 else None
    assert main(command) == 2 and "The same command goes on there" in capsys.readouterr().err
    images = ImageSet(tmp_path / "set")
    assert len(images.rows()) == 4
    comfy.outcome = lambda entry: None
    assert main(command) == 0
    rows = images.rows()
    assert [(row.prompt, row.seed) for row in rows] == [(prompt.id, seed) for prompt in prompts(3) for seed in (1, 2)]
    assert len([*images.manifest.lines()]) == 6, "no image twice"
    assert [images.open(row).getpixel((0, 0)) for row in rows] == [colour(row.text, row.seed) for row in rows]
    assert rows[0].made["server"] == comfy.url and "workflow" in json.dumps(images.settings.painting)
    assert images.settings.notes == [WORKFLOW_NOTE]


def test_the_workflow_itself_is_kept(comfy, connect):
    list(connect().paint(prompts(1), [0]))
    wanted = changed({"2.text": "prompt 0", "5.seed": 0})
    del wanted["7"]
    assert comfy.got == [{**wanted, "6-image": {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}}}]


def test_a_kind_of_nodes_with_any_name(comfy, connect):
    painter = connect(changed({"2.text": ["8", 0]}, n8=("Text/from a pack (x)", {"text": "old"})))
    assert painter.describe()["prompt_inputs"] == ["8.text"]


def test_the_next_entries_are_queued_while_an_image_is_looked_at(comfy, connect):
    images = connect(ahead=2).paint(prompts(6), range(6))
    next(images)
    assert len(comfy.got) == 3
    next(images)
    assert len(comfy.got) == 4
    assert len(list(images)) == 4 and comfy.longest <= 3


def test_parentheses_are_escaped_unless_they_are_weights(comfy, connect):
    prompt = [Prompt(id="a", text="a (red:1.3) cat \\(so\\)")]
    list(connect().paint(prompt, [0]))
    list(connect(weights=True).paint(prompt, [0]))
    texts = [nodes["2"]["inputs"]["text"] for nodes in comfy.got]
    assert texts == ["a \\(red:1.3\\) cat \\\\(so\\\\)", "a (red:1.3) cat \\(so\\)"]


def test_a_placeholder_keeps_the_words_around_it(comfy, connect):
    painter = connect(changed({"2.text": "a photo of {prompt}, sharp", "3.text": "no {prompt}"}))
    list(painter.paint([Prompt(id="a", text="{prompt} and {seed}")], [0]))
    assert comfy.got[0]["2"]["inputs"]["text"] == "a photo of {prompt} and {seed}, sharp"
    assert comfy.got[0]["3"]["inputs"]["text"] == "no {prompt} and {seed}"


def test_the_negative_prompt_is_the_workflows_unless_given(comfy, connect):
    list(connect().paint(prompts(1), [0]))
    list(connect(negative="a (bad) one").paint(prompts(1), [0]))
    assert [nodes["3"]["inputs"]["text"] for nodes in comfy.got] == ["ugly", "a \\(bad\\) one"]


def test_description_has_all_that_changes_pixels_and_nothing_else(comfy, connect, capsys):
    about = connect().describe()
    assert "goes to 2.text (CLIPTextEncode), the seed to 5.seed (KSampler)" in capsys.readouterr().out
    assert about["prompt_inputs"] == ["2.text"] and about["seed_inputs"] == ["5.seed"]
    assert about["models"] == ["a.safetensors"] and about["comfyui"] == "0.33.0"
    assert about["comfyui_switches"] == ["--fast", "fp16_accumulation", "--use-pytorch-cross-attention"]
    same = changed({"2.text": "other", "5.seed": 9, "7.filename_prefix": "b"}, n9=("Loader", {"ckpt_name": "x"}))
    assert connect(same).describe() == about, "prompt, seed, file name and loose nodes change no pixel"
    for other in (changed({"3.text": "bad"}), changed({"5.steps": 21}), changed({"1.ckpt_name": "b.safetensors"})):
        assert connect(other).describe()["workflow_hash"] != about["workflow_hash"]
    assert json.loads(json.dumps(about)) == about
    assert connect().made()["devices"] == ["cuda:0 A card"]


# What can go wrong


def test_no_server(tmp_path):
    with pytest.raises(LLM4GENError, match="No ComfyUI server answers at http://127.0.0.1:9"):
        ComfyUIPainter.connect("127.0.0.1:9", tmp_path / "w.json")
    with pytest.raises(LLM4GENError, match="is no address of a ComfyUI"):
        ComfyUIPainter.connect("ftp://somewhere", tmp_path / "w.json")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda: web.Response(text="<html>", content_type="text/html"), "is no ComfyUI"),
        (lambda: web.json_response({"hello": 1}), "is no ComfyUI"),
        (lambda: web.Response(status=401), "answers 401 to /system_stats"),
    ],
)
def test_something_else_answers(comfy, connect, answer, message):
    comfy.stats_answer = answer
    with pytest.raises(LLM4GENError, match=message):
        connect()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot be read \(No such file"),
        ("{", "is no JSON"),
        ("[]", "holds no nodes"),
        ('{"1": {"inputs": {}}}', "node '1' has no class_type and inputs"),
        ('{"nodes": [{"id": 1}], "links": []}', r"is no canvas that ComfyUI saved \(KeyError\('type'\)\)"),
        ('{"1": {"class_type": "Gone", "inputs": {}}}', "node 1 is a Gone, which the ComfyUI server does not know"),
        ('{"1": {"class_type": "VAEDecode", "inputs": {"vae": ["9", 0]}}}', "1.vae is wired to output 0 of node '9'"),
    ],
)
def test_a_file_that_is_no_workflow(comfy, tmp_path, content, message):
    if content is not None:
        (tmp_path / "w.json").write_text(content, encoding="utf-8")
    with pytest.raises(LLM4GENError, match=message):
        ComfyUIPainter.connect(comfy.url, tmp_path / "w.json")


def test_a_refusal_is_one_sentence(comfy, connect):
    painter = connect()
    details = "ckpt_name: 'a.safetensors' not in ['b.safetensors']"
    error = {"message": "Value not in list", "details": details, "extra_info": {"input_name": "ckpt_name"}}
    comfy.refusal = {
        "error": {"type": "prompt_outputs_failed_validation", "message": "Prompt outputs failed validation"},
        "node_errors": {"1": {"errors": [error], "dependent_outputs": ["6-image"], "class_type": "Loader"}},
    }
    wanted = "at node 1 (Loader), input ckpt_name: Value not in list ('a.safetensors' not in ['b.safetensors'])."
    with pytest.raises(LLM4GENError) as refused:
        list(painter.paint(prompts(1), [0]))
    assert str(refused.value) == f"ComfyUI refuses the workflow {wanted}"
    comfy.refusal = {"error": {"message": "Prompt has no outputs", "details": ""}, "node_errors": {}}
    with pytest.raises(LLM4GENError, match=r"^ComfyUI refuses the workflow: Prompt has no outputs\.$"):
        list(painter.paint(prompts(1), [0]))


def test_a_failing_node_ends_it_and_takes_back_the_rest(comfy, connect):
    failure = {"node_id": "5", "node_type": "KSampler", "exception_message": "out of\n memory"}
    comfy.outcome = lambda entry: [["execution_error", failure]] if entry[2]["5"]["inputs"]["seed"] == 1 else None
    comfy.seconds = 0.1
    images = connect(ahead=2).paint(prompts(6), range(6))
    assert painted([next(images)]) == expected(1)
    with pytest.raises(LLM4GENError, match=r"prompt 'p1' with seed 1 failed at node 5 \(KSampler\): out of memory"):
        list(images)
    assert not comfy.waiting and len(comfy.got) == 4


def test_an_interruption_is_said(comfy, connect):
    comfy.outcome = lambda entry: [["execution_interrupted", {"node_id": "5", "node_type": "KSampler"}]]
    with pytest.raises(LLM4GENError, match=r"was interrupted in ComfyUI at node 5 \(KSampler\). The same command goes"):
        list(connect().paint(prompts(2), range(2)))


def test_a_batch_is_refused_before_and_after(comfy, connect):
    with pytest.raises(LLM4GENError, match=r"paints 4 images at once \(node 4 \(EmptyLatentImage\), batch_size\)"):
        connect(changed({"4.batch_size": 4}))
    comfy.images_each = 2
    with pytest.raises(LLM4GENError, match="gave 2 images; expected one"):
        list(connect().paint(prompts(1), [0]))


def test_an_image_that_has_gone(comfy, connect):
    comfy.files = type("Lost", (dict,), {"get": lambda self, key: None})()
    with pytest.raises(LLM4GENError, match="no longer has the image"):
        list(connect().paint(prompts(1), [0]))


def test_a_timeout_stops_its_own_entries_only(comfy, connect):
    comfy.seconds = 60
    comfy.put("somebody's")
    images = connect(timeout=0.4).paint(prompts(3), range(3))
    threading.Timer(1, lambda: comfy.interrupted.append("somebody's")).start()
    with pytest.raises(LLM4GENError, match="p0' with seed 0 is not ready after 0.4 s"):
        list(images)
    assert "somebody's" in comfy.history, "the time that it waited behind others does not count"
    comfy.put("after")
    assert [entry[1] for entry in comfy.waiting] == ["after"] and len(comfy.deleted) == 3
    assert len(comfy.asked_to_interrupt) == 1


def test_ctrl_c_takes_back_what_was_queued_and_nothing_else(comfy, connect, monkeypatch):
    comfy.seconds = 60
    comfy.put("somebody's")
    painter = connect(ahead=2)

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(painter_module.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(painter.paint(prompts(5), range(5)))
    assert [entry[1] for entry in comfy.running + comfy.waiting] == ["somebody's"]
    assert len(comfy.deleted) == 3 and not comfy.asked_to_interrupt


def test_ending_early_takes_back_the_rest(comfy, connect):
    images = connect(ahead=2).paint(prompts(5), range(5))
    next(images)
    comfy.seconds = 60
    images.close()
    assert not comfy.waiting


def test_a_server_that_is_started_again_is_asked_again(comfy, connect):
    comfy.seconds = 0.05
    images = connect(ahead=2).paint(prompts(6), range(6))
    assert painted([next(images)]) == expected(1)
    comfy.stop()
    threading.Timer(0.7, comfy.start).start()
    assert painted(images) == expected(6)[1:]


def test_a_queue_that_is_cleared_twice_ends_it(comfy, connect):
    comfy.seconds = 60
    stop = threading.Event()

    def clear():
        while not stop.wait(0.1):
            comfy.waiting, comfy.running = [], []

    person = threading.Thread(target=clear)
    comfy.put("in front")
    painter = connect(ahead=0)
    person.start()
    try:
        with pytest.raises(LLM4GENError, match="vanished from ComfyUI's queue a second time"):
            list(painter.paint(prompts(1), [0]))
    finally:
        stop.set()
        person.join()
    assert len(comfy.got) == 2


def test_another_version_after_a_start_is_refused(comfy, connect):
    comfy.seconds = 60
    images = connect().paint(prompts(2), range(2))

    def start_again():
        comfy.stop()
        comfy.version, comfy.seconds = "0.34.0", 0
        comfy.start()

    threading.Timer(0.5, start_again).start()
    with pytest.raises(LLM4GENError, match="started again as version 0.34.0 after 0.33.0"):
        list(images)


def test_an_answer_that_is_lost_paints_nothing_twice(comfy, connect):
    comfy.after_accepting = lambda request: request.transport.abort()
    assert painted(connect().paint(prompts(3), range(3))) == expected(3)
    assert len(comfy.got) == 3


def test_a_server_that_stays_away_is_said(comfy, connect):
    painter = connect(patience=0.5)
    comfy.stop()
    with pytest.raises(LLM4GENError, match="has not answered for 0.5 s"):
        list(painter.paint(prompts(1), [0]))
    comfy.start()


# Where prompt, seed and image are


def read(nodes):
    graph = Graph(nodes, KINDS.get)
    return graph, find_image(graph)


def texts(nodes, side="positive", given=()):
    graph, image = read(nodes)
    return [str(place) for place in find_texts(graph, image, side, given)]


def seeds(nodes, given=()):
    graph, image = read(nodes)
    return [str(place) for place in find_seeds(graph, image, given)]


def text_encode():
    text = {"clip": ["1", 1], "llm": ["9", 0], "positive": "good", "negative": "bad", "strength": 1.0}
    return changed(
        {"5.positive": ["8", 0], "5.negative": ["8", 1]},
        n8=("LLM4GENTextEncode", text),
        n9=("LLMLoader", {"llm_name": "t5/"}),
    )


def fused():
    return changed(
        {"5.positive": ["8", 0], "5.negative": ["3", 0]},
        n8=("LLM4GENFuse", {"conditioning": ["10", 0], "llm_features": ["11", 0]}),
        n9=("LLMLoader", {"llm_name": "t5/"}),
        n10=("LLM4GENEncodeCLIP", {"clip": ["1", 1], "text": "short", "paired_text": ["12", 0]}),
        n11=("LLM4GENEncodeLLM", {"llm": ["9", 0], "text": "long and dense"}),
        n12=("PrimitiveString", {"value": "ugly"}),
    )


def sdxl():
    return changed(
        {"5.positive": ["8", 0]},
        n8=("CLIPTextEncodeSDXL", {"clip": ["1", 1], "width": 1024, "text_g": "a scene", "text_l": "a style"}),
    )


def control_net():
    return changed(
        {"5.positive": ["8", 0], "5.negative": ["8", 1]},
        n8=("ControlNetApplyAdvanced", {"positive": ["2", 0], "negative": ["3", 0], "image": ["9", 0]}),
        n9=("LoadImage", {"image": "a.png"}),
    )


def both_sides():
    return changed(
        {"5.positive": ["8", 0], "5.negative": ["8", 1]}, n8=("BothSides", {"text": "good", "negative_text": "bad"})
    )


def negative_on_a_detour():
    """A node on the negative side whose input does not say which side it is on."""
    return changed({"5.negative": ["8", 0]}, n8=("FluxGuidance", {"conditioning": ["3", 0], "guidance": 3.5}))


def flux():
    nodes = plain()
    del nodes["3"]
    nodes["5"] = {
        "class_type": "SamplerCustomAdvanced",
        "inputs": {"noise": ["8", 0], "guider": ["9", 0], "latent_image": ["4", 0]},
    }
    nodes["8"] = {"class_type": "RandomNoise", "inputs": {"noise_seed": 1}}
    nodes["9"] = {"class_type": "BasicGuider", "inputs": {"model": ["1", 0], "conditioning": ["10", 0]}}
    nodes["10"] = {"class_type": "FluxGuidance", "inputs": {"conditioning": ["2", 0], "guidance": 3.5}}
    return nodes


def edit():
    """Guidance with two conditions, of which one is the negative prompt with an image."""
    nodes = flux()
    nodes["3"] = plain()["3"]
    nodes["9"] = {"class_type": "DualCFGGuider", "inputs": {"cond1": ["2", 0], "cond2": ["3", 0], "negative": ["3", 0]}}
    return nodes


def other_types():
    nodes = plain()
    del nodes["2"], nodes["3"], nodes["4"]
    nodes["5"] = {"class_type": "OtherSampler", "inputs": {"embeds": ["8", 0], "seed": 1}}
    nodes["8"] = {"class_type": "OtherEncoder", "inputs": {"prompt": "good", "negative_prompt": "bad"}}
    return nodes


def two_samplers():
    """Base and refiner, each with an encoder of its own, one string for both."""
    return changed(
        {"2.text": ["9", 0], "5.latent_image": ["8", 0]},
        n8=(
            "KSamplerAdvanced",
            {
                "model": ["1", 0],
                "positive": ["10", 0],
                "negative": ["3", 0],
                "latent_image": ["4", 0],
                "noise_seed": ["11", 0],
            },
        ),
        n9=("PrimitiveString", {"value": "one text"}),
        n10=("CLIPTextEncode", {"text": ["9", 0], "clip": ["1", 1]}),
        n11=("PrimitiveInt", {"value": 5}),
    )


@pytest.mark.parametrize(
    ("nodes", "positive", "negative", "seed"),
    [
        (plain, ["2.text"], ["3.text"], ["5.seed"]),
        (text_encode, ["8.positive"], ["8.negative"], ["5.seed"]),
        (fused, ["10.text", "11.text"], ["3.text"], ["5.seed"]),
        (sdxl, ["8.text_g", "8.text_l"], ["3.text"], ["5.seed"]),
        (control_net, ["2.text"], ["3.text"], ["5.seed"]),
        (both_sides, ["8.text"], ["8.negative_text"], ["5.seed"]),
        (negative_on_a_detour, ["2.text"], ["3.text"], ["5.seed"]),
        (flux, ["2.text"], None, ["8.noise_seed"]),
        (edit, ["2.text"], ["3.text"], ["8.noise_seed"]),
        (other_types, ["8.prompt"], ["8.negative_prompt"], ["5.seed"]),
        (two_samplers, ["9.value"], ["3.text"], ["11.value", "5.seed"]),
    ],
)
def test_prompt_and_seed_are_found(nodes, positive, negative, seed):
    assert texts(nodes()) == positive
    if negative is not None:
        assert texts(nodes(), "negative") == negative
    assert seeds(nodes()) == seed


def test_equal_texts_are_one_prompt_and_others_are_listed():
    combined = changed(
        {"5.positive": ["8", 0]},
        n8=("ConditioningCombine", {"conditioning_1": ["2", 0], "conditioning_2": ["9", 0]}),
        n9=("CLIPTextEncode", {"text": "old text", "clip": ["1", 1]}),
    )
    assert texts(combined) == ["2.text", "9.text"]
    combined["9"]["inputs"]["text"] = "another region"
    message = (
        r"several texts that may be the prompt: 2.text \(CLIPTextEncode, 'old text'\), "
        r"9.text \(CLIPTextEncode, 'another region'\); name those"
    )
    with pytest.raises(LLM4GENError, match=message):
        texts(combined)
    assert texts(combined, given=["9.text"]) == ["9.text"]
    combined["2"]["inputs"]["text"] = "{prompt}, in oil"
    assert texts(combined) == ["2.text"]


def test_joined_strings_are_ambiguous():
    joined = {"string_a": "a photo of", "string_b": "a cat", "delimiter": " "}
    with pytest.raises(LLM4GENError, match="several texts that may be the prompt: 8.delimiter"):
        texts(changed({"2.text": ["8", 0]}, n8=("StringConcatenate", joined)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("text", "'text' names no input of a workflow"),
        ("42.text", "node '42': it does not exist; it depends on 1 .Loader."),
        ("7.filename_prefix", "node '7': its image does not depend on it"),
        ("2.clip", r"node 2 \(CLIPTextEncode\) has no input 'clip' that takes a text; expected text\."),
        ("5.seed", "has no input 'seed' that takes a text; expected another node"),
    ],
)
def test_inputs_that_are_given_are_checked(given, message):
    with pytest.raises(LLM4GENError, match=message):
        texts(plain(), given=[given])


def test_a_given_input_replaces_the_wire_to_it(comfy, connect):
    painter = connect(two_samplers(), prompt_inputs=["2.text", "10.text"], seed_inputs=["5.seed", "8.noise_seed"])
    list(painter.paint(prompts(1), [3]))
    assert "9" not in comfy.got[0] and "11" not in comfy.got[0]
    assert comfy.got[0]["10"]["inputs"]["text"] == "prompt 0" and comfy.got[0]["8"]["inputs"]["noise_seed"] == 3


def test_a_negative_that_is_made_from_the_prompt_cannot_be_set(connect):
    zero = changed({"5.negative": ["8", 0]}, n8=("ConditioningZeroOut", {"conditioning": ["2", 0]}))
    connect(zero)
    with pytest.raises(LLM4GENError, match="makes its negative side from the prompt"):
        connect(zero, negative="bad")


def test_no_prompt_and_no_seed():
    no_seed = changed({"5.seed": ["8", 0]}, n8=("LoadImage", {"image": "a.png"}))
    with pytest.raises(LLM4GENError, match=r"5.seed is wired to 8 \(LoadImage\), whose number is not clear"):
        seeds(no_seed)
    nodes = changed(n6=("LoadImage", {"image": "a.png"}))
    with pytest.raises(LLM4GENError, match="depends on no input named seed"):
        seeds(nodes)
    with pytest.raises(LLM4GENError, match="no text reaches a sampler"):
        texts(nodes)


def test_the_saved_image_counts_and_several_are_listed():
    nodes = control_net()
    nodes["20"] = {"class_type": "PreviewImage", "inputs": {"images": ["9", 0]}}
    assert read(nodes)[1] == ("6", 0), "a preview of the control image is not the result"
    nodes["21"] = {"class_type": "SaveImage", "inputs": {"images": ["9", 0], "filename_prefix": "control"}}
    with pytest.raises(LLM4GENError, match=r"at the nodes 7 \(SaveImage\), 21 \(SaveImage\); name one"):
        read(nodes)
    graph = Graph(nodes, KINDS.get)
    assert [find_image(graph, node) for node in ("7", "6", "21", "20")] == [("6", 0), ("6", 0), ("9", 0), ("9", 0)]
    with pytest.raises(LLM4GENError, match=r"5 \(KSampler\) takes and makes no IMAGE"):
        find_image(graph, "5")
    del nodes["7"], nodes["20"], nodes["21"]
    with pytest.raises(LLM4GENError, match="saves and shows no image"):
        read(nodes)


# A canvas as ComfyUI saves it


def canvas():
    """The plain graph as a canvas, with a reroute, a primitive node, a bypassed node and a note."""

    def node(number, kind, values, inputs=(), mode=0):
        slots = [{"name": name, "type": kind_, "link": link} for name, kind_, link in inputs]
        return {"id": number, "type": kind, "widgets_values": values, "inputs": slots, "mode": mode}

    return {
        "nodes": [
            node(1, "Loader", ["a.safetensors"]),
            node(2, "CLIPTextEncode", ["old text // a comment"], [("clip", "CLIP", 1)]),
            node(3, "CLIPTextEncode", [r"\{ugly\}"], [("clip", "CLIP", 2)]),
            node(4, "EmptyLatentImage", [64, 64, 1]),
            node(
                5,
                "KSampler",
                [7, "randomize", 20],
                [
                    ("model", "MODEL", 3),
                    ("positive", "CONDITIONING", 4),
                    ("negative", "CONDITIONING", 5),
                    ("latent_image", "LATENT", 6),
                    ("steps", "INT", 7),
                ],
            ),
            node(6, "VAEDecode", [], [("samples", "LATENT", 8), ("vae", "VAE", 9)]),
            node(7, "SaveImage", ["a"], [("images", "IMAGE", 10)]),
            node(8, "Reroute", [], [("", "*", 11)]),
            node(9, "PrimitiveNode", [25, "fixed"]),
            node(10, "FluxGuidance", [3.5], [("conditioning", "CONDITIONING", 12)], mode=4),
            node(11, "Note", ["a note"]),
        ],
        "links": [
            [1, 1, 1, 2, 0, "CLIP"],
            [2, 8, 0, 3, 0, "CLIP"],
            [3, 1, 0, 5, 0, "MODEL"],
            [4, 10, 0, 5, 1, "CONDITIONING"],
            [5, 3, 0, 5, 2, "CONDITIONING"],
            [6, 4, 0, 5, 3, "LATENT"],
            [7, 9, 0, 5, 4, "INT"],
            [8, 5, 0, 6, 0, "LATENT"],
            [9, 1, 2, 6, 1, "VAE"],
            [10, 6, 0, 7, 0, "IMAGE"],
            [11, 1, 1, 8, 0, "CLIP"],
            {"id": 12, "origin_id": 2, "origin_slot": 0, "target_id": 10, "target_slot": 0, "type": "CONDITIONING"},
        ],
        "version": 0.4,
    }


def on_canvas(**nodes):
    """The canvas with other fields of some nodes: n5={"mode": 2}."""
    content = canvas()
    for node in content["nodes"]:
        node.update(nodes.get(f"n{node['id']}", {}))
    return content


def test_a_canvas_is_what_run_sends():
    nodes, choices = convert(canvas(), KINDS.get)
    assert nodes == changed({"3.text": "{ugly}", "2.text": "old text ", "5.steps": 25}) and not choices


def test_a_muted_node_takes_its_wires_away():
    nodes, _ = convert(on_canvas(n9={"mode": 2}, n10={"mode": 2}), KINDS.get)
    assert "positive" not in nodes["5"]["inputs"] and "steps" not in nodes["5"]["inputs"]


def test_a_widget_that_came_later_has_its_default():
    nodes, _ = convert(on_canvas(n5={"widgets_values": [7, "fixed"], "inputs": []}), KINDS.get)
    assert nodes["5"]["inputs"] == {"seed": 7, "steps": 20}


def test_every_seed_has_a_control_behind_it():
    """The front end adds it by the input's name, where the node itself does not ask for it."""
    nodes, _ = convert(
        on_canvas(n5={"type": "OtherSampler", "widgets_values": [7, "fixed", 30], "inputs": []}), KINDS.get
    )
    assert nodes["5"]["inputs"] == {"seed": 7, "steps": 30}


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ({"n5": {"widgets_values": [7, "fixed", 20, "euler"]}}, r"node 5 \(KSampler\) has more values .*'euler'"),
        ({"n5": {"widgets_values": ["seven", "fixed", 20]}}, "has 'seven' for seed, which is INT"),
        ({"n4": {"type": "SetNode"}}, "node 4 is a SetNode, which the server does not know"),
        ({"n4": {"type": "0a1b"}}, r"node 4 is a subgraph \(My latents\)"),
        ({"n8": {"inputs": [{"name": "", "type": "*", "link": 99}]}}, "wire 99 leads nowhere"),
    ],
)
def test_what_is_not_certain_is_refused_with_the_way_out(connect, nodes, message):
    content = on_canvas(**nodes)
    content["definitions"] = {"subgraphs": [{"id": "0a1b", "name": "My latents"}]}
    with pytest.raises(
        LLM4GENError, match=f"is a saved canvas, .*{message}.* Export it in ComfyUI by Workflow > Export"
    ):
        connect(content)


def test_choices_in_braces_are_refused_but_where_another_text_goes(comfy, connect):
    choices = {"widgets_values": ["a {red|blue} cat"]}
    connect(on_canvas(n2=choices))
    connect(on_canvas(n3=choices), negative="bad")
    with pytest.raises(LLM4GENError, match=r"text 3.text \(CLIPTextEncode\) has choices in braces"):
        connect(on_canvas(n3=choices))
    with pytest.raises(LLM4GENError, match=r"text 2.text \(CLIPTextEncode\) has choices in braces"):
        connect(on_canvas(n2={"widgets_values": ["{prompt} in {red|blue}"]}))
    list(connect(on_canvas(n2={"widgets_values": ["{prompt}, \\{in oil\\}"]})).paint(prompts(1), [0]))
    assert comfy.got[0]["2"]["inputs"]["text"] == "prompt 0, {in oil}"
