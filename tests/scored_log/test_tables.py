"""The scripts of docs/tables.md, run as they stand there: the log as Iceberg and Delta tables."""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from pyiceberg.catalog import Catalog
from pyiceberg.catalog.sql import SqlCatalog

from nap_stream.clock import ManualClock
from nap_stream.records import TopicPartition
from nap_stream.scored_log.compact import compact
from nap_stream.scored_log.files import SCAN_SCHEMA
from nap_stream.scored_log.query import Query
from nap_stream.scored_log.stores.local import LocalStore
from tests.scored_log.builders import (
    NOON_MS,
    chain,
    failed,
    local_log,
    make_version,
    origin,
    scored,
)
from tests.scored_log.test_prune import prune_days
from tests.support.log_files import run_query

DOCS = Path(__file__).parents[2] / "docs" / "tables.md"
PARTITIONS = (
    TopicPartition("00123", 0),
    TopicPartition("00123", 1),
    TopicPartition("a.parquet", 0),
)
DAY_MS = 86_400_000
Readers = dict[str, Callable[[], Any]]


def _run(name: str) -> None:
    """Run the one block that is the script of this name."""
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    (block,) = [each for each in blocks if each.startswith(f'"""{name}: ')]
    exec(compile(block, name, "exec"), {"__name__": "__main__"})


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Catalog]:
    """The catalog that `load_catalog` finds."""
    (tmp_path / "tables").mkdir()
    places = {
        "uri": f"sqlite:///{tmp_path}/catalog.db",
        "warehouse": (tmp_path / "tables").as_uri(),
    }
    catalog = SqlCatalog("audit", **places)
    monkeypatch.setattr("pyiceberg.catalog.load_catalog", {"audit": catalog}.__getitem__)
    yield catalog
    catalog.close()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Topics whose names may be taken for numbers, a segment without rows, an earlier version."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLARS_ICEBERG_PLANNER", "pyiceberg")  # its own one is a package more
    root = tmp_path / "scored-log"
    for where in PARTITIONS:

        def at(offset: int, days: int, where: TopicPartition = where) -> Any:
            headers = (("line", b"\xff"), ("line", None))
            time_ms = NOON_MS + days * DAY_MS
            return origin(offset, partition=where, event_time_ms=time_ms, headers=headers)

        first = [scored(at(0, 0), p_value=0.01), failed(at(1, 0))]
        chain(root, [(2, first), (4, [scored(at(3, 1))]), (6, [])], where)
    make_version(LocalStore(root), PARTITIONS[2], 1, version=5)
    return root


def _sorted(rows: pa.Table) -> pa.Table:
    """The rows in the log's order, as the log has them."""
    order = [(name, "ascending") for name in ("topic", "partition", "offset", "index")]
    plain = pa.schema([field.with_nullable(True).remove_metadata() for field in SCAN_SCHEMA])
    found = rows.select(SCAN_SCHEMA.names).sort_by(order).to_pylist()
    return pa.Table.from_pylist(found, plain)


def _iceberg_rows(catalog: Catalog) -> Readers:
    table = catalog.load_table("audit.records")
    return {
        "pyiceberg": table.scan().to_arrow,
        "polars": lambda: pl.scan_iceberg(table).collect().to_arrow(),
        "duckdb": lambda: _of_duckdb(table.scan().to_arrow()),
    }


def _delta_rows(_: Catalog) -> Readers:
    return {
        "deltalake": lambda: DeltaTable("delta-table").to_pyarrow_table(),
        "polars": lambda: pl.scan_delta("delta-table").collect().to_arrow(),
        "duckdb": lambda: _of_duckdb(DeltaTable("delta-table").to_pyarrow_dataset()),
    }


def _of_duckdb(records: Any) -> pa.Table:
    with contextlib.closing(duckdb.connect()) as database:
        database.register("records", records)
        return database.sql("FROM records").to_arrow_table()


SCRIPTS: dict[str, Callable[[Catalog], Readers]] = {
    "iceberg_table.py": _iceberg_rows,
    "delta_table.py": _delta_rows,
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_table_has_each_row_of_the_log_and_goes_with_it(
    script: str, catalog: Catalog, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, files = LocalStore(root), sorted(root.rglob("*"))

    def is_the_log() -> None:
        expected = _sorted(run_query(store, Query()))
        for reader, rows in SCRIPTS[script](catalog).items():
            assert _sorted(rows()).equals(expected), reader

    _run(script)
    is_the_log()
    assert sorted(root.rglob("*")) == files
    _run(script)
    log = local_log(root)
    position = log.end(PARTITIONS[1])
    assert position is not None
    log.publish(PARTITIONS[1], position, 7, [scored(origin(6, partition=PARTITIONS[1]))])
    _run(script)
    is_the_log()
    assert compact(store, clock=ManualClock(NOON_MS + 9 * DAY_MS)).files == 2
    _run(script)
    is_the_log()
    assert prune_days(store, 9, now_ms=NOON_MS + 30 * DAY_MS).files
    tables = SCRIPTS[script](catalog)
    if script == "delta_table.py":
        # Its links have the rows that are gone from the log.
        assert {rows().num_rows for rows in tables.values()} == {10}
    else:
        with pytest.raises(FileNotFoundError):
            tables["pyiceberg"]()
    _run(script)
    is_the_log()
    told = [line.partition(": ")[2] for line in capsys.readouterr().out.splitlines()]
    assert told[:3] == ["6 files new, 0 gone", "0 files new, 0 gone", "1 files new, 0 gone"]
    assert 0 < len(run_query(store, Query())) < 10


@pytest.mark.usefixtures("root")
def test_iceberg_passes_over_files_by_topic_and_time(catalog: Catalog) -> None:
    _run("iceberg_table.py")
    table = catalog.load_table("audit.records")
    for wanted, files, rows in (
        ("topic = '00123' and partition = 1", 2, 3),
        ("event_time < '2026-01-02T00:00:00+00:00'", 3, 6),
        ("topic = 'a.parquet' and event_time >= '2026-01-02T00:00:00+00:00'", 1, 1),
        ("ood_p_value <= 0.01", 6, 3),
    ):
        scan = table.scan(row_filter=wanted)
        assert (len(list(scan.plan_files())), scan.to_arrow().num_rows) == (files, rows)
    assert table.properties["gc.enabled"] == "false"


def _inodes(folder: Path) -> set[int]:
    """The Parquet files in a folder; a topic's folder may be named as one."""
    return {path.stat().st_ino for path in folder.rglob("*.parquet") if path.is_file()}


def test_a_delta_table_frees_what_was_merged_when_it_is_vacuumed(root: Path) -> None:
    table = Path("delta-table")
    _run("delta_table.py")
    assert _inodes(table) < _inodes(root)
    compact(LocalStore(root), clock=ManualClock(NOON_MS + 9 * DAY_MS))
    # The table goes on with what it has, and vacuum does not reach the log.
    assert DeltaTable(str(table)).to_pyarrow_table().num_rows == 9
    assert not _inodes(table) < _inodes(root)
    _run("delta_table.py")
    found = DeltaTable(str(table))
    found.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    assert _inodes(table) < _inodes(root)
    assert len(run_query(LocalStore(root), Query())) == found.to_pyarrow_table().num_rows == 9
