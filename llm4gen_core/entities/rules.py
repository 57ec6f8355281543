"""Attribute-entity pairs without a trained pipeline, by word lists, endings and a single pass over the caption.

A fallback for captions of images: a word that is in no list and has no known ending counts as a noun, and a phrase is
attached to the nearest suitable noun. Captions are read once from left to right with a bounded lookahead, so that the
time is linear in their length.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from . import EntityPair, Span, lexicon

# Kinds of words. A sentence is a string of these letters, which makes lookahead cheap.
DETERMINER, ADVERB, NEGATION, COPULA, VERB = "D", "R", "X", "B", "V"
PREPOSITION, RELATIVE, PRONOUN, POSSESSIVE = "P", "W", "U", "S"
CONJUNCTION, COMMA, STOP = "C", "K", "."
ADJECTIVE = "A"
EITHER = "M"  # adjective or noun, depending on the position: "orange", "leather", "square"
LIKELY = "L"  # in no list, but with the ending of an adjective: "crumbly"
PARTICIPLE = "E"  # "painted"
GERUND = "G"  # "running"
NOUN = "N"

_DESCRIBING = ADJECTIVE + EITHER + LIKELY + PARTICIPLE
_CONTINUING = _DESCRIBING + NOUN

_TOKEN = re.compile(r"['’][sS]?(?!\w)|[^\W_]+(?:[-'’&](?![sS]\b)[^\W_]+)*|\n+|[^\s\w]|_")

_ADJECTIVE_ENDING = re.compile(
    r".{2,}(?:ish|ous|ful|less|ic|ical|al|ive|able|ible|ian|ant|ent|esque|like|lit|[^aeiou]y|ey)$"
)
_HYPHENATED = re.compile(r"(?:ed|like|looking|shaped|free|style)$")
_ADVERB_STEM = re.compile(r"i$|ed$|ing$|ous$|ful$|al$|ive$|ent$|ant$|less$")
_NOUN_ENDING = re.compile(r".*(?:ment|ology|ography|ity|ety|ency|ancy|ery|ary|ory|phy|metry|onomy)$")
_PLURAL = re.compile(r".+[^su'i]s$|.+ies$|(?:wo)?men$|children$|people$")
_PUNCTUATION = {",": COMMA, "&": CONJUNCTION, "+": CONJUNCTION, "'": POSSESSIVE, "’": POSSESSIVE}
_STATES_AND_MAKING = lexicon.STATES | lexicon.MAKING


def _listed() -> dict[str, str]:
    """Kind of every word of the lists; later lists take precedence."""
    kinds = {}
    for kind, words in (
        (NOUN, lexicon.NOUNS),
        (VERB, lexicon.VERBS),
        (ADJECTIVE, lexicon.ADJECTIVES),
        (PARTICIPLE, _STATES_AND_MAKING),
        (EITHER, lexicon.DESCRIPTIVE_NOUNS | lexicon.ADJECTIVE_OR_NOUN),
        (DETERMINER, lexicon.DETERMINERS),
        (ADVERB, lexicon.ADVERBS),
        (PREPOSITION, lexicon.PREPOSITIONS),
        (PRONOUN, lexicon.PRONOUNS),
        (RELATIVE, lexicon.RELATIVES | {"whose"}),
        (CONJUNCTION, lexicon.CONJUNCTIONS),
        (COPULA, lexicon.COPULAS),
        (NEGATION, lexicon.NEGATIONS - {"without", "no"}),
    ):
        kinds.update(dict.fromkeys(words, kind))
    return kinds


_KINDS = _listed()


@lru_cache(maxsize=1 << 16)
def _kind(word: str) -> str:
    """Kind of a lower-case word, regardless of its neighbours."""
    known = _KINDS.get(word)
    if known is not None:
        return known
    if not lexicon.LATIN.search(word):
        return DETERMINER if word.isdigit() else _PUNCTUATION.get(word, STOP)
    if "-" in word:  # "dark-red", "red-haired"; "teddy-bear" is a noun if none follows
        last = _kind(word.rsplit("-", 1)[1])
        return ADJECTIVE if last in (ADJECTIVE, EITHER, PARTICIPLE) or _HYPHENATED.search(word) else LIKELY
    if word in ("'s", "’s"):
        return POSSESSIVE
    if len(word) > 4:
        if word.endswith("ing"):
            return GERUND
        if word.endswith("ed"):
            return PARTICIPLE
        if word.endswith("ly"):  # "brightly", but "pebbly"
            stem = word[:-2]
            listed = any(
                _KINDS.get(stem + end) in (ADJECTIVE, PARTICIPLE, EITHER, DETERMINER) for end in ("", "e", "le")
            )
            return ADVERB if listed or _ADVERB_STEM.search(stem) else LIKELY
        if word.startswith("un") and _KINDS.get(word[2:]) in (ADJECTIVE, PARTICIPLE, EITHER, ADVERB):
            return ADJECTIVE
        if _ADJECTIVE_ENDING.match(word) and not _NOUN_ENDING.match(word):
            return LIKELY
    return NOUN


@dataclass
class _Phrase:
    """Adjectives with or without a noun.

    Attributes:
        end: index of the first word after the phrase.
        determined: has an article, a numeral or the like.
        absent: has "no" or "neither".
        attributes, nouns: indices of words; the last noun is the head.
        entity: index of the first word of the entity's name.
    """

    end: int
    determined: bool = False
    absent: bool = False
    attributes: list[int] = field(default_factory=list)
    nouns: list[int] = field(default_factory=list)
    entity: int = -1


class _Words:
    """Words of a caption: their `spans`, lower-case `text`, and `kinds`, one letter each."""

    def __init__(self, caption: str) -> None:
        self.caption = caption
        self.spans: list[tuple[int, int]] = []
        self.text: list[str] = []
        kinds: list[str] = []
        for match in _TOKEN.finditer(caption):
            word, span = match.group().lower(), match.span()
            if self.text and span[0] > self.spans[-1][1]:  # one attribute or one name of two words
                pair = (self.text[-1], word)
                shade = word in lexicon.COLORS and pair[0] in lexicon.SHADES
                kind = EITHER if shade or pair in lexicon.COMPOUND_ATTRIBUTES else NOUN if pair in lexicon.NAMES else ""
                if kind:
                    self.spans[-1] = (self.spans[-1][0], span[1])
                    self.text[-1] = word if kind == EITHER else f"{pair[0]} {word}"
                    kinds[-1] = kind
                    continue
            self.spans.append(span)
            self.text.append(word)
            kinds.append(_kind(word) if len(word) < 64 else STOP)
        self.kinds = "".join(kinds)
        capitals = sum(caption[start].isupper() for start, _ in self.spans)
        self.titled = capitals * 2 > len(self.spans)

    def span(self, first: int, last: int) -> Span:
        start, end = self.spans[first][0], self.spans[last][1]
        return Span(start, end, self.caption[start:end])

    def kind(self, index: int) -> str:
        return self.kinds[index] if index < len(self.kinds) else STOP

    def text_at(self, index: int) -> str:
        return self.text[index] if index < len(self.text) else ""

    def plural(self, index: int) -> bool:
        return _PLURAL.match(self.text[index]) is not None

    def named(self, attribute: int, noun: int) -> bool:
        """Whether two words are a name, as in "the White House": both have capitals and most other words do not."""
        if self.titled or attribute == 0:
            return False
        first, second = self.spans[attribute][0], self.spans[noun][0]
        return self.caption[first].isupper() and self.caption[second].isupper()


def _describes(words: _Words, index: int, participles: str = PARTICIPLE) -> bool:
    """Whether word `index` is an adjective; a participle is one only if its phrase continues."""
    kind = words.kind(index)
    return kind in (ADJECTIVE, EITHER, LIKELY) or (kind in participles and words.kind(index + 1) in _CONTINUING)


def _after(words: _Words, index: int, skipped: str) -> int:
    """Index of the first word from `index` on whose kind is not in `skipped`, at most four words ahead."""
    end = index + 4
    while index < end and words.kind(index) in skipped:
        index += 1
    return index


def _read_phrase(words: _Words, start: int, predicate: bool, negated: bool, gerunds: bool) -> _Phrase:
    """Read the phrase that begins at word `start`; its end is `start` if there is none.

    Args:
        predicate: the phrase follows a copula: "the ball is | red and green cubes lie there".
        negated: the phrase follows "not".
        gerunds: a word in -ing can be an attribute without an article: "with | flickering bulbs", but not
            "wearing boots".
    """
    phrase = _Phrase(start)
    index, indefinite, joined, before_join = start, False, -1, 0
    while True:
        kind = words.kind(index)
        if phrase.nouns:
            last = phrase.nouns[-1]
            if kind not in (NOUN, EITHER, LIKELY) or words.plural(last):
                break
            if kind != EITHER and indefinite and words.plural(index):
                break  # "a cat bleeps": no plural noun follows "a"
            phrase.nouns.append(index)
        elif kind == DETERMINER and not (phrase.attributes and words.text[index] == "one"):
            if phrase.attributes:
                break
            phrase.determined = True
            phrase.absent |= words.text[index] in ("no", "neither")
            indefinite |= words.text[index] in ("a", "an")
        elif kind == ADVERB:
            following = _after(words, index, ADVERB)
            if not _describes(words, following) and words.kind(following) not in (GERUND, PARTICIPLE):
                break
        elif kind == NEGATION:
            if not (phrase.determined or phrase.attributes):
                break
            negated = True
        elif kind in (CONJUNCTION, COMMA):
            listed = kind == CONJUNCTION or phrase.determined or predicate
            if index == start or not listed:
                break
            following = _after(words, index + 1, CONJUNCTION + ADVERB + NEGATION)
            if not _describes(words, following, PARTICIPLE + GERUND if gerunds or phrase.determined else PARTICIPLE):
                break
            if "but" in words.text[index:following]:
                negated = False
            joined, before_join = index, len(phrase.attributes)
        elif kind in (NOUN, DETERMINER) or (kind == VERB and (phrase.determined or phrase.attributes)):
            if kind == NOUN and predicate and not phrase.determined and _is_unknown_adjective(words, index):
                if not negated:
                    phrase.attributes.append(index)
            else:
                phrase.nouns.append(index)
        elif kind == PARTICIPLE and not phrase.determined and not _describes(words, index):
            break
        elif kind in _DESCRIBING or (kind == GERUND and (gerunds or phrase.determined)):
            if _is_attribute(words, index, phrase, predicate, joined):
                if not negated:
                    phrase.attributes.append(index)
            else:
                phrase.nouns.append(index)
        else:
            break
        index += 1
    phrase.end = index
    if phrase.nouns and predicate and joined >= 0 and not phrase.determined:
        phrase.end, phrase.nouns = joined, []
        del phrase.attributes[before_join:]
    if phrase.nouns:
        _split_compound(words, phrase)
    return phrase


def _is_attribute(words: _Words, index: int, phrase: _Phrase, predicate: bool, joined: int) -> bool:
    """Whether a word that can be an attribute or a noun is an attribute at its position."""
    kind = words.kind(index)
    if kind == ADJECTIVE or (predicate and not phrase.determined):
        return True
    if kind == EITHER and words.plural(index):
        return False  # "stripes"
    if joined >= 0 and words.kind(index - 1) in (CONJUNCTION, COMMA, ADVERB) and kind != GERUND:
        return True
    listing = CONJUNCTION + COMMA if phrase.determined or predicate else CONJUNCTION
    following = index + 1
    if words.kind(following) in listing:
        participles = PARTICIPLE + GERUND if phrase.determined else PARTICIPLE
        return _describes(words, _after(words, following, CONJUNCTION + COMMA + ADVERB + NEGATION), participles)
    following = _after(words, following, ADVERB)
    return words.kind(following) in _CONTINUING or (phrase.determined and words.text_at(following) == "one")


def _is_unknown_adjective(words: _Words, index: int) -> bool:
    """Whether a word is an adjective that no list has, as in "the dog is svelte": a noun would have an article."""
    known = words.text[index] in lexicon.NOUNS or words.plural(index)
    return not known and words.kind(index + 1) not in _CONTINUING


def _split_compound(words: _Words, phrase: _Phrase) -> None:
    """Move materials, colours and patterns before the head noun to the attributes."""
    described = [i for i in phrase.nouns[:-1] if words.kinds[i] == EITHER]
    phrase.attributes += described
    phrase.entity = described[-1] + 1 if described else phrase.nouns[0]


class _Reader:
    """Reader of a caption's phrases, which binds attributes to entities.

    An entity is (index of its first word, index of its last word), an attribute is the index of a word.

    Attributes:
        pairs: pairs found so far; a dict, for their order and without duplicates.
        heads: coordinated nouns that are the subject of the next copula.
        last: the entity read last.
        described: entities that the next adjective, participle or preposition describes.
        relative: antecedents of "that" or "which", until its verb.
        participle: participle that may have a complement.
        preposition: the last preposition; `governor` is the kind of the word before it.
        before: kind of the previous word or phrase.
        predicate: a copula was read, and no entity since.
        negated, absent: "not" or "without" was read; `alternative`: and "or" since.
        verb_seen: the verb of the heads was read; "and" begins a new clause.
        object: the last entity depends on a preposition or a verb.
        qualifier: the last entity was itself the attribute: "with stripes".
    """

    def __init__(self, words: _Words) -> None:
        self.words = words
        self.pairs: dict[tuple[int, tuple[int, int]], None] = {}
        self.reset()

    def reset(self) -> None:
        self.heads: list[tuple[int, int]] = []
        self.last: tuple[int, int] | None = None
        self.described: list[tuple[int, int]] = []
        self.relative: list[tuple[int, int]] = []
        self.participle: int | None = None
        self.preposition = self.governor = self.before = ""
        self.predicate = self.verb_seen = self.object = self.qualifier = False
        self.negated = self.absent = self.alternative = False

    def read(self) -> list[tuple[int, tuple[int, int]]]:
        words, index = self.words, 0
        while index < len(words.kinds):
            kind = words.kinds[index]
            phrase = None
            if kind in _CONTINUING + DETERMINER + ADVERB + GERUND and not self._is_verb(index, kind):
                said = self.before == PARTICIPLE or (self.predicate and self.before in (COPULA, ADVERB, NEGATION))
                gerunds = self.before == PREPOSITION and self.preposition in ("with", "of")
                phrase = _read_phrase(words, index, said, said and self.negated, gerunds)
            if phrase is not None and phrase.end > index:
                if phrase.nouns:
                    self._noun_phrase(phrase)
                else:
                    self._adjectives(phrase)
                index = phrase.end
            else:
                self._word(index, kind)
                index += 1
        self._end_participle()
        return list(self.pairs)

    def _is_verb(self, index: int, kind: str) -> bool:
        """Whether a participle or a noun without article is a verb: directly after a noun phrase or a copula."""
        if kind == PARTICIPLE:
            if self.before == COMMA:  # "a barn, covered in ivy", but not "a barn, covered wagons"
                return self.words.kind(index + 1) not in _CONTINUING
            known = self.words.text[index] in _STATES_AND_MAKING
            return self.before in (NOUN, PRONOUN) or (
                self.predicate and known and self.before in (COPULA, CONJUNCTION, ADVERB, NEGATION)
            )
        return kind == NOUN and self.before in (NOUN, PRONOUN)

    def _bind(self, attribute: int, entities: Sequence[tuple[int, int]]) -> None:
        words = self.words
        if words.text[attribute] in lexicon.NOT_ATTRIBUTES:
            return
        for entity in entities:
            if words.text[entity[1]] not in lexicon.NOT_ENTITIES and not words.named(attribute, entity[1]):
                self.pairs[attribute, entity] = None

    def _end_participle(self) -> None:
        """Bind a participle without complement that describes a state."""
        if self.participle is not None and self.words.text[self.participle] in lexicon.STATES and not self.negated:
            self._bind(self.participle, self.described)
        self.participle = None

    def _adjectives(self, phrase: _Phrase) -> None:
        """Bind adjectives without a noun: "is red", "painted green", "a room full of ...", but not "a room, full"."""
        self.qualifier = False
        if self.before == PREPOSITION:
            self._preposition_object(phrase.attributes)
        elif self.before in (COPULA, PARTICIPLE, NOUN, ADVERB, NEGATION) or (
            self.predicate and self.before == CONJUNCTION
        ):
            for attribute in phrase.attributes:  # without the negated ones
                self._bind(attribute, self.described)
            self.participle = None
        self.before = ADJECTIVE

    def _preposition_object(self, candidates: list[int]) -> bool:
        """Bind materials, colours and patterns after "made of", "of", "in" or "with"; return whether there were any."""
        words = self.words
        made = self.participle is not None and words.text[self.participle] in lexicon.MAKING
        attached = made or self.governor in (NOUN, COPULA, POSSESSIVE)
        allowed: frozenset[str] = frozenset()
        if self.preposition == "of" and attached:
            contents = self.described and words.text[self.described[0][1]] in lexicon.QUANTITIES
            allowed = lexicon.MATERIALS if made or not contents else allowed
        elif self.preposition == "from" and made:
            allowed = lexicon.MATERIALS
        elif self.preposition in ("in", "with") and (attached or self.governor == ADJECTIVE):
            allowed = lexicon.DESCRIPTIVE_NOUNS if made or self.preposition == "in" else lexicon.PATTERNS
        found = [i for i in candidates if words.text[i] in allowed]
        if found and not self.absent and not self.negated:
            for attribute in found:
                self._bind(attribute, self.described)
            if made:
                self.participle = None
        return bool(found)

    def _noun_phrase(self, phrase: _Phrase) -> None:
        entity = (phrase.entity, phrase.nouns[-1])
        if self.before != CONJUNCTION or phrase.determined:
            self.absent &= self.before == PREPOSITION
        if self.before == CONJUNCTION and phrase.determined and not self.alternative:
            self.negated = False  # "is not big and a dog ..."
        absent = phrase.absent or self.absent or self.negated
        if self.before == PREPOSITION and not phrase.determined:
            self.qualifier = self._preposition_object([phrase.nouns[-1]])
        if self.before == PARTICIPLE:  # "the man painted the wall"
            self.participle = None
        self._end_participle()
        self.absent |= phrase.absent
        if not absent:
            for attribute in phrase.attributes:
                self._bind(attribute, [entity])
        if self.qualifier:  # what follows "a cat with stripes" still describes the cat
            self.before = NOUN
            return
        self._place(entity, phrase.determined)
        self.last, self.described = entity, [entity]
        self.before, self.predicate = NOUN, False

    def _place(self, entity: tuple[int, int], determined: bool) -> None:
        """Update the nouns that can be the subject of a later copula, which objects are not."""
        joined = self.before in (CONJUNCTION, COMMA)
        if joined and self.object and not determined:  # "with long hair and green eyes"
            return
        self.object = self.before in (PREPOSITION, VERB, GERUND, PARTICIPLE, COPULA)
        if self.object:
            if not self.heads and self.before in (VERB, COPULA):
                self.heads, self.verb_seen = [entity], False
        elif joined and not self.verb_seen:
            self.heads = [*self.heads[1 - lexicon.MOST_JOINED :], entity]
        elif not (self.before == NOUN and self.heads):
            self.heads, self.verb_seen = [entity], False

    def _word(self, index: int, kind: str) -> None:
        word = self.words.text[index]
        qualifier, self.qualifier = self.qualifier, False
        if kind in (NOUN, GERUND, VERB):
            self._end_participle()
            self.verb_seen |= kind != GERUND
            self.predicate = self.negated = False
            self.before = GERUND if kind == GERUND else VERB
        elif kind == COPULA:
            self._copula(word)
        elif kind == RELATIVE:
            self._end_participle()
            if word == "whose":
                self.reset()
            else:
                self.relative = [self.last] if self.last else []
            self.negated = False
            self.before = RELATIVE
        elif kind == PARTICIPLE:
            self._end_participle()
            if self.before == COMMA and self.heads:  # "a woman with green eyes, dressed in black"
                self.described = self.heads[-1:]
            self.participle, self.before = index, PARTICIPLE
        elif kind == PREPOSITION:
            if word not in ("of", "from", "in", "with", "out", "by"):
                self._end_participle()
            if self.before != PREPOSITION:  # "made out of" is governed by "made"
                self.governor = self.before
            self.preposition, self.before = word, PREPOSITION
            self.absent = word == "without"
        elif kind == NEGATION:
            self.negated, self.before = True, NEGATION
        elif kind == CONJUNCTION:
            self._end_participle()
            if word == "but":
                self.negated = False
            self.alternative = word in ("or", "nor")
            self.absent &= self.alternative
            # "with stripes and dots"
            self.before = PREPOSITION if qualifier and self.words.kind(index + 1) != DETERMINER else CONJUNCTION
        elif kind == COMMA:
            self._end_participle()
            self.negated = self.absent = False
            self.before = COMMA
        elif kind == POSSESSIVE:
            if self.heads and self.heads[-1] == self.last:
                self.heads.pop()
            self.before = self.before if self.before != NOUN else POSSESSIVE
        elif kind == ADVERB:
            self.before = ADVERB if self.predicate else self.before
        else:
            self._end_participle()
            self.reset()
            self.before = PRONOUN if kind == PRONOUN else ""

    def _copula(self, word: str) -> None:
        self._end_participle()
        if self.relative:
            subjects, self.relative = self.relative, []
        else:
            subjects = self.heads[-1:] if word in lexicon.SINGULAR_COPULAS else list(self.heads)
        self.described = subjects
        self.predicate = self.verb_seen = True
        self.negated = word in lexicon.NEGATED_COPULAS or self.before == NEGATION
        self.before = COPULA


class RulesBackend:
    """Parser by rules; see `entities.Backend`."""

    name = f"rules/{lexicon.VERSION}"
    spec = "rules"

    def pipe(self, prompts: Iterable[str]) -> Iterator[list[EntityPair]]:
        for prompt in prompts:
            words = _Words(prompt)
            yield [EntityPair(words.span(a, a), words.span(*entity)) for a, entity in sorted(_Reader(words).read())]
