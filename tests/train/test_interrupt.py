"""Signals become a request that the loop reads."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from train import loop
from train.loop import Interrupt


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_is_a_request(name, capfd):
    with Interrupt("saving") as stop:
        assert stop.active and not stop.requested
        send(getattr(signal, name))
        assert stop.requested and stop.signal == name
    assert capfd.readouterr().err == "\nsaving\n"


def test_the_handlers_come_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError), Interrupt():
        assert signal.getsignal(signal.SIGINT) != before[0]
        raise RuntimeError
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_second_sigint_leaves_at_once(monkeypatch):
    monkeypatch.setattr(loop, "_ONE_PRESS", 0.0)
    with Interrupt() as stop:
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert stop.signal == "SIGTERM"


def test_a_launcher_that_repeats_the_signal_is_not_a_second_one():
    with Interrupt() as stop:
        send(signal.SIGINT)
        send(signal.SIGINT)
        assert stop.requested


def test_another_thread_handles_nothing():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def run() -> None:
        with Interrupt() as stop:
            seen.append((stop.active, stop.requested, signal.getsignal(signal.SIGINT) == before))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(False, False, True)]
