"""A log of version 3 as it was written, which every later program must read.

`tests.scored_log.builders.write_golden` made it when version 3 was the one that was written. Where
a change of the program makes a test fail here, the change breaks the logs that people keep: it
needs a new version of the format, and this log must stay readable.
"""

from dataclasses import replace
from pathlib import Path

import pyarrow.dataset as ds
import pyarrow.parquet as pq

from nap_stream.clock import ManualClock
from nap_stream.records import TopicPartition
from nap_stream.scored_log.compact import compact
from nap_stream.scored_log.footer import SegmentFooter
from nap_stream.scored_log.format import SCHEMA, SCHEMAS
from nap_stream.scored_log.query import GroupBy, aggregate
from nap_stream.scored_log.read import Query, scan
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.verify.run import verify
from tests.scored_log.builders import (
    CARS,
    NOON_MS,
    assert_golden_goes_on,
    make_version,
    origin,
    scored,
    write_golden,
    write_golden_chains,
)
from tests.support.log_files import read_footer, run_query

GOLDEN = Path(__file__).parent / "golden"
OTHER = TopicPartition("cars", 1)
LAST = "topic=cars/partition=0/00000000000000000009.parquet"
DIGESTS = [
    "6ccc8743ca24fb7e1ff092dc73514b7d715b4f5e3d76f83835bd8c81ef3e32e0",
    "609a12ac1ee5ea6e520716bd09a74c72868a3215e635c7f57b8f3f73c083b522",
]


def _rows(root: Path) -> list[dict[str, object]]:
    return [row for batch in scan(LocalStore(root), Query()) for row in batch.to_pylist()]


def test_it_is_whole_and_its_chains_end_as_they_did() -> None:
    report = verify(LocalStore(GOLDEN), deep=True, clock=ManualClock())
    assert report.clean
    assert (report.partitions, report.segments, report.rows) == (2, 6, 10)
    assert (report.offsets, report.gap_offsets) == (12, 3)
    assert [(gap.base_offset, gap.end_offset, gap.reason) for gap in report.gaps] == [
        (6, 9, "retention")
    ]
    assert [(file.base_offset, file.end_offset, file.segments) for file in report.compacted] == [
        (0, 9, 4)
    ]
    assert {head.partition: (head.start_offset, head.end_offset) for head in report.heads} == {
        CARS: (0, 12),
        OTHER: (5, 8),
    }
    assert [head.sha256 for head in report.heads] == DIGESTS


def test_its_rows_are_read_as_they_were_written() -> None:
    rows = _rows(GOLDEN)
    assert [(row["partition"], row["offset"], row["index"]) for row in rows] == [
        *((0, offset, 0) for offset in range(6)),
        (0, 9, 0),
        (0, 9, 1),
        (1, 5, 0),
        (1, 6, 0),
    ]
    expected = scored(origin(9), p_value=0.01, knn=1.25)
    assert expected.scores is not None
    row = rows[6]
    assert row["nap"] == expected.scores.nap
    assert row["ood_p_value"] == 0.01
    assert row["is_ood"] is True
    assert (row["knn"], row["react"]) == (1.25, None)
    assert (row["key"], row["class_name"]) == (b"camera-1", "cat")
    assert row["headers"] == [
        {"name": "camera", "value": b"north"},
        {"name": "camera", "value": None},
    ]
    assert rows[7]["class_name"] == "\u00e9"
    assert (rows[1]["status"], rows[1]["error"], rows[1]["nap"]) == (
        "corrupt",
        "cannot decode",
        None,
    )
    assert rows[1]["key"] is None


def test_it_is_queried() -> None:
    flagged = run_query(LocalStore(GOLDEN), Query(is_ood=True))
    assert flagged.column("offset").to_pylist() == [9]
    counts = aggregate(LocalStore(GOLDEN), Query(), GroupBy.PARTITION)
    assert counts.column("rows").to_pylist() == [8, 2]


def test_a_plain_reader_sees_its_rows_and_what_its_footers_say() -> None:
    plain = ds.dataset(GOLDEN, format="parquet", partitioning="hive").to_table()
    assert plain.num_rows == 10
    assert plain.column_names == [*SCHEMAS[3].names, "topic", "partition"]
    metadata = pq.read_metadata(GOLDEN / LAST).metadata
    assert metadata[b"nap_stream.schema_version"] == b"3"
    assert metadata[b"nap_stream.base_offset"] == b"9"
    assert metadata[b"nap_stream.writer_id"] == b"worker-0"


def test_its_chain_goes_on(tmp_path: Path) -> None:
    assert_golden_goes_on(GOLDEN, DIGESTS[0], tmp_path)


def test_the_present_writer_says_the_same_of_the_same_log(tmp_path: Path) -> None:
    write_golden(tmp_path)
    later = SCHEMA.names[len(SCHEMAS[3].names) :]
    assert len(later) == 7
    for row, written in zip(_rows(tmp_path), _rows(GOLDEN), strict=True):
        assert {name: row[name] for name in row if name not in later} == {
            name: written[name] for name in written if name not in later
        }
        assert {written[name] for name in later} == {None}
    for path in _paths(GOLDEN):
        found = read_footer(LocalStore(tmp_path), path)
        written_footer = read_footer(LocalStore(GOLDEN), path)
        assert (found.schema_version, written_footer.schema_version) == (6, 3)
        assert _without_digests(found) == _without_digests(written_footer)
        for part, written_part in zip(found.parts, written_footer.parts, strict=True):
            assert _without_digests(part) == _without_digests(written_part)


def test_the_compaction_of_today_makes_the_same_files_of_it(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    write_golden_chains(tmp_path)
    make_version(store, CARS, 5)
    make_version(store, OTHER, 1)
    assert [head.sha256 for head in verify(store, clock=ManualClock()).heads] == DIGESTS
    compact(store, clock=ManualClock(NOON_MS + 86_400_000))
    assert _rows(tmp_path) == _rows(GOLDEN)
    for path in _paths(GOLDEN):
        found, written = (read_footer(LocalStore(root), path) for root in (tmp_path, GOLDEN))
        # Who compacted has a name of its own.
        assert replace(found, writer_id="") == replace(written, writer_id="")


def _paths(root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in sorted(root.rglob("*.parquet"))]


def _without_digests(footer: SegmentFooter) -> SegmentFooter:
    """What a footer says, but for what must differ between versions, and who compacted."""
    no_digest = "0" * 64
    return replace(
        footer,
        schema_version=3,
        previous_sha256=no_digest,
        rows_sha256=no_digest,
        writer_id="" if footer.merged else footer.writer_id,
        merged=(),
    )
