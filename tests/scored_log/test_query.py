"""Which rows pass, how many there are by what, and what SQL says: against plain Python."""

import struct
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nap_stream.clock import ManualClock
from nap_stream.errors import ChainBrokenError, ConfigError, LogRootError
from nap_stream.records import Status, TopicPartition
from nap_stream.scored_log.compact import compact
from nap_stream.scored_log.counting import GroupBy, aggregate, empty_spans
from nap_stream.scored_log.files import SCAN_SCHEMA
from nap_stream.scored_log.names import require_names
from nap_stream.scored_log.query import (
    Query,
    listed,
    most_anomalous,
    require_among,
    require_partitions,
    scan,
)
from nap_stream.scored_log.read import LOOK_BACK
from nap_stream.scored_log.sql import run_sql
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.stores.local import LocalStore
from tests.scored_log.builders import (
    CALIBRATION,
    CARS,
    MODEL,
    NOON_MS,
    chain,
    failed,
    make_version,
    memory_log,
    origin,
    scored,
)
from tests.support.log_files import run_query
from tests.support.memory_store import MemoryStore
from tests.support.waiting import wait_until

OTHER = TopicPartition("cars", 1)
HOUR_MS = 3_600_000
TOMORROW = ManualClock(NOON_MS + 86_400_000)
KEYS = (None, b"", b"camera-1", b"camera-2", b"\xff\x00")
CLASSES = ((3, "cat"), (5, "dog"), (7, "5"), (8, "\u00e9"))
Row = dict[str, Any]


def _record(offset: int, partition: TopicPartition) -> Any:
    """A row whose columns take all their values in all combinations, by its offset."""
    number = offset * 2 + partition.partition
    where = origin(
        offset,
        partition=partition,
        event_time_ms=NOON_MS + (number * 7_919_000) % (30 * HOUR_MS),
        key=KEYS[number % 5],
        headers=(("site", b"north" if number % 3 else None), *[("lamp", b"on")][: number % 2]),
    )
    if number % 7 == 0:
        return failed(where, Status.CORRUPT if number % 2 else Status.TOO_LARGE)
    kind = CLASSES[number % 4]
    made = scored(where, p_value=(number * 37 % 101) / 100, class_id=kind[0], class_name=kind[1])
    return replace(made, sha256=f"{number % 50:064x}")


@pytest.fixture(scope="module")
def store() -> MemoryStore:
    """Two partitions: compacted files of an earlier version and of this one, then segments."""
    store = MemoryStore()
    for partition in (CARS, OTHER):
        log = memory_log(store)
        position = log.begin(partition, 0)
        for base in range(0, 150, 10):
            rows = [_record(offset, partition) for offset in range(base, base + 10)]
            position = log.publish(partition, position, base + 10, rows).position
    make_version(store, OTHER, 6)
    compact(store, clock=TOMORROW)
    for partition in (CARS, OTHER):
        log = memory_log(store)
        end = log.end(partition)
        assert end is not None
        position = end
        for base in (150, 160):
            rows = [_record(offset, partition) for offset in range(base, base + 10)]
            position = log.publish(partition, position, base + 10, rows).position
    return store


@pytest.fixture(scope="module")
def rows(store: MemoryStore) -> list[Row]:
    found: list[Row] = run_query(store, Query()).to_pylist()
    assert len(found) == 340
    assert [row["offset"] for row in found] == [*range(170), *range(170)]
    return found


def _ms(time: datetime) -> int:
    return round(time.timestamp() * 1000)


def _passes(query: Query, row: Row) -> bool:
    """What a query says, in plain Python."""
    classes = {row["class_name"], str(row["class_id"])} - {None, "None"}
    headers = [(header["name"], header["value"]) for header in row["headers"]]
    p_value, time = row["ood_p_value"], _ms(row["event_time"])
    tests = [
        not query.partitions or row["partition"] in query.partitions,
        query.since_ms is None or time >= query.since_ms,
        query.until_ms is None or time < query.until_ms,
        not query.classes or bool(classes & set(query.classes)),
        query.is_ood is None or row["is_ood"] is query.is_ood,
        query.min_p_value is None or (p_value is not None and p_value >= query.min_p_value),
        query.max_p_value is None or (p_value is not None and p_value <= query.max_p_value),
        not query.statuses or row["status"] in query.statuses,
        not query.keys or row["key"] in query.keys,
        query.offsets is None or query.offsets[0] <= row["offset"] <= query.offsets[1],
        not query.sha256 or row["sha256"] in query.sha256,
        not query.models or any(row["model_fingerprint"].startswith(m) for m in query.models),
        all(
            any(name == found and value in {None, held} for found, held in headers)
            for name, value in query.headers
        ),
    ]
    return all(tests)


def _some(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.just(()) | st.just(()) | st.lists(values, min_size=1, max_size=2).map(tuple)


_times = st.none() | st.none() | st.integers(-1, 31).map(lambda hour: NOON_MS + hour * HOUR_MS)
_p_values = st.none() | st.none() | st.integers(0, 100).map(lambda number: number / 100)
QUERIES = st.builds(
    Query,
    topic=st.none() | st.just("cars"),
    partitions=_some(st.integers(0, 1)),
    since_ms=_times,
    until_ms=_times,
    classes=_some(st.sampled_from(["cat", "dog", "5", "\u00e9", "8"])),
    is_ood=st.none() | st.booleans(),
    min_p_value=_p_values,
    max_p_value=_p_values,
    statuses=_some(st.sampled_from([Status.OK, Status.CORRUPT, Status.TOO_LARGE])),
    keys=_some(st.sampled_from(KEYS[1:])),
    headers=_some(st.sampled_from([("site", None), ("site", b"north"), ("lamp", b"on")])),
    offsets=st.none() | st.tuples(st.integers(0, 90), st.integers(90, 200)),
    sha256=_some(st.integers(0, 60).map(lambda number: f"{number:064x}")),
    models=_some(st.sampled_from([MODEL, MODEL[:6], "ff"])),
)
_KEYS_OF: dict[GroupBy, Callable[[Row], tuple[Any, ...]]] = {
    GroupBy.HOUR: lambda row: (_ms(row["event_time"]) // HOUR_MS * HOUR_MS,),
    GroupBy.DAY: lambda row: (_ms(row["event_time"]) // 86_400_000 * 86_400_000,),
    GroupBy.KEY: lambda row: (row["key"],),
    GroupBy.CLASS: lambda row: (row["class_id"], row["class_name"]),
    GroupBy.STATUS: lambda row: (row["status"],),
    GroupBy.MODEL: lambda row: (row["model_fingerprint"],),
    GroupBy.CALIBRATION: lambda row: (row["calibration_fingerprint"],),
    GroupBy.PARTITION: lambda row: (row["topic"], row["partition"]),
}


@settings(max_examples=25, deadline=None)
@given(query=QUERIES, by=st.permutations(list(GroupBy)).map(lambda order: order[:2]))
def test_any_filters_give_the_rows_and_counts_that_plain_python_gives(
    store: MemoryStore, rows: list[Row], query: Query, by: list[GroupBy]
) -> None:
    expected = [row for row in rows if _passes(query, row)]
    assert run_query(store, query).to_pylist() == expected

    ranked = sorted(
        (row for row in expected if row["ood_p_value"] is not None),
        key=lambda row: (row["ood_p_value"], row["partition"], row["offset"]),
    )
    assert most_anomalous(store, query, 5).to_pylist() == ranked[:5]

    groups: dict[tuple[Any, ...], Counter[str]] = {}
    for row in expected:
        key = tuple(part for each in by for part in _KEYS_OF[each](row))
        own = groups.setdefault(key, Counter())
        own.update(rows=1, scored=row["is_ood"] is not None, ood=row["is_ood"] is True)
    found = aggregate(store, query, *by).to_pylist()
    names = [name for name in found[0] if name not in FIGURES] if found else []
    assert {
        tuple(_ms(row[n]) if isinstance(row[n], datetime) else row[n] for n in names): Counter(
            {name: row[name] for name in ("rows", "scored", "ood")}
        )
        for row in found
        if row["rows"]
    } == groups


FIGURES = ("rows", "scored", "ood", "ood_fraction", "ood_low", "ood_high")


def test_rows_of_some_columns_are_those_of_all(store: MemoryStore) -> None:
    whole = run_query(store, Query(is_ood=True))
    some = pa.Table.from_batches(scan(store, Query(is_ood=True), ["nci", "topic", "offset"]))
    assert some.equals(whole.select(["nci", "topic", "offset"]))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    chain(
        tmp_path,
        [
            (
                2,
                [
                    scored(origin(0, event_time_ms=NOON_MS - 1), p_value=0.01),
                    scored(origin(1, event_time_ms=NOON_MS)),
                ],
            ),
            (
                5,
                [
                    scored(origin(2, event_time_ms=NOON_MS + HOUR_MS - 1), p_value=0.02),
                    failed(origin(3, event_time_ms=NOON_MS + 3 * HOUR_MS)),
                ],
            ),
        ],
    )
    record = scored(origin(0, partition=OTHER), class_id=5, class_name="dog")
    chain(tmp_path, [(1, [record])], OTHER)
    return tmp_path


def test_counts_by_hour_have_the_hours_without_rows_and_wilsons_interval(root: Path) -> None:
    counts = aggregate(LocalStore(root), Query(), GroupBy.HOUR)
    assert counts.column_names == ["hour", *FIGURES]
    assert [tuple(row.values())[:5] for row in counts.to_pylist()] == [
        (datetime(2026, 1, 1, 11, tzinfo=UTC), 1, 1, 1, 1.0),
        (datetime(2026, 1, 1, 12, tzinfo=UTC), 3, 3, 1, 1 / 3),
        (datetime(2026, 1, 1, 13, tzinfo=UTC), 0, 0, 0, None),
        (datetime(2026, 1, 1, 14, tzinfo=UTC), 0, 0, 0, None),
        (datetime(2026, 1, 1, 15, tzinfo=UTC), 1, 0, 0, None),
    ]
    # By hand, z = 1.96: 1 of 1 is [1 / (1 + z^2), 1]; 1 of 3 is 0.4269 -+ 0.3654.
    assert counts.column("ood_low").to_pylist()[:2] == pytest.approx([0.2065, 0.0615], abs=1e-4)
    assert counts.column("ood_high").to_pylist()[:2] == pytest.approx([1.0, 0.7923], abs=1e-4)
    gap = (NOON_MS + HOUR_MS, NOON_MS + 3 * HOUR_MS)
    assert empty_spans(counts, GroupBy.HOUR) == [gap]


def test_hours_without_rows_go_as_far_as_the_filters_and_for_each_other_key(root: Path) -> None:
    query = Query(since_ms=NOON_MS - 2 * HOUR_MS, statuses=(Status.OK,))
    counts = aggregate(LocalStore(root), query, GroupBy.HOUR, now_ms=NOON_MS + 2 * HOUR_MS)
    assert counts.column("rows").to_pylist() == [0, 1, 3, 0]
    both = aggregate(LocalStore(root), query, GroupBy.CLASS, GroupBy.HOUR)
    assert [(row["class_name"], row["hour"].hour, row["rows"]) for row in both.to_pylist()] == [
        *(("cat", hour, count) for hour, count in ((10, 0), (11, 1), (12, 2))),
        *(("dog", hour, count) for hour, count in ((10, 0), (11, 0), (12, 1))),
    ]


def test_hours_without_end_are_refused(tmp_path: Path) -> None:
    records = [scored(origin(0)), scored(origin(1, event_time_ms=NOON_MS + 10**12))]
    chain(tmp_path, [(2, records)])
    with pytest.raises(ConfigError, match="277,778 groups"):
        aggregate(LocalStore(tmp_path), Query(), GroupBy.HOUR)


def test_a_limit_stops(root: Path) -> None:
    whole = run_query(LocalStore(root), Query())
    for limit in range(7):
        assert run_query(LocalStore(root), Query(), limit=limit).equals(whole.slice(0, limit))


def test_an_empty_log_is_no_rows_and_no_log_an_error(tmp_path: Path) -> None:
    assert run_query(LocalStore(tmp_path), Query(topic=CARS.topic)).schema.equals(SCAN_SCHEMA)
    assert aggregate(LocalStore(tmp_path), Query(), GroupBy.HOUR).num_rows == 0
    with pytest.raises(ConfigError, match="there is no chain here"):
        require_partitions(LocalStore(tmp_path), Query())
    with pytest.raises(LogRootError):
        aggregate(LocalStore(tmp_path / "none"), Query(), GroupBy.HOUR)


@pytest.mark.parametrize(
    ("query", "told"),
    [
        (Query(topic="carz"), "no topic 'carz'; it has cars"),
        (Query(partitions=(0, 7)), "no partition '7'; it has 0, 1"),
        (Query(classes=("cat", "dogg")), "no class 'dogg'; it has dog"),
        (Query(classes=("9",)), "no class '9'"),
        (Query(keys=(b"camera-3",)), "no key 'camera-3'; it has camera-"),
        (Query(headers=(("sight", None),)), "no header 'sight'; it has site"),
        (Query(headers=(("site", b"noth"),)), "no header site with 'noth'; it has north"),
        (Query(models=("ff",)), f"no model 'ff'; it has {MODEL}"),
        (Query(calibrations=("b3",)), f"no calibration 'b3'; it has {CALIBRATION}"),
    ],
)
def test_a_name_that_is_not_there_is_an_error_that_tells_those_that_are(
    store: MemoryStore, query: Query, told: str
) -> None:
    def ask() -> None:
        require_partitions(store, query)
        require_names(store, query)

    with pytest.raises(ConfigError) as caught:
        ask()
    assert told in str(caught.value)


def test_names_that_are_there_are_no_error_whatever_else_is_asked(store: MemoryStore) -> None:
    names = Query(
        classes=("dog", "3"), keys=(b"", b"\xff\x00"), headers=(("site", b"north"),), models=("a",)
    )
    require_names(store, replace(names, since_ms=0, until_ms=1, statuses=(Status.CORRUPT,)))


FORGED = ("event_time", "offset", "ood_p_value", "class_name", "key", "is_ood")


def _forge_statistics(path: Path) -> None:
    """Let the file's statistics say that none of its rows passes what the test asks for."""
    metadata_at = path.stat().st_size - 8 - struct.unpack("<i", path.read_bytes()[-8:-4])[0]
    content = path.read_bytes()
    body, footer = content[:metadata_at], content[metadata_at:]
    lies = [
        (struct.pack("<d", 0.01), struct.pack("<d", 0.90)),
        (struct.pack("<d", 0.5), struct.pack("<d", 0.95)),
        (struct.pack("<q", NOON_MS), struct.pack("<q", NOON_MS + 9 * HOUR_MS)),
        (struct.pack("<q", NOON_MS + 1), struct.pack("<q", NOON_MS + 9 * HOUR_MS + 1)),
        (b"cat", b"zat"),
        (b"camera-1", b"zamera-1"),
    ]
    for true, lie in lies:
        assert footer.count(true) >= 1, true
        footer = footer.replace(true, lie)
    path.write_bytes(body + footer)


def test_forged_statistics_lose_no_row(tmp_path: Path) -> None:
    """What verify --deep alone can find must not change an answer."""
    pair = [scored(origin(0), p_value=0.01), scored(origin(1, event_time_ms=NOON_MS + 1))]
    (path,) = chain(tmp_path, [(2, pair)])
    file, store = tmp_path / path, LocalStore(tmp_path)
    wheres = {
        "ood_p_value < 0.02": Query(max_p_value=0.02),
        "event_time < '2026-01-01 12:00:00.001Z'": Query(until_ms=NOON_MS + 1),
        "class_name = 'cat'": Query(classes=("cat",)),
        "key = 'camera-1'": Query(keys=(b"camera-1",)),
    }
    whole = {where: run_query(store, query) for where, query in wheres.items()}
    _forge_statistics(file)
    # The lies are such that a reader falls for them.
    for where in wheres:
        ask = f"SELECT count(*) FROM '{file}' WHERE {where}"
        assert duckdb.execute(ask).fetchall() == [(0,)], where
    for where, query in wheres.items():
        assert run_query(store, query).equals(whole[where])
        assert aggregate(store, query, GroupBy.STATUS)["rows"].to_pylist() == [
            whole[where].num_rows
        ]
        assert _sql(store, f"SELECT count(*) FROM records WHERE {where}") == [
            (whole[where].num_rows,)
        ]
    assert _sql(store, "SELECT min(ood_p_value), min(class_name) FROM records") == [(0.01, "cat")]
    assert _sql(store, "SELECT ood_p_value FROM records ORDER BY 1 LIMIT 1") == [(0.01,)]
    joined = "SELECT count(*) FROM records a, records b WHERE a.key = b.key AND a.ood_p_value < 0.1"
    assert _sql(store, joined) == [(2,)]
    assert most_anomalous(store, Query(), 1)["ood_p_value"].to_pylist() == [0.01]
    require_names(store, Query(classes=("cat",), keys=(b"camera-1",)))


class _Exchanged(MemoryStore):
    """A store in which a compaction takes place just before a file is opened."""

    def __init__(self, of: MemoryStore, opens: int = 0) -> None:
        super().__init__()
        self._files, self.left = dict(of._files), opens

    def open(self, path: str) -> BinaryIO | None:
        self.left -= 1
        if not self.left:
            compact(self, clock=TOMORROW)
        return super().open(path)


def test_answers_are_right_while_a_compaction_exchanges_files() -> None:
    plain = MemoryStore()
    log = memory_log(plain)
    position = log.begin(CARS, 0)
    for base in range(0, 40, 10):
        records = [_record(offset, CARS) for offset in range(base, base + 10)]
        position = log.publish(CARS, position, base + 10, records).position
    asks: list[Callable[[SegmentStore], Any]] = [
        lambda store: run_query(store, Query()).to_pylist(),
        lambda store: run_query(store, Query(is_ood=True)).to_pylist(),
        lambda store: run_query(store, Query(offsets=(17, 31))).to_pylist(),
        lambda store: aggregate(store, Query(), GroupBy.CLASS).to_pylist(),
        lambda store: _sql(store, 'SELECT count(*), sum("offset") FROM records'),
    ]
    for ask in asks:
        counted = _Exchanged(plain)
        right = ask(counted)
        assert counted.left < -3
        for opens in range(1, 1 - counted.left):
            exchanged = _Exchanged(plain, opens)
            assert ask(exchanged) == right
            assert exchanged.left <= 0


def _break(store: MemoryStore, path: str, how: str) -> None:
    content = store.read(path)
    assert content is not None
    broken = {
        "cut off": content[: len(content) // 2],
        "not Parquet": b"nothing of the kind",
        "pages": content[:4] + bytes(400) + content[404:],
        "a page's size": content[:8] + b"\xff" * 8 + content[16:],
    }[how]
    store.replace(path, broken)


@pytest.mark.parametrize("how", ["cut off", "not Parquet", "pages", "a page's size"])
def test_a_segment_that_cannot_be_read_is_named_and_the_rest_answered(how: str) -> None:
    store = MemoryStore()
    log = memory_log(store)
    position, paths = log.begin(CARS, 0), []
    for base in range(0, 40, 10):
        records = [_record(offset, CARS) for offset in range(base, base + 10)]
        published = log.publish(CARS, position, base + 10, records)
        position = published.position
        paths.append(published.path)
    rest = [row for row in run_query(store, Query()).to_pylist() if not 10 <= row["offset"] < 20]
    _break(store, paths[1], how)
    unread: list[ChainBrokenError] = []
    found = pa.Table.from_batches(scan(store, Query(offsets=(0, 50)), unread=unread), SCAN_SCHEMA)
    assert found.to_pylist() == rest
    asks: list[Callable[[list[ChainBrokenError]], Any]] = [
        lambda bad: list(scan(store, Query(max_p_value=1), ["offset"], unread=bad)),
        lambda bad: aggregate(store, Query(), GroupBy.PARTITION, unread=bad)["rows"][0].as_py(),
        lambda bad: _sql(store, 'SELECT count("offset") FROM records', bad)[0][0],
    ]
    assert {error.where for error in unread} == {paths[1]}
    for ask in asks:
        bad: list[ChainBrokenError] = []
        ask(bad)
        assert {error.where for error in bad} <= {paths[1]}
    with pytest.raises(ChainBrokenError, match=paths[1]):
        run_query(store, Query())


def _sql(
    store: SegmentStore,
    text: str,
    unread: list[ChainBrokenError] | None = None,
    *,
    limit: int = 1_000,
    seconds: float = 60,
    query: Query | None = None,
) -> list[tuple[Any, ...]]:
    bad: list[ChainBrokenError] = [] if unread is None else unread
    found = run_sql(
        store,
        text,
        query or Query(),
        limit=limit,
        seconds=seconds,
        memory_bytes=256 * 2**20,
        unread=bad,
    )
    assert unread is not None or not bad
    return [tuple(row.values()) for row in found.to_pylist()]


def test_sql_sees_the_rows_of_both_versions(store: MemoryStore, rows: list[Row]) -> None:
    text = "WITH few AS (SELECT * FROM records) SELECT partition, count(nci) FROM few GROUP BY 1"
    assert sorted(_sql(store, f"{text};")) == [(0, 0), (1, 0)]
    whole = _sql(store, 'SELECT * FROM records ORDER BY topic, partition, "offset" -- all')
    assert [row[:3] for row in whole] == [
        (row["topic"], row["partition"], row["offset"]) for row in rows
    ]
    since = Query(since_ms=NOON_MS + HOUR_MS, until_ms=NOON_MS + 4 * HOUR_MS)
    assert _sql(store, "SELECT count(*) FROM records", query=since) == [
        (sum(_passes(since, row) for row in rows),)
    ]
    assert len(_sql(store, "SELECT * FROM records", limit=10)) == 11


HOSTILE_SQL = [
    "SELECT * FROM read_csv('{file}')",
    "SELECT * FROM read_text('{file}')",
    "SELECT * FROM read_blob('{file}')",
    "SELECT * FROM read_parquet('{file}')",
    "SELECT * FROM read_json('{file}')",
    "SELECT * FROM '{file}'",
    "SELECT * FROM glob('{folder}/*')",
    "SELECT * FROM sniff_csv('{file}')",
    "SELECT * FROM parquet_metadata('{file}')",
    "SELECT * FROM read_text('scored-log://topic=cars/partition=0/_genesis.json')",
    "SELECT * FROM read_text('scored-log://../secret.csv')",
    "SELECT * FROM read_csv('http://127.0.0.1:9/x')",
    "SELECT * FROM query('SELECT * FROM read_text(''{file}'')')",
    "SELECT * FROM query('COPY (SELECT 1) TO ''{folder}/made'' ')",
    "SELECT * FROM query_table('{file}')",
    "SELECT getenv('HOME')",
    "SELECT * FROM duckdb_secrets()",
    "COPY (SELECT 1) TO '{folder}/made'",
    "COPY (SELECT 1) TO 'scored-log://made'",
    "EXPORT DATABASE '{folder}/made'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "ATTACH '{folder}/made' AS other",
    "SET enable_external_access = true",
    "RESET lock_configuration",
    "PRAGMA database_list",
    "CREATE TABLE made AS SELECT 1",
    "CREATE OR REPLACE TEMP VIEW records AS SELECT 1",
    "DROP VIEW records",
    "INSERT INTO records SELECT * FROM records",
    "SELECT 1; SELECT 2",
    "SELECT 1; COPY (SELECT 1) TO '{folder}/made'",
    "SELECT 1) TO '{folder}/made'; --",
    "CALL pragma_version()",
    "VACUUM",
    "CHECKPOINT",
    "PREPARE p AS SELECT 1",
    "EXPLAIN ANALYZE SELECT 1",
    "SELECT ?",
    "",
    "not SQL",
]


@pytest.mark.parametrize("text", HOSTILE_SQL)
def test_sql_reaches_nothing_else_and_writes_nothing(tmp_path: Path, text: str) -> None:
    secret, root = tmp_path / "secret.csv", tmp_path / "log"
    secret.write_text("a,b\n1,swordfish\n", encoding="utf-8")
    chain(root, [(1, [scored(origin(0))])])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError) as caught:
        _sql(LocalStore(root), text.format(file=secret, folder=tmp_path))
    assert "swordfish" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT max(n) FROM r",
            "",
        ),
        ("SELECT count(*) FROM range(1000000) a, range(1000000) b, range(1000) c", "no answer"),
        ("SELECT list(random()) FROM range(1000000000)", ""),
        ("SELECT 1 FROM range(1000000000) a, range(1000) b WHERE random() > 2", "no answer"),
    ],
)
def test_sql_that_asks_for_too_much_ends(root: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told or "no answer|memory"):
        _sql(LocalStore(root), text, seconds=2)


class _SlowToOpen(MemoryStore):
    """A store in which the time of a question is over while its files are listed."""

    def __init__(self, of: MemoryStore) -> None:
        super().__init__()
        self._files = of._files

    def open(self, path: str) -> BinaryIO | None:
        end = time.monotonic() + 0.11
        wait_until(lambda: time.monotonic() > end, "the end of the time")
        return super().open(path)


def test_sql_ends_although_its_time_is_over_before_it_is_asked(store: MemoryStore) -> None:
    with pytest.raises(ConfigError, match=r"no answer within 0\.1 s"):
        _sql(_SlowToOpen(store), "SELECT count(*) FROM records", seconds=0.1)


def test_sql_says_which_path_is_none_of_its_files(store: MemoryStore) -> None:
    with pytest.raises(ConfigError, match=r"not a file of the log that is asked: .*secret"):
        _sql(store, "SELECT * FROM read_parquet('scored-log://secret.parquet')")


def test_sql_has_times_in_all_that_it_can_name(store: MemoryStore) -> None:
    since = Query(since_ms=NOON_MS + HOUR_MS)
    (counted,) = _sql(store, "SELECT count(*) FROM records", query=since)
    assert counted != _sql(store, "SELECT count(*) FROM records")[0]
    assert _sql(store, "SELECT count(*) FROM temp.records", query=since) == [counted]


class _Counting(MemoryStore):
    """A store that counts how often each segment is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = Counter[str]()

    def open(self, path: str) -> BinaryIO | None:
        self.sent[path] += 1
        return super().open(path)


def test_a_file_is_sent_once_to_look_at_it_and_once_to_ask_it() -> None:
    store = _Counting()
    log = memory_log(store)
    position = log.begin(CARS, 0)
    paths = []
    for base in range(0, 400, 10):
        made = log.publish(CARS, position, base + 10, [_record(base, CARS)])
        position = made.position
        paths.append(made.path)

    def sent(ask: Callable[[], object]) -> Counter[str]:
        store.sent.clear()
        ask()
        return store.sent

    assert sent(lambda: aggregate(store, Query(), GroupBy.STATUS)) == dict.fromkeys(paths, 2)
    one = sent(lambda: list(scan(store, Query(offsets=(200, 200)))))
    # Before its file some are looked at, and after it none.
    assert one[paths[20]] == 2
    assert set(one) <= set(paths[20 - LOOK_BACK : 21])
    some = list(listed(store, Query(offsets=(0, 99)), None))
    once = sent(lambda: most_anomalous(store, Query(), 3, files=some))
    assert set(once) <= set(paths[:10])


def test_a_row_that_is_found_does_not_keep_those_beside_it_in_memory() -> None:
    store = MemoryStore()
    log = memory_log(store)
    log.publish(CARS, log.begin(CARS, 0), 200, [_record(offset, CARS) for offset in range(200)])
    (whole,) = scan(store, Query())
    (one,) = scan(store, Query(offsets=(7, 7)))
    assert (one.num_rows, whole.num_rows) == (1, 200)
    assert one.get_total_buffer_size() < whole.get_total_buffer_size() / 10


@pytest.mark.parametrize("since_ms", [None, 2**41])
def test_sql_has_one_view_of_the_same_columns_with_rows_and_without(
    store: MemoryStore, since_ms: int | None
) -> None:
    asked = Query(since_ms=since_ms)
    assert _sql(store, "SHOW TABLES", query=asked) == [("records",)]
    assert _sql(store, "SELECT count(*) > 0 FROM records", query=asked) == [(since_ms is None,)]
    described = "SELECT column_name, column_type FROM (DESCRIBE records)"
    kinds = _sql(store, described, query=asked)
    assert [name for name, _ in kinds] == SCAN_SCHEMA.names
    assert kinds == _sql(store, described)


def test_sql_without_end_gives_its_first_rows(root: Path) -> None:
    assert len(_sql(LocalStore(root), "SELECT * FROM range(1000000000000)", limit=5)) == 6


def test_names_that_are_near_stand_on_one_line_and_are_cut() -> None:
    with pytest.raises(ConfigError) as caught:
        require_among("key", "--key", ["a\x1b[31mx"], ["a\nb", "c" * 10_000])
    assert str(caught.value).isprintable()
    assert r"no key 'a\x1b[31mx'; it has a\nb, ccc" in str(caught.value)
    assert len(str(caught.value)) < 250
