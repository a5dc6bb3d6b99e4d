"""Footers of compacted files: how they are made, and how they stand in Parquet metadata."""

import base64
import dataclasses
import json
import tracemalloc
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_stream.errors import ChainBrokenError
from nap_stream.records import TopicPartition
from nap_stream.scored_log import footer as footers
from nap_stream.scored_log.footer import (
    SegmentFooter,
    check_merged,
    from_metadata,
    may_merge,
    merged_footer,
    segment_sha256,
    span_from_metadata,
    to_metadata,
)
from tests.scored_log.builders import CALIBRATION, CARS, MODEL

ROWS_SHA256 = "7e" * 32


def _part(
    before: SegmentFooter | None, end_offset: int, rows: int, **changes: Any
) -> SegmentFooter:
    values: dict[str, Any] = {
        "partition": CARS,
        "base_offset": before.end_offset if before else 5,
        "end_offset": end_offset,
        "model_fingerprint": MODEL,
        "calibration_fingerprint": CALIBRATION,
        "rows": rows,
        "scored_rows": rows // 2,
        "min_event_time_ms": 100 - end_offset if rows else None,
        "max_event_time_ms": 100 + end_offset if rows else None,
        "writer_id": "worker-0",
        "created_time_ms": end_offset,
        "previous_sha256": segment_sha256(before) if before else "0a" * 32,
        "rows_sha256": "1b" * 32,
    }
    return SegmentFooter(**{**values, **changes})


FIRST = _part(None, 9, 4)
GAP = _part(FIRST, 12, 0, gap="retention")
LAST = _part(GAP, 20, 3, topic_id="dGhlIHRvcGlj")


def _merged(*parts: SegmentFooter) -> SegmentFooter:
    return merged_footer(parts, rows_sha256=ROWS_SHA256, writer_id="compactor", created_time_ms=999)


def test_a_compacted_file_speaks_for_all_that_it_merged() -> None:
    assert _merged(FIRST, GAP, LAST) == SegmentFooter(
        partition=CARS,
        base_offset=5,
        end_offset=20,
        model_fingerprint=MODEL,
        calibration_fingerprint=CALIBRATION,
        rows=7,
        scored_rows=3,
        min_event_time_ms=80,
        max_event_time_ms=120,
        writer_id="compactor",
        created_time_ms=999,
        previous_sha256="0a" * 32,
        rows_sha256=ROWS_SHA256,
        topic_id="dGhlIHRvcGlj",
        merged=(FIRST, GAP, LAST),
    )
    assert _merged(FIRST, GAP, LAST).parts == (FIRST, GAP, LAST)
    assert FIRST.parts == (FIRST,)


def test_gaps_alone_merge_to_a_file_without_rows() -> None:
    other = _part(GAP, 13, 0, gap="an operator")
    footer = _merged(GAP, other)
    assert (footer.rows, footer.gap, footer.min_event_time_ms) == (0, None, None)
    check_merged(footer)


@pytest.mark.parametrize(
    "later",
    [
        _part(FIRST, 12, 1, partition=TopicPartition("cars", 1)),
        _part(FIRST, 12, 1, base_offset=10),
        _part(FIRST, 12, 1, base_offset=8),
        _part(FIRST, 12, 1, previous_sha256="0c" * 32),
        _part(FIRST, 12, 1, merged=(LAST,)),
        _part(FIRST, 12, 1, schema_version=3),
    ],
    ids=["partition", "hole", "overlap", "digest", "compacted", "version"],
)
def test_what_one_footer_cannot_speak_for_does_not_merge(later: SegmentFooter) -> None:
    assert may_merge(FIRST, GAP)
    assert not may_merge(FIRST, later)
    with pytest.raises(ValueError, match=f"segments 5, {later.base_offset} do not merge"):
        _merged(FIRST, later)


def test_models_and_calibrations_that_alternate_stand_in_one_file() -> None:
    other = _part(FIRST, 12, 1, model_fingerprint="cc", calibration_fingerprint="dd")
    again = _part(other, 14, 1, model_fingerprint=MODEL, calibration_fingerprint=CALIBRATION)
    footer = _merged(FIRST, other, again)
    check_merged(footer)
    assert footer.model_fingerprint == f"{MODEL},cc"
    assert footer.calibration_fingerprint == f"{CALIBRATION},dd"


def test_segments_of_different_topics_do_not_merge() -> None:
    assert may_merge(LAST, _part(LAST, 30, 1, topic_id=LAST.topic_id))
    assert not may_merge(LAST, _part(LAST, 30, 1, topic_id="other"))
    assert not may_merge(LAST, _part(LAST, 30, 1))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("end_offset", 21),
        ("base_offset", 4),
        ("rows", 8),
        ("scored_rows", 4),
        ("min_event_time_ms", 79),
        ("max_event_time_ms", 121),
        ("previous_sha256", "0c" * 32),
        ("topic_id", None),
        ("model_fingerprint", "cc"),
        ("partition", TopicPartition("cars", 1)),
        ("schema_version", 3),
    ],
)
def test_a_footer_that_contradicts_what_it_merged_is_refused(name: str, value: object) -> None:
    footer = _merged(FIRST, GAP, LAST)
    check_merged(footer)
    changes: Any = {name: value}
    with pytest.raises(ValueError, match=f"contradicts the footers that it merged in {name}"):
        check_merged(dataclasses.replace(footer, **changes))


KEY = "nap_stream.merged"


def _compacted(*parts: SegmentFooter) -> SegmentFooter:
    return merged_footer(parts, rows_sha256="7e" * 32, writer_id="c", created_time_ms=9)


FOOTER = _compacted(FIRST, GAP, LAST)


def _encoded(values: dict[str, str]) -> dict[bytes, bytes]:
    return {key.encode(): value.encode() for key, value in values.items()}


def _packed(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content)).decode()


def _trees() -> list[dict[str, str]]:
    trees: list[dict[str, str]] = json.loads(
        zlib.decompress(base64.b64decode(to_metadata(FOOTER)[KEY]))
    )
    return trees


def _array(trees: list[dict[str, str]]) -> str:
    return _packed(json.dumps(trees, separators=(",", ":")).encode())


def _refused(merged: str, problem: str) -> None:
    values = {**to_metadata(FOOTER), KEY: merged}
    with pytest.raises(ChainBrokenError, match=problem) as caught:
        from_metadata(_encoded(values), "x.parquet")
    assert caught.value.where == "x.parquet"


def test_round_trip() -> None:
    assert from_metadata(_encoded(to_metadata(FOOTER)), "x") == FOOTER
    assert KEY not in to_metadata(FIRST)


@given(
    ends=st.lists(st.integers(1, 1000), min_size=1, max_size=20, unique=True).map(sorted),
    writers=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5),
)
def test_round_trip_of_any_chain(ends: list[int], writers: list[str]) -> None:
    parts: list[SegmentFooter] = []
    for number, end in enumerate(ends):
        before = parts[-1] if parts else None
        part = dataclasses.replace(
            FIRST,
            base_offset=before.end_offset if before else 0,
            end_offset=end,
            writer_id=writers[number % len(writers)],
            previous_sha256=segment_sha256(before) if before else "0a" * 32,
        )
        parts.append(part)
    footer = _compacted(*parts)
    assert from_metadata(_encoded(to_metadata(footer)), "x") == footer


def test_the_span_of_a_compacted_file_is_its_own_keys() -> None:
    span = span_from_metadata(_encoded(to_metadata(FOOTER)), "x")
    assert span == dataclasses.replace(FOOTER, merged=())
    assert span_from_metadata(_encoded(to_metadata(FIRST)), "x") == FIRST
    with pytest.raises(ChainBrokenError, match="has not written this file"):
        span_from_metadata(None, "x")


def test_only_the_first_merged_footer_names_the_digest_before_it() -> None:
    assert ["previous_sha256" in tree for tree in _trees()] == [True, False, False]


@pytest.mark.parametrize(
    ("merged", "problem"),
    [
        ("not base64!", "not valid"),
        ("", "no zlib stream"),
        (base64.b64encode(b"text").decode(), "not valid"),
        (base64.b64encode(zlib.compress(b"[]") + b"more").decode(), "no zlib stream"),
        (base64.b64encode(zlib.compress(b"[1, 2]" * 99)[:-9]).decode(), "no zlib stream"),
        (_packed(b"[" * 100_000), "not valid"),
        (_packed(b"[]"), "merged is no array of footers"),
        (_packed(b"{}"), "merged is no array of footers"),
        (_packed(b"[1]"), "merged is no array of footers"),
        (_packed(b'[{"rows":4}]'), "merged is no array of footers"),
        (_packed(b'[{"rows":"4"}'), "no schema_version"),
        (_packed(b'[{"rows":"4"}]'), "no schema_version"),
    ],
)
def test_what_is_no_list_of_footers_is_refused(merged: str, problem: str) -> None:
    _refused(merged, problem)


def test_a_small_stream_that_unpacks_to_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footers, "MAX_MERGED_BYTES", 2**20)
    _refused(_packed(b" " * 2**20 + b"[]"), f"at most {2**20} bytes")


@pytest.mark.parametrize("cut", [b"]", b"}]"])
def test_an_array_that_is_cut_is_refused(cut: bytes) -> None:
    whole = zlib.decompress(base64.b64decode(to_metadata(FOOTER)[KEY]))
    assert whole.endswith(cut)
    _refused(_packed(whole.removesuffix(cut)), "merged is no array of footers")
    _refused(_packed(whole + b"]"), "merged is no array of footers")


def test_an_array_of_what_is_no_footer_takes_little_memory() -> None:
    text = b"[" + b"[]," * 2**20 + b"[]]"
    packed = _packed(text)
    tracemalloc.start()
    try:
        _refused(packed, "merged is no array of footers")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(text)


@pytest.mark.parametrize(
    ("number", "changes", "problem"),
    [
        (0, {"rows": "5"}, "contradicts the footers that it merged in rows"),
        (1, {"end_offset": "13"}, "segments 9, 12 do not merge"),
        (2, {"schema_version": "9"}, "schema version '9'"),
        (1, {"schema_version": "3"}, "segments 5, 9 do not merge"),
        (2, {"colour": "red"}, r"unknown keys \['colour'\]"),
        (0, {"previous_sha256": "0c" * 32}, "in previous_sha256"),
        (2, {"merged": "again"}, r"unknown keys \['merged'\]"),
    ],
)
def test_a_changed_merged_footer_is_refused(
    number: int, changes: dict[str, str], problem: str
) -> None:
    trees = _trees()
    trees[number] |= changes
    _refused(_array(trees), problem)


def test_an_unseen_change_of_a_merged_footer_changes_the_digest_that_the_next_names() -> None:
    trees = _trees()
    trees[0]["writer_id"] = "somebody else"
    values: dict[str, Any] = {**to_metadata(FOOTER), KEY: _array(trees)}
    changed = from_metadata(_encoded(values), "x")
    assert segment_sha256(changed.parts[-1]) != segment_sha256(LAST)


def test_a_missing_merged_footer_is_refused() -> None:
    for trees in (_trees()[:2], _trees()[1:], []):
        values = {**to_metadata(FOOTER), KEY: _array(trees)}
        with pytest.raises(ChainBrokenError):
            from_metadata(_encoded(values), "x")
