"""Client of a ComfyUI server's HTTP API, versions 0.3.64 to 0.33."""

from __future__ import annotations

import io
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
from PIL import Image

from llm4gen_core import LLM4GENError
from llm4gen_core.errors import first_line

_ANSWER = 60.0
"""Seconds that one answer may take; a server that loads a model hardly answers."""
_GATEWAY = (502, 503, 504)
"""Answers of a proxy in front of a server that is away."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of an entry of the queue.

    Attributes:
        files: the images, as /view takes them.
        error: why there are none, a sentence without its subject; or None.
    """

    files: list[dict[str, str]]
    error: str | None = None


class Server:
    """A client.

    Args:
        address: such as "http://127.0.0.1:8188"; the scheme is http if none is given.
        patience: seconds for which a server that does not answer is waited for, for example while it restarts.

    Raises:
        LLM4GENError: the address is not an http address.
    """

    def __init__(self, address: str, patience: float) -> None:
        address = address.strip().rstrip("/")
        try:
            url = httpx.URL(address if "://" in address else f"http://{address}")
            if url.scheme not in ("http", "https") or not url.host:
                raise httpx.InvalidURL("not an http address")
        except httpx.InvalidURL as error:
            raise LLM4GENError(
                f"{address!r} is not the address of a ComfyUI server ({error}); expected one such as "
                "http://127.0.0.1:8188."
            ) from error
        self.address = str(url.copy_with(username=None, password=None)).rstrip("/")
        self._patience = patience
        self._infos: dict[str, Mapping[str, Any] | None] = {}
        # A proxy named by the environment is not for this machine.
        outside = url.host not in ("localhost", "::1") and not url.host.startswith("127.")
        self._client = httpx.Client(base_url=url, timeout=_ANSWER, trust_env=outside)

    def close(self) -> None:
        self._client.close()

    def stats(self) -> dict[str, Any]:
        """Return versions and devices. One try, without patience.

        Raises:
            LLM4GENError: no ComfyUI answers at the address.
        """
        try:
            answer = self._client.get("/system_stats")
            content = answer.raise_for_status().json()
            content["system"]["comfyui_version"]
        except httpx.TransportError as error:
            raise LLM4GENError(
                f"No ComfyUI server answers at {self.address} ({first_line(error)}); start it (python main.py), or "
                "give its address."
            ) from error
        except httpx.HTTPStatusError as error:
            raise LLM4GENError(
                f"The server at {self.address} answers {error.response.status_code} to /system_stats; expected a "
                "ComfyUI of version 0.3.64 or newer, without a login in front of it."
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise LLM4GENError(
                f"The server at {self.address} is not a ComfyUI: its /system_stats names no version. Check the address."
            ) from error
        return content

    def node_info(self, kind: str) -> Mapping[str, Any] | None:
        """Return what /object_info says about a node class; None if the server does not know it."""
        if kind not in self._infos:
            answer = self._request("GET", f"/object_info/{quote(kind, safe='')}", accepted=404)
            self._infos[kind] = None if answer.status_code == 404 else self._json(answer).get(kind)
        return self._infos[kind]

    def queue(self, nodes: Mapping[str, Any], name: str) -> None:
        """Put a workflow at the end of the queue.

        Args:
            nodes: in API format.
            name: of the entry, a UUID.

        Raises:
            LLM4GENError: the server refuses it; the message names the node, the input and the reason.
        """
        deadline = time.monotonic() + self._patience
        while True:
            try:
                answer = self._send("POST", "/prompt", json={"prompt": dict(nodes), "prompt_id": name})
                break
            except httpx.TransportError as error:
                self._wait(error, deadline)
                if any(name in part for part in self.queued()) or self._history(name) is not None:
                    return  # only the answer was lost; to send it again would generate the image twice
        if answer.status_code == 400:
            raise LLM4GENError(_refusal(self._json(answer)))
        self._check(answer)

    def queued(self) -> tuple[set[str], set[str]]:
        """Return the names of everybody's entries: those that run, and those that wait."""
        content = self._json(self._request("GET", "/queue"))
        running, waiting = ({entry[1] for entry in content[f"queue_{part}"]} for part in ("running", "pending"))
        return running, waiting

    def outcome(self, name: str, node: str) -> Outcome | None:
        """Return the outcome of an entry with the images of one of its nodes.

        None while it waits or runs, and if the server does not know it.
        """
        entry = self._history(name)
        if entry is None:
            return None
        status = entry.get("status") or {}
        for message, data in status.get("messages", []):
            if message == "execution_interrupted":
                return Outcome([], f"was interrupted in ComfyUI at node {data['node_id']} ({data['node_type']})")
            if message == "execution_error":
                reason = " ".join(str(data["exception_message"]).split())
                return Outcome([], f"failed at node {data['node_id']} ({data['node_type']}): {reason}")
        if status.get("status_str") == "error":
            return Outcome([], "failed, and ComfyUI does not say why; see its log")
        return Outcome(entry["outputs"].get(node, {}).get("images") or [])

    def image(self, file: Mapping[str, str]) -> Image.Image:
        """Download an image of an output node.

        Raises:
            LLM4GENError: the file is not there, or is not an image.
        """
        name = file["filename"]
        where = {"filename": name, "subfolder": file.get("subfolder", ""), "type": file.get("type", "output")}
        answer = self._request("GET", "/view", accepted=404, params=where)
        if answer.status_code == 404:
            raise LLM4GENError(
                f"ComfyUI no longer has the image {name} that it has just generated (its folder {where['type']} was "
                "emptied); restart the server, so that it forgets the image, and run the same command."
            )
        try:
            with Image.open(io.BytesIO(answer.content)) as opened:
                image = opened.convert("RGB")
        except OSError as error:
            raise LLM4GENError(
                f"ComfyUI's file {name} is not an image ({error}); look at the workflow's end."
            ) from error
        image.info = {}  # the server writes the workflow into its files
        return image

    def cancel(self, names: Iterable[str]) -> None:
        """Remove entries from the queue, and interrupt the one that runs. A server that is away is not waited for."""
        names = list(names)
        with suppress(httpx.HTTPError):
            self._client.post("/queue", json={"delete": names}, timeout=5)
            running = {entry[1] for entry in self._client.get("/queue", timeout=5).json()["queue_running"]}
            for name in running.intersection(names):
                self._client.post("/interrupt", json={"prompt_id": name}, timeout=5)

    def _request(self, method: str, path: str, accepted: int = 200, **options: Any) -> httpx.Response:
        """Send a request until the server answers, with 200 or with the accepted status."""
        deadline = time.monotonic() + self._patience
        while True:
            try:
                answer = self._send(method, path, **options)
            except httpx.TransportError as error:
                self._wait(error, deadline)
                continue
            if answer.status_code != accepted:
                self._check(answer)
            return answer

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        answer = self._client.request(method, path, **options)
        if answer.status_code in _GATEWAY:
            raise httpx.RemoteProtocolError(f"a proxy in front of it answers {answer.status_code}")
        return answer

    def _history(self, name: str) -> dict[str, Any] | None:
        return self._json(self._request("GET", f"/history/{name}")).get(name)

    def _wait(self, error: httpx.TransportError, deadline: float) -> None:
        if time.monotonic() > deadline:
            raise LLM4GENError(
                f"The ComfyUI server at {self.address} has not answered for {self._patience:g} s "
                f"({first_line(error)}); restart it and run the same command: what has been generated is kept."
            ) from error
        time.sleep(min(1.0, self._patience / 10))

    def _check(self, answer: httpx.Response) -> None:
        if answer.status_code != 200:
            raise LLM4GENError(
                f"The ComfyUI server at {self.address} answers {answer.status_code} to {answer.request.url.path}; see "
                "its log."
            )

    def _json(self, answer: httpx.Response) -> Any:
        try:
            return answer.json()
        except ValueError as error:
            raise LLM4GENError(
                f"The server at {self.address} does not answer {answer.request.url.path} with JSON; expected a ComfyUI "
                "without a login in front of it."
            ) from error


def _refusal(content: Mapping[str, Any]) -> str:
    """Write one sentence from the answer of /prompt: the first wrong input, or what is wrong with the workflow."""
    for node, found in (content.get("node_errors") or {}).items():
        for error in found.get("errors", []):
            name = (error.get("extra_info") or {}).get("input_name")
            where = f"node {node} ({found.get('class_type')})" + (f", input {name}" if name else "")
            return f"ComfyUI refuses the workflow at {where}: {error['message']}{_details(error, name)}."
    error = content.get("error") or {}
    if isinstance(error, str):
        return f"ComfyUI refuses the workflow: {error}"
    return f"ComfyUI refuses the workflow: {error.get('message', 'it does not say why')}{_details(error, None)}."


def _details(error: Mapping[str, Any], name: str | None) -> str:
    details = " ".join(str(error.get("details") or "").split())
    if name and details.startswith(name):
        details = details.removeprefix(name).lstrip(":, -")
    return f" ({details if len(details) <= 200 else details[:197] + '...'})" if details else ""
