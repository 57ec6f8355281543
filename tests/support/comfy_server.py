"""A ComfyUI server in a process of its own, and a client for its HTTP API."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

COMFYUI = Path(os.environ.get("COMFYUI_PATH", Path.home() / "ComfyUI")).expanduser()
REPOSITORY = Path(__file__).parents[2]
PACK_FOLDER = "renamed-by-the-user"
"""The pack must not rely on its folder's name."""
NODES = [
    "LLM4GENLoadLLM",
    "LLM4GENLoadAdapter",
    "LLM4GENTextEncode",
    "LLM4GENEncodeLLM",
    "LLM4GENEncodeCLIP",
    "LLM4GENFuse",
    "LLM4GENPatch",
]
"""Ids of the pack's nodes; workflows of users depend on them."""
OTHER_PACKS = ("ComfyUI_IPAdapter_plus", "ComfyUI-ppm", "comfyui-prompt-control")
"""Packs of others that LLM4GEN is tested beside."""


def host_is_here() -> bool:
    return (COMFYUI / "main.py").is_file()


def pack_folder(name: str) -> Path:
    """Folder in which another pack is checked out, if it is."""
    return Path(os.environ.get("COMFYUI_PACKS_PATH", Path.home() / "comfyui-packs")).expanduser() / name


def make_base(base: Path, others: Iterable[Path] = ()) -> Path:
    """A base directory with this pack and the tests' probe nodes installed, and empty model folders.

    Args:
        base: to be made.
        others: folders of other packs, to be installed too.
    """
    custom_nodes = base / "custom_nodes"
    custom_nodes.mkdir(parents=True)
    (custom_nodes / PACK_FOLDER).symlink_to(REPOSITORY, target_is_directory=True)
    (custom_nodes / "probe").symlink_to(REPOSITORY / "tests" / "support" / "probe", target_is_directory=True)
    for other in others:
        (custom_nodes / other.name).symlink_to(other, target_is_directory=True)
    for folder in ("checkpoints", "diffusion_models", "text_encoders", "llm", "llm4gen"):
        (base / "models" / folder).mkdir(parents=True)
    return base


@dataclass
class Result:
    """Result of one prompt."""

    outputs: dict[str, Any]
    executed: set[str]
    """Nodes that ran; the others came from the cache."""
    error: str | None = None

    @classmethod
    def of(cls, entry: dict[str, Any]) -> Result:
        """Result from a prompt's entry in the server's history."""
        cached: set[str] = set()
        error = None
        for kind, data in entry["status"]["messages"]:
            if kind == "execution_cached":
                cached = set(data["nodes"])
            elif kind == "execution_error":
                error = f"{data['node_type']}: {data['exception_message'].strip()}"
        return cls(entry["outputs"], set(entry["prompt"][2]) - cached, error)

    def images(self) -> list[str]:
        return [image["filename"] for output in self.outputs.values() for image in output.get("images", [])]


@dataclass
class ComfyServer:
    """`main.py --cpu` over a base directory. Use as a context manager."""

    base: Path
    arguments: tuple[str, ...] = ()
    port: int = 0
    process: subprocess.Popen | None = field(default=None, repr=False)

    def __enter__(self) -> ComfyServer:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [sys.executable, "main.py", "--cpu", "--port", str(self.port), "--base-directory", str(self.base)]
        command += ["--disable-api-nodes", "--database-url", "sqlite:///:memory:", *self.arguments]
        # Some packs register nothing when they see that a test is running.
        environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=COMFYUI, stdout=log, stderr=subprocess.STDOUT, env=environment)
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                self.get("/system_stats")
                return self
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.3)
        self.__exit__()
        raise RuntimeError(f"ComfyUI did not start:\n{self.log.read_text()[-4000:]}")

    def __exit__(self, *exception: object) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()

    @property
    def log(self) -> Path:
        return self.base / "server.log"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def submit(self, graph: dict[str, Any]) -> tuple[str | None, str | None]:
        """(prompt id, None), or (None, why the host refused it)."""
        body = json.dumps({"prompt": graph, "client_id": uuid.uuid4().hex}).encode()
        request = urllib.request.Request(f"{self.url}/prompt", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["prompt_id"], None
        except urllib.error.HTTPError as error:
            return None, error.read().decode()

    def run(self, graph: dict[str, Any], timeout: float = 300) -> Result:
        """Queue a graph in API format and wait for its end."""
        prompt_id, refusal = self.submit(graph)
        if prompt_id is None:
            return Result({}, set(), refusal)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return Result.of(history[prompt_id])
            time.sleep(0.1)
        raise TimeoutError(f"The prompt did not end in {timeout} s:\n{self.log.read_text()[-4000:]}")

    def latents(self, graph: dict[str, Any]) -> Tensor:
        """Run a graph that ends in one Save Latent: the numbers that the sampler gave, which must not be remembered."""
        result = self.run(graph)
        assert result.error is None, result.error
        assert "sampler" in result.executed, "the latents must be sampled, not remembered"
        [file] = [file for output in result.outputs.values() for file in output.get("latents", [])]
        return load_file(self.base / "output" / file["subfolder"] / file["filename"])["latent_tensor"]

    def run_and_listen(self, graph: dict[str, Any]) -> tuple[Result, dict[str, str]]:
        """Run a graph as `run`; also the text that each node showed on itself in a person's browser."""
        import aiohttp

        async def listen() -> tuple[Result, dict[str, str]]:
            said: dict[str, str] = {}
            async with aiohttp.ClientSession() as session, session.ws_connect(f"{self.url}/ws") as socket:
                result = await asyncio.to_thread(self.run, graph)
                try:
                    while True:
                        message = await socket.receive(timeout=1)
                        # Event 3 is text: four bytes each for event and length of the node's id, the id, the text.
                        if message.type == aiohttp.WSMsgType.BINARY and message.data[:4] == bytes([0, 0, 0, 3]):
                            end = 8 + int.from_bytes(message.data[4:8], "big")
                            said[message.data[8:end].decode()] = message.data[end:].decode()
                except asyncio.TimeoutError:
                    return result, said

        return asyncio.run(listen())


def to_api_format(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """A saved canvas (UI format) as the graph that the front end would send: what Run does."""
    links = {link[0]: (str(link[1]), link[2]) for link in workflow["links"]}
    graph = {}
    for node in workflow["nodes"]:
        if node["type"] not in object_info:
            if node["type"] in ("Note", "MarkdownNote"):
                continue
            raise KeyError(f"the workflow has an unknown node {node['type']}")
        inputs: dict[str, Any] = {}
        linked = {slot["name"]: slot["link"] for slot in node.get("inputs", []) if slot.get("link") is not None}
        values = list(node.get("widgets_values", []))
        declared = object_info[node["type"]]["input"]
        for name, definition in {**declared.get("required", {}), **declared.get("optional", {})}.items():
            options = definition[1] if len(definition) > 1 else {}
            is_widget = isinstance(definition[0], list) or definition[0] in (
                "INT",
                "FLOAT",
                "STRING",
                "BOOLEAN",
                "COMBO",
            )
            if is_widget and not options.get("forceInput"):
                inputs[name] = values.pop(0)
                if options.get("control_after_generate"):
                    values.pop(0)
            if name in linked:
                inputs[name] = list(links[linked[name]])
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return graph
