"""Attribute-entity pairs from spaCy's dependency parse (labels of the English pipelines, CLEAR style).

Follows Rassin et al. (arXiv 2306.08877), extended by attributes after the noun and in clauses, negation, names,
hyphens, and spans of characters instead of words.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ..errors import LLM4GENError, first_line
from . import EntityPair, Span, lexicon

if TYPE_CHECKING:
    from spacy.tokens import Doc, Token

PIPELINES = ("en_core_web_trf", "en_core_web_lg", "en_core_web_md", "en_core_web_sm")
"""Pipelines in the order in which "auto" prefers them."""

HOW_TO_INSTALL = "`python -m spacy download en_core_web_sm`"
LONGEST = 20_000
"""Characters that are parsed; text encoders read far fewer."""

_UNUSED = ("ner", "lemmatizer", "attribute_ruler")

_SURROGATE = re.compile("[\ud800-\udfff]")
_NOUNS = ("NN", "NNS", "NNP", "NNPS")
_PARTICIPLES = ("VBN", "VBD", "VBG")
_DESCRIBING = ("JJ", "JJR", "JJS", "VBN", "VBD", "VBG", "AFX")

_log = logging.getLogger(__name__)


class SpacyBackend:
    """Parser by a trained pipeline and rules over its parses; see `entities.Backend`.

    Args:
        package: name of an installed pipeline, or the folder of one.

    Raises:
        LLM4GENError: spaCy or the pipeline is not installed, cannot be loaded, or has no English tagger and parser.
    """

    def __init__(self, package: str) -> None:
        try:
            import spacy
        except ImportError as error:
            raise LLM4GENError(
                f"Entity parser 'spacy:{package}' needs spaCy, which is not installed; install it with "
                f"`pip install spacy` and then {HOW_TO_INSTALL}, or use 'rules', which needs neither."
            ) from error
        try:
            self._pipeline: Any = spacy.load(package, exclude=list(_UNUSED))
        except (OSError, ImportError, ValueError, AttributeError, TypeError, KeyError) as error:
            raise LLM4GENError(
                f"spaCy pipeline {package!r} cannot be loaded ({first_line(error)}); install one with "
                f"{HOW_TO_INSTALL}, or use 'rules', which needs none."
            ) from error
        meta = self._pipeline.meta
        given = {what for name in self._pipeline.pipe_names for what in self._pipeline.get_pipe_meta(name).assigns}
        missing = [what for what, key in (("tagger", "token.tag"), ("parser", "token.dep")) if key not in given]
        if missing or meta["lang"] != "en":
            raise LLM4GENError(
                f"spaCy pipeline {package!r} (language {meta['lang']!r}, components {self._pipeline.pipe_names}) has "
                f"no English {' and no '.join(missing or ['grammar'])}; expected a trained English pipeline such as "
                f"en_core_web_sm, which {HOW_TO_INSTALL} installs."
            )
        self.name = f"spacy/{lexicon.VERSION} {meta['lang']}_{meta['name']} {meta['version']}"
        self.spec = f"spacy:{package}"

    def pipe(self, prompts: Iterable[str]) -> Iterator[list[EntityPair]]:
        # spaCy cannot hash half of a surrogate pair; the replacement has the same length.
        texts = ((_SURROGATE.sub("\ufffd", prompt[:LONGEST]), prompt) for prompt in prompts)
        for doc, prompt in self._pipeline.pipe(texts, as_tuples=True, batch_size=256):
            yield pairs_of_parse(doc, prompt)


def find() -> SpacyBackend | None:
    """Load the best installed pipeline; None if there is none that can be loaded."""
    try:
        from spacy.util import is_package
    except ImportError:
        return None
    for package in PIPELINES:
        if is_package(package):
            try:
                return SpacyBackend(package)
            except LLM4GENError as error:
                _log.warning("%s", error)
    return None


def pairs_of_parse(doc: Doc, caption: str) -> list[EntityPair]:
    """Return the pairs of a parsed caption.

    Args:
        doc: tagged and parsed text with the caption's character offsets.
        caption: the text of the spans.
    """
    return _Parse(doc).pairs(caption)


def _surface_units(doc: Doc) -> list[tuple[int, int]]:
    """First and last token of the unit of each token, regardless of the parse.

    Units are hyphenated words, which tokenizers may split, shades with their colour, and attributes and names of two
    words.
    """
    units: list[list[int]] = []
    for token in doc:
        if units and (_hyphenated(doc, token.i) or _one_thing(doc, units[-1], token)):
            units[-1][1] = token.i
        else:
            units.append([token.i, token.i])
    return [(start, end) for start, end in units for _ in range(start, end + 1)]


def _hyphenated(doc: Doc, index: int) -> bool:
    """Whether token `index` is a hyphen within a word or the part after one."""
    hyphen = index if doc[index].text == "-" else index - 1
    if not 0 < hyphen < len(doc) - 1 or doc[hyphen].text != "-":
        return False
    before, after = doc[hyphen - 1], doc[hyphen + 1]
    return not (before.whitespace_ or doc[hyphen].whitespace_) and before.text[-1].isalnum() and after.text[0].isalnum()


def _one_thing(doc: Doc, unit: list[int], token: Token) -> bool:
    before = doc[unit[1]]
    if unit[0] != unit[1] or not before.whitespace_:
        return False
    pair = (before.lower_, token.lower_)
    shade = pair[0] in lexicon.SHADES and pair[1] in lexicon.COLORS
    return shade or pair in lexicon.COMPOUND_ATTRIBUTES or pair in lexicon.NAMES


class _Parse:
    """Rules over one parse. Attributes and entities are tokens; their spans are those of the tokens' units.

    Attributes:
        units: see `_surface_units`.
        found: pairs (attribute, entity) of token indices.
    """

    def __init__(self, doc: Doc) -> None:
        self.doc = doc
        self.units = _surface_units(doc)
        self.found: set[tuple[int, int]] = set()

    def pairs(self, caption: str) -> list[EntityPair]:
        for token in self.doc:
            if _is_noun(token):
                self._noun(token)
            if token.lower_ in lexicon.COPULAS or token.tag_ in _PARTICIPLES:
                self._clause(token)
        unique = {self.units[attribute] + self._entity(entity) for attribute, entity in self.found}
        return [
            EntityPair(self._span(a, b, caption), self._span(c, d, caption))
            for a, b, c, d in sorted(unique)
            if b < c or d < a  # "hot" and "dog" are one name
        ]

    def _span(self, first: int, last: int, caption: str) -> Span:
        start, end = self.doc[first].idx, self.doc[last].idx + len(self.doc[last])
        return Span(start, end, caption[start:end])

    def _entity(self, index: int) -> tuple[int, int]:
        """First and last token of a noun with the preceding compounds that are part of its name."""
        start, end = self.units[index]
        while start > 0:
            before = self.doc[start - 1]
            if before.dep_ != "compound" or not start <= before.head.i <= end or self._describes(before):
                break
            start = self.units[start - 1][0]
        return start, end

    def _bind(self, attribute: Token, described: Iterable[Token]) -> None:
        if attribute.lower_ in lexicon.NOT_ATTRIBUTES or not lexicon.LATIN.search(attribute.text):
            return
        for entity in described:
            if entity.lower_ not in lexicon.NOT_ENTITIES and lexicon.LATIN.search(entity.text):
                self.found.add((attribute.i, entity.i))

    def _noun(self, noun: Token) -> None:
        """Bind a noun's adjectives, compounds, participles, prepositions and relative clauses."""
        if _absent(noun):
            return
        for child in noun.children:
            if child.dep_ in ("amod", "compound", "nmod") and child.i < noun.i:
                for token in _joined(child):
                    if (child.dep_ == "amod" and token.tag_ in _DESCRIBING) or self._describes(token):
                        self._bind(token, [noun])
            elif child.dep_ in ("amod", "acl"):
                self._said(child, [noun])
            elif child.dep_ == "prep":
                self._preposition(child, [noun], made=False)
            elif child.dep_ == "relcl" and any(
                _is_subject(t) and t.lower_ in lexicon.RELATIVES for t in child.children
            ):
                for verb in (child, *(t for t in child.children if t.dep_ == "conj")):
                    self._predicate(verb, [noun], child)

    def _describes(self, token: Token) -> bool:
        """Whether a noun is a material, a colour or a pattern; with a capital letter it is a name."""
        start, end = self.units[token.i]
        unit = (self.doc[start].lower_, self.doc[end].lower_)
        if unit in lexicon.NAMES:
            return False
        proper = token.tag_ in ("NNP", "NNPS") and token.text[:1].isupper() and not token.text.isupper()
        return unit in lexicon.COMPOUND_ATTRIBUTES or (token.lower_ in lexicon.DESCRIPTIVE_NOUNS and not proper)

    def _clause(self, verb: Token) -> None:
        """Bind the predicate of a clause with its own subject, or that of the verb that it is coordinated with."""
        first = verb
        for _ in range(lexicon.MOST_JOINED):
            if first.dep_ != "conj" or any(_is_subject(t) for t in first.children):
                break
            first = first.head
        subjects = [t for t in first.children if _is_subject(t)]
        described = [t for subject in subjects for t in _joined(subject) if _is_noun(t) and not _absent(t)]
        if described:
            self._predicate(verb, described, first)

    def _predicate(self, verb: Token, described: list[Token], first: Token) -> None:
        """Bind "is red", "looks old" or "is painted green"; `first` is the verb with the subject."""
        if verb.lower_ in lexicon.COPULAS:
            for child in verb.children:
                if child.dep_ in ("acomp", "attr", "oprd") and not _determined(child):
                    self._said(child, described, _negated(verb))
                elif child.dep_ == "prep" and not _negated(verb):
                    self._preposition(child, described, made=False)
        elif verb.tag_ in _PARTICIPLES and not _negated(first):
            beside = [first, *first.children, *verb.children] if verb is not first else list(verb.children)
            if any(t.lower_ in lexicon.COPULAS for t in beside):  # "is painted", "is old and painted"
                self._said(verb, described)

    def _said(self, token: Token, described: list[Token], negated: bool = False, depth: int = 0) -> None:
        """Bind an attribute after its entities or in a predicate, and those coordinated with it.

        "not red or blue" negates both attributes, "not red but blue" the first.
        """
        negated = negated or _negated(token)
        if not negated:
            if token.tag_ in _PARTICIPLES and token.lower_ not in lexicon.ADJECTIVES - lexicon.STATES:
                self._participle(token, described)
            elif token.tag_ in _DESCRIBING or self._describes(token):
                self._bind(token, described)
            for child in token.children:
                if child.dep_ == "prep" and child.lower_ in ("with", "in"):  # "white with spots"
                    self._preposition(child, described, made=False)
        for child, denied in _conjuncts(token, negated):
            if depth < lexicon.MOST_JOINED and not any(_is_subject(t) for t in child.children):
                self._said(child, described, denied, depth + 1)

    def _participle(self, verb: Token, described: list[Token]) -> None:
        """Bind the complement of a participle ("painted green", "made of wood"), or a state itself ("broken")."""
        bound = False
        for child in verb.children:
            if child.i < verb.i:
                continue
            colored = verb.tag_ != "VBG" and child.lower_ in lexicon.COLORS and not _determined(child)
            if child.dep_ in ("acomp", "oprd", "dobj", "advmod", "amod", "ccomp") and (
                colored or (child.dep_ in ("acomp", "oprd") and child.tag_ in _DESCRIBING)
            ):
                for token in _joined(child):
                    self._bind(token, described)
                bound = True
            elif child.dep_ == "prep" and verb.lower_ in lexicon.MAKING:
                bound |= self._preposition(child, described, made=True)
        if not bound and verb.lower_ in lexicon.STATES:
            self._bind(verb, described)

    def _preposition(self, preposition: Token, described: list[Token], made: bool) -> bool:
        """Bind "(made) of wood", "in red" or "with stripes"; return whether anything was bound."""
        word = preposition.lower_
        allowed: frozenset[str] = frozenset()
        contents = any(t.lower_ in lexicon.QUANTITIES for t in described)
        if word in (("of", "from", "out") if made else () if contents else ("of",)):
            allowed = lexicon.MATERIALS
        elif word in ("in", "with"):
            allowed = lexicon.DESCRIPTIVE_NOUNS if made or word == "in" else lexicon.PATTERNS
        bound = False
        for child in preposition.children:
            if child.dep_ == "prep" and word == "out":  # "out of"
                bound |= self._preposition(child, described, made)
            elif child.dep_ in ("pobj", "amod", "pcomp") and not _determined(child):
                for token in _joined(child):
                    if token.lower_ in allowed and not _absent(token) and not _negated(preposition):
                        self._bind(token, described)
                        bound = True
        return bound


def _is_noun(token: Token) -> bool:
    return token.tag_ in _NOUNS or (token.lower_ in ("one", "ones") and token.dep_ != "nummod")


def _is_subject(token: Token) -> bool:
    return token.dep_ in ("nsubj", "nsubjpass")


def _joined(token: Token) -> list[Token]:
    """A token and those coordinated with it, without the negated ones."""
    result = []
    waiting = [(token, _negated(token))]
    for _ in range(lexicon.MOST_JOINED):
        if not waiting:
            break
        token, negated = waiting.pop(0)
        if not negated:
            result.append(token)
        waiting += _conjuncts(token, negated)
    return result


def _conjuncts(token: Token, negated: bool) -> list[tuple[Token, bool]]:
    """Tokens coordinated with a token, each with whether it is negated: "not red or blue", "not red but blue"."""
    negated = negated and not any(child.lower_ == "but" for child in token.children)
    return [(child, negated or _negated(child)) for child in token.children if child.dep_ == "conj"]


def _negated(token: Token) -> bool:
    """Whether a word follows "not", or a verb has it as a child; parses of "red but not blue" attach it to either."""
    verb = token.tag_.startswith("V") or token.lower_ in lexicon.COPULAS
    if any(child.dep_ == "neg" and (verb or child.i < token.i) for child in token.children):
        return True
    return token.i > 0 and token.nbor(-1).lower_ in ("not", "never", "n't")


def _determined(token: Token) -> bool:
    return any(child.dep_ in ("det", "poss", "nummod") for child in token.children)


def _absent(noun: Token) -> bool:
    """Whether a noun is said to be absent: "no cars or trucks", "without stripes"."""
    for _ in range(lexicon.MOST_JOINED):
        if _negated(noun) or any(child.dep_ == "det" and child.lower_ in ("no", "neither") for child in noun.children):
            return True
        if noun.dep_ != "conj":
            return noun.dep_ == "pobj" and noun.head.lower_ == "without"
        if not any(child.dep_ == "cc" and child.lower_ in ("or", "nor") for child in noun.head.children):
            return False
        noun = noun.head
    return False
