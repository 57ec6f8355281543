"""Where in a workflow the prompt and the seed go, and which image comes out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from llm4gen_core import LLM4GENError

from .graph import Graph, Link, Place, as_link

PLACEHOLDER = "{prompt}"
"""In a text of the workflow: here goes the prompt."""

_NO_TEXT_BEHIND = frozenset(
    ["MODEL", "CLIP", "VAE", "IMAGE", "LATENT", "MASK", "CONTROL_NET", "CLIP_VISION", "CLIP_VISION_OUTPUT"]
    + ["STYLE_MODEL", "SAMPLER", "SIGMAS", "NOISE", "GUIDER", "INT", "FLOAT", "BOOLEAN", "COMBO"]
    + ["LLM4GEN_LLM", "LLM4GEN_ADAPTER"]
)
"""Types of wires that bring no prompt. That of an image may come from another painting with a prompt of its own."""
_SIBLINGS = frozenset({"text", "text_g", "text_l", "clip_l", "clip_g", "t5xxl", "llama", "bert", "mt5xl"})
"""Inputs of one encoder for several text models; every one gets the whole prompt."""
_OTHER_SIDE = frozenset({("LLM4GENEncodeCLIP", "paired_text")})
"""Inputs that take the text of the other side, for its length alone."""
_SEEDS = frozenset({"seed", "noise_seed"})


def find_image(graph: Graph, node: str | None = None) -> Link:
    """The output of the workflow that is its image.

    Args:
        graph: the workflow.
        node: that saves, shows or makes it; None where one image is saved, or no more than one is shown.

    Raises:
        LLM4GENError: there is none, or it is not clear which.
    """
    if node is not None:
        if node not in graph.nodes:
            raise LLM4GENError(f"The workflow has no node {node!r}; it has {_listing(graph, graph.nodes)}.")
        makes = [(node, slot) for slot, kind in enumerate(graph.info(node)["output"]) if kind == "IMAGE"]
        if found := _images_into(graph, node) or makes:
            return found[0]
        raise LLM4GENError(f"The workflow's node {graph.name(node)} takes and makes no IMAGE; name another one.")
    ends = {name: links[0] for name in graph.nodes if _is_end(graph, name) and (links := _images_into(graph, name))}
    saved = {name: link for name, link in ends.items() if graph.kind(name) != "PreviewImage"}
    ends = saved or ends
    if not ends:
        raise LLM4GENError("The workflow saves and shows no image; put a Save Image at its end, and export it again.")
    if len(set(ends.values())) > 1:
        raise LLM4GENError(
            f"The workflow ends in several images, at the nodes {_listing(graph, ends)}; name one of them as the "
            "output node."
        )
    return next(iter(ends.values()))


def find_texts(graph: Graph, image: Link, side: str, given: Sequence[str] = ()) -> list[Place]:
    """Inputs that take the prompt.

    Without `given` these are the texts that hold the placeholder; else those from which the samplers get their
    conditioning, if they are one prompt: one node's, the CLIP and the LLM side of one Fuse, or texts that are equal.

    Args:
        graph: the workflow; of it only what `image` depends on counts.
        image: see `find_image`.
        side: "positive" or "negative".
        given: inputs, "6.text".

    Raises:
        LLM4GENError: an input that is given takes no text; or none is found, or several that may be different prompts.
    """
    nodes = graph.ancestors(image)
    places = {_check(graph, nodes, Place.parse(text), "STRING", "a text") for text in given}
    if side == "positive":
        places |= {
            Place(node, name)
            for node in nodes
            for name, value in graph.inputs(node).items()
            if isinstance(value, str) and PLACEHOLDER in value
        }
    if places:
        return sorted(places)
    places = _behind_samplers(graph, nodes, side) or _by_name(graph, nodes, side)
    if side == "positive" and not _is_one_prompt(graph, places):
        # Guidance with two conditions, as that of edits, takes the negative prompt for one of them.
        places = places - _behind_samplers(graph, nodes, "negative") or places
    what = "prompt" if side == "positive" else "negative prompt"
    if not places:
        raise LLM4GENError(
            f"The workflow's {what} was not found: no text reaches a sampler; name the input it goes to, such as "
            f"6.text{', or write ' + PLACEHOLDER + ' where it belongs' if side == 'positive' else ''}."
        )
    if not _is_one_prompt(graph, places):
        found = ", ".join(
            f"{place} ({graph.kind(place.node)}, {_short(graph.inputs(place.node)[place.input])})"
            for place in sorted(places)
        )
        raise LLM4GENError(
            f"The workflow has several texts that may be the {what}: {found}; name those it goes to"
            f"{', or write ' + PLACEHOLDER + ' into them' if side == 'positive' else ''}."
        )
    return sorted(places)


def find_seeds(graph: Graph, image: Link, given: Sequence[str] = ()) -> list[Place]:
    """Inputs that take the seed: every `seed` and `noise_seed` that the image depends on.

    Args:
        graph, image: see `find_texts`.
        given: inputs, "3.seed", in place of these.

    Raises:
        LLM4GENError: one that is given takes no whole number; or there is none, or one is wired to what is no number.
    """
    nodes = graph.ancestors(image)
    if given:
        return sorted({_check(graph, nodes, Place.parse(text), "INT", "a whole number") for text in given})
    places: set[Place] = set()
    for node in nodes:
        for name in _SEEDS & graph.inputs(node).keys():
            place = Place(node, name)
            while (link := as_link(graph.inputs(place.node)[place.input])) is not None:
                place = _number_of(graph, place, link[0])
            places.add(place)
    if not places:
        raise LLM4GENError(
            "The workflow's image depends on no input named seed or noise_seed, so that every image of a prompt would "
            "be the same; name the input that the seed goes to, such as 3.seed."
        )
    return sorted(places)


def refuse_batches(graph: Graph, image: Link) -> None:
    """LLM4GENError if the workflow says that it paints several images at once: each must have a seed of its own."""
    for node in graph.ancestors(image):
        size = graph.inputs(node).get("batch_size")
        if isinstance(size, int) and size > 1:
            raise LLM4GENError(
                f"The workflow paints {size} images at once (node {graph.name(node)}, batch_size); set it to 1: each "
                "image gets its own entry in the queue, with its own seed."
            )


def _is_end(graph: Graph, node: str) -> bool:
    return bool(graph.info(node).get("output_node"))


def _images_into(graph: Graph, node: str) -> list[Link]:
    """What feeds the IMAGE inputs of a node that saves or shows."""
    if not _is_end(graph, node):
        return []
    return [link for _, link in graph.links(node) if graph.output_type(link) == "IMAGE"]


def _behind_samplers(graph: Graph, nodes: Iterable[str], side: str) -> set[Place]:
    """Texts behind the conditioning of everything that samples."""
    places: set[Place] = set()
    seen: set[tuple[str, str]] = set()
    for node in nodes:
        makes_conditioning = "CONDITIONING" in graph.info(node)["output"]
        for name, link in graph.links(node):
            if graph.output_type(link) != "CONDITIONING":
                continue
            named = _side(name)
            if named == side or (named is None and side == "positive" and not makes_conditioning):
                places |= _behind(graph, link, side, seen)
    return places


def _behind(graph: Graph, link: Link, side: str, seen: set[tuple[str, str]]) -> set[Place]:
    """Texts that an output is made from."""
    node = link[0]
    side = _side(graph.output_name(link)) or side
    if (node, side) in seen:
        return set()
    seen.add((node, side))
    other = "negative" if side == "positive" else "positive"
    inputs = {
        name: value
        for name, value in graph.inputs(node).items()
        if _side(name) != other and (graph.kind(node), name) not in _OTHER_SIDE
    }
    if any(_side(name) == side for name in inputs):  # a node of both sides, such as ControlNet's or Text Encode
        inputs = {name: value for name, value in inputs.items() if _side(name) == side}
    makes_text = graph.output_type(link) == "STRING"
    places: set[Place] = set()
    for name, value in inputs.items():
        if (source := as_link(value)) is not None:
            if graph.output_type(source) not in _NO_TEXT_BEHIND:
                places |= _behind(graph, source, side, seen)
        elif makes_text and graph.definition(node, name)[0] == "STRING" or _is_prose(graph, node, name):
            places.add(Place(node, name))
    return places


def _by_name(graph: Graph, nodes: Iterable[str], side: str) -> set[Place]:
    """Texts of many lines, for workflows whose conditioning has a type of its own."""
    places = {
        Place(node, name)
        for node in nodes
        for name, value in graph.inputs(node).items()
        if isinstance(value, str) and _is_prose(graph, node, name)
    }
    negative = {place for place in places if _side(place.input) == "negative"}
    return negative if side == "negative" else places - negative


def _is_prose(graph: Graph, node: str, name: str) -> bool:
    kind, options = graph.definition(node, name)
    return kind == "STRING" and bool(options.get("multiline") or options.get("dynamicPrompts"))


def _side(name: str) -> str | None:
    """The side of guidance that an input's or an output's name tells."""
    found = re.search(r"positive|negative", name.lower())
    return found[0] if found else None


def _is_one_prompt(graph: Graph, places: set[Place]) -> bool:
    def text(place: Place) -> str:
        return graph.inputs(place.node)[place.input].strip()

    if len({text(place) for place in places}) <= 1:
        return True
    llm = {place for place in places if graph.kind(place.node) == "LLM4GENEncodeLLM"}
    if llm and places - llm and len({text(place) for place in llm}) == 1:
        return _is_one_prompt(graph, places - llm)
    return len({place.node for place in places}) == 1 and all(place.input in _SIBLINGS for place in places)


def _number_of(graph: Graph, place: Place, node: str) -> Place:
    """The input of a node that makes a number, as `PrimitiveInt` does from its value."""
    inputs = graph.inputs(node)
    numbers = [name for name in inputs if graph.definition(node, name)[0] == "INT"]
    numbers = [name for name in numbers if name in _SEEDS] or numbers
    if len(numbers) != 1:
        raise LLM4GENError(
            f"The workflow's {place} is wired to {graph.name(node)}, whose number is not clear "
            f"({', '.join(numbers) or 'it has no input of a whole number'}); name the input that the seed goes to."
        )
    return Place(node, numbers[0])


def _check(graph: Graph, nodes: list[str], place: Place, kind: str, what: str) -> Place:
    """The place, if it is an input of that type on which the image depends."""
    if place.node not in nodes:
        reason = "its image does not depend on it" if place.node in graph.nodes else "it does not exist"
        raise LLM4GENError(f"The workflow's node {place.node!r}: {reason}; it depends on {_listing(graph, nodes)}.")
    known = {name for name in graph.inputs(place.node) if graph.definition(place.node, name)[0] == kind}
    if place.input not in known:
        raise LLM4GENError(
            f"The workflow's node {graph.name(place.node)} has no input {place.input!r} that takes {what}; expected "
            f"{' or '.join(sorted(known)) or 'another node'}."
        )
    return place


def _listing(graph: Graph, nodes: Iterable[str]) -> str:
    return ", ".join(graph.name(node) for node in nodes)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 40 else text[:37] + "...")
