from hashlib import sha256
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_stream.core.panes import (
    MAX_KEY_CHARACTERS,
    NO_KEY,
    PaneBuffer,
    PaneCounts,
    closed_pane,
    count_panes,
    key_text,
)
from nap_stream.core.tails import BIN_COUNT
from tests.support.closed_panes import KEYS, PANE_MS, ROWS, PlainPane, ScoredRow, counts_of, plain


def bins(*filled: int) -> tuple[int, ...]:
    return tuple(filled.count(number) for number in range(BIN_COUNT))


def entries(counts: PaneCounts) -> list[tuple[int, str, int, int, tuple[int, ...]]]:
    names = [counts.keys[number] for number in counts.key.tolist()]
    rows = zip(
        counts.start_ms.tolist(),
        names,
        counts.records.tolist(),
        counts.flagged.tolist(),
        map(tuple, counts.bins.tolist()),
        strict=True,
    )
    return list(rows)


HAND = (
    ScoredRow(103, 0.02, True, 1),
    ScoredRow(101, 0.3, False, 2),
    ScoredRow(109, 0.99, False, 1),
    ScoredRow(110, 0.03, True, 1),
    ScoredRow(104, 0.04, False, 1),
    ScoredRow(119, 0.6, True, 0),
    ScoredRow(112, 0.6, False, 0),
)


def test_counts_by_hand() -> None:
    """The fifth record came out of order: it counts in the pane of the one before it."""
    assert entries(counts_of(HAND, one_per_pane=False)) == [
        (100, "left", 2, 1, bins(0, 9)),
        (100, "right", 1, 0, bins(4)),
        (110, NO_KEY, 2, 1, bins(5, 5)),
        (110, "left", 2, 1, bins(1, 1)),
    ]


def test_only_the_first_of_a_key_counts_where_one_does() -> None:
    assert entries(counts_of(HAND, one_per_pane=True)) == [
        (100, "left", 1, 1, bins(0)),
        (100, "right", 1, 0, bins(4)),
        (110, NO_KEY, 2, 1, bins(5, 5)),
        (110, "left", 1, 1, bins(1)),
    ]


def test_without_keys_all_have_none() -> None:
    counts = count_panes(
        np.array([-1, 0, 9]),
        np.array([0.5, 0.5, 0.01]),
        np.array([False, False, True]),
        pane_ms=PANE_MS,
    )
    assert counts.keys == (NO_KEY,)
    assert entries(counts) == [(-10, NO_KEY, 1, 0, bins(4)), (0, NO_KEY, 2, 1, bins(0, 4))]
    assert {counts.start_ms.dtype, counts.records.dtype, counts.flagged.dtype} == {
        np.dtype(np.int64)
    }


def test_no_records_give_no_entries() -> None:
    counts = counts_of((), one_per_pane=False)
    assert len(counts) == 0
    assert counts.bins.shape == (0, BIN_COUNT)
    buffer = PaneBuffer(PANE_MS, one_per_pane=False)
    buffer.add(counts, 0, 17)
    assert buffer.close_all() == []


@given(ROWS, st.booleans())
def test_every_record_is_counted_once(rows: list[ScoredRow], one_per_pane: bool) -> None:
    counts = counts_of(rows, one_per_pane=one_per_pane)
    assert (np.diff(counts.start_ms) >= 0).all()
    assert (counts.start_ms % PANE_MS == 0).all()
    np.testing.assert_array_equal(counts.bins.sum(axis=1), counts.records)
    times = np.maximum.accumulate(np.array([row.time_ms for row in rows], dtype=np.int64)).tolist()
    seen = [(time // PANE_MS, row.key) for time, row in zip(times, rows, strict=True)]
    without_key = sum(row.key == 0 for row in rows)
    with_key = [pane_and_key for pane_and_key in seen if pane_and_key[1] != 0]
    expected = without_key + (len(set(with_key)) if one_per_pane else len(with_key))
    assert counts.records.sum() == expected
    if not one_per_pane:
        assert counts.flagged.sum() == sum(row.flagged for row in rows)


@given(ROWS, st.lists(st.integers(0, 30), max_size=6), st.booleans(), st.booleans())
def test_counts_do_not_depend_on_where_segments_end(
    rows: list[ScoredRow], cuts: list[int], one_per_pane: bool, closing: bool
) -> None:
    whole = PaneBuffer(PANE_MS, one_per_pane=one_per_pane)
    whole.add(counts_of(rows, one_per_pane=one_per_pane), 0, None)
    expected = [plain(pane) for pane in whole.close_all()]

    buffer = PaneBuffer(PANE_MS, one_per_pane=one_per_pane)
    latest: int | None = None
    closed = []
    edges = sorted({0, len(rows), *(cut for cut in cuts if cut < len(rows))})
    for start, end in pairwise(edges):
        segment = rows[start:end]
        buffer.add(counts_of(segment, one_per_pane=one_per_pane), 0, latest)
        latest = max(row.time_ms for row in rows[:end])
        if closing:
            closed += buffer.close(latest)
    closed += buffer.close_all()

    assert [plain(pane) for pane in closed] == expected
    assert buffer.late_records == 0


def test_parts_of_a_pane_add_up_by_key() -> None:
    first = counts_of([ScoredRow(0, 0.02, True, 2), ScoredRow(1, 0.7, False, 0)], one_per_pane=True)
    second = counts_of(
        [ScoredRow(2, 0.3, False, 2), ScoredRow(3, 0.001, True, 1)], one_per_pane=True
    )
    assert plain(closed_pane(0, [first, second], one_per_pane=False)) == PlainPane(
        0, 4, 2, bins(0, 5, 4, 0), (("left", 1, 1), ("right", 2, 1)), (bins(0), bins(4, 0))
    )
    assert plain(closed_pane(0, [first, second], one_per_pane=True)) == PlainPane(
        0, 3, 2, bins(0, 5, 0), (("left", 1, 1), ("right", 1, 1)), (bins(0), bins(0))
    )
    assert plain(closed_pane(0, [second, first], one_per_pane=True)) == PlainPane(
        0, 3, 1, bins(4, 0, 5), (("left", 1, 1), ("right", 1, 0)), (bins(0), bins(4))
    )


def test_a_part_of_no_keys_is_the_same_either_way() -> None:
    counts = count_panes(
        np.array([0, 1, 2]), np.array([0.01, 0.5, 1]), np.array([True, False, True]), pane_ms=10
    )
    pane = plain(closed_pane(0, [counts], one_per_pane=False))
    assert pane == PlainPane(0, 3, 2, bins(0, 4, 9), ())
    split = [counts.part(0, 1), counts.part(1, 1)]
    assert plain(closed_pane(0, split, one_per_pane=False)) == pane


def test_counts_are_equal_by_value_and_have_no_hash() -> None:
    counts, same = (counts_of(HAND, one_per_pane=False) for _ in range(2))
    assert counts == same
    assert counts != counts_of(HAND[1:], one_per_pane=False)
    assert counts != counts_of(HAND, one_per_pane=True)
    assert counts != KEYS
    with pytest.raises(TypeError, match="unhashable"):
        hash(counts)


def test_arrays_of_different_lengths_are_refused() -> None:
    one, two = np.zeros(1, np.int64), np.zeros(2, np.int64)
    with pytest.raises(ValueError, match="expected arrays of 1 entries"):
        PaneCounts(one, two, one, one, np.zeros((1, BIN_COUNT), np.int64), KEYS)
    with pytest.raises(ValueError, match="expected arrays of 1 entries"):
        PaneCounts(one, one, one, one, np.zeros((1, 2), np.int64), KEYS)


def test_a_part_has_the_keys_that_are_in_it() -> None:
    """A segment of ten thousand keys is kept pane by pane: none of them drags all keys along."""
    whole = count_panes(
        np.array([0, 10, 10, 20]),
        np.full(4, 0.5),
        np.zeros(4, dtype=np.bool_),
        pane_ms=10,
        keys=("a", "b", "c"),
        key=np.array([0, 2, 1, 2]),
    )
    part = whole.part(1, 3)
    assert part.keys == ("b", "c")
    assert part.key.tolist() == [0, 1]
    assert whole.part(3, 4).keys == ("c",)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (None, ""),
        (b"", ""),
        (b"camera 7", "camera 7"),
        ("Straße/東京".encode(), "Straße/東京"),
        (b"x" * 200, "x" * 200),
        ("ü".encode() * 200, "ü" * 200),
        (b"SHA256:x", "SHA256:x"),
    ],
)
def test_printable_text_is_shown_as_it_is(key: bytes | None, text: str) -> None:
    assert key_text(key) == text


@pytest.mark.parametrize(
    "key",
    [
        b"\xff\x00",
        b"two\nlines",
        b"\x00",
        "right\u202eleft".encode(),
        b"\xed\xb2\x80",
        b"x" * 201,
        b"sha256:",
        b"sha256:" + sha256(b"\xff\x00").hexdigest().encode(),
    ],
)
def test_other_keys_are_hashed(key: bytes) -> None:
    assert key_text(key) == "sha256:" + sha256(key).hexdigest()


@given(st.sets(st.binary(max_size=300) | st.text(max_size=300).map(str.encode)))
def test_different_keys_stay_different(keys: set[bytes]) -> None:
    texts = {key_text(key) for key in keys}
    assert len(texts) == len(keys)
    assert (NO_KEY in texts) == (b"" in keys)
    assert all(text.isprintable() and len(text) <= MAX_KEY_CHARACTERS for text in texts)
