"""Server of the vote page. Nothing that it sends reveals the model of an image."""

from __future__ import annotations

import asyncio
import io
import json
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web
from filelock import FileLock, Timeout
from PIL import Image
from pydantic import ValidationError

from llm4gen_core import LLM4GENError
from llm4gen_core.errors import first_problem

from .study import PairImage, Study, StudyFolder
from .votes import Ballot, VoteFile, rater_name

PAGE = Path(__file__).parent / "page"
FILES = {"/": "vote.html", "/vote.css": "vote.css", "/vote.js": "vote.js"}
"""The page's own files by address. There are no others, and no address is turned into a path."""

HEADERS = {
    # The browser refuses anything from or to elsewhere.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class VoteServer:
    """Serves one study.

    Args:
        folder: of the study.

    Raises:
        LLM4GENError: the study, its votes or one of its images is damaged or missing.
    """

    def __init__(self, folder: StudyFolder) -> None:
        self.folder = folder
        self.study: Study = folder.study
        self.votes = VoteFile(self.study, folder.votes)
        self._images: dict[str, PairImage] = {}
        for pair in self.study.pairs:
            for image in (pair.first, pair.second):
                if image.id not in self._images:
                    folder.read(self.study, image)
                    self._images[image.id] = image
        sizes = Counter((image.width, image.height) for image in self._images.values())
        self._size = sizes.most_common(1)[0][0]
        self._writing = asyncio.Lock()

    def app(self) -> web.Application:
        """Return the application, the only writer of votes."""
        app = web.Application(client_max_size=1 << 16)
        app.on_response_prepare.append(_add_headers)
        for address, name in FILES.items():
            app.router.add_get(address, _file(PAGE / name))
        app.router.add_post("/api/session", self._session)
        app.router.add_post("/api/votes", self._vote)
        app.router.add_get("/images/{image:[0-9a-f]{16}}.png", self._image)
        return app

    async def _session(self, request: web.Request) -> web.Response:
        """Send the rater's schedule and choices so far."""
        try:
            content = await _json(request)
            typed = content.get("rater") if isinstance(content, dict) else None
            if not isinstance(typed, str):
                raise LLM4GENError('The request names no rater; expected {"rater": "..."}.')
            rater = rater_name(typed)
        except LLM4GENError as error:
            return _answer({"error": str(error)}, 400)
        choices = self.votes.choices(rater)
        tasks = [
            {
                "id": task.id,
                "text": task.pair.text,
                "left": f"/images/{task.left.id}.png",
                "right": f"/images/{task.right.id}.png",
                "choices": choices.get(task.id, {}),
            }
            for task in self.votes.tasks(rater).values()
        ]
        questions = [question.model_dump() for question in self.study.questions]
        width, height = self._size
        return _answer(
            {
                "study": self.study.id,
                "rater": rater,
                "width": width,
                "height": height,
                "questions": questions,
                "tasks": tasks,
            }
        )

    async def _vote(self, request: web.Request) -> web.Response:
        """Write a vote; it is acknowledged when it is on the disk."""
        try:
            ballot = Ballot.model_validate(await _json(request))
            if ballot.study != self.study.id:  # the vote is right: the page keeps it until its study is served again
                return _answer({"error": "The server serves another study than when this page was loaded."}, 409)
            vote = self.votes.check(ballot)
        except ValidationError as error:
            return _answer({"error": f"The vote is not valid ({first_problem(error)}); reload the page."}, 400)
        except LLM4GENError as error:
            return _answer({"error": str(error)}, 400)
        try:
            async with self._writing:
                await asyncio.shield(asyncio.to_thread(self.votes.write, vote))
        except OSError as error:
            print(f"A vote could not be written ({error}); the page keeps it and sends it again.", flush=True)
            return _answer({"error": "The vote could not be written to the server's disk."}, 500)
        return _answer({"saved": vote.id})

    async def _image(self, request: web.Request) -> web.Response:
        image = self._images.get(request.match_info["image"])
        if image is None:
            return _answer({"error": "There is no such image in this study."}, 404)
        try:
            content = await asyncio.to_thread(self._stripped, image)
        except (LLM4GENError, OSError) as error:
            # The message names the file and so the model: it is only for the terminal.
            print(error, flush=True)
            return _answer({"error": "This image cannot be read; tell the person who runs the study."}, 500)
        # An address is a hash of its bytes, so they never change.
        return web.Response(body=content, content_type="image/png", headers={"Cache-Control": "private, max-age=86400"})

    def _stripped(self, image: PairImage) -> bytes:
        """Encode only the pixels: text chunks of PNG files hold the model's name and settings."""
        with Image.open(io.BytesIO(self.folder.read(self.study, image))) as opened:
            pixels = opened.convert("RGB")
        pixels.info.clear()
        file = io.BytesIO()
        pixels.save(file, "PNG", compress_level=1)
        return file.getvalue()


def serve(folder: StudyFolder, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        folder: of the study.
        host: address to listen on.
        port: 0 takes a free one.

    Raises:
        LLM4GENError: the study is damaged or served already, or the port is in use.
    """
    lock = FileLock(folder.path / "serve.lock")
    folder.study  # noqa: B018  without a study there must be no lock file
    try:
        with lock.acquire(timeout=0):
            server = VoteServer(folder)
            listening = _listen(host, port)
            shown = f"[{host}]" if ":" in host else host
            bound = listening.getsockname()[1]
            print(f"Vote at http://{shown}:{bound}/ (stop with Ctrl-C; every vote is on the disk at once)", flush=True)
            if host not in ("127.0.0.1", "localhost", "::1"):
                print("Anyone who reaches this machine can vote, under any name, and nothing is encrypted.", flush=True)
            web.run_app(server.app(), sock=listening, print=None, access_log=None, shutdown_timeout=2)
            print(
                f"{len(server.votes)} votes of {len(server.votes.raters)} raters are in {folder.votes.path}.",
                flush=True,
            )
    except Timeout:
        raise LLM4GENError(
            f"Study {folder.path} is served by another process already; open its page, or stop that process first."
        ) from None


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise LLM4GENError(
            f"Cannot listen on {host}:{port} ({error.strerror}); choose another --port or --host."
        ) from error


async def _json(request: web.Request) -> Any:
    # Pages of other sites may send this type only after a preflight request, which is refused.
    if request.content_type != "application/json":
        raise LLM4GENError(f"The request is {request.content_type}; expected application/json.")
    try:
        return json.loads(await request.read())
    except (ValueError, RecursionError) as error:
        raise LLM4GENError(f"The request is not JSON ({error}).") from error


def _answer(content: dict[str, Any], status: int = 200) -> web.Response:
    return web.json_response(content, status=status, headers={"Cache-Control": "no-store"})


def _file(path: Path) -> Callable[[web.Request], Awaitable[web.FileResponse]]:
    async def handle(request: web.Request) -> web.FileResponse:
        return web.FileResponse(path, headers={"Cache-Control": "no-cache"})

    return handle


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)
