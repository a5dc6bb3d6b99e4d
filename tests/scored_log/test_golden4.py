"""A log of version 4 as it was written when that version was fixed.

`tests.scored_log.builders.write_golden` made it; `tests.scored_log.test_golden` says what a failure
here means, and has the log of version 3.
"""

from dataclasses import replace
from pathlib import Path

import pyarrow.dataset as ds
import pyarrow.parquet as pq

from nap_stream.clock import ManualClock
from nap_stream.records import TopicPartition
from nap_stream.scored_log.compact import compact
from nap_stream.scored_log.format import SCHEMAS
from nap_stream.scored_log.read import Query
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.verify.run import verify
from tests.scored_log.builders import (
    CARS,
    NOON_MS,
    assert_golden_goes_on,
    make_version,
    write_golden_chains,
)
from tests.support.log_files import read_footer, run_query

GOLDEN = Path(__file__).parent / "golden4"
OTHER = TopicPartition("cars", 1)
DIGESTS = [
    "5f2c8be9d81f20ef5ae01ecebd72d202b11d6d84a0847ae8ef3f0ed009ad7454",
    "ea44c0f9b133e9220348b3cbcb5e9c6d76fe4ac02d911247fa329ce178e5bcef",
]


def test_it_is_whole_and_its_chains_end_as_they_did() -> None:
    report = verify(LocalStore(GOLDEN), deep=True, clock=ManualClock())
    assert report.clean
    assert (report.partitions, report.segments, report.rows) == (2, 6, 10)
    assert [(gap.base_offset, gap.end_offset, gap.reason) for gap in report.gaps] == [
        (6, 9, "retention")
    ]
    assert [(file.base_offset, file.end_offset, file.segments) for file in report.compacted] == [
        (0, 9, 4)
    ]
    assert [(head.partition, head.start_offset, head.end_offset) for head in report.heads] == [
        (CARS, 0, 12),
        (OTHER, 5, 8),
    ]
    assert [head.sha256 for head in report.heads] == DIGESTS


def test_its_rows_are_read_as_they_were_written() -> None:
    rows = run_query(LocalStore(GOLDEN), Query()).to_pylist()
    assert [(row["partition"], row["offset"], row["index"]) for row in rows] == [
        *((0, offset, 0) for offset in range(6)),
        *((0, 9, 0), (0, 9, 1), (1, 5, 0), (1, 6, 0)),
    ]
    later = ("fdbd", "mahalanobis", "gen", "nci")
    assert [rows[6][name] for name in (*later, "knn", "react")] == [
        0.5,
        -1.5,
        -0.25,
        3.5,
        1.25,
        None,
    ]
    others = [row for number, row in enumerate(rows) if number != 6]
    assert {row[name] for row in others for name in later} == {None}


def test_a_plain_reader_sees_its_rows_and_what_its_footers_say() -> None:
    plain = ds.dataset(GOLDEN, format="parquet", partitioning="hive").to_table()
    assert plain.num_rows == 10
    assert plain.column_names == [*SCHEMAS[4].names, "topic", "partition"]
    for path in GOLDEN.rglob("*.parquet"):
        assert pq.read_metadata(path).metadata[b"nap_stream.schema_version"] == b"4"


def test_its_chain_goes_on(tmp_path: Path) -> None:
    assert_golden_goes_on(GOLDEN, DIGESTS[0], tmp_path)


def test_the_compaction_of_today_makes_the_same_files_of_it(tmp_path: Path) -> None:
    made, kept = LocalStore(tmp_path), LocalStore(GOLDEN)
    write_golden_chains(tmp_path)
    make_version(made, CARS, 5, 4)
    make_version(made, OTHER, 1, 4)
    assert [head.sha256 for head in verify(made, clock=ManualClock()).heads] == DIGESTS
    compact(made, clock=ManualClock(NOON_MS + 86_400_000))
    assert run_query(made, Query()).equals(run_query(kept, Query()))
    paths = [str(path.relative_to(GOLDEN)) for path in sorted(GOLDEN.rglob("*.parquet"))]
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*.parquet"))] == paths
    for path in paths:
        found, written = read_footer(made, path), read_footer(kept, path)
        # Who compacted has a name of its own.
        assert replace(found, writer_id="") == replace(written, writer_id="")
