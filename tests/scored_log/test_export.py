"""Signed exports: what they hold, and what checking them alone finds."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nap_stream.clock import ManualClock
from nap_stream.errors import ConfigError, ProofError, UnknownKeyError
from nap_stream.records import TopicPartition
from nap_stream.scored_log import query
from nap_stream.scored_log.format import segment_path
from nap_stream.scored_log.proof import export
from nap_stream.scored_log.proof.export import (
    MANIFEST,
    ROWS,
    ExportedChain,
    Manifest,
    VerifiedExport,
    verify_export,
    write_export,
)
from nap_stream.scored_log.proof.note import create_key
from nap_stream.scored_log.query import Query, scan
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.verify.run import verify
from tests.scored_log.attacks import OTHER, SIGNER, write_log
from tests.scored_log.builders import CARS, NOON_MS, local_log, origin, scored

ASKED = Query(topic="cars", keys=(b"camera-1", b"\xff"), is_ood=False, offsets=(0, 25))


def _export(log: Path, folder: Path, asked: Query = ASKED) -> Manifest:
    return write_export(LocalStore(log), asked, folder, SIGNER, version="1.2", now_ms=NOON_MS)


def _verified(folder: Path) -> VerifiedExport:
    return verify_export(folder, [SIGNER.public])


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Partition 0 of three segments of ten rows, partition 1 of five offsets without rows."""
    write_log(tmp_path / "log")
    return tmp_path / "log"


def test_the_rows_are_those_that_the_filter_gives(log: Path, tmp_path: Path) -> None:
    manifest = _export(log, tmp_path / "out" / "may")
    assert _verified(tmp_path / "out" / "may") == VerifiedExport(
        manifest, (SIGNER.public.label,), ()
    )
    rows = pq.read_table(tmp_path / "out" / "may" / ROWS)
    expected = pa.Table.from_batches(scan(LocalStore(log), ASKED))
    assert rows.equals(expected)
    # Of offsets 1, 4, 7 in each ten, those to 25 whose p-value is above 0.05.
    assert rows["offset"].to_pylist() == [1, 4, 7, 11, 14, 17, 21, 24]
    head, other = verify(LocalStore(log), clock=ManualClock()).heads
    assert (head.partition, other.partition) == (CARS, OTHER)
    assert manifest == Manifest(
        program_version="1.2",
        log=str(log),
        created_time_ms=NOON_MS,
        filter={
            "topic": "cars",
            "is_ood": False,
            "keys": ["camera-1", "base64:/w=="],
            "offsets": [0, 25],
        },
        chains=(
            ExportedChain("cars", 0, 0, 30, head.sha256, 8),
            ExportedChain("cars", 1, 0, 5, other.sha256, 0),
        ),
        unread={},
        rows=8,
        rows_by_status={"ok": 8},
        sha256=manifest.sha256,
    )


def test_all_rows_of_all_chains_and_no_events(log: Path, tmp_path: Path) -> None:
    where = TopicPartition("dogs", 0)
    writer = local_log(log)
    writer.publish(where, writer.begin(where, 0), 1, [scored(origin(0, partition=where))])
    manifest = _export(log, tmp_path / "all", Query())
    assert [(one.topic, one.partition, one.rows) for one in manifest.chains] == [
        ("cars", 0, 30),
        ("cars", 1, 0),
        ("dogs", 0, 1),
    ]
    assert manifest.rows_by_status == {"corrupt": 3, "ok": 28}
    assert manifest.filter == {}
    only = _export(log, tmp_path / "one", Query(topic="cars", partitions=(1,)))
    assert [one.partition for one in only.chains] == [1]


def test_rows_that_were_published_meanwhile_are_not_in_it(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_writer(*arguments: object, **options: object) -> object:
        writer = local_log(log)
        end = writer.end(CARS)
        assert end is not None
        writer.publish(CARS, end, end.offset + 1, [scored(origin(end.offset))])
        return query.scan(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(export, "scan", with_writer)
    manifest = _export(log, tmp_path / "out", Query())
    assert (manifest.rows, manifest.chains[0].end_offset) == (30, 30)
    assert pq.read_table(tmp_path / "out" / ROWS)["offset"].to_pylist()[-1] == 29


def test_what_cannot_be_read_is_named_and_signed(log: Path, tmp_path: Path) -> None:
    damaged = log / segment_path(CARS, 10)
    damaged.write_bytes(damaged.read_bytes()[:-4] + b"oops")
    manifest = _export(log, tmp_path / "out", Query())
    assert list(manifest.unread) == [segment_path(CARS, 10)]
    assert manifest.rows == 20
    (log / segment_path(CARS, 20)).write_bytes(b"PAR1")
    manifest = _export(log, tmp_path / "again", Query())
    assert manifest.unread == {"cars/0": "its end cannot be read"}
    assert [one.partition for one in manifest.chains] == [1]


def _change_rows(folder: Path) -> None:
    path = folder / ROWS
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)


def _change_manifest(folder: Path) -> None:
    path = folder / MANIFEST
    path.write_bytes(path.read_bytes().replace(b'"rows": 8', b'"rows": 9'))


def _sign_something_else(folder: Path) -> None:
    (folder / MANIFEST).write_bytes(SIGNER.sign("nap-stream scored log checkpoint v1\n"))


def _sign_half(folder: Path) -> None:
    tree = json.loads((folder / MANIFEST).read_text().split("\n", 1)[1].rpartition("\n\n")[0])
    del tree["filter"]
    (folder / MANIFEST).write_bytes(SIGNER.sign(f"{export.ORIGIN}\n{json.dumps(tree)}\n"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_change_rows, "its SHA-256 is .* was signed"),
        (_change_manifest, "the signature of .* is not of this text"),
        (_sign_something_else, "not an export's manifest: it begins with 'nap-stream scored"),
        (_sign_half, "not an export's manifest: .*\n?filter"),
        (lambda folder: (folder / ROWS).unlink(), "it holds manifest.note"),
        (lambda folder: (folder / MANIFEST).unlink(), "it holds rows.parquet"),
        (lambda folder: (folder / "more").touch(), "it holds manifest.note, more, rows.parquet"),
        (shutil.rmtree, "cannot be read: No such file"),
    ],
)
def test_what_is_not_as_it_was_signed_is_found(
    log: Path, tmp_path: Path, change: Callable[[Path], None], said: str
) -> None:
    _export(log, tmp_path / "out")
    change(tmp_path / "out")
    with pytest.raises(ProofError, match=said):
        _verified(tmp_path / "out")


def test_other_keys_and_folders_that_are_not_empty(log: Path, tmp_path: Path) -> None:
    _export(log, tmp_path / "out")
    other = create_key(tmp_path / "key", "other")
    with pytest.raises(UnknownKeyError, match=r"PeterNeumann\+c74f20a3, which no given key is"):
        verify_export(tmp_path / "out", [other])
    with pytest.raises(ConfigError, match="the folder is not empty"):
        _export(log, tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written: File exists"):
        _export(log, tmp_path / "file")
