"""Shared by all command lines: parsers whose errors are one sentence, exit codes, prompt files."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

PACKAGES = ("llm4gen_core", "llm4gen_diffusers", "train", "evaluation", "miniature")
"""Packages of the project."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one sentence.

    Args:
        configured_by: function that adds the arguments and the default `run` when the command is used, so that the
            help of others stays quick; or the name of a module with such a function `configure`.
    """

    def __init__(
        self, *args: Any, configured_by: str | Callable[[argparse.ArgumentParser], None] | None = None, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.configured_by = configured_by

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.configured_by is not None:
            configure, self.configured_by = self.configured_by, None
            if isinstance(configure, str):
                configure = importlib.import_module(configure).configure
            configure(self)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        if process_number() == 0:
            self._print_message(f"error: {message} (see {self.prog} --help)\n", sys.stderr)
        self.exit(2)


def run_command(build_parser: Callable[[], Parser], extra: str, arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments and call the default `run` of the command with them.

    Args:
        build_parser: returns the parser of the whole command line, whose commands go to `command`.
        extra: extra of pyproject.toml with the commands' dependencies, named where a package is missing.
        arguments: arguments; None for those of the process.

    Returns:
        Exit code: 0; 2 after an error, which is one line on stderr; 130 after an interrupt from the keyboard (SIGINT),
        143 after SIGTERM.
    """
    args = build_parser().parse_args(arguments)
    # diffusers imports bitsandbytes, which then logs hints about its kernels.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    run = args.run
    del args.run, args.command
    try:
        from llm4gen_core import LLM4GENError

        try:
            run(args)
        except (LLM4GENError, OSError) as error:
            _report(str(error))
            return 2
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", *PACKAGES):
            raise
        _report(f"The package {package} is not installed; install what is needed: pip install 'llm4gen[{extra}]'")
        return 2
    except KeyboardInterrupt as interrupt:
        return 143 if getattr(interrupt, "signal", None) == "SIGTERM" else 130
    return 0


def read_prompts(path: str) -> list[str]:
    """Read the lines of a UTF-8 text file that are not blank.

    Raises:
        LLM4GENError: the file cannot be read or holds no prompt.
    """
    from llm4gen_core import LLM4GENError

    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise LLM4GENError(
            f"Prompt file {path} cannot be read ({error.strerror}); expected a text file with one prompt a line."
        ) from error
    except UnicodeDecodeError as error:
        raise LLM4GENError(f"Prompt file {path} is not UTF-8 text ({error.reason}); save it as UTF-8.") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise LLM4GENError(f"Prompt file {path} holds no prompt; expected one a line.")
    return prompts


def quiet_libraries() -> None:
    """Silence progress bars and hints of diffusers and transformers, so that stderr holds our errors alone."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def process_number() -> int:
    """Rank of this process among those that `accelerate launch` started; 0 prints."""
    number = os.environ.get("RANK", "0")
    return int(number) if number.isdigit() else 0


@contextlib.contextmanager
def same_everywhere() -> Iterator[None]:
    """Report errors that all processes raise alike from the first process only."""
    from llm4gen_core import LLM4GENError

    try:
        yield
    except (LLM4GENError, OSError):
        if process_number() == 0:
            raise
        raise SystemExit(2) from None


def _report(message: str) -> None:
    process = process_number()
    where = f" in process {process}" if process else ""
    print(f"error{where}: {' '.join(message.split())}", file=sys.stderr)
