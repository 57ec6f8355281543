"""From a canvas, as ComfyUI's Save writes it, to the graph that its Run would send.

Does what the front end's `graphToPrompt` does (version 1.27 and 1.49: src/utils/executionUtil.ts and
src/lib/litegraph/src/subgraph/ExecutableNodeDTO.ts), for plain nodes, reroutes, primitive nodes and bypassed nodes.
What it cannot be sure of, subgraphs first of all, it refuses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from llm4gen_core import LLM4GENError

from .graph import WIDGETS, NodeInfo, Place, definitions
from .places import PLACEHOLDER

_NOTES = frozenset({"Note", "MarkdownNote"})
_MUTED, _BYPASSED = 2, 4
_NOTHING = object()
_CONTROLS = frozenset({"fixed", "increment", "decrement", "randomize", "increment-wrap"})
"""What a seed does after a run; a widget behind it that the server knows nothing of."""
_UPLOADS = ("image_upload", "animated_image_upload", "video_upload", "audio_upload")


def is_canvas(content: Mapping[str, Any]) -> bool:
    """Whether a workflow is the canvas' own format and not the API's."""
    return isinstance(content.get("nodes"), list) and "links" in content


def convert(content: Mapping[str, Any], info: NodeInfo) -> tuple[dict[str, Any], set[Place]]:
    """The nodes in API format.

    Args:
        content: the canvas.
        info: see `NodeInfo`.

    Returns:
        The nodes, and the texts with choices in braces, of which the front end would draw one for each run.

    Raises:
        LLM4GENError: the canvas has something of which it is not certain what Run would make.
    """
    return _Canvas(content, info).convert()


class _Canvas:
    def __init__(self, content: Mapping[str, Any], info: NodeInfo) -> None:
        self._info = info
        self._nodes = {str(node["id"]): node for node in content["nodes"]}
        self._links = {}
        for link in content["links"]:
            number, source, output = (
                link[:3] if isinstance(link, list) else (link["id"], link["origin_id"], link["origin_slot"])
            )
            self._links[number] = str(source), int(output)
        self._subgraphs = {
            graph["id"]: graph.get("name", "") for graph in (content.get("definitions") or {}).get("subgraphs", [])
        }
        self._dynamic: set[Place] = set()

    def convert(self) -> tuple[dict[str, Any], set[Place]]:
        nodes = {}
        for name, node in self._nodes.items():
            kind = node["type"]
            if node.get("mode", 0) in (_MUTED, _BYPASSED) or kind in _NOTES or kind in ("Reroute", "PrimitiveNode"):
                continue
            if kind in self._subgraphs or kind.startswith("workflow>") or kind.startswith("workflow/"):
                raise LLM4GENError(f"its node {name} is a subgraph ({self._subgraphs.get(kind) or kind}).")
            found = self._info(kind)
            if found is None:
                raise LLM4GENError(
                    f"its node {name} is a {kind}, which the server does not know; it belongs to a pack that is not "
                    "installed, or exists on the canvas alone."
                )
            nodes[name] = {"class_type": kind, "inputs": self._inputs(name, node, definitions(found))}
        return nodes, self._dynamic

    def _inputs(
        self, name: str, node: Mapping[str, Any], known: Mapping[str, tuple[str, Mapping[str, Any]]]
    ) -> dict[str, Any]:
        inputs = self._widgets(name, node, known)
        for slot in node.get("inputs") or []:
            if slot.get("link") is None:
                continue
            value = self._resolve(slot["link"], slot.get("type", "*"), set())
            if value is _NOTHING:
                inputs.pop(slot["name"], None)
            elif value is not None:
                inputs[slot["name"]] = value
        return inputs

    def _widgets(
        self, name: str, node: Mapping[str, Any], known: Mapping[str, tuple[str, Mapping[str, Any]]]
    ) -> dict[str, Any]:
        """Values of the widgets, which a canvas stores by their place alone."""
        names = [
            widget
            for widget, (kind, options) in known.items()
            if kind in WIDGETS and options.get("widgetType", kind) in WIDGETS
        ]
        stored = node.get("widgets_values") or []
        if isinstance(stored, Mapping):
            values = dict(stored)
        else:
            # Inputs that may only be wired were widgets in older files: migrateWidgetsValues of the front end.
            wired = [widget for widget in names if known[widget][1].get("forceInput")]
            if sum(2 if _is_controlled(widget, *known[widget]) else 1 for widget in names) != len(stored):
                names = [widget for widget in names if widget not in wired]
            values = self._in_order(name, node["type"], list(stored), names, known)
        names = [widget for widget in names if not known[widget][1].get("forceInput")]
        inputs = {}
        for widget in names:
            kind, options = known[widget]
            value = values[widget] if widget in values else _default(kind, options)
            if not _fits(kind, value):
                raise LLM4GENError(
                    f"its node {name} ({node['type']}) has {value!r} for {widget}, which is {kind}: the node has "
                    "changed since the canvas was saved."
                )
            if isinstance(value, str) and kind == "STRING" and options.get("dynamicPrompts"):
                value, has_choices = _without_comments(value)
                if has_choices:
                    self._dynamic.add(Place(name, widget))
            inputs[widget] = {"__value__": value} if isinstance(value, list) else value
        return inputs

    def _in_order(
        self,
        name: str,
        kind: str,
        stored: list[Any],
        names: Sequence[str],
        known: Mapping[str, tuple[str, Mapping[str, Any]]],
    ) -> dict[str, Any]:
        values = {}
        for widget in names:
            if not stored:
                break  # the node has got this widget since: the front end leaves it its default
            values[widget] = stored.pop(0)
            widget_kind, options = known[widget]
            if (
                _is_controlled(widget, widget_kind, options)
                and stored
                and isinstance(stored[0], str)
                and stored[0] in _CONTROLS
            ):
                del stored[0]
                if widget_kind == "COMBO" and stored and isinstance(stored[0], str):
                    del stored[0]  # the filter of the list that the control walks through
        if any(options.get(upload) for _, options in known.values() for upload in _UPLOADS):
            stored = [value for value in stored if value != "image"]  # the button that uploads
        if any(value not in (None, "") for value in stored):
            raise LLM4GENError(
                f"its node {name} ({kind}) has more values than the server's node takes ({stored!r} are left): it has "
                "changed since the canvas was saved, or has widgets that exist on the canvas alone."
            )
        return values

    def _resolve(self, number: Any, kind: str, seen: set[Any]) -> Any:
        """What a wire brings: a link in API format, or the value of a primitive node.

        None leaves the input as if it had no wire; `_NOTHING`, from a muted node, takes it away.
        """
        if number in seen or number not in self._links:
            raise LLM4GENError(f"its wire {number} leads nowhere.")
        seen.add(number)
        source, output = self._links[number]
        if source not in self._nodes:
            raise LLM4GENError(f"its wire {number} comes from node {source}, which does not exist.")
        node = self._nodes[source]
        mode = node.get("mode", 0)
        if mode == _MUTED:
            return _NOTHING
        if node["type"] == "PrimitiveNode" and mode != _BYPASSED:
            return node["widgets_values"][0]
        if node["type"] == "Reroute" or mode == _BYPASSED:
            through = self._through(source, node, output, kind) if mode == _BYPASSED else 0
            slots = node.get("inputs") or []
            inner = slots[through].get("link") if through is not None and through < len(slots) else None
            return None if inner is None else self._resolve(inner, kind, seen)
        return [source, output]

    @staticmethod
    def _through(name: str, node: Mapping[str, Any], output: int, kind: str) -> int | None:
        """Input whose wire goes on in place of a bypassed node's output: that beside it, or the first of its type."""
        slots = node.get("inputs") or []
        if kind in ("*", ""):
            return output if output < len(slots) else 0
        if output < len(slots) and slots[output].get("type") == kind:
            return output
        if any("," in str(slot.get("type")) or slot.get("type") == "*" for slot in slots):
            raise LLM4GENError(f"its bypassed node {name} ({node['type']}) takes several types.")
        return next((number for number, slot in enumerate(slots) if slot.get("type") == kind), None)


def _is_controlled(widget: str, kind: str, options: Mapping[str, Any]) -> bool:
    return bool(options.get("control_after_generate")) or (kind == "INT" and widget in ("seed", "noise_seed"))


def _default(kind: str, options: Mapping[str, Any]) -> Any:
    if "default" in options:
        return options["default"]
    if kind == "COMBO":
        return next(iter(options.get("options") or [""]), "")
    return {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}[kind]


def _fits(kind: str, value: Any) -> bool:
    if kind == "BOOLEAN":
        return isinstance(value, bool)
    if kind == "STRING":
        return isinstance(value, str)
    if kind in ("INT", "FLOAT"):
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return is_number and (kind == "FLOAT" or value == int(value))
    return True


def _without_comments(text: str) -> tuple[str, bool]:
    """A text as the front end sends it (`processDynamicPrompt`), and whether it has choices, which stay.

    Comments go, escaped braces lose their backslash. The placeholder is no choice: the front end would send the word
    in its braces.
    """
    text = re.sub(r"/\*[\s\S]*?\*/|//.*", "", text)
    bare = re.sub(r"\\[\s\S]", "", text).replace(PLACEHOLDER, "")
    return re.sub(r"\\([{}|])", r"\1", text), "{" in bare
