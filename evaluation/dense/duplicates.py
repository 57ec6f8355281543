"""Near-duplicates of texts: the Jaccard similarity of their word shingles, found by MinHash.

Broder 1997, "On the resemblance and containment of documents". A text is the set of its stretches of three words;
similar sets have the same smallest hash with a probability that is their similarity. Bands of a few hashes bring
candidates together (Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", 3.4), and of those the similarity itself
is computed, so that nothing is called a duplicate by chance. A pair of similarity s shares a band with a probability of
1 - (1 - s^3)^40: .994 at .5, and more above.
"""

from __future__ import annotations

import re
import zlib
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

SHINGLE = 3
"""Words of a shingle."""

_BANDS, _ROWS = 40, 3
_PRIME = (1 << 31) - 1
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def _parameters() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Of the hash functions (a x + b) mod p: fixed, from a linear congruential generator, so that runs agree."""
    state, values = 20240601, []
    for _ in range(2 * _BANDS * _ROWS):
        state = (1103515245 * state + 12345) % (1 << 31)
        values.append(state % (_PRIME - 1) + 1)
    numbers = np.array(values, dtype=np.uint64).reshape(2, -1, 1)
    return numbers[0], numbers[1]


_A, _B = _parameters()


def shingles(text: str) -> frozenset[int]:
    """32-bit hashes of a text's stretches of `SHINGLE` words, without regard to case and punctuation."""
    words = _WORD.findall(text.lower())
    return frozenset(
        zlib.crc32(" ".join(words[start : start + SHINGLE]).encode())
        for start in range(max(1, len(words) - SHINGLE + 1))
    )


def jaccard(first: frozenset[int], second: frozenset[int]) -> float:
    """Size of the intersection over that of the union; 1 for two empty sets."""
    union = len(first | second)
    return len(first & second) / union if union else 1.0


class NearDuplicates:
    """Texts, none of which is much like another one.

    Args:
        threshold: Jaccard similarity from which two texts are near-duplicates; below .5 some would be missed.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._texts: dict[str, frozenset[int]] = {}
        self._bands: defaultdict[tuple[int, bytes], list[str]] = defaultdict(list)

    def add(self, name: str, text: str) -> str | None:
        """Remember a text under a name of its own, unless it is much like one that is known.

        Returns:
            Name of the most similar text, if the new one is a near-duplicate of it and was not remembered; else None.
        """
        mine = shingles(text)
        keys = self._keys(mine)
        candidates = {known for key in keys for known in self._bands.get(key, ())}
        similarity, known = max(((jaccard(mine, self._texts[one]), one) for one in candidates), default=(0.0, ""))
        if candidates and similarity >= self.threshold:
            return known
        self._texts[name] = mine
        for key in keys:
            self._bands[key].append(name)
        return None

    @staticmethod
    def _keys(mine: frozenset[int]) -> list[tuple[int, bytes]]:
        """The bands of a text's MinHash."""
        values = np.fromiter(mine, np.uint64, len(mine))[None, :] % np.uint64(_PRIME)
        smallest = ((_A * values + _B) % np.uint64(_PRIME)).min(axis=1).astype(np.uint32)
        return [(band, row.tobytes()) for band, row in enumerate(smallest.reshape(_BANDS, _ROWS))]
