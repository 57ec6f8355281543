"""Dependency parses as the English pipelines of spaCy make them, written by hand.

A token is word/TAG/label/head, the head an index of the sentence's tokens; "~" before a word means that no blank stands
before it. The pairs that should come out are "attribute > entity", in the order of the text.
"""

from __future__ import annotations

from typing import Any

PARSES: dict[str, tuple[str, list[str]]] = {
    # adjectives
    "adjective": ("a/DT/det/2 red/JJ/amod/2 cat/NN/ROOT/2", ["red > cat"]),
    "several adjectives": (
        "a/DT/det/4 big/JJ/amod/4 ~,/,/punct/4 fluffy/JJ/amod/4 dog/NN/ROOT/4",
        ["big > dog", "fluffy > dog"],
    ),
    "two objects": (
        "a/DT/det/2 green/JJ/amod/2 bench/NN/ROOT/2 and/CC/cc/2 a/DT/det/6 red/JJ/amod/6 car/NN/conj/2",
        ["green > bench", "red > car"],
    ),
    "prepositional object": (
        "a/DT/det/2 red/JJ/amod/2 cat/NN/ROOT/2 on/IN/prep/2 a/DT/det/6 blue/JJ/amod/6 chair/NN/pobj/3",
        ["red > cat", "blue > chair"],
    ),
    "joined adjectives": (
        "red/JJ/amod/3 and/CC/cc/0 white/JJ/conj/0 cats/NNS/ROOT/3",
        ["red > cats", "white > cats"],
    ),
    "three joined adjectives": (
        "a/DT/det/6 red/JJ/amod/6 ~,/,/punct/1 white/JJ/conj/1 and/CC/cc/3 blue/JJ/conj/3 flag/NN/ROOT/6",
        ["red > flag", "white > flag", "blue > flag"],
    ),
    "the nearest noun only": ("red/JJ/amod/1 cats/NNS/ROOT/1 and/CC/cc/1 dogs/NNS/conj/1", ["red > cats"]),
    "adverb": ("a/DT/det/3 very/RB/advmod/2 big/JJ/amod/3 dog/NN/ROOT/3", ["big > dog"]),
    "numeral": ("three/CD/nummod/2 red/JJ/amod/2 balls/NNS/ROOT/2", ["red > balls"]),
    "quantity": ("several/JJ/amod/2 other/JJ/amod/2 balls/NNS/ROOT/2", []),
    "pro-form": (
        "a/DT/det/2 red/JJ/amod/2 car/NN/ROOT/2 and/CC/cc/2 a/DT/det/6 blue/JJ/amod/6 one/NN/conj/2",
        ["red > car", "blue > one"],
    ),
    "postpositive adjective": (
        "a/DT/det/1 room/NN/ROOT/1 full/JJ/amod/1 of/IN/prep/2 people/NNS/pobj/3",
        ["full > room"],
    ),
    "nothing seen": ("best/JJS/amod/1 quality/NN/ROOT/1", []),
    # participles
    "participle before": ("a/DT/det/2 painted/VBN/amod/2 door/NN/ROOT/2", ["painted > door"]),
    "present participle before": ("a/DT/det/2 running/VBG/amod/2 dog/NN/ROOT/2", ["running > dog"]),
    "painted green": ("a/DT/det/1 chair/NN/ROOT/1 painted/VBN/acl/1 green/JJ/oprd/2", ["green > chair"]),
    "painted red and white": (
        "a/DT/det/1 chair/NN/ROOT/1 painted/VBN/acl/1 red/JJ/acomp/2 and/CC/cc/3 white/JJ/conj/3",
        ["red > chair", "white > chair"],
    ),
    "state behind": (
        "a/DT/det/1 car/NN/ROOT/1 parked/VBN/acl/1 on/IN/prep/2 a/DT/det/5 street/NN/pobj/3",
        ["parked > car"],
    ),
    "covered in snow": (
        "a/DT/det/1 door/NN/ROOT/1 covered/VBN/acl/1 in/IN/prep/2 snow/NN/pobj/3",
        ["covered > door"],
    ),
    "what is done to it": (
        "a/DT/det/1 dog/NN/ROOT/1 chased/VBN/acl/1 by/IN/agent/2 a/DT/det/6 black/JJ/amod/6 cat/NN/pobj/3",
        ["black > cat"],
    ),
    "action behind": (
        "a/DT/det/1 man/NN/ROOT/1 painting/VBG/acl/1 a/DT/det/5 green/JJ/amod/5 wall/NN/dobj/2",
        ["green > wall"],
    ),
    "look behind": ("a/DT/det/1 woman/NN/ROOT/1 smiling/VBG/acl/1", ["smiling > woman"]),
    "not painted": ("a/DT/det/1 chair/NN/ROOT/1 not/RB/neg/3 painted/VBN/acl/1 green/JJ/oprd/3", []),
    "painted and made": (
        "a/DT/det/1 house/NN/ROOT/1 painted/VBN/acl/1 green/JJ/oprd/2 and/CC/cc/2 made/VBN/conj/2 of/IN/prep/5 "
        "stone/NN/pobj/6",
        ["green > house", "stone > house"],
    ),
    # compounds
    "material": (
        "a/DT/det/2 leather/NN/compound/2 sofa/NN/ROOT/2 and/CC/cc/2 a/DT/det/7 wooden/JJ/amod/7 coffee/NN/compound/7 "
        "table/NN/conj/2",
        ["leather > sofa", "wooden > coffee table"],
    ),
    "name": ("a/DT/det/3 red/JJ/amod/3 kitchen/NN/compound/3 shelf/NN/ROOT/3", ["red > kitchen shelf"]),
    "material before a name": (
        "a/DT/det/3 glass/NN/compound/3 coffee/NN/compound/3 table/NN/ROOT/3",
        ["glass > coffee table"],
    ),
    "material of two words": (
        "stainless/JJ/amod/1 steel/NN/compound/2 appliances/NNS/ROOT/2",
        ["stainless steel > appliances"],
    ),
    "adjective of a name": (
        "a/DT/det/3 big/JJ/amod/3 hot/JJ/amod/3 dog/NN/ROOT/3 and/CC/cc/3 a/DT/det/6 dog/NN/conj/3",
        ["big > hot dog"],
    ),
    "proper noun": ("a/DT/det/2 Diamond/NNP/compound/2 truck/NN/ROOT/2", []),
    "joined materials": (
        "a/DT/det/4 wood/NN/compound/4 and/CC/cc/1 metal/NN/conj/1 chair/NN/ROOT/4",
        ["wood > chair", "metal > chair"],
    ),
    "pattern": ("a/DT/det/3 polka/NN/compound/2 dot/NN/compound/3 dress/NN/ROOT/3", ["polka dot > dress"]),
    # prepositions
    "made of": ("a/DT/det/1 chair/NN/ROOT/1 made/VBN/acl/1 of/IN/prep/2 wood/NN/pobj/3", ["wood > chair"]),
    "made out of": (
        "a/DT/det/1 chair/NN/ROOT/1 made/VBN/acl/1 out/IN/prep/2 of/IN/prep/3 dark/JJ/amod/6 wood/NN/pobj/4",
        ["dark > wood", "wood > chair"],
    ),
    "carved from": (
        "a/DT/det/1 statue/NN/ROOT/1 carved/VBN/acl/1 from/IN/prep/2 stone/NN/pobj/3",
        ["stone > statue"],
    ),
    "of gold": ("a/DT/det/1 ring/NN/ROOT/1 of/IN/prep/1 gold/NN/pobj/2", ["gold > ring"]),
    "a pile of wood": ("a/DT/det/1 pile/NN/ROOT/1 of/IN/prep/1 wood/NN/pobj/2", []),
    "of something else": ("a/DT/det/1 photo/NN/ROOT/1 of/IN/prep/1 Rome/NNP/pobj/2", []),
    "in red": (
        "a/DT/det/1 woman/NN/ROOT/1 in/IN/prep/1 red/JJ/pobj/2 and/CC/cc/3 black/JJ/conj/3",
        ["red > woman", "black > woman"],
    ),
    "in a red hat": ("a/DT/det/1 man/NN/ROOT/1 in/IN/prep/1 a/DT/det/5 red/JJ/amod/5 hat/NN/pobj/2", ["red > hat"]),
    "dressed in black": (
        "a/DT/det/1 man/NN/ROOT/1 dressed/VBN/acl/1 in/IN/prep/2 black/NN/pobj/3 holding/VBG/acl/1 a/DT/det/8 "
        "red/JJ/amod/8 bag/NN/dobj/5",
        ["black > man", "red > bag"],
    ),
    "with stripes and dots": (
        "a/DT/det/1 cat/NN/ROOT/1 with/IN/prep/1 blue/JJ/amod/4 stripes/NNS/pobj/2 and/CC/cc/4 dots/NNS/conj/4",
        ["blue > stripes", "stripes > cat", "dots > cat"],
    ),
    "with a thing": ("a/DT/det/1 cat/NN/ROOT/1 with/IN/prep/1 a/DT/det/5 red/JJ/amod/5 hat/NN/pobj/2", ["red > hat"]),
    # copulas
    "is red": ("the/DT/det/1 dog/NN/nsubj/2 is/VBZ/ROOT/2 red/JJ/acomp/2", ["red > dog"]),
    "joined subjects": (
        "the/DT/det/1 cat/NN/nsubj/5 and/CC/cc/1 the/DT/det/4 dog/NN/conj/1 are/VBP/ROOT/5 black/JJ/acomp/5",
        ["black > cat", "black > dog"],
    ),
    "joined predicates": (
        "the/DT/det/1 cat/NN/nsubj/5 on/IN/prep/1 the/DT/det/4 mat/NN/pobj/2 is/VBZ/ROOT/5 red/JJ/acomp/5 and/CC/cc/6 "
        "fluffy/JJ/conj/6",
        ["red > cat", "fluffy > cat"],
    ),
    "two clauses": (
        "the/DT/det/1 ball/NN/nsubj/2 is/VBZ/ROOT/2 red/JJ/acomp/2 and/CC/cc/2 the/DT/det/6 cube/NN/nsubj/7 "
        "is/VBZ/conj/2 blue/JJ/acomp/7",
        ["red > ball", "blue > cube"],
    ),
    "a shared subject": (
        "the/DT/det/1 dog/NN/nsubj/2 is/VBZ/ROOT/2 red/JJ/acomp/2 and/CC/cc/2 looks/VBZ/conj/2 old/JJ/acomp/5",
        ["red > dog", "old > dog"],
    ),
    "looks": ("the/DT/det/1 sea/NN/nsubj/2 looks/VBZ/ROOT/2 rough/JJ/acomp/2", ["rough > sea"]),
    "is painted": (
        "the/DT/det/1 wall/NN/nsubjpass/3 is/VBZ/auxpass/3 painted/VBN/ROOT/3 green/JJ/oprd/3 and/CC/cc/3 "
        "made/VBN/conj/3 of/IN/prep/6 brick/NN/pobj/7",
        ["green > wall", "brick > wall"],
    ),
    "is wrapped": (
        "The/DT/det/1 towel/NN/nsubjpass/3 was/VBD/auxpass/3 wrapped/VBN/ROOT/3 around/IN/prep/3 the/DT/det/7 "
        "rough/JJ/amod/7 stone/NN/pobj/4",
        ["wrapped > towel", "rough > stone"],
    ),
    "is chased": (
        "the/DT/det/1 dog/NN/nsubjpass/3 is/VBZ/auxpass/3 chased/VBN/ROOT/3 by/IN/agent/3 cats/NNS/pobj/4",
        [],
    ),
    "is in red": ("the/DT/det/1 woman/NN/nsubj/2 is/VBZ/ROOT/2 in/IN/prep/2 red/JJ/pobj/3", ["red > woman"]),
    "is brick": ("the/DT/det/1 walls/NNS/nsubj/2 are/VBP/ROOT/2 brick/NN/attr/2", ["brick > walls"]),
    "white with spots": (
        "the/DT/det/1 dog/NN/nsubj/2 is/VBZ/ROOT/2 white/JJ/acomp/2 with/IN/prep/3 brown/JJ/amod/6 spots/NNS/pobj/4",
        ["white > dog", "brown > spots", "spots > dog"],
    ),
    "predicate noun": (
        "the/DT/det/1 dog/NN/nsubj/2 is/VBZ/ROOT/2 a/DT/det/5 big/JJ/amod/5 animal/NN/attr/2",
        ["big > animal"],
    ),
    "there is": (
        "there/EX/expl/1 is/VBZ/ROOT/1 a/DT/det/4 red/JJ/amod/4 cat/NN/attr/1",
        ["red > cat"],
    ),
    "past tense": (
        "The/DT/det/1 man/NN/nsubj/2 painted/VBD/ROOT/2 the/DT/det/4 wall/NN/dobj/2",
        [],
    ),
    "is glowing": ("the/DT/det/1 lights/NNS/nsubj/3 are/VBP/aux/3 glowing/VBG/ROOT/3", ["glowing > lights"]),
    # relative clauses
    "that is red": (
        "a/DT/det/1 dog/NN/ROOT/1 that/WDT/nsubj/3 is/VBZ/relcl/1 red/JJ/acomp/3",
        ["red > dog"],
    ),
    "that is red and looks old": (
        "a/DT/det/1 dog/NN/ROOT/1 that/WDT/nsubj/3 is/VBZ/relcl/1 red/JJ/acomp/3 and/CC/cc/3 looks/VBZ/conj/3 "
        "old/JJ/acomp/6",
        ["red > dog", "old > dog"],
    ),
    "that was painted": (
        "a/DT/det/1 dog/NN/ROOT/1 that/WDT/nsubjpass/4 was/VBD/auxpass/4 painted/VBN/relcl/1 green/JJ/oprd/4",
        ["green > dog"],
    ),
    "whose": (
        "a/DT/det/1 dog/NN/ROOT/1 whose/WP$/poss/3 fur/NN/nsubj/4 is/VBZ/relcl/1 white/JJ/acomp/4",
        ["white > fur"],
    ),
    "that I saw": (
        "a/DT/det/1 dog/NN/ROOT/1 that/WDT/dobj/4 I/PRP/nsubj/4 painted/VBD/relcl/1 green/JJ/oprd/4",
        [],
    ),
    # negation
    "is not red": ("the/DT/det/1 dog/NN/nsubj/2 is/VBZ/ROOT/2 not/RB/neg/2 red/JJ/acomp/2", []),
    "isn't red or blue": (
        "the/DT/det/1 dog/NN/nsubj/2 is/VBZ/ROOT/2 ~n't/RB/neg/2 red/JJ/acomp/2 or/CC/cc/4 blue/JJ/conj/4",
        [],
    ),
    "not red but blue": (
        "the/DT/det/1 dog/NN/nsubj/2 is/VBZ/ROOT/2 not/RB/neg/2 red/JJ/acomp/2 but/CC/cc/4 blue/JJ/conj/4",
        ["blue > dog"],
    ),
    "red but not blue": (
        "a/DT/det/5 red/JJ/amod/5 but/CC/cc/1 not/RB/neg/1 blue/JJ/conj/1 dog/NN/ROOT/5",
        ["red > dog"],
    ),
    "a clause denied": (
        "a/DT/det/1 dog/NN/ROOT/1 that/WDT/nsubj/3 is/VBZ/relcl/1 not/RB/neg/3 red/JJ/acomp/3 and/CC/cc/1 a/DT/det/9 "
        "big/JJ/amod/9 cat/NN/conj/1",
        ["big > cat"],
    ),
    "no cars or trucks": (
        "no/DT/det/2 red/JJ/amod/2 cars/NNS/ROOT/2 or/CC/cc/2 blue/JJ/amod/5 trucks/NNS/conj/2",
        [],
    ),
    "without": (
        "a/DT/det/2 big/JJ/amod/2 cat/NN/ROOT/2 without/IN/prep/2 stripes/NNS/pobj/3 or/CC/cc/4 red/JJ/amod/7 "
        "dots/NNS/conj/4",
        ["big > cat"],
    ),
    "with no stripes": ("a/DT/det/1 cat/NN/ROOT/1 with/IN/prep/1 no/DT/det/4 stripes/NNS/pobj/2", []),
    "is not made of": (
        "it/PRP/nsubj/1 is/VBZ/ROOT/1 a/DT/det/3 table/NN/attr/1 not/RB/neg/5 made/VBN/acl/3 of/IN/prep/5 "
        "wood/NN/pobj/6",
        [],
    ),
    # surface
    "possessive": ("the/DT/det/1 dog/NN/poss/4 ~'s/POS/case/1 red/JJ/amod/4 collar/NN/ROOT/4", ["red > collar"]),
    "of the possessor": ("a/DT/det/2 red/JJ/amod/2 dog/NN/poss/4 ~'s/POS/case/2 collar/NN/ROOT/4", ["red > dog"]),
    "shade": ("a/DT/det/3 dark/JJ/amod/2 red/JJ/amod/3 car/NN/ROOT/3", ["dark red > car"]),
    "shade hung on the noun": ("a/DT/det/3 light/JJ/amod/3 blue/JJ/amod/3 car/NN/ROOT/3", ["light blue > car"]),
    "hyphen": (
        "a/DT/det/4 red/JJ/advmod/3 ~-/HYPH/punct/3 ~haired/VBN/amod/4 woman/NN/ROOT/4",
        ["red-haired > woman"],
    ),
    "three parts": (
        "a/DT/det/6 black/JJ/amod/6 ~-/HYPH/punct/1 ~and/CC/cc/1 ~-/HYPH/punct/1 ~white/JJ/conj/1 photo/NN/ROOT/6",
        ["black-and-white > photo"],
    ),
    "hyphenated entity": (
        "a/DT/det/4 brown/JJ/amod/4 teddy/NN/compound/4 ~-/HYPH/punct/4 ~bear/NN/ROOT/4",
        ["brown > teddy-bear"],
    ),
    "capitals": ("A/DT/det/2 RED/JJ/amod/2 CAT/NN/ROOT/2", ["RED > CAT"]),
    "another script": ("赤い/JJ/amod/1 猫/NN/ROOT/1", []),
}


def build_parse(vocab: Any, text: str) -> Any:
    """The Doc of one entry."""
    from spacy.tokens import Doc

    rows = [token.rsplit("/", 3) for token in text.split()]
    words = [row[0].removeprefix("~") for row in rows]
    spaces = [not row[0].startswith("~") for row in rows[1:]] + [False]
    heads = [int(row[3]) for row in rows]
    labels = [row[2] for row in rows]
    assert [head for head, label in enumerate(labels) if label == "ROOT"] == [i for i, h in enumerate(heads) if i == h]
    return Doc(vocab, words, spaces, tags=[row[1] for row in rows], deps=labels, heads=heads)
