"""A real ComfyUI: imported into this process, and run as a server.

Everything that is written goes to a base directory of the test session; the host's own folder stays as it is.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import host_models
import pytest
from comfy_server import COMFYUI, REPOSITORY, ComfyServer, host_is_here, make_base

if not host_is_here():
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("comfy") / "base")


@pytest.fixture(scope="session")
def comfy(base: Path) -> ModuleType:
    """The host's modules in this process, on the CPU, with the session's base directory."""
    sys.path.insert(0, str(COMFYUI))
    sys.argv = ["main.py", "--cpu", "--base-directory", str(base)]
    import comfy.options

    comfy.options.enable_args_parsing()
    # As the host's main.py does first: 0.3.64 then puts its comfy folder, with a utils.py, before everything.
    importlib.import_module("utils.extra_config")
    import comfy.sd

    return comfy


@pytest.fixture(scope="session")
def pack(comfy: ModuleType) -> ModuleType:
    """This pack, imported as the host imports it: under an arbitrary name."""
    spec = importlib.util.spec_from_file_location("/some/where/pack", REPOSITORY / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    importlib.import_module(".nodes", spec.name)
    return module


@pytest.fixture(scope="session")
def models(base: Path, comfy: ModuleType) -> Path:
    """The host's model folders, filled: SD1.5 checkpoint and UNet, RankGen-like LLM, official adapter."""
    folder = base / "models"
    host_models.fill(folder, COMFYUI / "comfy" / "text_encoders" / "t5_tokenizer")
    return folder


@pytest.fixture(scope="session")
def server(base: Path, models: Path) -> Iterator[ComfyServer]:
    with ComfyServer(base) as running:
        yield running
