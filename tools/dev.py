"""The README's two commands, on a machine that has nothing but Python.

    python tools/dev.py demo    generate with the shipped miniature, and train another
    python tools/dev.py test    linters, type checker and every test; on the oldest host a selection
    python tools/dev.py test --oldest    all node tests on the oldest host

Both run in a virtual environment outside the clone, named by a hash of its requirements: made on a new machine,
ready at once on a used one.
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
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

REPOSITORY = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "llm4gen"
HOSTS = [
    Path(os.environ.get("COMFYUI_PATH", Path.home() / "ComfyUI")).expanduser(),
    Path(os.environ.get("COMFYUI_OLDEST_PATH", Path.home() / "ComfyUI-0.3.64")).expanduser(),
]
"""The current host and the oldest supported one; tests run on those that are there."""
OTHER_PYTHONS = ("3.10", "3.13")
"""Versions that run the core's tests too where they are installed: the oldest supported, and ComfyUI's portable one."""
CORE = ("torch", "numpy", "transformers", "tokenizers", "safetensors", "sentencepiece", "spacy", "filelock", "pytest")
"""Packages that the core's tests need."""
ON_OLDEST = ("encoders", "folders", "fusions", "lambda", "paint", "patch", "refusals", "registration", "sdxl")
"""Node tests that run on the oldest host beside the current one; all of them would take half as long again."""
SLOW_HOST_TESTS = ("evaluation_comfyui", "other_packs", "samplers", "sdxl_workflows", "together", "trained")
"""Node tests in a session of their own: one process for all of them would hold too many models."""
NOTHING_TO_DO = 5
"""pytest's exit code where no test was chosen."""


def environment() -> Path:
    """Interpreter of the environment for everything, which is made if it does not exist."""
    host = HOSTS[0] / "requirements.txt"
    packages = [*dependencies(), "torchvision", "torchaudio", *(["-r", str(host)] if host.is_file() else [])]
    return make_environment(Path(sys.executable), packages, host)


def make_environment(interpreter: Path, packages: Sequence[str], host: Path | None = None) -> Path:
    """Interpreter of a virtual environment with these packages.

    Args:
        interpreter: Python to make it with.
        packages: arguments of `pip install`.
        host: requirements of the host among them; their content is part of the environment's name. With it versions
            are those of constraints.txt, without it only torch's is: not every version exists for every Python.
    """
    constraints = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
    if host is None:
        constraints = "".join(line for line in constraints.splitlines(keepends=True) if line.startswith("torch=="))
    version = subprocess.run([interpreter, "-VV"], capture_output=True, text=True, check=True).stdout
    contents = [host.read_text(encoding="utf-8")] if host is not None and host.is_file() else []
    folder = CACHE / f"env-{digest([version, *packages, constraints, *contents])}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    complete = folder / "complete"
    if not complete.is_file():
        print(f"Making the environment {folder} (about 7 GB, some minutes) ...", flush=True)
        subprocess.run([interpreter, "-m", "venv", "--clear", str(folder)], check=True)
        (folder / "constraints.txt").write_text(constraints, encoding="utf-8")
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-c", str(folder / "constraints.txt"), *packages], check=True)
        complete.touch()
    return python


def other_pythons() -> dict[str, Path]:
    """Interpreters of `OTHER_PYTHONS` that this machine has, on the PATH or under pyenv, other than this one."""
    found = {}
    for version in OTHER_PYTHONS:
        candidates = [shutil.which(f"python{version}"), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python")]
        for candidate in filter(None, candidates):
            # pyenv's shims exist for versions that are not active, and fail.
            said = subprocess.run([candidate, "--version"], capture_output=True, text=True, check=False).stdout
            if said.startswith(f"Python {version}.") and not sys.version.startswith(f"{version}."):
                found[version] = Path(candidate)
                break
    return found


def digest(parts: list[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def dependencies() -> list[str]:
    """Dependencies of the project with all extras; the project itself runs from the clone."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        from pip._vendor import tomli as tomllib
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [package for extra in project["optional-dependencies"].values() for package in extra]
    return [package for package in project["dependencies"] + extras if not package.startswith(project["name"])]


def host_site(host: Path, python: Path) -> Path:
    """Folder with the front end that a host pins, for a host other than the one of the environment."""
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
    """Run linters and type checker, then two sessions of pytest at a time, each with half of the cores.

    Args:
        arguments: for pytest. If files or folders are among them, only these are tested, on the current host; with
            `--oldest`, all node tests on the oldest host.
    """
    python = environment()
    run(python, "-m", "ruff", "check", ".")
    run(python, "-m", "ruff", "format", "--check", ".")
    run(python, "-m", "mypy")
    if any((REPOSITORY / argument.split("::")[0]).exists() for argument in arguments):
        sys.exit(pytest(python, arguments, COMFYUI_PATH=str(HOSTS[0])))
    main, oldest = HOSTS
    on_main, on_oldest = {"COMFYUI_PATH": str(main)}, {"COMFYUI_PATH": str(oldest)}
    if has_oldest := (oldest / "main.py").is_file():
        site = [str(host_site(oldest, python)), os.environ.get("PYTHONPATH")]
        on_oldest["PYTHONPATH"] = os.pathsep.join(filter(None, site))
    root = [str(file.relative_to(REPOSITORY)) for file in sorted((REPOSITORY / "tests").glob("test_*.py"))]
    host_tests = {file.stem.removeprefix("test_"): file for file in (REPOSITORY / "tests" / "host").glob("test_*.py")}

    def host_session(names: Collection[str]) -> list[str]:
        # Not the files by name: conftest.py ignores them where there is no host, and pytest does not then.
        return ["tests/host", *(f"--ignore={file}" for name, file in host_tests.items() if name not in names)]

    browser = ["tests/browser", "--ignore=tests/browser/test_vote.py", "-m", "not slow"]
    sessions: list[tuple[Path, Sequence[str], dict[str, str]]] = [  # the longest first, and one host at a time
        (python, host_session(SLOW_HOST_TESTS), on_main),
        (python, ["tests/train"], on_main),
        (python, host_session({*host_tests} - {*SLOW_HOST_TESTS}), on_main),
        (python, ["tests/core", "tests/miniature", "tests/diffusers", *root], on_main),
        (python, [*host_session(ON_OLDEST), "-m", "not slow"], on_oldest),
        (python, ["tests/evaluation"], on_main),
        (python, ["tests/browser"], on_main),
        (python, browser, on_oldest),
    ]
    if "--oldest" in arguments:
        arguments = [argument for argument in arguments if argument != "--oldest"]
        sessions = [(python, ["tests/host"], on_oldest), (python, ["tests/browser"], on_oldest)]
    else:
        for version, interpreter in other_pythons().items():
            print(f"The core's tests run on Python {version} too.", flush=True)
            sessions.append((interpreter, ["tests/core"], {}))
    threads = str(max(1, (os.cpu_count() or 1) // 2))

    def session(interpreter: Path, folders: Sequence[str], variables: dict[str, str]) -> int:
        if interpreter != python:
            interpreter = make_environment(interpreter, CORE)
        with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
            code = pytest(interpreter, [*folders, *arguments], output, OMP_NUM_THREADS=threads, **variables)
            output.seek(0)
            with printing:
                sys.stdout.write(output.read())
                sys.stdout.flush()
        return code

    printing = threading.Lock()
    with ThreadPoolExecutor(2) as pool:
        codes = list(pool.map(lambda one: session(*one), [s for s in sessions if has_oldest or s[2] is not on_oldest]))
    if not has_oldest:
        print(f"TESTS ON THE OLDEST HOST SKIPPED: there is no ComfyUI at {oldest}.")
    if failures := [code for code in codes if code]:
        sys.exit(failures[0])


def pytest(python: Path, arguments: list[str], output: TextIO | None = None, **variables: str) -> int:
    """Exit code of pytest.

    That of a session without tests counts as 0 where -k may have selected tests of another session, and where the
    host or the browser is missing, which pytest says loudly itself.
    """
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
