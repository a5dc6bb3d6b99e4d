"""The calls that docs/scored-log.md gives for readers of Parquet, run as they stand there."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nap_stream.records import TopicPartition
from nap_stream.scored_log.format import EARLIEST_ROW_MS, LATEST_TIME_MS
from tests.scored_log.builders import chain, failed, origin, scored

DOCS = Path(__file__).parents[2] / "docs" / "scored-log.md"
Rows = list[tuple[Any, ...]]
_NAMES = ["topic", "partition", "offset"]


def _arrow_rows(log: Any) -> Rows:
    return [tuple(row.values()) for row in log.to_table(columns=_NAMES).to_pylist()]


READERS: dict[str, Callable[[Any], Rows]] = {
    "pyarrow.dataset": _arrow_rows,
    "duckdb": lambda log: list(log.select(*_NAMES).fetchall()),
    "polars": lambda log: list(log.select(_NAMES).collect().rows()),
    "pandas": lambda log: list(log[_NAMES].itertuples(index=False, name=None)),
}


def _called(reader: str, root: Path) -> Any:
    """What the one block of the documentation that imports a reader makes of a log."""
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    (block,) = [b for b in blocks if f"\nimport {reader}" in f"\n{b}" and "root" in b]
    names: dict[str, Any] = {"root": str(root)}
    exec(compile(block, str(DOCS), "exec"), names)
    return names["log"]


@pytest.fixture(params=["00123", "2024-01-01", "1e5", "cars"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """A topic whose name may be taken for a number or a date, and times that are out of bounds."""
    where = TopicPartition(request.param, 0)
    early = scored(origin(0, event_time_ms=EARLIEST_ROW_MS - 1))
    late = failed(origin(1, event_time_ms=LATEST_TIME_MS + 1))
    chain(tmp_path, [(2, [early, late]), (4, [scored(origin(2))]), (6, [])], where)
    (tmp_path / "_monitors").mkdir()
    (tmp_path / "_monitors" / "monitor.json").write_text("{}", encoding="utf-8")
    return where.topic, tmp_path


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_sees_topics_as_text_and_every_row_once(
    reader: str, log: tuple[str, Path]
) -> None:
    topic, root = log
    assert sorted(READERS[reader](_called(reader, root))) == [
        (topic, 0, offset) for offset in range(3)
    ]


@pytest.mark.parametrize("reader", ["polars", "pandas"])
def test_a_reader_takes_the_times(reader: str, log: tuple[str, Path]) -> None:
    found = _called(reader, log[1])
    times = (found if reader == "pandas" else found.collect())["event_time"]
    assert (times.min().year, times.max().year) == (1900, 9999)
