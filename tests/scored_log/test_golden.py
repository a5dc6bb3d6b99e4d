"""Logs of versions 3 to 6 as they were written, which every later program must read.

`tests.scored_log.builders.write_golden` made each when its version was the one that was written.
Where a change of the program makes a test fail here, the change breaks the logs that people keep:
it needs a new version of the format, and these logs must stay readable.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from nap_stream.clock import ManualClock
from nap_stream.records import TopicPartition
from nap_stream.scored_log.compact import compact
from nap_stream.scored_log.counting import GroupBy, aggregate
from nap_stream.scored_log.footer import SegmentFooter
from nap_stream.scored_log.format import SCHEMA, SCHEMA_VERSION, SCHEMAS
from nap_stream.scored_log.query import Query
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

OTHER = TopicPartition("cars", 1)
LAST = "topic=cars/partition=0/00000000000000000009.parquet"
NAMES = [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (0, 9), (0, 9), (1, 5), (1, 6)]


@dataclass(frozen=True)
class Golden:
    """A log. ``since`` has columns that came with its version, and of which rows they are."""

    version: int
    folder: str
    digests: tuple[str, str]
    since: dict[str, dict[int, Any]]

    @property
    def root(self) -> Path:
        return Path(__file__).parent / self.folder

    @property
    def store(self) -> LocalStore:
        return LocalStore(self.root)

    @property
    def paths(self) -> list[str]:
        return paths_in(self.root)


GOLDEN = [
    Golden(
        3,
        "golden",
        (
            "6ccc8743ca24fb7e1ff092dc73514b7d715b4f5e3d76f83835bd8c81ef3e32e0",
            "609a12ac1ee5ea6e520716bd09a74c72868a3215e635c7f57b8f3f73c083b522",
        ),
        {"knn": {6: 1.25}, "react": {}},
    ),
    Golden(
        4,
        "golden4",
        (
            "5f2c8be9d81f20ef5ae01ecebd72d202b11d6d84a0847ae8ef3f0ed009ad7454",
            "ea44c0f9b133e9220348b3cbcb5e9c6d76fe4ac02d911247fa329ce178e5bcef",
        ),
        {"fdbd": {6: 0.5}, "mahalanobis": {6: -1.5}, "gen": {6: -0.25}, "nci": {6: 3.5}},
    ),
    Golden(
        5,
        "golden5",
        (
            "40c95cc66097f8e8dfd314dd62cea61ad7e8106c81f4c170965e7cee09be7b3d",
            "6cf8af3c04b2231ae86b15188faa21bda336559b22a669a0552cb32d20ea14d6",
        ),
        {
            "decode_warning": {7: "Corrupt JPEG data: premature end of data segment"},
            "source_uri": {7: "s3://frames/north/17.jpg"},
        },
    ),
    Golden(
        6,
        "golden6",
        (
            "a1d9d4021d109714253f9878460f9ecc16f809914e5760d60fc1accf8e245663",
            "93c942f751e9f72ac66e445d7910d03fb4f5267597aa63177d50671b6aed32d8",
        ),
        {"calibration_p_value": {6: 0.002}},
    ),
]
"""The last is of the version that is written now."""


@pytest.fixture(params=GOLDEN, ids=lambda golden: f"version {golden.version}")
def golden(request: pytest.FixtureRequest) -> Golden:
    found: Golden = request.param
    return found


def paths_in(root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in sorted(root.rglob("*.parquet"))]


def rows_of(store: LocalStore) -> pa.Table:
    return run_query(store, Query())


def test_it_is_whole_and_its_chains_end_as_they_did(golden: Golden) -> None:
    report = verify(golden.store, deep=True, clock=ManualClock())
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
    assert tuple(head.sha256 for head in report.heads) == golden.digests


def test_its_rows_are_read_as_they_were_written(golden: Golden) -> None:
    rows = rows_of(golden.store).to_pylist()
    assert [(row["partition"], row["offset"]) for row in rows] == NAMES
    assert [row["index"] for row in rows] == [0] * 7 + [1, 0, 0]
    for name, values in golden.since.items():
        assert {number: row[name] for number, row in enumerate(rows) if row[name] is not None} == (
            values
        )
    expected = scored(origin(9), p_value=0.01, knn=1.25)
    assert expected.scores is not None
    row = rows[6]
    assert (row["nap"], row["ood_p_value"], row["is_ood"]) == (expected.scores.nap, 0.01, True)
    assert (row["key"], row["class_name"]) == (b"camera-1", "cat")
    assert row["headers"] == [
        {"name": "camera", "value": b"north"},
        {"name": "camera", "value": None},
    ]
    assert rows[7]["class_name"] == "\u00e9"
    failed = ("status", "error", "nap", "key")
    assert [rows[1][name] for name in failed] == ["corrupt", "cannot decode", None, None]


def test_it_is_queried(golden: Golden) -> None:
    flagged = run_query(golden.store, Query(is_ood=True))
    assert flagged.column("offset").to_pylist() == [9]
    counts = aggregate(golden.store, Query(), GroupBy.PARTITION)
    assert counts.column("rows").to_pylist() == [8, 2]


def test_a_plain_reader_sees_its_rows_and_what_its_footers_say(golden: Golden) -> None:
    plain = ds.dataset(golden.root, format="parquet", partitioning="hive").to_table()
    assert plain.num_rows == 10
    assert plain.column_names == [*SCHEMAS[golden.version].names, "topic", "partition"]
    for path in golden.paths:
        metadata = pq.read_metadata(golden.root / path).metadata
        assert metadata[b"nap_stream.schema_version"] == str(golden.version).encode()
    metadata = pq.read_metadata(golden.root / LAST).metadata
    assert metadata[b"nap_stream.base_offset"] == b"9"
    assert metadata[b"nap_stream.writer_id"] == b"worker-0"


def test_its_chain_goes_on(golden: Golden, tmp_path: Path) -> None:
    assert_golden_goes_on(golden.root, golden.digests[0], tmp_path)


def test_the_present_writer_says_the_same_of_the_same_log(golden: Golden, tmp_path: Path) -> None:
    write_golden(tmp_path)
    made = LocalStore(tmp_path)
    before = [*SCHEMAS[golden.version].names, "topic", "partition"]
    later = SCHEMA.names[len(SCHEMAS[golden.version].names) :]
    kept = rows_of(golden.store)
    assert rows_of(made).select(before).equals(kept.select(before))
    assert all(kept.column(name).null_count == len(kept) for name in later)
    for path in golden.paths:
        found, written = read_footer(made, path), read_footer(golden.store, path)
        assert (found.schema_version, written.schema_version) == (SCHEMA_VERSION, golden.version)
        assert _without_digests(found) == _without_digests(written)
        for part, written_part in zip(found.parts, written.parts, strict=True):
            assert _without_digests(part) == _without_digests(written_part)


def test_the_compaction_of_today_makes_the_same_files_of_it(golden: Golden, tmp_path: Path) -> None:
    made = LocalStore(tmp_path)
    write_golden_chains(tmp_path)
    if golden.version < SCHEMA_VERSION:
        make_version(made, CARS, 5, golden.version)
        make_version(made, OTHER, 1, golden.version)
    assert tuple(head.sha256 for head in verify(made, clock=ManualClock()).heads) == golden.digests
    compact(made, clock=ManualClock(NOON_MS + 86_400_000))
    assert rows_of(made).equals(rows_of(golden.store))
    assert paths_in(tmp_path) == golden.paths
    for path in golden.paths:
        found, written = read_footer(made, path), read_footer(golden.store, path)
        # Who compacted has a name of its own.
        assert replace(found, writer_id="") == replace(written, writer_id="")


def _without_digests(footer: SegmentFooter) -> SegmentFooter:
    """What a footer says, but for what must differ between versions, and who compacted."""
    no_digest = "0" * 64
    return replace(
        footer,
        schema_version=SCHEMA_VERSION,
        previous_sha256=no_digest,
        rows_sha256=no_digest,
        writer_id="" if footer.merged else footer.writer_id,
        merged=(),
    )
