"""For each defect that verification names, a test that makes it."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from structlog.testing import capture_logs

from nap_stream.clock import ManualClock
from nap_stream.errors import ChainBrokenError, ConfigError, LogRootError
from nap_stream.records import ChainPosition, TopicPartition
from nap_stream.scored_log.footer import SegmentFooter, to_metadata
from nap_stream.scored_log.format import (
    genesis_path,
    partition_folder,
    segment_path,
    temporary_name,
)
from nap_stream.scored_log.segment import encode_segment, rows_sha256
from nap_stream.scored_log.stores import store_at
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.verify import layout
from nap_stream.scored_log.verify.report import ChainHead, DeclaredGap, DefectKind, VerifyReport
from nap_stream.scored_log.verify.run import verify as verify_log
from nap_stream.scored_log.verify.thrift import NEWEST_PYARROW
from tests.cli.program import call
from tests.scored_log.builders import (
    CARS,
    MODEL,
    chain,
    failed,
    local_log,
    merged_segments,
    of_version,
    origin,
    scored,
)
from tests.support.log_files import read_footer, read_table
from tests.support.scored_records import ScoredRecord, file_table

FIRST, SECOND, LAST = (segment_path(CARS, base) for base in (0, 10, 20))
ROWS = [scored(origin(20)), failed(origin(21)), scored(origin(25))]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """[0, 10) of two rows, [10, 20) of one, [20, 30) of three."""
    chain(
        tmp_path,
        [(10, [scored(origin(0)), failed(origin(4))]), (20, [scored(origin(15))]), (30, ROWS)],
    )
    return tmp_path


def verify(root: Path, *, deep: bool = False, topic: str | None = None) -> VerifyReport:
    return verify_log(LocalStore(root), deep=deep, topic=topic, clock=ManualClock())


def _kinds(root: Path, *, deep: bool = False) -> list[tuple[str, DefectKind]]:
    report = verify(root, deep=deep)
    assert report.clean == (not report.defects)
    return [(defect.file, defect.kind) for defect in report.defects]


def _rewrite(root: Path, path: str, table: pa.Table, **changes: Any) -> None:
    """Put other rows under a segment's footer, itself changed where asked, with their digest."""
    changes = {"rows_sha256": rows_sha256(table), **changes}
    footer = dataclasses.replace(read_footer(LocalStore(root), path), **changes)
    pq.write_table(table.replace_schema_metadata(to_metadata(footer)), root / path)


def _rewrite_last(root: Path, table: pa.Table, **changes: Any) -> None:
    _rewrite(root, LAST, table, **changes)


def _table(records: Sequence[ScoredRecord], model_fingerprint: str = MODEL) -> pa.Table:
    return file_table(records, model_fingerprint, "b2" * 32)


@pytest.mark.parametrize("deep", [False, True])
def test_a_whole_log_is_clean(root: Path, deep: bool) -> None:
    other = TopicPartition("dogs", 3)
    log = local_log(root)
    position = log.publish(other, log.begin(other, 5), 8, []).position
    gap = log.publish(other, position, 12, [], gap="retention")
    (root / "topic=dogs" / "partition=3" / temporary_name()).write_bytes(b"half")
    (root / "_notes").mkdir()
    report = verify(root, deep=deep)
    assert report.clean, report.defects
    assert (report.partitions, report.segments, report.rows) == (2, 5, 6)
    assert (report.offsets, report.gap_offsets) == (33, 4)
    assert report.gaps == (DeclaredGap(gap.path, 8, 12, "retention"),)
    end = log.end(CARS)
    assert end is not None
    assert report.heads == (
        ChainHead(CARS, 0, 30, end.previous_sha256),
        ChainHead(other, 5, 12, gap.position.previous_sha256),
    )


def test_one_topic_can_be_verified(root: Path) -> None:
    chain(root, [(1, [])], TopicPartition("dogs", 0))
    (root / LAST).write_bytes(b"")
    (root / "stray").write_bytes(b"")
    report = verify(root, topic="dogs")
    assert report.clean
    assert (report.partitions, report.segments) == (1, 1)
    with pytest.raises(ConfigError):
        verify(root, topic="..")


def test_progress_is_told_file_by_file(root: Path) -> None:
    told: list[tuple[int, int | None]] = []
    chain(root, [(1, [])], TopicPartition("dogs", 0))
    report = verify_log(LocalStore(root), advance=lambda done, total: told.append((done, total)))
    assert report.clean
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize("name", [None, "notes", "_monitors", "topic=dogs"])
def test_where_there_is_no_chain_nothing_is_verified(tmp_path: Path, name: str | None) -> None:
    if name is not None:
        (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=f"no chain here; the root holds {name or ''}"):
        verify(tmp_path)


def test_a_topic_that_the_log_does_not_have_is_refused(root: Path) -> None:
    with pytest.raises(ConfigError, match="no partition of the topic 'car'; its topics are cars"):
        verify(root, topic="car")


def test_a_folder_without_a_chain_is_no_silence(root: Path) -> None:
    (root / "topic=cars" / "partition=4").mkdir()
    (root / "topic=dogs").mkdir()
    assert _kinds(root) == [
        (genesis_path(TopicPartition("cars", 4)), DefectKind.GENESIS_MISSING),
        ("topic=dogs", DefectKind.CHAIN_MISSING),
    ]


def test_a_missing_root_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LogRootError):
        verify(tmp_path / "none")


def test_genesis_missing(root: Path) -> None:
    (root / genesis_path(CARS)).unlink()
    assert _kinds(root) == [(genesis_path(CARS), DefectKind.GENESIS_MISSING)]


def test_genesis_unreadable(root: Path) -> None:
    (root / genesis_path(CARS)).write_bytes(b"{}")
    assert _kinds(root) == [(genesis_path(CARS), DefectKind.GENESIS_UNREADABLE)]


def test_genesis_that_is_a_folder(root: Path) -> None:
    (root / genesis_path(CARS)).unlink()
    (root / genesis_path(CARS)).mkdir()
    assert _kinds(root) == [(genesis_path(CARS), DefectKind.GENESIS_UNREADABLE)]


def test_genesis_changed(root: Path) -> None:
    marker = root / genesis_path(CARS)
    marker.write_bytes(marker.read_bytes().replace(b"worker-0", b"worker-1"))
    assert _kinds(root) == [(FIRST, DefectKind.PREVIOUS_HASH)]


def test_hole_in_the_middle(root: Path) -> None:
    (root / SECOND).unlink()
    assert _kinds(root) == [(LAST, DefectKind.HOLE), (LAST, DefectKind.PREVIOUS_HASH)]
    assert "offsets [10, 20) are in no segment" in str(verify(root).defects[0])


def test_hole_at_the_start(root: Path) -> None:
    (root / FIRST).unlink()
    assert (SECOND, DefectKind.HOLE) in _kinds(root)


def test_overlap(root: Path) -> None:
    path = segment_path(CARS, 8)
    footer = dataclasses.replace(read_footer(LocalStore(root), FIRST), base_offset=8, end_offset=12)
    (root / path).write_bytes(
        encode_segment(footer, _table([scored(origin(8)), failed(origin(9))]))
    )
    assert _kinds(root) == [(path, DefectKind.OVERLAP)]
    assert "offsets [8, 10) are in a segment before it too" in verify(root).defects[0].detail
    (root / SECOND).unlink()
    assert [kind for _, kind in _kinds(root)] == [
        DefectKind.OVERLAP,
        DefectKind.HOLE,
        DefectKind.PREVIOUS_HASH,
    ]


def test_overlap_that_is_covered_whole_does_not_hide_what_follows(root: Path) -> None:
    path = segment_path(CARS, 4)
    footer = dataclasses.replace(read_footer(LocalStore(root), SECOND), base_offset=4, end_offset=8)
    (root / path).write_bytes(encode_segment(footer, _table([scored(origin(5))])))
    (root / LAST).unlink()
    assert _kinds(root) == [(path, DefectKind.OVERLAP)]
    (root / SECOND).unlink()
    assert verify(root).heads[0].end_offset == 10


def test_covered(root: Path) -> None:
    store = LocalStore(root)
    store.replace(FIRST, merged_segments(store, [FIRST, SECOND]))
    report = verify(root, deep=True)
    (defect,) = report.defects
    assert (defect.file, defect.kind) == (SECOND, DefectKind.COVERED)
    assert "run `nap-stream compact` again to finish it" in defect.detail
    assert (report.segments, report.rows, report.offsets) == (3, 6, 30)
    zombie = _table([scored(origin(15), p_value=0.6)])
    _rewrite(root, SECOND, zombie)
    (defect,) = verify(root, deep=True).defects
    assert (defect.file, defect.kind) == (SECOND, DefectKind.COVERED)
    assert "died before it could take it back" in defect.detail
    _rewrite(root, SECOND, zombie, previous_sha256="0a" * 32)
    assert _kinds(root) == [(SECOND, DefectKind.OVERLAP)]
    (root / SECOND).write_bytes(b"")
    assert _kinds(root) == [(SECOND, DefectKind.UNREADABLE)]


def test_previous_hash_after_one_changed_value(root: Path) -> None:
    _rewrite(root, SECOND, _table([scored(origin(15), p_value=0.6)]))
    assert _kinds(root) == _kinds(root, deep=True) == [(LAST, DefectKind.PREVIOUS_HASH)]


def test_rows_hash_after_one_changed_value(root: Path) -> None:
    before = read_footer(LocalStore(root), SECOND)
    changed = _table([scored(origin(15), p_value=0.6)])
    _rewrite(root, SECOND, changed, rows_sha256=before.rows_sha256)
    assert _kinds(root) == []
    assert _kinds(root, deep=True) == [(SECOND, DefectKind.ROWS_HASH)]


def test_topic_id(root: Path) -> None:
    dogs = TopicPartition("dogs", 0)
    log = local_log(root)
    unknown = log.publish(dogs, log.begin(dogs, 0), 3, []).position
    first = log.publish(dogs, dataclasses.replace(unknown, topic_id="one"), 5, []).position
    assert verify(root).heads[1].topic_id == "one"
    assert _kinds(root) == []
    log.publish(dogs, dataclasses.replace(first, topic_id="other"), 9, [])
    (defect,) = verify(root).defects
    assert (defect.file, defect.kind) == (segment_path(dogs, 5), DefectKind.TOPIC_ID)
    assert defect.detail == "its topic's id is other, the chain before has one"


def test_topic_id_of_another_partition(root: Path) -> None:
    log = local_log(root)
    for number, topic_id in enumerate(("one", None, "other")):
        log.begin(TopicPartition("dogs", number), 0, topic_id)
    (defect,) = verify(root).defects
    assert (defect.file, defect.kind) == ("topic=dogs/partition=2", DefectKind.TOPIC_ID)
    assert defect.detail == "its topic's id is other, that of dogs/0 one"


def test_topic_id_of_the_genesis_marker(root: Path) -> None:
    dogs = TopicPartition("dogs", 0)
    log = local_log(root)
    position = log.begin(dogs, 0, "one")
    log.publish(dogs, dataclasses.replace(position, topic_id="other"), 9, [])
    assert _kinds(root) == [(segment_path(dogs, 0), DefectKind.TOPIC_ID)]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\0" * 100 + b"PAR1", b"text"])
def test_unreadable(root: Path, content: bytes) -> None:
    (root / LAST).write_bytes(content)
    assert _kinds(root) == [(LAST, DefectKind.UNREADABLE)]


def test_a_damaged_file_does_not_hide_defects_behind_it(root: Path) -> None:
    chain(root, [(end, []) for end in (5, 10, 15, 20, 25)], TopicPartition("dogs", 0))
    damaged, _, hole, _, last = (
        segment_path(TopicPartition("dogs", 0), base) for base in range(0, 25, 5)
    )
    (root / damaged).write_bytes(b"")
    (root / hole).unlink()
    with (root / last).open("ab") as file:
        file.write(b"more")
    assert [kind for _, kind in _kinds(root)] == [
        DefectKind.UNREADABLE,
        DefectKind.HOLE,
        DefectKind.PREVIOUS_HASH,
        DefectKind.UNREADABLE,
    ]


def test_unreadable_does_not_hide_what_follows(root: Path) -> None:
    (root / FIRST).write_bytes(b"PAR1")
    (root / LAST).unlink()
    assert _kinds(root) == [(FIRST, DefectKind.UNREADABLE)]


def test_a_segment_that_is_a_folder_is_unreadable(root: Path) -> None:
    (root / LAST).unlink()
    (root / LAST).mkdir()
    assert _kinds(root) == [(LAST, DefectKind.UNREADABLE)]


def test_a_flipped_bit_in_the_last_segment_is_found_deep(root: Path) -> None:
    content = bytearray((root / LAST).read_bytes())
    column = pq.ParquetFile(root / LAST).metadata.row_group(0).column(15)
    assert column.path_in_schema == "fused"
    content[column.data_page_offset + column.total_compressed_size - 1] ^= 1
    (root / LAST).write_bytes(content)
    assert _kinds(root) == []
    assert _kinds(root, deep=True) == [(LAST, DefectKind.UNREADABLE)]


def test_footer_missing(root: Path) -> None:
    pq.write_table(_table(ROWS), root / LAST)
    assert _kinds(root) == [(LAST, DefectKind.FOOTER)]


def test_schema_version(root: Path) -> None:
    (root / LAST).write_bytes(of_version((root / LAST).read_bytes(), "7"))
    (defect,) = verify(root).defects
    assert (defect.file, defect.kind) == (LAST, DefectKind.SCHEMA_VERSION)
    assert defect.detail == (
        "schema version '7'; this program reads 3, 4, 5, 6: use the nap-stream that wrote it"
    )


@pytest.mark.parametrize("version", ["1", "2", "7"])
def test_a_chain_that_ends_in_another_version_is_not_continued(root: Path, version: str) -> None:
    (root / LAST).write_bytes(of_version((root / LAST).read_bytes(), version))
    with pytest.raises(
        ChainBrokenError, match=f"version '{version}'; this program reads 3, 4, 5, 6"
    ):
        local_log(root).end(CARS)


def test_schema(root: Path) -> None:
    _rewrite_last(root, _table(ROWS).drop_columns(["nap"]))
    (defect,) = verify(root).defects
    assert (defect.file, defect.kind) == (LAST, DefectKind.SCHEMA)
    assert defect.detail == "columns differ: nap"


def test_schema_in_another_order(root: Path) -> None:
    table = _table(ROWS)
    _rewrite_last(root, table.select(list(reversed(table.column_names))))
    assert _kinds(root) == [(LAST, DefectKind.SCHEMA)]


def test_name(root: Path) -> None:
    other = TopicPartition("cars", 1)
    chain(root, [(1, [])], other)
    (root / LAST).rename(root / segment_path(other, 20))
    assert (segment_path(other, 20), DefectKind.NAME) in _kinds(root)


def test_row_count(root: Path) -> None:
    _rewrite_last(root, _table(ROWS[:2]))
    assert _kinds(root) == [(LAST, DefectKind.ROW_COUNT)]


@pytest.mark.parametrize("offset", [19, 30])
def test_row_outside_range(root: Path, offset: int) -> None:
    rows = sorted([*ROWS[:2], scored(origin(offset))], key=lambda record: record.origin.offset)
    _rewrite_last(root, _table(rows))
    expected = [(LAST, DefectKind.ROW_OUTSIDE_RANGE)]
    assert _kinds(root) == _kinds(root, deep=True) == expected


def test_row_order(root: Path) -> None:
    _rewrite_last(root, _table([ROWS[1], ROWS[0], ROWS[2]]))
    assert _kinds(root, deep=True) == [(LAST, DefectKind.ROW_ORDER)]


def test_duplicate_row(root: Path) -> None:
    _rewrite_last(root, _table([ROWS[0], ROWS[1], ROWS[1]]), scored_rows=1)
    assert _kinds(root, deep=True) == [(LAST, DefectKind.DUPLICATE_ROW)]


def _with_scores(name: str, values: Sequence[float | None]) -> pa.Table:
    table = _table(ROWS)
    index = table.schema.get_field_index(name)
    return table.set_column(index, table.schema.field(name), pa.array(values, pa.float64()))


def test_scores_that_a_run_may_leave_out_can_be_null(root: Path) -> None:
    for values in ([None, None, None], [1.5, None, None], [1.5, None, 1.75]):
        _rewrite_last(root, _with_scores("knn", values))
        assert _kinds(root, deep=True) == []


def test_content(root: Path) -> None:
    changes = [
        (_table([*ROWS[:2], failed(origin(25))]), "rows with status ok"),
        (_with_scores("nap", [None] * 3), "nap contradicts status"),
        (_with_scores("max_logit", [4.25, None, None]), "max_logit contradicts status"),
        (_with_scores("max_logit", [4.25] * 3), "max_logit contradicts status"),
        (_with_scores("knn", [None, 1.5, None]), "knn contradicts status"),
        (_table([*ROWS[:2], scored(origin(25, event_time_ms=0))]), "event times 0 to"),
        (_table(ROWS, "ff"), "model_fingerprint differs"),
    ]
    for table, detail in changes:
        _rewrite_last(root, table)
        assert _kinds(root) == []
        (defect,) = verify(root, deep=True).defects
        assert defect.kind is DefectKind.CONTENT
        assert detail in defect.detail


@pytest.mark.parametrize(
    "stray",
    [
        "notes.txt",
        "topic=cars/export.parquet",
        "topic=cars/partition=00/x",
        "topic=cars/partition=0/1.parquet",
        "topic=a b/partition=0/x",
        "_x.parquet",
        ".old/deep/er/x.PARQUET",
        "topic=cars/_x.parquet",
        "topic=cars/partition=0/_x.parquet",
        "topic=cars/partition=0/.tmp/x.pq",
        "topic=cars/partition=0/more/x",
        "_checkpoints/a.note/x.parquet",
        "_checkpoints/a.note/b.note/x.parquet",
        "_checkpoints/x.json",
    ],
)
def test_stray_file(root: Path, stray: str) -> None:
    (root / stray).parent.mkdir(parents=True, exist_ok=True)
    (root / stray).write_bytes(b"")
    ((file, kind),) = _kinds(root)
    assert kind is DefectKind.STRAY_FILE
    assert stray.startswith(file)


def test_hidden_files_that_no_glob_of_parquet_files_finds_are_let_be(root: Path) -> None:
    for path in ("_SUCCESS", ".DS_Store", "_monitors/cars.json", "topic=cars/partition=0/.nfs01"):
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_bytes(b"x")
    assert _kinds(root) == []


def test_a_hidden_folder_is_one_defect_and_no_link_is_followed(root: Path) -> None:
    for number in range(3):
        path = root / ".snapshot" / str(number) / "topic=cars" / "/".join("abcdefgh") / "x.parquet"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
    (root / ".snapshot" / ".loop").symlink_to(".")
    (root / ".all").symlink_to(root)
    deep = root / "/".join([".deep", *"abcdefghij"])
    deep.mkdir(parents=True)
    (deep / "notes").write_bytes(b"")
    (defect,) = verify(root).defects
    assert (defect.file, defect.kind) == (".snapshot", DefectKind.STRAY_FILE)
    assert "holds 3 Parquet files" in defect.detail


def test_a_hidden_folder_that_cannot_be_listed_is_passed_over_and_named(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (".old/secret/x.parquet", ".old/y.parquet"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")
    names = LocalStore.names

    def denied(store: LocalStore, folder: str, first: str = "") -> list[str]:
        if folder.endswith("secret"):
            raise LogRootError("no permission")
        return names(store, folder, first)

    monkeypatch.setattr(LocalStore, "names", denied)
    with capture_logs() as told:
        (defect,) = verify(root).defects
    assert "holds 1 Parquet files" in defect.detail
    assert [(one["event"], one["folder"]) for one in told] == [("folder_not_listed", ".old/secret")]


def test_a_pyarrow_that_writes_more_is_no_defect_of_the_log(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = "pyarrow .* writes what this .*ColumnMetaData has field 16, .* Install pyarrow<"
    monkeypatch.delitem(cast("dict[int, Any]", layout._COLUMN.of), 16)
    with pytest.raises(ConfigError, match=told):
        verify(root, deep=True)
    assert verify(root).clean
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert f'"pyarrow>=18.0,<{NEWEST_PYARROW + 1}",' in project


def test_a_file_that_is_far_longer_than_its_columns_is_not_read(root: Path) -> None:
    content = (root / LAST).read_bytes()
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    (root / LAST).write_bytes(content[:start] + bytes(2**20 + 1) + content[start:])
    assert _kinds(root) == []
    (defect,) = verify(root, deep=True).defects
    assert (defect.file, defect.kind) == (LAST, DefectKind.LAYOUT)
    assert f"{len(content) + 2**20 + 1} bytes, its columns say {len(content)}" in defect.detail


def test_every_kind_of_defect_has_a_test() -> None:
    folder = Path(__file__).parent
    others = ("test_prune.py", "test_index.py", "../cli/test_contents.py")
    files = (*folder.glob("test_verify*.py"), *(folder / name for name in others))
    source = "".join(path.read_text(encoding="utf-8") for path in files)
    assert [kind for kind in DefectKind if f"DefectKind.{kind.name}" not in source] == []


def test_defects_survive_what_a_hostile_file_says(root: Path) -> None:
    footer = SegmentFooter(
        *(TopicPartition("../../etc", 0), 20, 30, "", "", 0, 0, None, None, "", 0),
        *("0" * 64, rows_sha256(_table([]))),
    )
    (root / LAST).write_bytes(encode_segment(footer, _table([])))
    assert _kinds(root, deep=True) == [(LAST, DefectKind.NAME)]
    footer = dataclasses.replace(footer, partition=CARS)
    (root / LAST).write_bytes(encode_segment(footer, _table([])))
    assert _kinds(root, deep=True) == [(LAST, DefectKind.PREVIOUS_HASH)]


def test_rows_of_a_segment_are_those_published(root: Path) -> None:
    assert read_table(LocalStore(root), LAST).column("offset").to_pylist() == [20, 21, 25]
    head = verify(root).heads[0]
    assert local_log(root).end(CARS) == ChainPosition(head.end_offset, head.sha256, 20)


@pytest.mark.parametrize("deep", [False, True])
def test_a_log_in_an_object_store(
    tmp_path: Path,
    s3_root: str,
    deep: bool,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    paths = chain(tmp_path, [(n + 1, [scored(origin(n))]) for n in range(5)])
    local, store = LocalStore(tmp_path), store_at(s3_root)
    for name in local.names(partition_folder(CARS)):
        path = f"{partition_folder(CARS)}/{name}"
        assert store.create(path, local.read(path) or b"")
    store.replace(paths[0], merged_segments(store, paths[:2]))
    store.remove(paths[1:2])
    arguments = ["verify", "--log", s3_root, *(["--deep"] if deep else [])]

    ended = call(arguments, monkeypatch, capfd)

    assert ended.exit_code == 0, ended
    assert ended.out.splitlines()[0] == "1 partitions, 5 segments, 5 rows, 5 offsets"
    assert ended.out.splitlines()[2] == "merged  2 segments in 1 compacted files"
    store.replace(paths[3], b"PAR1")
    assert store.create(f"{partition_folder(CARS)}/export.parquet", b"")
    tree = json.loads(call([*arguments, "--json"], monkeypatch, capfd).out)
    assert tree["log"] == s3_root
    assert [(defect["file"], defect["kind"]) for defect in tree["defects"]] == [
        (segment_path(CARS, 3), DefectKind.UNREADABLE),
        (f"{partition_folder(CARS)}/export.parquet", DefectKind.STRAY_FILE),
    ]
