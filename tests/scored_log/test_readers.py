"""The calls that docs/scored-log.md gives for readers of Parquet, run as they stand there."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from nap_stream.records import TopicPartition
from nap_stream.scored_log.format import EARLIEST_ROW_MS, LATEST_TIME_MS
from tests.scored_log.builders import chain, failed, origin, scored
from tests.support.waiting import PATIENCE_S

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


def _block(words: str) -> str:
    """The one block of the documentation that has a line which begins so, and a root."""
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    (block,) = [b for b in blocks if f"\n{words}" in f"\n{b}" and "root" in b]
    return str(block)


def _called(reader: str, root: Path) -> Any:
    """What the block of the documentation that imports a reader makes of a log."""
    block = _block(f"import {reader}")
    names: dict[str, Any] = {"root": str(root)}
    exec(compile(block, str(DOCS), "exec"), names)
    return names["log"]


TOPICS = ("00123", "2024-01-01", "1e5", "cars")
"""Names that may be taken for a number or a date."""


def _write(root: Path, topic: str) -> None:
    """Write rows of a topic, some of times that are out of bounds."""
    early = scored(origin(0, event_time_ms=EARLIEST_ROW_MS - 1))
    late = failed(origin(1, event_time_ms=LATEST_TIME_MS + 1))
    spans = [(2, [early, late]), (4, [scored(origin(2))]), (6, [])]
    chain(root, spans, TopicPartition(topic, 0))


@pytest.fixture(params=TOPICS)
def log(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    topic: str = request.param
    _write(tmp_path, topic)
    (tmp_path / "_monitors").mkdir()
    (tmp_path / "_monitors" / "monitor.json").write_text("{}", encoding="utf-8")
    return topic, tmp_path


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


SPARK = """
import json, sys
from pyspark.sql import SparkSession
made = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
made = made.config("spark.sql.session.timeZone", "UTC").config("spark.sql.shuffle.partitions", "1")
spark, root = made.getOrCreate(), sys.argv[1]
{block}
rows = log.selectExpr("topic", "partition", "offset", "year(event_time) AS year").collect()
print(json.dumps([list(row) for row in rows]))
spark.stop()
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("pyspark") is None, reason="there is no pyspark: pip install pyspark")
@pytest.mark.skipif(shutil.which("java") is None, reason="there is no Java, which Spark runs in")
def test_spark_sees_topics_as_text_and_takes_the_times(tmp_path: Path) -> None:
    for topic in TOPICS:
        _write(tmp_path, topic)
    script = SPARK.format(block=_block("spark.conf"))
    paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | paths,
        timeout=10 * PATIENCE_S,
    )
    assert ended.returncode == 0, ended.stderr
    years = (1900, 9999, 2026)
    assert sorted(json.loads(ended.stdout.splitlines()[-1])) == sorted(
        [topic, "0", offset, year] for topic in TOPICS for offset, year in enumerate(years)
    )
