"""A running ComfyUI as a painter: a workflow in, one image out for each prompt and seed."""

from __future__ import annotations

import re
import time
import uuid
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from llm4gen_core import LLM4GENError
from llm4gen_diffusers.command_line import process_number

from ..prompts import Prompt
from .server import Entry, Server
from .workflow import Workflow

_PRECISION = re.compile(r"fp\d|bf16|attention|upcast|fast|deterministic|cpu|directml|oneapi", re.IGNORECASE)
"""Command line switches of ComfyUI that change pixels."""

_LOOK = 1.0
"""Seconds between two looks at the whole queue, which says whether an entry runs, waits or is lost."""


@dataclass
class _Asked:
    """An image that was asked for; `name` is that of its entry in the queue, "" before it has one."""

    prompt: Prompt
    seed: int
    name: str = ""
    times: int = 0
    started: float | None = None

    def __str__(self) -> str:
        return f"The image of prompt {self.prompt.id!r} with seed {self.seed}"


class ComfyUIPipeline:
    """Paints with one workflow on one server.

    Args:
        server, workflow: see `connect`, which makes both.
        timeout, ahead: see `connect`.
    """

    def __init__(self, server: Server, workflow: Workflow, *, timeout: float, ahead: int) -> None:
        self._server = server
        self._workflow = workflow
        self._timeout = timeout
        self._ahead = ahead
        self._version = _version(server)

    @classmethod
    def connect(
        cls,
        server: str,
        workflow: Path,
        *,
        prompt_inputs: Sequence[str] = (),
        seed_inputs: Sequence[str] = (),
        output_node: str | None = None,
        negative: str | None = None,
        negative_inputs: Sequence[str] = (),
        weights: bool = False,
        timeout: float = 1800,
        ahead: int = 2,
        patience: float = 300,
    ) -> ComfyUIPipeline:
        """Read a workflow, ask the server about its nodes, and find out where prompt and seed go.

        Prints one line that says so, in the first process.

        Args:
            server: its address, such as "http://127.0.0.1:8188".
            workflow: file, as Workflow > Export (API) writes it. One as Save writes it is converted where that is
                certain, and refused elsewhere.
            prompt_inputs: where the prompt goes, such as "6.text"; empty for what `find_texts` finds.
            seed_inputs: where the seed goes, such as "3.seed"; empty for what `find_seeds` finds.
            output_node: id of the node whose image counts; None if there is only one.
            negative: prompt; None leaves the workflow its own.
            negative_inputs: where it goes; empty for what is found.
            weights: parentheses in prompts are weights, as in "(word:1.3)"; else they are literal, as they are for
                every other painter.
            timeout: seconds that an entry may run; not counted while it waits behind others.
            ahead: further entries that are in the queue while one is waited for, so that the server never idles.
            patience: seconds for which a server that stops answering is waited for.

        Raises:
            LLM4GENError: there is no server, the file is no workflow, a node is unknown to the server, or where
                prompt, seed or image are is not clear.
        """
        client = Server(server, patience)
        try:
            client.stats()
            filled = Workflow(
                Path(workflow),
                client.node_info,
                prompt_inputs=prompt_inputs,
                seed_inputs=seed_inputs,
                output_node=output_node,
                negative=negative,
                negative_inputs=negative_inputs,
                weights=weights,
            )
            painter = cls(client, filled, timeout=timeout, ahead=ahead)
        except BaseException:
            client.close()
            raise
        if process_number() == 0:
            print(f"ComfyUI {painter._version} at {client.address}: {filled.summary}.")
        return painter

    def describe(self) -> dict[str, Any]:
        """Everything that changes pixels, as far as the server tells it; JSON values.

        Models are known by their names alone: the server does not tell the hashes of its files.
        """
        return {
            **self._workflow.describe(),
            "comfyui": self._version,
            "comfyui_switches": _switches(self._server.stats()["system"].get("argv", [])),
        }

    def made(self) -> dict[str, Any]:
        """What the server runs on; JSON values. Another device or torch may change the last bits of a float."""
        stats = self._server.stats()
        return {
            "server": self._server.address,
            "torch": stats["system"].get("pytorch_version"),
            "python": str(stats["system"].get("python_version", "")).split(" ")[0],
            "devices": [device.get("name") for device in stats.get("devices", [])],
        }

    def generate(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Generator[Image.Image, None, None]:
        """One image for each prompt with its seed, each an entry of its own in the queue, in the order that is given.

        While one is waited for, or looked at by whoever iterates, the next ones are in the queue already. What is
        still there is taken out when the iteration ends early, by an error or by Ctrl-C.

        Args:
            prompts, seeds: N of each.

        Yields:
            N images in RGB.

        Raises:
            LLM4GENError: the server refuses the workflow, a node fails, somebody interrupts it, an entry takes longer
                than the timeout or vanishes twice from the queue, or the server does not come back.
        """
        flight: deque[_Asked] = deque()
        try:
            for prompt, seed in zip(prompts, seeds, strict=True):
                flight.append(_Asked(prompt, seed))
                self._ask(flight[-1])
                if len(flight) > self._ahead:
                    yield self._take(flight)
            while flight:
                yield self._take(flight)
        finally:
            if flight:
                self._server.cancel([asked.name for asked in flight])

    def close(self) -> None:
        self._server.close()

    def _ask(self, asked: _Asked) -> None:
        asked.name = str(uuid.uuid4())  # before the server has it, so that whatever happens it can be cancelled
        asked.times += 1
        asked.started = None
        self._server.queue(self._workflow.nodes(asked.prompt.text, asked.seed), asked.name)

    def _take(self, flight: deque[_Asked]) -> Image.Image:
        """Wait for the first image, and take it out of those that are asked for."""
        entry = self._wait(flight)
        asked = flight[0]
        if entry.error is not None:
            raise LLM4GENError(f"{asked} {entry.error}. The same command goes on there.")
        if len(entry.files) != 1:
            raise LLM4GENError(
                f"{asked}: the workflow gave {len(entry.files)} images; expected one. Let it paint a "
                "batch of 1, and end in a single image."
            )
        image = self._server.image(entry.files[0])
        flight.popleft()
        return image

    def _wait(self, flight: deque[_Asked]) -> Entry:
        """What became of the first of those that are asked for."""
        asked = flight[0]
        pause, looked = 0.02, time.monotonic()
        while (entry := self._server.finished(asked.name, self._workflow.end)) is None:
            time.sleep(pause)
            pause = min(1.0, pause * 1.3)
            if time.monotonic() - looked < _LOOK:
                continue
            looked = time.monotonic()
            running, queued = self._server.queued()
            if asked.name in running and asked.started is None:
                asked.started = looked
            if asked.started is not None and looked - asked.started > self._timeout:
                raise LLM4GENError(
                    f"{asked} is not ready after {self._timeout:g} s; look at ComfyUI's window. The same "
                    "command goes on there."
                )
            if asked.name not in running | queued:
                self._ask_again(flight, running | queued)
        return entry

    def _ask_again(self, flight: deque[_Asked], there: set[str]) -> None:
        """Queue once more what the server has lost: it was started again, or somebody cleared its queue."""
        lost = [
            asked
            for asked in flight
            if asked.name not in there and self._server.finished(asked.name, self._workflow.end) is None
        ]
        for asked in lost:
            if asked.times > 1:
                raise LLM4GENError(
                    f"{asked} vanished from ComfyUI's queue a second time: the server was started again, or somebody "
                    "cleared its queue. The same command goes on there."
                )
            if (version := _version(self._server)) != self._version:
                raise LLM4GENError(
                    f"ComfyUI was started again as version {version} after {self._version}; images of both do not "
                    "belong into one set."
                )
            self._ask(asked)


def _version(server: Server) -> str:
    return str(server.stats()["system"]["comfyui_version"])


def _switches(arguments: Sequence[str]) -> list[str]:
    """Those of the server's command line that change pixels, with their values."""
    found: list[str] = []
    kept = False
    for argument in arguments:
        if argument.startswith("-"):
            kept = bool(_PRECISION.search(argument))
        if kept:
            found.append(argument)
    return found
