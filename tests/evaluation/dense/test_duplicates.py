"""Near-duplicates: similarity by hand, and what MinHash must and must not find."""

from __future__ import annotations

from evaluation.dense.duplicates import NearDuplicates, jaccard, shingles

TEXT = "A red cat sleeps on a blue chair in a small kitchen while soft light falls on the old wooden floor."


def test_similarity_by_hand() -> None:
    first, second = shingles("one two three four five"), shingles("One, two three; four six!")
    assert len(first) == 3  # 123 234 345 against 123 234 346
    assert jaccard(first, second) == 2 / 4
    assert jaccard(first, first) == 1 and jaccard(frozenset(), frozenset()) == 1


def test_a_changed_word_is_found_and_another_text_is_not() -> None:
    known = NearDuplicates(0.5)
    assert known.add("first", TEXT) is None
    assert known.add("copy", TEXT.upper().replace(".", "!")) == "first"
    assert known.add("changed", TEXT.replace("kitchen", "garage")) == "first"
    assert (
        known.add("other", "Two gray horses graze beside a stone wall at dusk, and far behind them rises a barn.")
        is None
    )
    assert (
        known.add("again", "Two gray horses graze beside a stone wall at dawn, and far behind them rises a barn.")
        == "other"
    )


def test_the_threshold_decides() -> None:
    changed = TEXT.replace("red", "white").replace("kitchen", "garage")
    similarity = jaccard(shingles(TEXT), shingles(changed))
    assert 0.4 < similarity < 0.8
    for threshold, expected in ((similarity - 0.01, "first"), (similarity + 0.01, None)):
        known = NearDuplicates(threshold)
        known.add("first", TEXT)
        assert known.add("second", changed) == expected


def test_hardly_any_pair_above_the_threshold_is_missed() -> None:
    words = [f"word{number}" for number in range(60)]
    missed = 0
    for trial in range(60):
        changed = [word if place % 10 != trial % 10 else f"other{trial}" for place, word in enumerate(words)]
        assert jaccard(shingles(" ".join(words)), shingles(" ".join(changed))) >= 0.5
        known = NearDuplicates(0.5)
        known.add("first", " ".join(words))
        missed += known.add("second", " ".join(changed)) is None
    assert missed <= 1
