"""A workflow file, ready to be filled with a prompt and a seed."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm4gen_core import LLM4GENError
from llm4gen_diffusers.provenance import fingerprint

from .canvas import convert, is_canvas
from .graph import Graph, NodeInfo, Place
from .places import PLACEHOLDER, find_image, find_seeds, find_texts, refuse_batches

_MODEL_FILE = re.compile(r"\.(safetensors|sft|ckpt|pth?|bin|gguf|onnx)$|[^/\\][/\\]$", re.IGNORECASE)
"""Names of weights, and of folders as LLM4GEN's loader of LLMs lists them."""


class Workflow:
    """What an image depends on, with a Preview Image at its end in place of what saves or shows it.

    So the server keeps the images in its temporary folder alone, which it empties when it starts.

    Args:
        path: file, as Workflow > Export (API) writes it; one as Save writes it is converted where that is certain.
        info: see `NodeInfo`.
        prompt_inputs, seed_inputs, output_node: see `find_texts`, `find_seeds` and `find_image`.
        negative: prompt; None leaves the workflow its own.
        negative_inputs: where it goes; see `find_texts`.
        weights: parentheses in prompts are weights, as in "(word:1.3)"; else they are literal.

    Raises:
        LLM4GENError: the file is no workflow, the server does not know a node of it, or where prompt, seed or image
            are is not clear.
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
        graph, choices = _read(path, info)
        image = find_image(graph, output_node)
        texts = find_texts(graph, image, "positive", prompt_inputs)
        seeds = find_seeds(graph, image, seed_inputs)
        refuse_batches(graph, image)
        self._weights = weights
        if negative is not None:
            places = find_texts(graph, image, "negative", negative_inputs)
            self._set_negative(graph, places, texts, negative)
            choices -= set(places)
        elif negative_inputs:
            raise LLM4GENError("Inputs of the negative prompt are named, but there is none; give one, or neither.")
        for place in texts:
            text = graph.inputs(place.node)[place.input]
            if not (isinstance(text, str) and PLACEHOLDER in text):
                graph.inputs(place.node)[place.input] = PLACEHOLDER
        for place in seeds:
            graph.inputs(place.node)[place.input] = "{seed}"
        graph.keep(graph.ancestors(image))  # less than before, where a text or a seed has replaced a wire
        for place in choices:
            text = graph.inputs(place.node)[place.input] if place.node in graph.nodes else None
            if isinstance(text, str) and text != PLACEHOLDER:  # neither wired nor wholly replaced
                raise LLM4GENError(
                    f"The workflow's text {place} ({graph.kind(place.node)}) has choices in braces, of which ComfyUI "
                    "draws one at random for each run; write one of them out."
                )
        self.texts = [place for place in texts if place.node in graph.nodes]
        self.seeds = [place for place in seeds if place.node in graph.nodes]
        self.end = f"{image[0]}-image"
        self._image = image
        self._graph = graph
        self._template = {
            **copy.deepcopy(graph.nodes),
            self.end: {"class_type": "PreviewImage", "inputs": {"images": list(image)}},
        }

    @property
    def summary(self) -> str:
        """Where prompt and seed go and where the image comes from, for people."""

        def named(places: Sequence[Place]) -> str:
            return ", ".join(f"{place} ({self._graph.kind(place.node)})" for place in places)

        return (
            f"the prompt goes to {named(self.texts)}, the seed to {named(self.seeds)}, the image comes from "
            f"{self._graph.name(self._image[0])}"
        )

    def describe(self) -> dict[str, Any]:
        """Everything in it that changes pixels; JSON values. "workflow" has "{prompt}" and "{seed}" where they go."""
        constants = [value for node in self._template.values() for value in node["inputs"].values()]
        modules = {str(self._graph.info(node).get("python_module", "")) for node in self._graph.nodes}
        return {
            "workflow": self._template,
            "workflow_hash": fingerprint(self._template),
            "prompt_inputs": [str(place) for place in self.texts],
            "seed_inputs": [str(place) for place in self.seeds],
            "prompt_weights": self._weights,
            "models": sorted({value for value in constants if isinstance(value, str) and _MODEL_FILE.search(value)}),
            "packs": sorted(
                module.removeprefix("custom_nodes.") for module in modules if module.startswith("custom_nodes.")
            ),
        }

    def nodes(self, prompt: str, seed: int) -> dict[str, Any]:
        """In API format, for one prompt and one seed."""
        nodes = copy.deepcopy(self._template)
        for place in self.texts:
            inputs = nodes[place.node]["inputs"]
            inputs[place.input] = inputs[place.input].replace(PLACEHOLDER, self._text(prompt))
        for place in self.seeds:
            nodes[place.node]["inputs"][place.input] = seed
        return nodes

    def _set_negative(self, graph: Graph, places: Sequence[Place], texts: Sequence[Place], negative: str) -> None:
        if both := set(places) & set(texts):
            raise LLM4GENError(
                f"The workflow makes its negative side from the prompt ({min(both)}), so that it takes no negative "
                "prompt; leave it out."
            )
        for place in places:
            graph.inputs(place.node)[place.input] = self._text(negative)

    def _text(self, text: str) -> str:
        """A prompt as encoders take it; its parentheses escaped as ComfyUI's comfy/sd1_clip.py reads them."""
        return text if self._weights else re.sub(r"[()]", r"\\\g<0>", text)


def _read(path: Path, info: NodeInfo) -> tuple[Graph, set[Place]]:
    """The graph of a file, and texts of it with choices that a canvas would draw."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise LLM4GENError(f"Workflow {path} cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise LLM4GENError(
            f"Workflow {path} is no JSON ({error}); expected a file that ComfyUI wrote by Workflow > Export (API)."
        ) from error
    if not isinstance(content, dict) or not content:
        raise LLM4GENError(f"Workflow {path} holds no nodes; expected a file from ComfyUI's Workflow > Export (API).")
    choices: set[Place] = set()
    if is_canvas(content):
        try:
            content, choices = convert(content, info)
        except LLM4GENError as error:
            raise LLM4GENError(
                f"Workflow {path} is a saved canvas, and not all of it can be converted: {error} Export it in ComfyUI "
                "by Workflow > Export (API), and give that file."
            ) from error
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise LLM4GENError(
                f"Workflow {path} is no canvas that ComfyUI saved ({error!r}); expected a file from its Workflow > "
                "Export (API)."
            ) from error
    return Graph(content, info), choices
