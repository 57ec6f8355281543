"""A ComfyUI workflow in API format, together with what the server says about its kinds of nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llm4gen_core import LLM4GENError

NodeInfo = Callable[[str], Mapping[str, Any] | None]
"""What the server's /object_info says about a kind of nodes; None if it has none of that name."""

Link = tuple[str, int]
"""Id of a node and the number of one of its outputs."""

WIDGETS = frozenset({"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"})
"""Types whose values stand in the node itself, unless a wire brings them."""


@dataclass(frozen=True, order=True)
class Place:
    """An input of a node, written as "6.text"."""

    node: str
    input: str

    @classmethod
    def parse(cls, text: str) -> Place:
        """
        Raises:
            LLM4GENError: it is not NODE.INPUT.
        """
        node, dot, name = text.partition(".")
        if not (node and dot and name):
            raise LLM4GENError(
                f"{text!r} names no input of a workflow; expected the node's id and the input's name, such as 6.text."
            )
        return cls(node, name)

    def __str__(self) -> str:
        return f"{self.node}.{self.input}"


class Graph:
    """The nodes of a workflow.

    Args:
        nodes: by id; each has "class_type" and "inputs", whose values are constants or links [id, output].
        info: see `NodeInfo`.

    Raises:
        LLM4GENError: a node is none, is of a kind that the server does not know, or is wired to one that is not there.
    """

    def __init__(self, nodes: Mapping[str, Any], info: NodeInfo) -> None:
        self.nodes: dict[str, dict[str, Any]] = {}
        self._info: dict[str, Mapping[str, Any]] = {}
        for name, node in nodes.items():
            kind, inputs = (node.get("class_type"), node.get("inputs")) if isinstance(node, Mapping) else (None, None)
            if not isinstance(kind, str) or not isinstance(inputs, Mapping):
                raise LLM4GENError(
                    f"The workflow's node {name!r} has no class_type and inputs; expected a file in API format: in "
                    "ComfyUI, Workflow > Export (API)."
                )
            self.nodes[name] = {"class_type": kind, "inputs": dict(inputs)}
            if kind not in self._info:
                found = info(kind)
                if found is None:
                    raise LLM4GENError(
                        f"The workflow's node {name} is a {kind}, which the ComfyUI server does not know; install the "
                        "pack that it comes from on the server, or remove the node."
                    )
                self._info[kind] = found
        for name in self.nodes:
            for value, (source, output) in self.links(name):
                if source not in self.nodes or output >= len(self.info(source)["output"]):
                    raise LLM4GENError(
                        f"The workflow's input {name}.{value} is wired to output {output} of node {source!r}, which "
                        "does not exist; export it again."
                    )

    def kind(self, node: str) -> str:
        return self.nodes[node]["class_type"]

    def inputs(self, node: str) -> dict[str, Any]:
        """Constants and links, which may be changed."""
        return self.nodes[node]["inputs"]

    def info(self, node: str) -> Mapping[str, Any]:
        """What the server says about the node's kind."""
        return self._info[self.kind(node)]

    def name(self, node: str) -> str:
        """For people."""
        return f"{node} ({self.kind(node)})"

    def links(self, node: str) -> Iterator[tuple[str, Link]]:
        """Inputs that are wired, and to what."""
        for name, value in self.inputs(node).items():
            if (link := as_link(value)) is not None:
                yield name, link

    def definition(self, node: str, name: str) -> tuple[str, Mapping[str, Any]]:
        """Type and options of an input; ("", {}) if the server does not list it."""
        return definitions(self.info(node)).get(name, ("", {}))

    def output_type(self, link: Link) -> str:
        kind = self.info(link[0])["output"][link[1]]
        return kind if isinstance(kind, str) else "COMBO"

    def output_name(self, link: Link) -> str:
        names = self.info(link[0]).get("output_name") or []
        return str(names[link[1]]) if link[1] < len(names) else ""

    def ancestors(self, link: Link) -> list[str]:
        """The node of a link and all that it depends on, in the order of the file."""
        found: set[str] = set()
        waiting = [link[0]]
        while waiting:
            node = waiting.pop()
            if node not in found:
                found.add(node)
                waiting += [source for _, (source, _) in self.links(node)]
        return [node for node in self.nodes if node in found]

    def keep(self, nodes: list[str]) -> None:
        """Take away all others."""
        self.nodes = {node: self.nodes[node] for node in nodes}


def as_link(value: Any) -> Link | None:
    """A value of an input as a link, or None if it is a constant."""
    if isinstance(value, list) and len(value) == 2 and isinstance(value[1], int):
        return str(value[0]), value[1]
    return None


def definitions(info: Mapping[str, Any]) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Type and options of each input of a kind of nodes, in the order in which a canvas shows them."""
    found: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for group in ("required", "optional"):
        for name, definition in info["input"].get(group, {}).items():
            kind = definition[0] if isinstance(definition[0], str) else "COMBO"
            options = definition[1] if len(definition) > 1 else {}
            if kind == "COMBO" and not isinstance(definition[0], str):
                options = {"options": definition[0], **options}
            found[name] = kind, options
    return found
