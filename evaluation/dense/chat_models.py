"""Chat models that the builder asks: one behind an endpoint, or one of transformers from a local folder.

An endpoint speaks OpenAI's protocol: chat completions, with images as data URLs. llama.cpp, vLLM, Ollama, LM Studio
and the big providers do. A key, where one is needed, is read from an environment variable and sent; it is neither
stored nor shown.
"""

from __future__ import annotations

import base64
import io
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import httpx
from PIL import Image

from llm4gen_core import LLM4GENError
from llm4gen_core.errors import first_line

if TYPE_CHECKING:
    import torch

LONGEST_WAIT = 120.0
"""Seconds between two tries, at most, whatever the server asks for."""

_TRY_AGAIN = frozenset((408, 409, 425, 429, 500, 502, 503, 504))
_LONGEST_SIDE = 1568
"""Pixels; larger images are scaled down, as the models would do themselves."""

_UNREADABLE = (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ImportError)


@dataclass(frozen=True)
class Request:
    """A request to a chat model.

    Attributes:
        text: of the message.
        seed: of the sampling.
        tokens: maximum of the answer.
        temperature: of the sampling; 0 decodes greedily.
        image: that the text is about, in RGB.
    """

    text: str
    seed: int
    tokens: int
    temperature: float
    image: Image.Image | None = None


class ChatModel(Protocol):
    """A model that answers in text."""

    @property
    def describe(self) -> dict[str, Any]:
        """Provenance of a prompt that the model wrote. JSON values, the same in every run."""

    def write(self, request: Request) -> str:
        """Return the model's answer.

        Raises:
            LLM4GENError: it does not answer.
        """


class Endpoint:
    """A chat model behind an OpenAI-compatible endpoint.

    Args:
        url: address up to and including /v1.
        model: name of the model there.
        key_variable: environment variable that holds the key; "" or an unset one sends none.
        timeout: seconds after which a try without an answer has failed.
        tries: of each request, with growing waits between them.
        sleep: waits; tests replace it.

    Raises:
        LLM4GENError: the URL is not an http address, or contains a name, a password or a query.
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
                "Endpoint: expected an address such as http://127.0.0.1:8080/v1, without name, password or query. Put "
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
        """Provenance of a prompt that the model wrote. JSON values."""
        return {"model": self.model, "endpoint": self.url}

    def write(self, request: Request) -> str:
        """Return the model's answer.

        Raises:
            LLM4GENError: the server refuses the request, or did not give a chat completion in any try.
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
                    problem = f"an answer that is not a chat completion ({self._safe(response.text)})"
                elif response.status_code in _TRY_AGAIN:
                    problem = f"status {response.status_code} ({self._safe(response.text)})"
                    wait = _wanted_wait(response, wait)
                else:
                    raise LLM4GENError(self._refused(response))
            if attempt + 1 < self.tries:
                self._sleep(wait)
        raise LLM4GENError(
            f"Endpoint {self.url}, model {self.model!r}: no answer in {self.tries} tries; the last was {problem}. What "
            "is done is stored: run the same command again when the server answers."
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
            404: "is the address right up to /v1, and does the server know the model's name?",
            413: "the image or the text is too large for the server.",
        }.get(response.status_code, "the server does not accept the request.")
        return (
            f"Endpoint {self.url}, model {self.model!r}: status {response.status_code} ({self._safe(response.text)}); "
            f"{advice}"
        )

    def _safe(self, text: str) -> str:
        """Shorten a server's text to one line, without the key, which some servers repeat."""
        shown = text.replace(self._key, "***") if self._key else text
        line = " ".join(shown.split())
        return line if len(line) <= 200 else line[:197] + "..."


class LocalModel:
    """A chat model of transformers from a local folder, asked through its chat template.

    Args:
        folder: with the model and its tokenizer or processor.
        sees: whether it is a vision-language model (`AutoModelForImageTextToText`), else an LLM
            (`AutoModelForCausalLM`).
        device: to compute on.
        dtype: of the weights.

    Raises:
        LLM4GENError: the folder does not exist, holds another kind of model, lacks weights or a chat template, or
            cannot be read.
    """

    def __init__(self, folder: Path, sees: bool, device: torch.device, dtype: torch.dtype) -> None:
        import transformers

        from llm4gen_diffusers.machine import content_hash

        self._folder, self._sees, self._device = folder, sees, device
        kind = "vision-language model" if sees else "language model"
        if not (folder / "config.json").is_file():
            raise LLM4GENError(
                f"Model {folder} {'has no config.json' if folder.is_dir() else 'does not exist'}; expected the folder "
                f"of a {kind} of transformers with a chat template, such as an instruct model of Qwen."
            )
        loader: Any = transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM
        reader: Any = transformers.AutoProcessor if sees else transformers.AutoTokenizer
        try:
            model, info = loader.from_pretrained(folder, dtype=dtype, local_files_only=True, output_loading_info=True)
            self._reader = reader.from_pretrained(folder, local_files_only=True)
        except _UNREADABLE as error:
            raise LLM4GENError(f"Model {folder} cannot be read as a {kind} ({first_line(error)}).") from error
        if missing := sorted(info["missing_keys"]):
            raise LLM4GENError(
                f"Model {folder} lacks {len(missing)} of its weights, such as {missing[0]}, and would write at random; "
                "download the folder again."
            )
        if not getattr(self._reader, "chat_template", None):
            raise LLM4GENError(f"Model {folder} has no chat template; expected an instruct or chat model.")
        self._model = model.to(device).eval()
        self.describe = {
            "model": folder.name,
            "hash": content_hash(folder),
            "dtype": str(dtype).removeprefix("torch."),
            "transformers": transformers.__version__,
        }

    def write(self, request: Request) -> str:
        """Return the model's answer; the same request gives the same answer on the same device.

        Raises:
            LLM4GENError: the memory does not suffice, or the request is too long for the model.
        """
        import torch

        parts: list[dict[str, Any]] = [{"type": "text", "text": request.text}]
        if request.image is not None:
            parts.insert(0, {"type": "image", "image": request.image.convert("RGB")})
        content: Any = parts if self._sees else request.text
        sampling: dict[str, Any] = {"do_sample": False}
        if request.temperature > 0:
            sampling = {"do_sample": True, "temperature": request.temperature, "top_p": 0.95, "top_k": 0}
        try:
            inputs = self._reader.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            ).to(self._device)
            devices = [self._device] if self._device.type == "cuda" else []
            with torch.random.fork_rng(devices), torch.no_grad():
                torch.manual_seed(request.seed)
                tokens = self._model.generate(**inputs, max_new_tokens=request.tokens, **sampling)
        except _UNREADABLE as error:
            raise LLM4GENError(f"Model {self._folder} could not answer ({first_line(error)}).") from error
        new = tokens[0, inputs["input_ids"].shape[1] :]
        return str(self._reader.decode(new, skip_special_tokens=True)).strip()


def _answer(response: httpx.Response) -> str | None:
    try:
        content = response.json()["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        return None
    return content if isinstance(content, str) else None


def _wanted_wait(response: httpx.Response, otherwise: float) -> float:
    """Return the seconds of Retry-After, else `otherwise`. Its other form, a date, would need the server's clock."""
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
