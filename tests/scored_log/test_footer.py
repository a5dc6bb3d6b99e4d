import dataclasses
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_stream.errors import ChainBrokenError
from nap_stream.records import TopicPartition
from nap_stream.scored_log.footer import (
    SegmentFooter,
    from_metadata,
    own_values,
    segment_sha256,
    to_metadata,
)
from nap_stream.scored_log.format import EARLIEST_TIME_MS, LATEST_TIME_MS

FOOTER = SegmentFooter(
    partition=TopicPartition("cars", 3),
    base_offset=10,
    end_offset=15,
    model_fingerprint="m",
    calibration_fingerprint="c",
    rows=4,
    scored_rows=3,
    min_event_time_ms=-5,
    max_event_time_ms=7,
    writer_id="worker-0",
    created_time_ms=99,
    previous_sha256="0a" * 32,
    rows_sha256="1b" * 32,
    topic_id="dGhlIHRvcGlj",
)

_text = st.text(st.characters(exclude_categories=["Cs"]))
_digests = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
_ranges = st.lists(st.integers(0, 2**63 - 1), min_size=2, max_size=2, unique=True).map(sorted)


@st.composite
def footers(draw: st.DrawFn) -> SegmentFooter:
    rows = draw(st.integers(0, 1000))
    base, end = draw(_ranges)
    low, high = sorted(draw(st.tuples(st.integers(-(2**53), 2**53), st.integers(-9, 9))))
    return SegmentFooter(
        TopicPartition(draw(_text), draw(st.integers(0, 99))),
        base,
        end,
        draw(_text),
        draw(_text),
        rows,
        draw(st.integers(0, rows)),
        low if rows else None,
        high if rows else None,
        draw(_text),
        draw(st.integers(EARLIEST_TIME_MS, LATEST_TIME_MS)),
        draw(_digests),
        draw(_digests),
        None if rows else draw(st.none() | _text),
        draw(st.none() | _text),
        draw(st.sampled_from([3, 4])),
    )


def _encoded(footer: SegmentFooter) -> dict[bytes, bytes]:
    return {key.encode(): value.encode() for key, value in to_metadata(footer).items()}


@given(footer=footers())
def test_round_trip(footer: SegmentFooter) -> None:
    metadata = {**_encoded(footer), b"ARROW:schema": b"\xff", b"pandas": b"{}"}
    assert from_metadata(metadata, "x") == footer


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("rows", b"4.0", "rows is not an integer"),
        ("rows", b"04", "rows is not an integer"),
        ("created_time_ms", b"253402300800000", "not a time in years 1 to 9999"),
        ("created_time_ms", b"-9000000000000000000", "not a time in years 1 to 9999"),
        ("rows", "٤".encode(), "rows is not an integer"),
        ("rows", b"2", "3 scored rows of 2"),
        ("end_offset", b"10", "not an offset range"),
        ("base_offset", b"-1", "not an offset range"),
        ("previous_sha256", b"0A" * 32, "not a SHA-256"),
        ("rows_sha256", b"0A" * 32, "not a SHA-256"),
        ("rows_sha256", None, r"missing keys \['rows_sha256'\]"),
        ("max_event_time_ms", b"-6", "run backwards"),
        ("max_event_time_ms", None, "event times"),
        ("gap", b"retention", "a declared gap with 4 rows"),
        ("schema_version", b"7", "schema version '7'; this program reads 3, 4, 5, 6: use"),
        ("schema_version", b"0", "schema version '0'; this program reads 3, 4, 5, 6: use"),
        ("schema_version", b"04", "schema version '04'; this program reads 3, 4, 5, 6: use"),
        ("schema_version", b"2", "schema version '2'; this program reads 3, 4, 5, 6: use"),
        ("schema_version", b"43", "schema version '43'; this program reads 3, 4, 5, 6: use"),
        ("schema_version", b"\xff", "decode"),
        ("schema_version", None, "nap-stream has not written this file"),
        ("writer_id", None, r"missing keys \['writer_id'\]"),
        ("writer_id", b"\xff", "decode"),
        ("colour", b"red", r"unknown keys \['colour'\]"),
    ],
)
def test_a_footer_that_is_wrong_is_refused_by_file_and_reason(
    key: str, value: bytes | None, problem: str
) -> None:
    metadata = _encoded(FOOTER)
    metadata.pop(f"nap_stream.{key}".encode(), None)
    if value is not None:
        metadata[f"nap_stream.{key}".encode()] = value
    with pytest.raises(ChainBrokenError, match=problem) as caught:
        from_metadata(metadata, "topic=cars/x.parquet")
    assert caught.value.where == "topic=cars/x.parquet"


def test_the_digest_of_a_segment_is_that_of_its_keys_and_values_as_json() -> None:
    text = (
        '{"base_offset":"10","calibration_fingerprint":"c","created_time_ms":"99",'
        '"end_offset":"15","max_event_time_ms":"7","min_event_time_ms":"-5",'
        '"model_fingerprint":"m","partition":"3",'
        f'"previous_sha256":"{"0a" * 32}","rows":"4","rows_sha256":"{"1b" * 32}",'
        '"schema_version":"6","scored_rows":"3","topic":"cars",'
        '"topic_id":"dGhlIHRvcGlj","writer_id":"worker-0"}'
    )
    assert segment_sha256(FOOTER) == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    "changes",
    [
        {"partition": TopicPartition("dogs", 3)},
        {"partition": TopicPartition("cars", 4)},
        {"base_offset": 9},
        {"end_offset": 16},
        {"model_fingerprint": ""},
        {"calibration_fingerprint": "m"},
        {"rows": 5},
        {"scored_rows": 4},
        {"min_event_time_ms": -6},
        {"max_event_time_ms": 8},
        {"writer_id": "worker-1"},
        {"created_time_ms": 98},
        {"previous_sha256": "0b" * 32},
        {"rows_sha256": "1c" * 32},
        {"topic_id": None},
        {"topic_id": ""},
        {"schema_version": 3},
        {"rows": 0, "scored_rows": 0, "min_event_time_ms": None, "max_event_time_ms": None},
    ],
    ids=str,
)
def test_every_field_is_in_the_digest(changes: dict[str, Any]) -> None:
    assert segment_sha256(dataclasses.replace(FOOTER, **changes)) != segment_sha256(FOOTER)


def test_the_digest_of_version_3_is_of_that_number() -> None:
    version_3 = dataclasses.replace(FOOTER, schema_version=3)
    assert from_metadata(_encoded(version_3), "x") == version_3
    values = own_values(FOOTER) | {"schema_version": "3"}
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    assert segment_sha256(version_3) == hashlib.sha256(text.encode()).hexdigest()


def test_a_gap_and_its_reason_are_in_the_digest() -> None:
    times: dict[str, Any] = {"min_event_time_ms": None, "max_event_time_ms": None}
    skipped = dataclasses.replace(FOOTER, rows=0, scored_rows=0, **times)
    gaps = [dataclasses.replace(skipped, gap=reason) for reason in (None, "", "retention")]
    assert len({segment_sha256(gap) for gap in gaps}) == 3


def test_a_compacted_file_has_no_digest_of_its_own() -> None:
    with pytest.raises(ValueError, match="a compacted file has no digest of its own"):
        segment_sha256(dataclasses.replace(FOOTER, merged=(FOOTER,)))


def test_no_metadata_at_all_is_refused() -> None:
    with pytest.raises(ChainBrokenError, match="has not written this file"):
        from_metadata(None, "x")
