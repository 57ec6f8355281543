"""A small server that speaks the API of ComfyUI, what it knows of nodes, and graphs of them."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import socket
import threading
import time

from aiohttp import web
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from evaluation.image_set import Prompt

TEXT = ["STRING", {"multiline": True, "dynamicPrompts": True}]
SEED = ["INT", {"default": 0, "control_after_generate": True}]
SAMPLER = {"model": ["MODEL"], "positive": ["CONDITIONING"], "negative": ["CONDITIONING"], "latent_image": ["LATENT"]}


def kind(inputs, output, end=False, optional=None):
    """Entry of /object_info for a node class."""
    return {
        "input": {"required": inputs, "optional": optional or {}},
        "output": output,
        "output_name": output,
        "output_node": end,
        "python_module": "custom_nodes.llm4gen" if "llm" in inputs else "nodes",
    }


KINDS = {
    "Loader": kind({"ckpt_name": [["a.safetensors", "b.safetensors"]]}, ["MODEL", "CLIP", "VAE"]),
    "CLIPTextEncode": kind({"text": TEXT, "clip": ["CLIP"]}, ["CONDITIONING"]),
    "LLM4GENEncodeCLIP": kind(
        {"clip": ["CLIP"], "text": TEXT}, ["CONDITIONING"], optional={"paired_text": ["STRING", {"forceInput": True}]}
    ),
    "LLM4GENEncodeLLM": kind({"llm": ["LLM4GEN_LLM"], "text": TEXT}, ["LLM4GEN_FEATURES"]),
    "LLM4GENFuse": kind({"conditioning": ["CONDITIONING"], "llm_features": ["LLM4GEN_FEATURES"]}, ["CONDITIONING"]),
    "LLMLoader": kind({"llm_name": ["COMBO", {"options": ["t5/"]}]}, ["LLM4GEN_LLM"]),
    "PrimitiveString": kind({"value": ["STRING", {"multiline": False}]}, ["STRING"]),
    "Text/from a pack (x)": kind({"text": ["STRING", {}]}, ["STRING"]),
    "PrimitiveInt": kind({"value": ["INT", {"control_after_generate": True}]}, ["INT"]),
    "EmptyLatentImage": kind({"width": ["INT", {}], "height": ["INT", {}], "batch_size": ["INT", {}]}, ["LATENT"]),
    "KSampler": kind({**SAMPLER, "seed": SEED, "steps": ["INT", {"default": 20}]}, ["LATENT"]),
    "KSamplerAdvanced": kind({**SAMPLER, "noise_seed": SEED}, ["LATENT"]),
    "RandomNoise": kind({"noise_seed": SEED}, ["NOISE"]),
    "BasicGuider": kind({"model": ["MODEL"], "conditioning": ["CONDITIONING"]}, ["GUIDER"]),
    "SamplerCustomAdvanced": kind({"noise": ["NOISE"], "guider": ["GUIDER"], "latent_image": ["LATENT"]}, ["LATENT"]),
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


def colour(text, seed):
    return tuple(hashlib.sha256(f"{text}|{seed}".encode()).digest()[:3])


class FakeComfyUI:
    """Speaks the API of ComfyUI; an image of one colour of prompt and seed stands for a generated image."""

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
        """Lose queue and history, as a process that ends."""
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


def prompts(number):
    return [Prompt(id=f"p{place}", text=f"prompt {place}") for place in range(number)]


def generated(images):
    return [image.getpixel((0, 0)) for image in images]


def expected(number):
    return [colour(f"prompt {place}", place) for place in range(number)]
