"""A ComfyUI workflow in API format, filled with a prompt and a seed for each image."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llm4gen_core import LLM4GENError
from llm4gen_core.files import read_json
from llm4gen_diffusers.machine import fingerprint

NodeInfo = Callable[[str], Mapping[str, Any] | None]
"""Function that returns the server's /object_info of a node class; None for an unknown class."""

Link = tuple[str, int]
"""Id of a node and the number of one of its outputs."""

Place = str
"""An input of a node: id and name, such as "6.text"."""

PLACEHOLDER = "{prompt}"
"""Stands in a text of the workflow where the prompt goes."""

_EXPORT = "in ComfyUI, choose Workflow > Export (API)"
_SEEDS = ("noise_seed", "seed")
_MODEL_FILE = re.compile(r"\.(safetensors|sft|ckpt|pth?|bin|gguf|onnx)$|[^/\\][/\\]$", re.IGNORECASE)
"""Names of weight files, and of folders as LLM4GEN's Load LLM lists them."""


class Workflow:
    """The nodes that an image depends on, with a Preview Image at their end instead of what saves or shows the image.

    So the server keeps the images only in its temporary folder, which it empties when it starts.

    Args:
        path: file as ComfyUI writes it by Workflow > Export (API).
        info: see `NodeInfo`.
        prompt_inputs: inputs that take the prompt, such as "6.text". Texts with "{prompt}" take it too, at that place.
        seed_inputs: inputs that take the seed, such as "3.seed"; empty for every `seed` and `noise_seed` that the image
            depends on.
        output_node: id of the node that saves, shows or makes the image; None if there is only one image.
        negative: negative prompt; None keeps the workflow's own.
        negative_inputs: inputs that take it.
        weights: whether parentheses in prompts are weights, as in "(word:1.3)"; else they are literal.

    Raises:
        LLM4GENError: the file is not a workflow in API format, the server does not know a node of it, an input does
            not fit, or it is not clear where prompt, seed or image are.
    """

    def __init__(
        self,
        path: Path,
        info: NodeInfo,
        *,
        prompt_inputs: Sequence[str] = (),
        seed_inputs: Sequence[str] = (),
        output_node: str | None = None,
        negative: str | None = None,
        negative_inputs: Sequence[str] = (),
        weights: bool = False,
    ) -> None:
        self._nodes = _read(path)
        self._info = _known(self._nodes, info)
        self._weights = weights
        self._image = self._find_image(output_node)
        self._keep_ancestors()
        self._check_batches()
        self.prompts = self._find_prompts(prompt_inputs)
        self.seeds = self._find_seeds(seed_inputs)
        self._set_negative(negative, negative_inputs)
        for place in self.prompts:
            if PLACEHOLDER not in str(self._inputs()[place]):
                _set(self._nodes, place, PLACEHOLDER)
        for place in self.seeds:
            _set(self._nodes, place, "{seed}")
        self._keep_ancestors()  # fewer than before where a text or a seed has replaced a link
        self.prompts = [place for place in self.prompts if place in self._inputs()]
        self.seeds = [place for place in self.seeds if place in self._inputs()]
        self.end = f"{self._image[0]}-image"
        preview = {"class_type": "PreviewImage", "inputs": {"images": list(self._image)}}
        self._template = {**self._nodes, self.end: preview}

    @property
    def summary(self) -> str:
        """Inputs of prompt and seed and the output of the image, in words."""

        def named(places: Sequence[Place]) -> str:
            return ", ".join(f"{place} ({self._class(_split(place)[0])})" for place in places)

        return (
            f"the prompt goes to {named(self.prompts)}, the seed to {named(self.seeds)}, the image comes from "
            f"{self._title(self._image[0])}"
        )

    def describe(self) -> dict[str, Any]:
        """Everything in it that changes pixels; JSON values. "workflow" has "{prompt}" and "{seed}" where they go."""
        constants = [value for node in self._template.values() for value in node["inputs"].values()]
        modules = {str(self._info[self._class(node)].get("python_module", "")) for node in self._nodes}
        return {
            "workflow": self._template,
            "workflow_hash": fingerprint(self._template),
            "prompt_inputs": self.prompts,
            "seed_inputs": self.seeds,
            "prompt_weights": self._weights,
            "models": sorted({value for value in constants if isinstance(value, str) and _MODEL_FILE.search(value)}),
            "packs": sorted(name for module in modules if (name := module.removeprefix("custom_nodes.")) != module),
        }

    def nodes(self, prompt: str, seed: int) -> dict[str, Any]:
        """Return the nodes in API format for one prompt and one seed."""
        nodes = copy.deepcopy(self._template)
        for place in self.prompts:
            _set(nodes, place, self._inputs()[place].replace(PLACEHOLDER, self._text(prompt)))
        for place in self.seeds:
            _set(nodes, place, seed)
        return nodes

    def _find_image(self, node: str | None) -> Link:
        if node is not None:
            if node not in self._nodes:
                raise LLM4GENError(f"The workflow has no node {node!r}; expected one of {self._listing(self._nodes)}.")
            outputs = self._info[self._class(node)]["output"]
            links = self._shown_images(node) or [(node, slot) for slot, kind in enumerate(outputs) if kind == "IMAGE"]
            if links:
                return links[0]
            raise LLM4GENError(
                f"The workflow's output node {self._title(node)} takes and makes no IMAGE; name another node."
            )
        ends = {name: links[0] for name in self._nodes if (links := self._shown_images(name))}
        # Previews show steps on the way, if another node saves the result.
        ends = {name: link for name, link in ends.items() if self._class(name) != "PreviewImage"} or ends
        if not ends:
            raise LLM4GENError(
                "The workflow saves and shows no image; put a Save Image at its end and export it again."
            )
        if len(set(ends.values())) > 1:
            raise LLM4GENError(
                f"The workflow ends in several images, at the nodes {self._listing(ends)}; name one of them as "
                "output_node."
            )
        return next(iter(ends.values()))

    def _shown_images(self, node: str) -> list[Link]:
        """Links into the IMAGE inputs of a node that saves or shows them."""
        if not self._info[self._class(node)].get("output_node"):
            return []
        return [
            (source, output)
            for _, (source, output) in _links(self._nodes[node])
            if self._info[self._class(source)]["output"][output] == "IMAGE"
        ]

    def _keep_ancestors(self) -> None:
        """Remove all nodes on which the image does not depend."""
        found: set[str] = set()
        waiting = [self._image[0]]
        while waiting:
            node = waiting.pop()
            if node not in found:
                found.add(node)
                waiting += [source for _, (source, _) in _links(self._nodes[node])]
        self._nodes = {name: node for name, node in self._nodes.items() if name in found}

    def _check_batches(self) -> None:
        for node in self._nodes:
            size = self._nodes[node]["inputs"].get("batch_size")
            if isinstance(size, int) and size > 1:
                raise LLM4GENError(
                    f"The workflow generates {size} images at once (node {self._title(node)}, batch_size); set it to "
                    "1: each image is an entry of its own in the queue, with its own seed."
                )

    def _find_prompts(self, given: Sequence[str]) -> list[Place]:
        marked = [place for place, value in self._inputs().items() if isinstance(value, str) and PLACEHOLDER in value]
        found = sorted({*self._checked(given, "STRING", "a text"), *marked})
        if not found:
            raise LLM4GENError(
                "It is not known which input of the workflow takes the prompt; name it in prompt_inputs, or write "
                f"{PLACEHOLDER} into its text. Text inputs are {self._texts()}."
            )
        return found

    def _find_seeds(self, given: Sequence[str]) -> list[Place]:
        found = self._checked(given, "INT", "a whole number") or [
            place for place in self._inputs() if _split(place)[1] in _SEEDS and self._type(place) in ("INT", "")
        ]
        if not found:
            raise LLM4GENError(
                "The workflow's image depends on no input named seed or noise_seed, so every image of a prompt would "
                "be the same; name the input that takes the seed in seed_inputs, such as 3.seed."
            )
        return sorted(found)

    def _set_negative(self, negative: str | None, given: Sequence[str]) -> None:
        if (negative is None) != (not given):
            missing = (
                "negative_inputs are given without a negative prompt; give both, or neither"
                if negative is None
                else "a negative prompt is given without negative_inputs, the inputs that take it. Text inputs are "
                + self._texts()
            )
            raise LLM4GENError(f"Workflow: {missing}.")
        places = self._checked(given, "STRING", "a text")
        if both := set(places) & set(self.prompts):
            raise LLM4GENError(
                f"The workflow's input {min(both)} is named for the prompt and for the negative prompt; expected "
                "different inputs."
            )
        for place in places:
            _set(self._nodes, place, self._text(negative or ""))

    def _checked(self, given: Sequence[str], kind: str, what: str) -> list[Place]:
        """Check that the image depends on the inputs, and that they take values of a type."""
        for place in given:
            node, name = _split(place)
            if node not in self._nodes:
                raise LLM4GENError(
                    f"The workflow's image depends on no node {node!r} (input {place!r}); expected an input such as "
                    f"6.text, of one of the nodes {self._listing(self._nodes)}."
                )
            fitting = [one for one in self._inputs() if _split(one)[0] == node and self._type(one) == kind]
            if place not in fitting:
                raise LLM4GENError(
                    f"The workflow's node {self._title(node)} has no input {name!r} that takes {what}; expected "
                    f"{' or '.join(sorted(fitting)) or 'another node'}."
                )
        return sorted({*given})

    def _inputs(self) -> dict[Place, Any]:
        """Values of all inputs."""
        return {f"{node}.{name}": value for node in self._nodes for name, value in self._nodes[node]["inputs"].items()}

    def _texts(self) -> str:
        """Text inputs with their nodes' classes and the beginning of their texts, for errors."""
        found = {place: " ".join(str(value).split()) for place, value in self._inputs().items() if not _as_link(value)}
        return ", ".join(
            f"{place} ({self._class(_split(place)[0])}, {text[:40]!r})"
            for place, text in found.items()
            if self._type(place) == "STRING"
        )

    def _type(self, place: Place) -> str:
        """Type of an input as the server says it; "" if it does not list the input."""
        node, name = _split(place)
        inputs = self._info[self._class(node)]["input"]
        definition = {**inputs.get("optional", {}), **inputs.get("required", {})}.get(name, [""])
        return definition[0] if isinstance(definition[0], str) else "COMBO"

    def _class(self, node: str) -> str:
        return self._nodes[node]["class_type"]

    def _title(self, node: str) -> str:
        return f"{node} ({self._class(node)})"

    def _listing(self, nodes: Iterable[str]) -> str:
        return ", ".join(map(self._title, nodes))

    def _text(self, text: str) -> str:
        """Escape the parentheses of a prompt, as comfy/sd1_clip.py reads them, unless they are weights."""
        return text if self._weights else re.sub(r"[()]", r"\\\g<0>", text)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Return the nodes of a file by id: class_type, and inputs whose values are constants or links."""
    content = read_json(path, "Workflow", f"{_EXPORT}, and give that file")
    if isinstance(content.get("nodes"), list):
        raise LLM4GENError(
            f"Workflow {path} is in the format of Save, which the server cannot run; open it in ComfyUI, choose "
            "Workflow > Export (API), and give that file."
        )
    for name, node in content.items():
        fields = node if isinstance(node, dict) else {}
        if not isinstance(fields.get("class_type"), str) or not isinstance(fields.get("inputs"), dict):
            raise LLM4GENError(
                f"Workflow {path}, node {name!r}, has no class_type and inputs; expected API format: {_EXPORT}."
            )
    if not content:
        raise LLM4GENError(f"Workflow {path} has no nodes; expected API format: {_EXPORT}.")
    return {name: {"class_type": node["class_type"], "inputs": node["inputs"]} for name, node in content.items()}


def _known(nodes: Mapping[str, dict[str, Any]], info: NodeInfo) -> dict[str, Mapping[str, Any]]:
    """Ask the server about every node class, and check that all links lead to an output."""
    known: dict[str, Mapping[str, Any]] = {}
    for name, node in nodes.items():
        kind = node["class_type"]
        found = known.get(kind) or info(kind)
        if found is None:
            raise LLM4GENError(
                f"The workflow's node {name} is a {kind}, which the ComfyUI server does not know; install its pack on "
                "the server, or remove the node."
            )
        known[kind] = found
    for name, node in nodes.items():
        for value, (source, output) in _links(node):
            if source not in nodes or output >= len(known[nodes[source]["class_type"]]["output"]):
                raise LLM4GENError(
                    f"The workflow's input {name}.{value} is linked to output {output} of node {source!r}, which does "
                    "not exist; export it again."
                )
    return known


def _split(place: Place) -> tuple[str, str]:
    """Id of the node and name of the input."""
    node, _, name = place.partition(".")
    return node, name


def _set(nodes: Mapping[str, dict[str, Any]], place: Place, value: str | int) -> None:
    node, name = _split(place)
    nodes[node]["inputs"][name] = value


def _links(node: Mapping[str, Any]) -> Iterator[tuple[str, Link]]:
    """Inputs of a node that are linked, and to what."""
    for name, value in node["inputs"].items():
        if (link := _as_link(value)) is not None:
            yield name, link


def _as_link(value: Any) -> Link | None:
    """Read an input's value as a link; None if it is a constant."""
    if isinstance(value, list) and len(value) == 2 and isinstance(value[1], int):
        return str(value[0]), value[1]
    return None
