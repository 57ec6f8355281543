"""Chat models: requests, retries and errors of an endpoint, its key; real tiny models with random weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from chat_server import ChatServer, question_of, said
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaForCausalLM

from evaluation.dense.chat_models import LONGEST_WAIT, Endpoint, LocalModel, Request
from llm4gen_core import LLM4GENError

KEY = "sk-secret-of-the-test"
REQUEST = Request("Say yes.", 3, 50, 0.7)


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def endpoint(server: ChatServer, waits: list[float], monkeypatch: pytest.MonkeyPatch) -> Endpoint:
    monkeypatch.setenv("TEST_KEY", KEY)
    return Endpoint(server.url, "tiny", "TEST_KEY", timeout=5, tries=4, sleep=waits.append)


def test_request_content(server: ChatServer, endpoint: Endpoint) -> None:
    picture = Image.new("RGB", (3000, 1500), (250, 0, 0))
    server.answers = lambda body, number: "A red field."
    assert endpoint.write(Request("Describe this.", 3, 50, 0.0, picture)) == "A red field."
    assert endpoint.write(REQUEST) == "A red field."
    text, image = question_of(server.requests[0])
    assert text == "Describe this." and image is not None
    assert max(image.size) <= 1600 and image.size[0] == 2 * image.size[1]
    assert image.convert("RGB").getpixel((10, 10))[0] > 240
    settings = {key: server.requests[1][key] for key in ("model", "seed", "max_tokens", "temperature")}
    assert settings == {"model": "tiny", "seed": 3, "max_tokens": 50, "temperature": 0.7}
    assert question_of(server.requests[1]) == ("Say yes.", None)
    assert server.authorizations == [f"Bearer {KEY}"] * 2
    assert endpoint.describe == {"model": "tiny", "endpoint": server.url}


@pytest.mark.parametrize(
    "bad",
    [
        (500, "out of memory"), (429, "slow down"), (503, ""), (200, "<html>proxy</html>"), (200, "{}"),
        (200, '{"choices": []}'), (200, '{"choices": [{"message": {"content": null}}]}'), (200, "[1, 2]"),
    ],
)  # fmt: skip
def test_bad_answers_are_retried(
    server: ChatServer, endpoint: Endpoint, waits: list[float], bad: tuple[int, str]
) -> None:
    server.answers = lambda body, number: bad if number < 2 else "fine"
    assert endpoint.write(REQUEST) == "fine"
    assert len(server.requests) == 3 and waits == [1.0, 2.0]


def test_retry_after_is_respected(server: ChatServer, endpoint: Endpoint, waits: list[float]) -> None:
    server.headers = {"Retry-After": "17"}
    server.answers = lambda body, number: (429, "slow down") if number == 0 else "fine"
    endpoint.write(REQUEST)
    server.headers = {"Retry-After": "86400"}
    server.answers = lambda body, number: (429, "slow down") if number == 2 else "fine"
    endpoint.write(REQUEST)
    assert waits == [17.0, LONGEST_WAIT]


def test_gives_up_after_the_last_try(server: ChatServer, endpoint: Endpoint, waits: list[float]) -> None:
    server.answers = lambda body, number: (500, "out of memory " * 100)
    with pytest.raises(LLM4GENError, match=r"no answer in 4 tries; the last was status 500 \(out of memory") as error:
        endpoint.write(REQUEST)
    assert len(waits) == 3 and len(str(error.value)) < 600


@pytest.mark.parametrize(("status", "advice"), [(401, "TEST_KEY"), (404, "up to /v1"), (400, "does not accept")])
def test_refusals_are_not_retried(server: ChatServer, endpoint: Endpoint, status: int, advice: str) -> None:
    server.answers = lambda body, number: (status, "no")
    with pytest.raises(LLM4GENError, match=f"status {status}.*{advice}"):
        endpoint.write(REQUEST)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [401, 500, 200])
def test_a_key_in_the_servers_answer_is_hidden(server: ChatServer, endpoint: Endpoint, status: int) -> None:
    server.answers = lambda body, number: (status, f"bad key {KEY}")
    with pytest.raises(LLM4GENError) as error:
        endpoint.write(REQUEST)
    assert KEY not in str(error.value) and "***" in str(error.value)


def test_unreachable_server(waits: list[float]) -> None:
    with pytest.raises(LLM4GENError, match=r"no answer in 2 tries; the last was ConnectError"):
        Endpoint("http://127.0.0.1:9/v1", "tiny", "", tries=2, sleep=waits.append).write(REQUEST)
    assert waits == [1.0]


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8080", "ftp://host/v1", "http://name:password@host/v1", "http://host/v1?key=1"]
)
def test_invalid_addresses_and_addresses_with_a_key(url: str) -> None:
    with pytest.raises(LLM4GENError, match="expected an address") as error:
        Endpoint(url, "tiny")
    assert "password" not in str(error.value).replace("without name, password", "")


def test_without_a_key_none_is_sent(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_KEY", raising=False)
    server.answers = lambda body, number: (200, said("fine"))
    assert Endpoint(server.url, "tiny", "TEST_KEY").write(REQUEST) == "fine"
    assert server.authorizations == [None]


CPU = torch.device("cpu")


def test_greedy_answer_equals_a_manual_loop(writer_folder: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(writer_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(writer_folder)
    tokens = tokenizer("write a prompts <answer>", return_tensors="pt")["input_ids"]
    start = tokens.shape[1]
    with torch.no_grad():
        for _ in range(6):
            tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], 1)
    expected = tokenizer.decode(tokens[0, start:], skip_special_tokens=True).strip()
    found = LocalModel(writer_folder, False, CPU, torch.float32).write(Request("write a prompts", 1, 6, 0.0))
    assert found == expected != ""


def test_sampling_depends_on_the_seed_and_keeps_torchs_state(writer_folder: Path) -> None:
    model = LocalModel(writer_folder, False, CPU, torch.float32)
    state = torch.get_rng_state()
    answers = [model.write(Request("write prompts", seed, 12, 1.0)) for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_answer_depends_on_the_image(vision_folder: Path) -> None:
    model = LocalModel(vision_folder, True, CPU, torch.float32)
    colors = ((255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0))
    answers = {model.write(Request("describe this image", 1, 12, 0.0, Image.new("RGB", (48, 40), c))) for c in colors}
    assert len(answers) > 1
    assert model.describe["model"] == "vision" and len(model.describe["hash"]) == 16


def test_unusable_models_are_refused(writer_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LLM4GENError, match="does not exist"):
        LocalModel(tmp_path / "none", False, CPU, torch.float32)
    with pytest.raises(LLM4GENError, match="cannot be read as a vision-language model"):
        LocalModel(writer_folder, True, CPU, torch.float32)
    silent = tmp_path / "silent"
    shutil.copytree(writer_folder, silent)
    (silent / "chat_template.jinja").unlink()
    with pytest.raises(LLM4GENError, match="no chat template"):
        LocalModel(silent, False, CPU, torch.float32)
    holed = tmp_path / "holed"
    shutil.copytree(writer_folder, holed)
    weights = load_file(holed / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, holed / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LLM4GENError, match="lacks 1 of its weights"):
        LocalModel(holed, False, CPU, torch.float32)
