"""The server of the vote page. What it sends never says which model an image is from."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web
from filelock import FileLock, Timeout
from PIL import Image
from pydantic import ValidationError

from llm4gen_core import LLM4GENError

from .study import PairImage, Study, StudyFolder
from .votes import Ballot, VoteFile, rater_name

PAGE = Path(__file__).parent / "page"
FILES = {
    "/": ("vote.html", "text/html"),
    "/vote.css": ("vote.css", "text/css"),
    "/vote.js": ("vote.js", "text/javascript"),
}
"""Addresses of the page's own files; there are no others, and no address becomes a path."""

HEADERS = {
    # The browser itself refuses whatever would come from, or go, elsewhere.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class VoteServer:
    """Answers for one study.

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
        """The application; votes are written by it alone."""
        app = web.Application(middlewares=[_with_headers], client_max_size=1 << 16)
        for address, (name, kind) in FILES.items():
            app.router.add_get(address, _file(PAGE / name, kind))
        app.router.add_post("/api/session", self._session)
        app.router.add_post("/api/votes", self._vote)
        app.router.add_get("/images/{image:[0-9a-f]{16}}.png", self._image)
        return app

    async def _session(self, request: web.Request) -> web.Response:
        """Everything that a rater is to see, and what has been answered."""
        try:
            content = await _json(request)
            typed = content.get("rater") if isinstance(content, dict) else None
            if not isinstance(typed, str):
                raise LLM4GENError('The request has no name; expected {"rater": "..."}.')
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
        """Write a vote; the answer comes when it is on the disk."""
        try:
            ballot = _ballot(await _json(request))
            if ballot.study != self.study.id:  # no fault of the vote: the page keeps it until its study is back
                return _answer({"error": "The server has another study now than when this page was loaded."}, 409)
            vote = self.votes.check(ballot)
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
            # The sentence names the file, and with it the model: it is for the one who runs the study.
            print(error, flush=True)
            return _answer({"error": "This image cannot be read any more; tell whoever runs the study."}, 500)
        # The bytes of an address never change: it is made from their hash.
        return web.Response(body=content, content_type="image/png", headers={"Cache-Control": "private, max-age=86400"})

    def _stripped(self, image: PairImage) -> bytes:
        """The pixels and nothing else: text chunks of PNG files hold the model's name and settings."""
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
        LLM4GENError: the study is damaged or served already, or the port is taken.
    """
    lock = FileLock(folder.path / "serve.lock")
    folder.study  # noqa: B018  a folder without one gets a sentence, and no lock file
    try:
        with lock.acquire(timeout=0):
            asyncio.run(_serve(folder, host, port))
    except Timeout:
        raise LLM4GENError(
            f"Study {folder.path} is served by another process already; open its page, or end that process first."
        ) from None


async def _serve(folder: StudyFolder, host: str, port: int) -> None:
    server = VoteServer(folder)
    runner = web.AppRunner(server.app(), access_log=None, shutdown_timeout=2)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise LLM4GENError(
                f"{host}:{port} cannot be listened on ({error.strerror}); choose another --port or --host."
            ) from error
        bound = runner.addresses[0][1]
        shown = f"[{host}]" if ":" in host else host
        print(f"Vote at http://{shown}:{bound}/ (Ctrl-C ends it; every vote is on the disk at once)", flush=True)
        if host not in ("127.0.0.1", "localhost", "::1"):
            print("Whoever reaches this machine can vote, under any name, and nothing is encrypted.", flush=True)
        await _until_signal()
    finally:
        await runner.cleanup()
    print(f"{len(server.votes)} votes of {len(server.votes.raters)} raters are in {folder.votes.path}.", flush=True)


async def _until_signal() -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C is a KeyboardInterrupt there
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()


async def _json(request: web.Request) -> Any:
    # Pages of other sites cannot send this type without being asked whether they may, which is answered by no.
    if request.content_type != "application/json":
        raise LLM4GENError(f"The request is {request.content_type}; expected application/json.")
    try:
        return json.loads(await request.read())
    except (ValueError, RecursionError) as error:
        raise LLM4GENError(f"The request is not JSON ({error}).") from error


def _ballot(content: Any) -> Ballot:
    try:
        return Ballot.model_validate(content)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"])) or "it"
        raise LLM4GENError(
            f"The vote is not valid ({where}: {problem['msg']}); expected id, study, rater, task, question, choice and "
            "seconds."
        ) from error


def _answer(content: dict[str, Any], status: int = 200) -> web.Response:
    return web.json_response(content, status=status, headers={"Cache-Control": "no-store"})


def _file(path: Path, kind: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    body = path.read_bytes()

    async def handle(request: web.Request) -> web.Response:
        headers = {"Cache-Control": "no-cache"}
        return web.Response(body=body, content_type=kind, charset="utf-8", headers=headers)

    return handle


@web.middleware
async def _with_headers(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        response = await handler(request)
    except web.HTTPException as error:
        error.headers.update(HEADERS)
        raise
    response.headers.update(HEADERS)
    return response
