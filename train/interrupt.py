"""SIGINT and SIGTERM as a request: the step is finished, a checkpoint written, and the run ends."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

_ONE_PRESS = 1.0
"""Seconds within which a second SIGINT counts as the first: launchers pass on what the terminal sent already."""


class Interrupt:
    """Context manager; the loop reads `requested` between two steps.

    A second SIGINT raises KeyboardInterrupt, for a person who does not want to wait. The handlers of before come
    back at the end. Python delivers signals to the main thread alone: in any other one nothing is handled,
    `active` is False and `requested` stays so.

    With several processes each one sees its own signals: they have to agree on the flag before they stop.

    Args:
        notice: line for stderr at the first signal; empty for none.

    Attributes:
        requested: whether a signal has come.
        signal: name of the first one ("SIGINT"), None before.
        active: whether signals are handled.
    """

    def __init__(self, notice: str = "") -> None:
        self.notice = notice
        self.requested = False
        self.signal: str | None = None
        self.active = False
        self._came = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupt:
        self.active = threading.current_thread() is threading.main_thread()
        if self.active:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()
        self.active = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.requested:
            if number == signal.SIGINT and now - self._came > _ONE_PRESS:
                raise KeyboardInterrupt
            return
        self.requested, self.signal, self._came = True, signal.Signals(number).name, now
        if self.notice:
            # Not print: its lock may be held by the very line that the signal interrupted.
            os.write(2, f"\n{self.notice}\n".encode())
