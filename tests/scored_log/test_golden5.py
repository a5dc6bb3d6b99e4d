"""A log of version 5 as it was written when that version was fixed.

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

GOLDEN = Path(__file__).parent / "golden5"
OTHER = TopicPartition("cars", 1)
DIGESTS = [
    "40c95cc66097f8e8dfd314dd62cea61ad7e8106c81f4c170965e7cee09be7b3d",
    "6cf8af3c04b2231ae86b15188faa21bda336559b22a669a0552cb32d20ea14d6",
]


def test_it_is_whole_and_its_chains_end_as_they_did() -> None:
    report = verify(LocalStore(GOLDEN), deep=True, clock=ManualClock())
    assert report.clean
    assert (report.partitions, report.segments, report.rows) == (2, 6, 10)
    assert [head.sha256 for head in report.heads] == DIGESTS
    assert [(head.partition, head.start_offset, head.end_offset) for head in report.heads] == [
        (CARS, 0, 12),
        (OTHER, 5, 8),
    ]


def test_its_rows_are_read_as_they_were_written() -> None:
    rows = run_query(LocalStore(GOLDEN), Query()).to_pylist()
    assert rows[6]["fdbd"] == 0.5
    assert (rows[7]["decode_warning"], rows[7]["source_uri"]) == (
        "Corrupt JPEG data: premature end of data segment",
        "s3://frames/north/17.jpg",
    )
    others = [row for number, row in enumerate(rows) if number != 7]
    assert {row[name] for row in others for name in ("decode_warning", "source_uri")} == {None}


def test_a_plain_reader_sees_its_rows_and_what_its_footers_say() -> None:
    plain = ds.dataset(GOLDEN, format="parquet", partitioning="hive").to_table()
    assert plain.num_rows == 10
    assert plain.column_names == [*SCHEMAS[5].names, "topic", "partition"]
    for path in GOLDEN.rglob("*.parquet"):
        assert pq.read_metadata(path).metadata[b"nap_stream.schema_version"] == b"5"


def test_its_chain_goes_on(tmp_path: Path) -> None:
    assert_golden_goes_on(GOLDEN, DIGESTS[0], tmp_path)


def test_the_compaction_of_today_makes_the_same_files_of_it(tmp_path: Path) -> None:
    made, kept = LocalStore(tmp_path), LocalStore(GOLDEN)
    write_golden_chains(tmp_path)
    make_version(made, CARS, 5, 5)
    make_version(made, OTHER, 1, 5)
    assert [head.sha256 for head in verify(made, clock=ManualClock()).heads] == DIGESTS
    compact(made, clock=ManualClock(NOON_MS + 86_400_000))
    assert run_query(made, Query()).equals(run_query(kept, Query()))
    paths = [str(path.relative_to(GOLDEN)) for path in sorted(GOLDEN.rglob("*.parquet"))]
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*.parquet"))] == paths
    for path in paths:
        found, written = read_footer(made, path), read_footer(kept, path)
        # Who compacted has a name of its own.
        assert replace(found, writer_id="") == replace(written, writer_id="")
