"""A local server that speaks OpenAI's protocol and gives prepared answers."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

Answer = str | tuple[int, str]
"""The model's text, or a status and its body."""


class ChatServer:
    """Answers chat completions.

    Attributes:
        answers: called with the request's body and its number from 0; see `Answer`.
        requests: bodies, in the order in which they came.
        authorizations: what each one brought as its key.
        headers: of answers with a status.
    """

    def __init__(self) -> None:
        self.answers: Callable[[dict[str, Any], int], Answer] = lambda body, number: "yes"
        self.requests: list[dict[str, Any]] = []
        self.authorizations: list[str | None] = []
        self.headers: dict[str, str] = {}
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server._lock:
                    number = len(server.requests)
                    server.requests.append(body)
                    server.authorizations.append(self.headers.get("Authorization"))
                answer = (404, "no such page")
                if self.path == "/v1/chat/completions":
                    answer = server.answers(body, number)
                status, text = answer if isinstance(answer, tuple) else (200, said(answer))
                content = text.encode()
                self.send_response(status)
                for name, value in server.headers.items() if isinstance(answer, tuple) else ():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


def said(text: str) -> str:
    """Body of a chat completion."""
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


def question_of(body: dict[str, Any]) -> tuple[str, Image.Image | None]:
    """Text and image of a request."""
    content = body["messages"][0]["content"]
    if isinstance(content, str):
        return content, None
    address = content[1]["image_url"]["url"]
    return content[0]["text"], Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
