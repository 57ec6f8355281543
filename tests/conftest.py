"""Says once, loudly, which parts of the tests this machine cannot run."""

from __future__ import annotations

import shutil

from comfy_server import COMFYUI, host_is_here


def missing_parts() -> list[str]:
    parts = []
    if not host_is_here():
        parts.append(f"HOST TESTS SKIPPED: there is no ComfyUI at {COMFYUI}; set COMFYUI_PATH.")
    elif shutil.which("chromium") is None:
        parts.append("BROWSER TESTS SKIPPED: there is no `chromium` on the PATH.")
    return parts


def pytest_terminal_summary(terminalreporter) -> None:
    for part in missing_parts():
        terminalreporter.write_line(part, red=True, bold=True)
