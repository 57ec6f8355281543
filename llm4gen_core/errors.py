"""The project's exception for bad input, and helpers to quote other libraries' exceptions."""

from __future__ import annotations

import errno
from typing import Any

_DISK_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


class LLM4GENError(ValueError):
    """Bad input. The message names the input, what was found, what was expected and what to do."""


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's text that is not blank, or the name of its type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def first_problem(error: Any) -> str:
    """Return the first problem of a pydantic `ValidationError`, as "field: message"."""
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"])
    return f"{place}: {problem['msg']}" if place else str(problem["msg"])


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an exception, its cause or its context says that the disk is full."""
    while error is not None:
        numbered = isinstance(error, OSError) and error.errno in _DISK_FULL
        if numbered or "No space left" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
