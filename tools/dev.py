"""The README's two commands, on a machine that has nothing but Python.

    python tools/dev.py demo    paints with the shipped miniature, and trains another
    python tools/dev.py test    linters, type checker and every test; on the oldest host a choice of them
    python tools/dev.py test --oldest    all tests of the nodes on the oldest host

Both run in a virtual environment outside the clone, under a name that is a hash of the files that say what
belongs into it: complete on a new machine, ready at once on a used one.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import venv
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

REPOSITORY = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "llm4gen"
HOSTS = [
    Path(os.environ.get("COMFYUI_PATH", Path.home() / "ComfyUI")).expanduser(),
    Path(os.environ.get("COMFYUI_OLDEST_PATH", Path.home() / "ComfyUI-0.3.64")).expanduser(),
]
"""The host that is developed against, and the oldest that is supported; tests run on those that are there."""
LEFT_OUT = ("evaluation_comfyui", "gguf", "language_models", "other_packs", "samplers", "trained")
ON_OLDEST = [
    ("tests/host", *(f"--ignore=tests/host/test_{name}.py" for name in LEFT_OUT), "-m", "not slow"),
    ("tests/browser", "--ignore=tests/browser/test_vote.py", "-m", "not slow"),
]
"""On the oldest host beside the newer one: a whole run would take half as long again."""
NOTHING_TO_DO = 5
"""pytest's exit code where no test was chosen."""


def environment() -> Path:
    """The interpreter of the environment, which is made if it is not there yet."""
    packages = [*dependencies(), "torchvision", "torchaudio"]
    constraints = REPOSITORY / "constraints.txt"
    files = [constraints, HOSTS[0] / "requirements.txt"]
    recipe = [sys.version, *packages, *(file.read_text(encoding="utf-8") for file in files if file.is_file())]
    folder = CACHE / f"env-{digest(recipe)}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    complete = folder / "complete"
    if not complete.is_file():
        print(f"Making the environment {folder} (about 7 GB, some minutes) ...", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        if files[1].is_file():
            packages += ["-r", str(files[1])]
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-c", str(constraints), *packages], check=True)
        complete.touch()
    return python


def digest(parts: list[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def dependencies() -> list[str]:
    """The project's dependencies with all extras. The project itself runs from the clone."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        from pip._vendor import tomli as tomllib
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [package for extra in project["optional-dependencies"].values() for package in extra]
    return [package for package in project["dependencies"] + extras if not package.startswith(project["name"])]


def host_site(host: Path, python: Path) -> Path:
    """A folder with the front end that a host pins, for hosts other than the one in the environment."""
    pins = [line for line in (host / "requirements.txt").read_text().splitlines() if line.startswith("comfyui-")]
    folder = CACHE / f"front-end-{digest(pins)}"
    complete = folder / "complete"
    if not complete.is_file():
        command = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(folder)]
        subprocess.run([*command, *pins], check=True)
        complete.touch()
    return folder


def run(python: Path, *arguments: str, **variables: str) -> None:
    print("$ python", *arguments, flush=True)
    subprocess.run([str(python), *arguments], cwd=REPOSITORY, env={**os.environ, **variables}, check=True)


def demo(arguments: list[str]) -> None:
    run(environment(), "-m", "miniature", "demo", *(arguments or ["--output", str(REPOSITORY / "demo")]))


def test(arguments: list[str]) -> None:
    """Linters, types, then two sessions of pytest at a time, each with half of the cores, the longest ones first.

    Args:
        arguments: for pytest. With files or folders among them, these alone are tested, with the newer host; with
            `--oldest`, all tests of the nodes with the oldest one.
    """
    python = environment()
    run(python, "-m", "ruff", "check", ".")
    run(python, "-m", "ruff", "format", "--check", ".")
    run(python, "-m", "mypy")
    if any((REPOSITORY / argument.split("::")[0]).exists() for argument in arguments):
        sys.exit(pytest(python, arguments, COMFYUI_PATH=str(HOSTS[0])))
    main, oldest = HOSTS
    of_main, of_oldest = {"COMFYUI_PATH": str(main)}, {"COMFYUI_PATH": str(oldest)}
    if has_oldest := (oldest / "main.py").is_file():
        site = [str(host_site(oldest, python)), os.environ.get("PYTHONPATH")]
        of_oldest["PYTHONPATH"] = os.pathsep.join(filter(None, site))
    sessions = [
        (["tests/train"], of_main),
        (["tests/host"], of_main),
        (ON_OLDEST[0], of_oldest),
        (["tests/test_imports.py", "tests/core", "tests/miniature", "tests/diffusers"], of_main),
        (["tests/evaluation"], of_main),
        (["tests/browser"], of_main),
        (ON_OLDEST[1], of_oldest),
    ]
    if "--oldest" in arguments:
        arguments = [argument for argument in arguments if argument != "--oldest"]
        sessions = [(["tests/host"], of_oldest), (["tests/browser"], of_oldest)]
    threads = str(max(1, (os.cpu_count() or 1) // 2))

    def session(folders: Sequence[str], variables: dict[str, str]) -> int:
        with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
            code = pytest(python, [*folders, *arguments], output, OMP_NUM_THREADS=threads, **variables)
            output.seek(0)
            with printing:
                sys.stdout.write(output.read())
                sys.stdout.flush()
        return code

    printing = threading.Lock()
    with ThreadPoolExecutor(2) as pool:
        codes = list(pool.map(lambda one: session(*one), [one for one in sessions if has_oldest or one[1] is of_main]))
    if not has_oldest:
        print(f"TESTS ON THE OLDEST HOST SKIPPED: there is no ComfyUI at {oldest}.")
    if failures := [code for code in codes if code]:
        sys.exit(failures[0])


def pytest(python: Path, arguments: list[str], output: TextIO | None = None, **variables: str) -> int:
    """Its exit code; that of a session that had nothing to do counts as 0 where -k may have chosen from another one
    alone, and where the host or the browser is missing, which pytest says loudly itself."""
    print("$ python -m pytest", *arguments, file=output, flush=True)
    command = [str(python), "-m", "pytest", *arguments]
    environ = {**os.environ, **variables}
    code = subprocess.run(command, cwd=REPOSITORY, env=environ, stdout=output, stderr=output, check=False).returncode
    incomplete = shutil.which("chromium") is None or not (HOSTS[0] / "main.py").is_file()
    return 0 if code == NOTHING_TO_DO and ("-k" in arguments or incomplete) else code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["demo", "test"])
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="passed on to the demo or to pytest")
    options = parser.parse_args()
    try:
        {"demo": demo, "test": test}[options.command](options.arguments)
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)


if __name__ == "__main__":
    main()
