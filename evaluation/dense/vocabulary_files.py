"""Reads the words and scenes of the generator from the text files in `vocabulary/`.

Their format is described at the top of each file, that of the scenes in `vocabulary/README.txt`. A mistake in a file is
an error with its name and line, so that others can add words and scenes without reading the code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from llm4gen_core import LLM4GENError

from .grammar import plural
from .vocabulary import (
    TIMES,
    WEATHERS,
    Action,
    Attribute,
    Heroes,
    Item,
    Noun,
    Remark,
    Scene,
    Style,
    Vocabulary,
    Zone,
)

FOLDER = Path(__file__).parent / "vocabulary"

_ALWAYS_PLURAL = re.compile(r".*[^su']s$|^(?:feet|teeth)$")
_MASS_PARTS = frozenset("hair fur cheese cream foam skin rope".split())


class _Line:
    """A line of a file, for messages."""

    def __init__(self, path: Path, number: int, text: str) -> None:
        self.path, self.number, self.text = path, number, text

    def wrong(self, what: str) -> LLM4GENError:
        return LLM4GENError(f"Vocabulary {self.path}, line {self.number}: {what}.")


def _lines(path: Path) -> Iterator[_Line]:
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if text.strip() and not text.startswith("#"):
            yield _Line(path, number, text.strip())


def _split(text: str, by: str = ",") -> list[str]:
    return [part.strip() for part in text.split(by) if part.strip()]


def _columns(text: str) -> list[str]:
    """What stands between "|", but not within "[a|b]"."""
    return [part.strip() for part in re.split(r"\|(?![^\[\]]*\])", text)]


class _Reader:
    """Reads the files one after another; later ones use the words of earlier ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.attributes: dict[str, Attribute] = {}
        self.nouns: dict[str, Noun] = {}

    def read_attributes(self) -> None:
        for line in _lines(self.folder / "attributes.txt"):
            kind, _, words = line.text.partition(":")
            if kind == "unseen":
                for attribute in self._attributes(words, line):
                    self.attributes[attribute.word] = replace(attribute, unseen=True)
                continue
            for entry in _split(words):
                match = re.fullmatch(r"([^()]+?)(?: \(([^()]+)\))?", entry)
                if match is None or match.group(1) in self.attributes:
                    raise line.wrong(f"{entry!r} is no new attribute")
                word, noun = match.groups()
                self.attributes[word] = Attribute(word, kind, noun or (word if kind == "material" else ""))

    def read_nouns(self) -> None:
        palettes: dict[str, str] = {}
        for line in _lines(self.folder / "nouns.txt"):
            if line.text[0] in "$%" and re.match(r"[$%]\w+ ?=", line.text):
                name, _, content = line.text.partition("=")
                palettes[name.strip()] = self._expanded(content.strip(), palettes, line)
                continue
            names, attributes, parts, *rest = [*line.text.split("|"), "", "", ""][:4]
            parts = self._expanded(parts, palettes, line)
            joined = re.match(r"\s*\((.+?)\)", parts)
            described = self._attributes(self._expanded(attributes, palettes, line), line)
            with_parts = parts[joined.end() :] if joined else parts
            for name in _split(names):
                noun = self._noun(name, line)
                if noun.singular in self.nouns:
                    raise line.wrong(f"{noun.singular!r} is described above already")
                self.nouns[noun.singular] = Noun(
                    noun.singular,
                    noun.plural,
                    noun.form,
                    noun.pronoun,
                    described,
                    tuple(self._part(part, line) for part in _split(with_parts, ";")),
                    joined=joined.group(1) if joined else "with",
                    verbs=tuple(_split(rest[0])) or ("",),
                )

    def _expanded(self, text: str, palettes: Mapping[str, str], line: _Line) -> str:
        def palette(match: re.Match[str]) -> str:
            if match.group() not in palettes:
                raise line.wrong(f"{match.group()} is not defined above")
            return palettes[match.group()]

        return re.sub(r"[$%]\w+", palette, text)

    def _attributes(self, text: str, line: _Line) -> tuple[Attribute, ...]:
        words = list(dict.fromkeys(_split(text)))
        if unknown := [word for word in words if word not in self.attributes]:
            raise line.wrong(f"attribute {unknown[0]!r} is not in attributes.txt")
        return tuple(self.attributes[word] for word in words)

    def _noun(self, text: str, line: _Line) -> Noun:
        match = re.fullmatch(r"(~|\^|=|@)?(he |she |they )?([^/@~^=]+)(?:/([^/]+))?", text)
        if match is None:
            raise line.wrong(f"{text!r} is no noun")
        flag, pronoun, singular, irregular = match.groups()
        form = {"~": "mass", "^": "plural", "=": "unique"}.get(flag or "", "count")
        who = (pronoun or "person").strip() if flag == "@" else "it"
        return Noun(singular, (irregular or plural(singular)) if form == "count" else singular, form, who)

    def _part(self, text: str, line: _Line) -> Noun:
        name, _, words = text.partition(":")
        name = name.strip()
        attached = name.startswith("*")
        name = name.removeprefix("*")
        form = "plural" if _ALWAYS_PLURAL.match(name) else "mass" if name in _MASS_PARTS else "count"
        other = plural(name) if form == "count" else name
        return Noun(name, other, form, attributes=self._attributes(words, line), attached=attached)

    def read_scenes(self) -> dict[str, list[Scene]]:
        scenes: dict[str, list[Scene]] = {}
        for path in sorted((self.folder / "scenes").glob("*.txt")):
            found: list[Scene] = []
            for line in _lines(path):
                if line.text.startswith("["):
                    found.append(self._scene(line))
                elif not found:
                    raise line.wrong("expected the head of a scene, [NAME] PREPOSITION, TAGS | ATTRIBUTES")
                else:
                    self._add(found[-1], line)
            for scene in found:
                if not scene.heroes or not scene.near:
                    raise LLM4GENError(f"Vocabulary {path}: scene {scene.name!r} has no heroes or nothing near them.")
            scenes[path.stem] = found
        return scenes

    def _scene(self, line: _Line) -> Scene:
        match = re.fullmatch(r"\[([^]]+)\] (\w+), ([a-z ]+)\|(.+)", line.text)
        if match is None:
            raise line.wrong("expected [NAME] PREPOSITION, TAGS | ATTRIBUTES")
        tags = tuple(match.group(3).split())
        if "table" in tags and "outdoors" not in tags:
            tags += ("indoors",)
        fixed, _, name = match.group(1).partition(" ")
        kept = (self.attributes[fixed],) if fixed in self.attributes else ()
        like = self._attributes(match.group(4), line)
        return Scene(name if kept else match.group(1), line.path.stem, match.group(2), tags, kept, like)

    def _add(self, scene: Scene, line: _Line) -> None:
        key, colon, value = (part.strip() for part in line.text.partition(":"))
        if not colon:
            raise line.wrong("expected KEY: VALUE")
        if key == "by":
            scene.beside = tuple(_split(value))
        elif key in ("time", "weather"):
            known = TIMES if key == "time" else WEATHERS
            words = tuple(_split(value))
            if unknown := [word for word in words if word not in known]:
                raise line.wrong(f"{unknown[0]!r} is none of {', '.join(known)}")
            setattr(scene, key + "s", words)
        elif key in ("near", "far"):
            setattr(scene, key, self._items(value, line))
        elif key == "wears":
            last = scene.heroes[-1]
            scene.heroes[-1] = Heroes(last.items, last.actions, self._items(value, line))
        elif key.startswith("on "):
            scene.on.append((self._item(key[3:], line), self._items(value, line)))
        elif key.startswith("~"):
            verb, _, place = key[1:].rpartition("@")
            scene.zones.append(Zone(verb.strip(), place.strip(), self._items(value, line)))
        else:
            scene.heroes.append(Heroes(self._items(key, line), self._actions(value, line)))

    def _actions(self, text: str, line: _Line) -> tuple[Action, ...]:
        actions = [part.partition(">") for part in _split(text, ";")]
        if not actions or not all(arrow for _, arrow, _ in actions):
            raise line.wrong("expected VERB > OBJECT, OBJECT; VERB > OBJECT")
        return tuple(Action(verb.strip(), self._items(objects, line)) for verb, _, objects in actions)

    def _items(self, text: str, line: _Line) -> tuple[Item, ...]:
        return tuple(self._item(part, line) for part in _split(text))

    def _item(self, text: str, line: _Line) -> Item:
        match = re.fullmatch(r"([^*+]+?)(?:\*(\d+)|(\+))?", text.strip())
        if match is None:
            raise line.wrong(f"{text!r} is no thing")
        name, most, several = match.groups()
        holder, of, content = name.partition(" of ")
        if name not in self.nouns and of:
            fixed, noun = self._named(holder, line)
            return Item(noun, int(most or 1), bool(several), fixed, self._content(content, line))
        fixed, noun = self._named(name, line)
        return Item(noun, int(most or 1), bool(several), fixed)

    def _named(self, name: str, line: _Line) -> tuple[tuple[Attribute, ...], Noun]:
        if name in self.nouns:
            return (), self.nouns[name]
        attribute, _, noun = name.partition(" ")
        if attribute in self.attributes and noun in self.nouns:
            return (self.attributes[attribute],), self.nouns[noun]
        raise line.wrong(f"{name!r} is not in nouns.txt")

    def _content(self, name: str, line: _Line) -> Noun:
        for noun in self.nouns.values():
            if name == noun.plural:
                return noun
        if name in self.nouns:  # "a slice of cake": what can be counted is a mass here
            return replace(self.nouns[name], plural=name, form="mass")
        raise line.wrong(f"{name!r} is neither a mass noun nor a plural of nouns.txt")

    def remarks(self, name: str, columns: int) -> list[Remark]:
        found = []
        for line in _lines(self.folder / name):
            parts = _columns(line.text)
            conditions = [tuple(part.split()) for part in parts[0].split(";")]
            if len(parts) != 3 or len(conditions) != columns:
                raise line.wrong(f"expected {columns} conditions with ; between them | SENTENCE | QUESTION; QUESTION")
            found.append(Remark(tuple(conditions), parts[1], tuple(_split(parts[2], ";"))))
        return found

    def styles(self) -> list[Style]:
        found = []
        for line in _lines(self.folder / "styles.txt"):
            parts = _columns(line.text)
            kind = re.fullmatch(r"\[(photo|art)( colors)?\]", parts[0])
            if len(parts) != 4 or kind is None:
                raise line.wrong("expected [photo] or [art] | QUESTION | OPENING; OPENING | SENTENCE; SENTENCE")
            opening, closing = _split(parts[2], ";"), _split(parts[3], ";")
            found.append(Style(kind.group(1) == "photo", bool(kind.group(2)), parts[1], tuple(opening), tuple(closing)))
        return found


@lru_cache(maxsize=4)
def load_vocabulary(folder: Path = FOLDER) -> Vocabulary:
    """All words and scenes.

    Raises:
        LLM4GENError: a line cannot be understood, or uses a word that is nowhere described.
    """
    reader = _Reader(folder)
    reader.read_attributes()
    reader.read_nouns()
    scenes = reader.read_scenes()
    ambience, views, times = (
        reader.remarks("ambience.txt", 3),
        reader.remarks("views.txt", 3),
        reader.remarks("times.txt", 2),
    )
    return Vocabulary(scenes, ambience, views, times, reader.styles())
