"""Files in all of the host's folders are found, and an empty list names the searched folders."""

from __future__ import annotations

import importlib

import host_models
import pytest
import torch
from comfy_server import ComfyServer, make_base


@pytest.fixture(scope="module")
def elsewhere(comfy, tmp_path_factory):
    """A host whose adapters lie on another disk, in a sub-folder, and which has no LLM at all."""
    folder = tmp_path_factory.mktemp("elsewhere")
    adapter = folder / "my adapters" / "sd15" / "projector.pth"
    adapter.parent.mkdir(parents=True)
    torch.save(host_models.adapter_state(0), adapter)
    paths = folder / "paths.yaml"
    paths.write_text(f"disk:\n  base_path: {folder}\n  llm4gen: my adapters\n", encoding="utf-8")
    with ComfyServer(make_base(folder / "base"), ("--extra-model-paths-config", str(paths))) as server:
        yield server


def options(server, node, name):
    definition = server.get(f"/object_info/{node}")[node]["input"]["required"][name]
    return definition[1]["options"] if definition[0] == "COMBO" else definition[0]


def test_extra_model_paths_are_listed_with_sub_folders(elsewhere):
    assert options(elsewhere, "LLM4GENLoadAdapter", "adapter_name") == ["sd15/projector.pth"]


def test_empty_list_names_the_searched_folders(elsewhere):
    (line,) = options(elsewhere, "LLM4GENLoadLLM", "llm_name")
    assert line.startswith("no LLM found in")
    for folder in ("text_encoders", "llm"):
        assert str(elsewhere.base / "models" / folder) in line


@pytest.fixture
def host(pack):
    return importlib.import_module(f"{pack.__name__}.nodes.host")


def test_windows_names_are_listed_with_forward_slashes(host, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_filename_list", lambda folder: ["sub\\a.safetensors", "b.pth", "notes.txt"])
    assert host.list_adapters() == ["b.pth", "sub/a.safetensors"]


def test_other_packs_folders_and_suffixes_are_kept(host, monkeypatch):
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "llm", (["/another/packs/folder"], {".gguf"}))
    host.register_folders()
    paths, suffixes = folder_paths.folder_names_and_paths["llm"]
    assert paths[0] == "/another/packs/folder" and len(paths) == 2
    assert {".gguf", ".safetensors", ".bin"} <= suffixes
