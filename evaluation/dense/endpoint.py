"""A model behind an endpoint that speaks OpenAI's protocol: chat completions, with images as data addresses.

llama.cpp, vLLM, Ollama, LM Studio and the big providers all speak it. A key, where one is needed, is read from an
environment variable, sent, and neither stored nor shown.
"""

from __future__ import annotations

import base64
import io
import os
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx
from PIL import Image

from llm4gen_core import LLM4GENError

from .writing import Request

LONGEST_WAIT = 120.0
"""Seconds between two tries, at most, whatever the server asks for."""

_TRY_AGAIN = frozenset((408, 409, 425, 429, 500, 502, 503, 504))
_LONGEST_SIDE = 1568
"""Pixels; larger images are scaled down, as the models would do themselves."""


class Endpoint:
    """A chat model.

    Args:
        url: up to and with /v1.
        model: its name there.
        key_variable: environment variable that holds the key; "" or one that is not set sends none.
        timeout: seconds without an answer after which a try has failed.
        tries: of each request, with growing waits between them.
        sleep: waits; tests replace it.

    Raises:
        LLM4GENError: the address is no http address, or holds a name, a password or a query.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key_variable: str = "OPENAI_API_KEY",
        timeout: float = 300.0,
        tries: int = 6,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query:
            raise LLM4GENError(
                "Endpoint: expected an address such as http://127.0.0.1:8080/v1, without name, password or query; put "
                "a key into an environment variable."
            )
        self.url, self.model, self.tries = url.rstrip("/"), model, max(1, tries)
        self._key = os.environ.get(key_variable, "") if key_variable else ""
        self._key_variable = key_variable
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx.Client(headers=headers, timeout=httpx.Timeout(timeout, connect=min(30.0, timeout)))
        self._sleep = sleep

    @property
    def describe(self) -> dict[str, Any]:
        """What a prompt's provenance says of it. JSON values."""
        return {"model": self.model, "endpoint": self.url}

    def write(self, request: Request) -> str:
        """The model's answer.

        Raises:
            LLM4GENError: there is none: the server refuses, cannot be reached, or answers with something else, in every
                try.
        """
        body = self._body(request)
        problem = ""
        for attempt in range(self.tries):
            wait = min(2.0**attempt, LONGEST_WAIT)
            try:
                response = self._client.post(f"{self.url}/chat/completions", json=body)
            except httpx.HTTPError as error:
                problem = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            else:
                if response.status_code == 200:
                    answer = _answer(response)
                    if answer is not None:
                        return answer
                    problem = f"an answer that is no chat completion ({self._safe(response.text)})"
                elif response.status_code in _TRY_AGAIN:
                    problem = f"status {response.status_code} ({self._safe(response.text)})"
                    wait = _wanted_wait(response, wait)
                else:
                    raise LLM4GENError(self._refused(response))
            if attempt + 1 < self.tries:
                self._sleep(wait)
        raise LLM4GENError(
            f"Endpoint {self.url}, model {self.model!r}: no answer in {self.tries} tries; the last was {problem}. What "
            "is done is stored: the same command goes on when the server answers."
        )

    def _body(self, request: Request) -> dict[str, Any]:
        content: Any = request.text
        if request.image is not None:
            address = {"url": _data_address(request.image)}
            content = [{"type": "text", "text": request.text}, {"type": "image_url", "image_url": address}]
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": request.tokens,
            "temperature": request.temperature,
            "seed": request.seed,
        }

    def _refused(self, response: httpx.Response) -> str:
        advice = {
            401: f"is the environment variable {self._key_variable} set to the right key?",
            403: f"is the environment variable {self._key_variable} set to the right key?",
            404: "is the address right up to /v1, and is the model's name one that the server knows?",
            413: "the image or the text is too large for the server.",
        }.get(response.status_code, "the server does not take the request.")
        return (
            f"Endpoint {self.url}, model {self.model!r}: status {response.status_code} ({self._safe(response.text)}); "
            f"{advice}"
        )

    def _safe(self, text: str) -> str:
        """What a server said, on one line, short, and without the key, which some repeat."""
        shown = text.replace(self._key, "***") if self._key else text
        line = " ".join(shown.split())
        return line if len(line) <= 200 else line[:197] + "..."


def _answer(response: httpx.Response) -> str | None:
    try:
        content = response.json()["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        return None
    return content if isinstance(content, str) else None


def _wanted_wait(response: httpx.Response, otherwise: float) -> float:
    """Seconds that the server asks to wait; only the number, as dates need its clock."""
    try:
        return min(max(float(response.headers.get("retry-after", "")), 0.0), LONGEST_WAIT)
    except ValueError:
        return otherwise


def _data_address(image: Image.Image) -> str:
    shown = image.convert("RGB")
    shown.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=92)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
