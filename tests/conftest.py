"""Says once, loudly, which parts of the tests this machine cannot run."""

from __future__ import annotations

import shutil

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
