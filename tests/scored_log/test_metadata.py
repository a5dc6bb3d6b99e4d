"""Footers of compacted files as Parquet metadata."""

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
from nap_stream.scored_log import footer as footers
from nap_stream.scored_log.footer import (
    SegmentFooter,
    from_metadata,
    merged_footer,
    segment_sha256,
    span_from_metadata,
    to_metadata,
)
from tests.scored_log.test_merged import FIRST, GAP, LAST

KEY = "nap_stream.merged"


def _merged(*parts: SegmentFooter) -> SegmentFooter:
    return merged_footer(parts, rows_sha256="7e" * 32, writer_id="c", created_time_ms=9)


FOOTER = _merged(FIRST, GAP, LAST)


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
    footer = _merged(*parts)
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
        (2, {"schema_version": "4"}, "schema version '4'"),
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
