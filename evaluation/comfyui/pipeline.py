"""A running ComfyUI as a pipeline: a workflow in, one image out for each prompt and seed."""

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

from ..image_set import Prompt
from .server import Outcome, Server
from .workflow import Workflow

_PRECISION = re.compile(r"fp\d|bf16|attention|upcast|fast|deterministic|cpu|directml|oneapi", re.IGNORECASE)
"""Command line switches of ComfyUI that change pixels."""

_LOOK = 1.0
"""Seconds between two looks at the whole queue, which says whether an entry runs, waits or is lost."""


@dataclass
class _Job:
    """A requested image; `name` is that of its entry in the queue, "" before it has one."""

    prompt: Prompt
    seed: int
    name: str = ""
    times: int = 0
    started: float | None = None

    def __str__(self) -> str:
        return f"The image of prompt {self.prompt.id!r} with seed {self.seed}"


class ComfyUIPipeline:
    """Generates with one workflow on one server; see `connect`, which makes both."""

    def __init__(self, server: Server, workflow: Workflow, *, timeout: float, ahead: int) -> None:
        self._server, self._workflow = server, workflow
        self._timeout, self._ahead = timeout, ahead
        self._version = _version(server)

    @classmethod
    def connect(
        cls,
        server: str,
        workflow: Path,
        *,
        timeout: float = 1800,
        ahead: int = 2,
        patience: float = 300,
        **inputs: Any,
    ) -> ComfyUIPipeline:
        """Read a workflow, ask the server about its nodes, and find out where prompt and seed go.

        Prints one line that says so, in the first process.

        Args:
            server: address, such as "http://127.0.0.1:8188".
            workflow: file as ComfyUI writes it by Workflow > Export (API).
            timeout: seconds that an entry may run; not counted while it waits behind others.
            ahead: further entries in the queue while one is waited for, so that the server never idles.
            patience: seconds for which a server that stops answering is waited for.
            inputs: prompt_inputs, seed_inputs, output_node, negative, negative_inputs and weights of `Workflow`.

        Raises:
            LLM4GENError: there is no server, or see `Workflow`.
        """
        client = Server(server, patience)
        try:
            client.stats()
            filled = Workflow(Path(workflow), client.node_info, **inputs)
            pipeline = cls(client, filled, timeout=timeout, ahead=ahead)
        except BaseException:
            client.close()
            raise
        if process_number() == 0:
            print(f"ComfyUI {pipeline._version} at {client.address}: {filled.summary}.")
        return pipeline

    def describe(self) -> dict[str, Any]:
        """Everything that changes pixels, as far as the server says it; JSON values.

        Models are known only by their names: the server does not tell the hashes of its files.
        """
        return {
            **self._workflow.describe(),
            "comfyui": self._version,
            "comfyui_switches": _switches(self._server.stats()["system"].get("argv", [])),
        }

    def made(self) -> dict[str, Any]:
        """Devices and versions of the server; JSON values. Others may change the last bits of a float."""
        stats = self._server.stats()
        return {
            "server": self._server.address,
            "torch": stats["system"].get("pytorch_version"),
            "python": str(stats["system"].get("python_version", "")).split(" ")[0],
            "devices": [device.get("name") for device in stats.get("devices", [])],
        }

    def generate(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Generator[Image.Image, None, None]:
        """Generate one image for each prompt with its seed, each as an entry of the queue, in the given order.

        The next entries are in the queue while an image is waited for or used. When the iteration ends early, by an
        error or by Ctrl-C, those that are left are removed from the queue.

        Args:
            prompts, seeds: N of each.

        Yields:
            N images in RGB.

        Raises:
            LLM4GENError: the server refuses the workflow, a node fails, somebody interrupts it, an entry takes longer
                than the timeout or vanishes twice from the queue, or the server does not come back.
        """
        jobs: deque[_Job] = deque()
        try:
            for prompt, seed in zip(prompts, seeds, strict=True):
                jobs.append(_Job(prompt, seed))
                self._queue(jobs[-1])
                if len(jobs) > self._ahead:
                    yield self._take(jobs)
            while jobs:
                yield self._take(jobs)
        finally:
            if jobs:
                self._server.cancel([job.name for job in jobs])

    def close(self) -> None:
        self._server.close()

    def _queue(self, job: _Job) -> None:
        job.name = str(uuid.uuid4())  # before the server has it, so that it can be cancelled whatever happens
        job.times += 1
        job.started = None
        self._server.queue(self._workflow.nodes(job.prompt.text, job.seed), job.name)

    def _take(self, jobs: deque[_Job]) -> Image.Image:
        """Wait for the image of the first job, and remove the job."""
        outcome, job = self._wait(jobs), jobs[0]
        if outcome.error is not None:
            raise LLM4GENError(f"{job} {outcome.error}. The same command continues there.")
        if len(outcome.files) != 1:
            raise LLM4GENError(
                f"{job}: the workflow gave {len(outcome.files)} images; expected one. Let it generate a batch of 1, "
                "and end in a single image."
            )
        image = self._server.image(outcome.files[0])
        jobs.popleft()
        return image

    def _wait(self, jobs: deque[_Job]) -> Outcome:
        job = jobs[0]
        pause, looked = 0.02, time.monotonic()
        while (outcome := self._server.outcome(job.name, self._workflow.end)) is None:
            time.sleep(pause)
            pause = min(1.0, pause * 1.3)
            if time.monotonic() - looked < _LOOK:
                continue
            looked = time.monotonic()
            running, queued = self._server.queued()
            if job.name in running and job.started is None:
                job.started = looked
            if job.started is not None and looked - job.started > self._timeout:
                raise LLM4GENError(
                    f"{job} is not ready after {self._timeout:g} s; look at ComfyUI's log. The same command continues "
                    "there."
                )
            if job.name not in running | queued:
                self._queue_again(jobs, running | queued)
        return outcome

    def _queue_again(self, jobs: deque[_Job], there: set[str]) -> None:
        """Queue once more what the server has lost: it was restarted, or somebody cleared its queue."""
        end = self._workflow.end
        lost = [job for job in jobs if job.name not in there and self._server.outcome(job.name, end) is None]
        for job in lost:
            if job.times > 1:
                raise LLM4GENError(
                    f"{job} vanished from ComfyUI's queue a second time: the server was restarted, or somebody cleared "
                    "its queue. The same command continues there."
                )
            if (version := _version(self._server)) != self._version:
                raise LLM4GENError(
                    f"ComfyUI was restarted as version {version} after {self._version}; images of both do not belong "
                    "in one set. Start the former version, or generate another set."
                )
            self._queue(job)


def _version(server: Server) -> str:
    return str(server.stats()["system"]["comfyui_version"])


def _switches(arguments: Sequence[str]) -> list[str]:
    """Select the switches of the server's command line that change pixels, with their values."""
    found: list[str] = []
    kept = False
    for argument in arguments:
        if argument.startswith("-"):
            kept = bool(_PRECISION.search(argument))
        if kept:
            found.append(argument)
    return found
