"""Image sets to vote on, and a vote server in its own process."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from evaluation.image_set import ImageRow, ImageSet, ImageSettings, Prompt, image_id

REPOSITORY = Path(__file__).parents[2]


def make_prompts(number: int, categories: Sequence[str] = ("color", "shape")) -> list[Prompt]:
    return [
        Prompt(id=f"p{n:03}", text=f"picture number {n} of a thing", category=categories[n % len(categories)])
        for n in range(number)
    ]


def flat(name: str, prompt: Prompt, seed: int) -> Image.Image:
    """One colour that differs between models, prompts and seeds."""
    digest = hashlib.sha256(f"{name}/{prompt.id}/{seed}".encode()).digest()
    return Image.new("RGB", (48, 48), tuple(digest[:3]))


def make_set(
    folder: Path,
    name: str,
    prompts: Sequence[Prompt],
    seeds: Sequence[int] = (0,),
    draw: Callable[[str, Prompt, int], Image.Image] = flat,
) -> ImageSet:
    """An image set whose files name their model in text chunks, as ComfyUI's do."""
    images = ImageSet(folder)
    images.create(ImageSettings(name=name, seeds=list(seeds), generation={"model": name}), prompts)
    images.images.mkdir(exist_ok=True)
    said = PngInfo()
    said.add_text("parameters", f"model: {name}")
    rows = []
    for prompt in prompts:
        for seed in seeds:
            path = images.images / f"{image_id(prompt.id, seed)}.png"
            image = draw(name, prompt, seed)
            image.save(path, pnginfo=said)
            row = ImageRow(
                id=image_id(prompt.id, seed),
                file=f"images/{path.name}",
                prompt=prompt.id,
                text=prompt.text,
                category=prompt.category,
                seed=seed,
                width=image.width,
                height=image.height,
                settings=images.settings.fingerprint,
                seconds=0.0,
                made={},
                sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            )
            rows.append(row.model_dump())
    images.manifest.append(*rows)
    return images


class ServedStudy:
    """`vote serve` in its own process, a context manager; it can be stopped and started again.

    Args:
        folder: of a study.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self.said: list[str] = []
        self.process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the server; a restart uses the port of the first start."""
        code = (
            "import sys; from evaluation.vote.command import configure; "
            "from llm4gen_diffusers.command_line import Parser, run_command\n"
            "def build():\n"
            "    parser = Parser(prog='vote'); configure(parser); return parser\n"
            "sys.exit(run_command(build, 'evaluation'))"
        )
        command = [sys.executable, "-c", code, "serve", str(self.folder), "--port", str(self.port)]
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        self.process = process
        for line in process.stdout:
            self.said.append(line)
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/", line):
                self.port = int(found[1])
                break
        else:
            process.stdout.close()
            raise RuntimeError(f"The server did not start: {''.join(self.said)}")
        output = process.stdout

        def listen() -> None:
            with output:
                self.said.extend(output)

        threading.Thread(target=listen, daemon=True).start()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Stop the server and return its exit code."""
        assert self.process is not None
        self.process.send_signal(how)
        return self.process.wait(20)

    def __enter__(self) -> ServedStudy:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop(signal.SIGKILL)

    def request(self, path: str, content: Any = None, kind: str = "application/json") -> tuple[int, dict, bytes]:
        """Return status, headers and body of a GET, or of a POST if there is content (bytes are sent unchanged)."""
        body = content if content is None or isinstance(content, bytes) else json.dumps(content).encode()
        request = urllib.request.Request(self.url + path, body, {"Content-Type": kind} if body is not None else {})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read()
