"""Says once, loudly, which parts of the tests this machine cannot run."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
from comfy_server import COMFYUI, OTHER_PACKS, host_is_here, pack_folder


def missing_parts() -> list[str]:
    parts = []
    if not host_is_here():
        parts.append(f"HOST TESTS SKIPPED: there is no ComfyUI at {COMFYUI}; set COMFYUI_PATH.")
    elif shutil.which("chromium") is None:
        parts.append("BROWSER TESTS SKIPPED: there is no `chromium` on the PATH.")
    absent = [name for name in OTHER_PACKS if not pack_folder(name).is_dir()]
    if host_is_here() and absent:
        place = pack_folder("").resolve()
        parts.append(f"TESTS WITH OTHER PACKS SKIPPED: no {', '.join(absent)} in {place}; set COMFYUI_PACKS_PATH.")
    return parts


def pytest_terminal_summary(terminalreporter) -> None:
    for part in missing_parts():
        terminalreporter.write_line(part, red=True, bold=True)


@pytest.fixture
def refused_by(capsys: pytest.CaptureFixture[str]) -> Callable[[Callable[[list[str]], int]], Callable[..., str]]:
    """Function that makes, of a package's `main`, one that runs a command, expects exit code 2 and returns its one line
    on stderr."""

    def refused(main: Callable[[list[str]], int]) -> Callable[..., str]:
        def run(*arguments: object) -> str:
            try:
                code: object = main([str(argument) for argument in arguments])
            except SystemExit as end:  # argparse
                code = end.code
            captured = capsys.readouterr()
            assert code == 2 and captured.out == ""
            [line] = captured.err.splitlines()
            assert line.startswith("error: ")
            return line

        return run

    return refused
