"""Records and logs for the tests of the scored log."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from nap_stream.clock import Clock, ManualClock
from nap_stream.records import Origin, SegmentSummary, Status, TopicPartition
from nap_stream.scored_log.chain import WriterIdentity, chain_start
from nap_stream.scored_log.compact import compact
from nap_stream.scored_log.footer import SegmentFooter, from_metadata, merged_footer, segment_sha256
from nap_stream.scored_log.format import OPTIONAL_SCORES, SCHEMAS
from nap_stream.scored_log.read import segments
from nap_stream.scored_log.segment import encode_segment, rows_sha256
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.verify.run import verify
from tests.support.memory_store import MemoryStore
from tests.support.scored_records import RecordLog, ScoredRecord, Scores

CARS = TopicPartition("cars", 0)
NOON_MS = 1_767_268_800_000  # 2026-01-01T12:00:00Z
MODEL = "a1" * 32
CALIBRATION = "b2" * 32


def local_log(root: Path, writer_id: str = "worker-0", clock: Clock | None = None) -> RecordLog:
    return log_in(LocalStore(root), writer_id, clock)


def log_in(
    store: SegmentStore, writer_id: str = "worker-0", clock: Clock | None = None
) -> RecordLog:
    identity = WriterIdentity(writer_id, MODEL, CALIBRATION)
    return RecordLog(store, identity, clock or ManualClock(NOON_MS))


def memory_log(store: MemoryStore, writer_id: str = "worker-0") -> RecordLog:
    return log_in(store, writer_id)


def origin(
    offset: int,
    index: int = 0,
    *,
    partition: TopicPartition = CARS,
    event_time_ms: int = NOON_MS,
    key: bytes | None = b"camera-1",
    headers: tuple[tuple[str, bytes | None], ...] = (),
) -> Origin:
    return Origin(partition, offset, index, key, event_time_ms, NOON_MS + 5, headers)


def scored(
    where: Origin,
    *,
    p_value: float = 0.5,
    class_id: int = 3,
    class_name: str = "cat",
    fused: float = 3.0,
    **optional: float | None,
) -> ScoredRecord:
    """A row with scores; ``optional`` are those of `OPTIONAL_SCORES`."""
    return ScoredRecord(
        origin=where,
        status=Status.OK,
        error=None,
        scored_time_ms=NOON_MS + 9,
        scores=Scores(
            class_id=class_id,
            class_name=class_name,
            confidence=0.75,
            max_logit=4.25,
            energy=4.5,
            nap=2.25,
            fused=fused,
            ood_p_value=p_value,
            is_ood=p_value <= 0.05,
            **optional,
        ),
        width=32,
        height=24,
        format="png",
        sha256="c3" * 32,
    )


def failed(
    where: Origin, status: Status = Status.CORRUPT, error: str = "cannot decode"
) -> ScoredRecord:
    return ScoredRecord(where, status, error, NOON_MS + 9, None, None, None, None, None)


def chain(
    root: Path,
    spans: Sequence[tuple[int, Sequence[ScoredRecord]]],
    partition: TopicPartition = CARS,
) -> list[str]:
    """Publish segments one after another from offset 0; each is (end offset, records)."""
    log = local_log(root)
    position = log.begin(partition, 0)
    paths = []
    for end_offset, records in spans:
        published = log.publish(partition, position, end_offset, records)
        position = published.position
        paths.append(published.path)
    return paths


def without_path(summary: SegmentSummary) -> SegmentSummary:
    """A summary as it is wherever its segment stands."""
    return replace(
        summary,
        path="",
        examples=tuple(replace(each, segment="") for each in summary.examples),
        unscored=tuple(replace(each, segment="") for each in summary.unscored),
    )


def of_version(content: bytes, version: str) -> bytes:
    """A segment's file that says it is of another version."""
    table = pq.read_table(pa.BufferReader(content))
    metadata = {**table.schema.metadata, b"nap_stream.schema_version": version.encode()}
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(metadata), sink)
    return bytes(sink.getvalue())


def footer_of(content: bytes) -> SegmentFooter:
    """The footer of a segment's file, with those that it has merged."""
    return from_metadata(pq.read_metadata(pa.BufferReader(content)).metadata, "")


def make_version(
    store: SegmentStore, partition: TopicPartition, count: int, version: int = 3
) -> None:
    """Write the first segments of a chain anew in a version, and link those after them to them.

    That the versions were just so is in `tests.scored_log.test_golden`. No segment is a compacted
    file.
    """
    start = chain_start(store, partition)
    assert start is not None
    previous_sha256 = start.previous_sha256
    for number, path in enumerate(segments(store, partition)):
        content = store.read(path) or b""
        footer = footer_of(content)
        own = version if number < count else footer.schema_version
        rows = pq.read_table(pa.BufferReader(content)).select(SCHEMAS[own].names)
        footer = replace(
            footer,
            schema_version=own,
            previous_sha256=previous_sha256,
            rows_sha256=rows_sha256(rows),
        )
        store.replace(path, encode_segment(footer, rows))
        previous_sha256 = segment_sha256(footer)


def write_golden(root: Path) -> None:
    """A small log with all that a log can hold. ``tests/scored_log/golden6`` was made by this.

    ``tests/scored_log/golden``, ``golden4`` and ``golden5`` were made by it when versions 3 to 5
    were written, without the columns that those lack.

    Partition 0 of cars: a compacted file of three segments [0, 6), a declared gap [6, 9), and
    [9, 12). Partition 1: [5, 8), whose last offset the topic skips.
    """
    write_golden_chains(root)
    compact(LocalStore(root), clock=ManualClock(NOON_MS + 86_400_000))


def write_golden_chains(root: Path) -> None:
    """The log of `write_golden` before it is compacted."""
    clock, other = ManualClock(NOON_MS), TopicPartition("cars", 1)
    log = RecordLog(LocalStore(root), WriterIdentity("worker-0", MODEL, CALIBRATION), clock)
    position = log.begin(CARS, 0, "id-of-the-topic")
    for base in (0, 2, 4):
        rows = [scored(origin(base)), failed(origin(base + 1, key=None))]
        position = log.publish(CARS, position, base + 2, rows).position
    position = log.publish(CARS, position, 9, (), gap="retention").position
    headers = (("camera", b"north"), ("camera", None))
    batch = [origin(9, index, headers=headers) for index in range(2)]
    last = [
        scored(
            batch[0],
            p_value=0.01,
            knn=1.25,
            fdbd=0.5,
            mahalanobis=-1.5,
            gen=-0.25,
            nci=3.5,
            calibration_p_value=0.002,
        ),
        replace(
            scored(batch[1], class_name="\u00e9"),
            decode_warning="Corrupt JPEG data: premature end of data segment",
            source_uri="s3://frames/north/17.jpg",
        ),
    ]
    log.publish(CARS, position, 12, last)
    start = log.begin(other, 5)
    pair = [scored(origin(5, partition=other)), failed(origin(6, partition=other))]
    log.publish(other, start, 8, pair)


def merged_segments(store: SegmentStore, paths: Sequence[str]) -> bytes:
    """The file that a compaction of these segments makes."""
    contents = [store.read(path) or b"" for path in paths]
    footers = [footer_of(content) for content in contents]
    tables = [pq.read_table(pa.BufferReader(content)) for content in contents]
    rows = pa.concat_tables([table.replace_schema_metadata(None) for table in tables])
    footer = merged_footer(
        footers,
        rows_sha256=rows_sha256(rows),
        writer_id="compactor",
        created_time_ms=NOON_MS + 86_400_000,
    )
    return encode_segment(footer, rows)


_texts = st.text(st.characters(), max_size=20)
_floats = st.floats(allow_nan=False)
_scores = st.builds(
    Scores,
    class_id=st.integers(0, 2**40),
    class_name=_texts,
    confidence=st.floats(0, 1),
    max_logit=_floats,
    energy=_floats,
    nap=_floats,
    fused=_floats,
    ood_p_value=st.floats(0, 1),
    is_ood=st.booleans(),
    **dict.fromkeys(OPTIONAL_SCORES, st.none() | _floats),
)
_origins = st.builds(
    Origin,
    partition=st.just(CARS),
    offset=st.integers(0, 50),
    index=st.integers(0, 5),
    key=st.none() | st.binary(max_size=10),
    event_time_ms=st.integers(NOON_MS - 10_000, NOON_MS + 10_000)
    | st.integers(-(2**63), 2**63 - 1),
    ingest_time_ms=st.just(NOON_MS),
    headers=st.lists(st.tuples(_texts, st.none() | st.binary(max_size=5)), max_size=3).map(tuple),
)
_sizes = st.none() | st.integers(0, 2**32 - 1)
_ok = st.builds(
    ScoredRecord,
    origin=_origins,
    status=st.just(Status.OK),
    error=st.none(),
    scored_time_ms=st.just(NOON_MS),
    scores=_scores,
    width=_sizes,
    height=_sizes,
    format=st.sampled_from(["jpeg", "png", "webp"]),
    sha256=st.just("c3" * 32),
    decode_warning=st.none() | _texts,
    source_uri=st.none() | _texts,
)
_failed = st.builds(
    ScoredRecord,
    origin=_origins,
    status=st.sampled_from([status for status in Status if status is not Status.OK]),
    error=_texts,
    scored_time_ms=st.just(NOON_MS),
    scores=st.none(),
    width=_sizes,
    height=_sizes,
    format=st.none(),
    sha256=st.none(),
)
record_lists = st.lists(
    _ok | _failed, max_size=12, unique_by=lambda r: (r.origin.offset, r.origin.index)
).map(lambda records: sorted(records, key=lambda r: (r.origin.offset, r.origin.index)))
"""Records as `publish` takes them: offsets 0 to 50, in order; anything in their other fields."""


def assert_golden_goes_on(golden: Path, previous_sha256: str, folder: Path) -> None:
    """A writer of today goes on with the first chain of a copy, and the log stays whole."""
    root = Path(shutil.copytree(golden, folder / "log"))
    log = local_log(root, "years-later")
    position = log.end(CARS)
    assert position is not None
    assert (position.offset, position.previous_sha256) == (12, previous_sha256)
    log.publish(CARS, position, 13, [scored(origin(12))])
    assert verify(LocalStore(root), deep=True, clock=ManualClock()).clean
