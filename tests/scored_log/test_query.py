from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from nap_stream.errors import LogRootError
from nap_stream.records import Status, TopicPartition
from nap_stream.scored_log.query import GroupBy, aggregate
from nap_stream.scored_log.read import SCAN_SCHEMA, Query
from nap_stream.scored_log.stores.local import LocalStore
from tests.scored_log.builders import CARS, NOON_MS, chain, failed, origin, scored
from tests.support.log_files import run_query

OTHER = TopicPartition("cars", 1)
HOUR_MS = 3_600_000


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
                    failed(origin(3, event_time_ms=NOON_MS + HOUR_MS)),
                ],
            ),
        ],
    )
    record = scored(origin(0, partition=OTHER), class_id=5, class_name="dog")
    chain(tmp_path, [(1, [record])], OTHER)
    return tmp_path


def _rows(root: Path, by: GroupBy, query: Query | None = None) -> list[tuple[Any, ...]]:
    table = aggregate(LocalStore(root), query or Query(), by)
    assert table.column_names[-4:] == ["rows", "scored", "ood", "ood_fraction"]
    return [tuple(row.values()) for row in table.to_pylist()]


def test_counts_by_hour(root: Path) -> None:
    assert _rows(root, GroupBy.HOUR) == [
        (datetime(2026, 1, 1, 11, tzinfo=UTC), 1, 1, 1, 1.0),
        (datetime(2026, 1, 1, 12, tzinfo=UTC), 3, 3, 1, 1 / 3),
        (datetime(2026, 1, 1, 13, tzinfo=UTC), 1, 0, 0, None),
    ]


def test_counts_by_class(root: Path) -> None:
    assert _rows(root, GroupBy.CLASS) == [
        (3, "cat", 3, 3, 2, 2 / 3),
        (5, "dog", 1, 1, 0, 0.0),
        (None, None, 1, 0, 0, None),
    ]


def test_counts_by_status(root: Path) -> None:
    assert _rows(root, GroupBy.STATUS) == [("corrupt", 1, 0, 0, None), ("ok", 4, 4, 2, 0.5)]


def test_counts_by_partition_of_filtered_rows(root: Path) -> None:
    query = Query(statuses=(Status.OK,))
    assert _rows(root, GroupBy.PARTITION, query) == [
        ("cars", 0, 3, 3, 2, 2 / 3),
        ("cars", 1, 1, 1, 0, 0.0),
    ]


@pytest.mark.parametrize("by", list(GroupBy))
def test_counts_of_nothing_have_the_same_columns(root: Path, by: GroupBy) -> None:
    nothing = aggregate(LocalStore(root), Query(topic="dogs"), by)
    assert nothing.num_rows == 0
    assert nothing.schema.equals(aggregate(LocalStore(root), Query(), by).schema)


def test_rows_come_in_order_and_a_limit_stops(root: Path) -> None:
    whole = run_query(LocalStore(root), Query())
    assert whole.schema.equals(SCAN_SCHEMA)
    assert whole.column("partition").to_pylist() == [0, 0, 0, 0, 1]
    assert whole.column("offset").to_pylist() == [0, 1, 2, 3, 0]
    for limit in range(7):
        assert run_query(LocalStore(root), Query(), limit=limit).equals(whole.slice(0, limit))


def test_no_log_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LogRootError):
        run_query(LocalStore(tmp_path / "none"), Query())
    with pytest.raises(LogRootError):
        aggregate(LocalStore(tmp_path / "none"), Query(), GroupBy.HOUR)


def test_an_empty_log_is_no_rows(tmp_path: Path) -> None:
    assert run_query(LocalStore(tmp_path), Query()).num_rows == 0
    assert run_query(LocalStore(tmp_path), Query(topic=CARS.topic)).schema.equals(SCAN_SCHEMA)
