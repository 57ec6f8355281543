"""Registration with the host: an error in the entry point would only be a line in its log."""

import pytest
from comfy_server import NODES


@pytest.mark.parametrize("node", NODES)
def test_node_is_registered(server, node):
    assert node in server.get(f"/object_info/{node}")


@pytest.mark.parametrize("node", NODES)
def test_every_input_has_a_tooltip(server, node):
    groups = server.get(f"/object_info/{node}")[node]["input"]
    for group in ("required", "optional"):
        for name, definition in groups.get(group, {}).items():
            assert definition[1].get("tooltip"), name


def test_lists_name_files_and_folders(server, models):
    def options(node, name):
        definition = server.get(f"/object_info/{node}")[node]["input"]["required"][name]
        return definition[1]["options"] if definition[0] == "COMBO" else definition[0]

    assert "projector.pth" in options("LLM4GENLoadAdapter", "adapter_name")
    llms = options("LLM4GENLoadLLM", "llm_name")
    assert "rankgen.safetensors" in llms
    assert [name for name in llms if name.startswith("some/")] == ["some/t5-folder/"]
