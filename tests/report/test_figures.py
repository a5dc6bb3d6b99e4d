"""The figures of a report, against DuckDB over the same files, and against plain Python."""

import dataclasses
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from nap_stream.clock import ManualClock
from nap_stream.errors import ConfigError
from nap_stream.report import counts as counts_module
from nap_stream.report.counts import MAX_BINS, Count, Tally, chart_width_ms, quantile
from nap_stream.report.gather import Asked, Figures, gather
from nap_stream.scored_log.compact import compact
from nap_stream.scored_log.events import Event, append_event
from nap_stream.scored_log.stores.local import LocalStore
from tests.report.month import (
    DAY_MS,
    END_MS,
    HOUR_MS,
    MODELS,
    OUTAGE,
    START_MS,
    TOPIC,
    at,
    run_started,
    write_events,
    write_rows,
)

WHOLE = (None, None)
PARTS = (WHOLE, (at("12T02:17"), at("22T09:31")), (at("20T10:00"), at("20T10:07")))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The month; a part of it is compacted."""
    root = tmp_path_factory.mktemp("log")
    write_rows(LocalStore(root))
    compact(LocalStore(root), clock=ManualClock(at("15T00:00")))
    write_events(LocalStore(root))
    return root


@pytest.fixture(scope="module")
def whole(root: Path) -> Figures:
    """The figures of the month."""
    return _asked(root, Asked(images=7))


def _asked(root: Path, asked: Asked, now_ms: int = END_MS + DAY_MS) -> Figures:
    """The figures, but for what `verify` says: that is shown by the page."""
    asked = dataclasses.replace(asked, verified=False)
    return gather(LocalStore(root), asked, now_ms=now_ms)


def _duck(root: Path, what: str, where: str, by: str = "") -> list[tuple[Any, ...]]:
    files = f"read_parquet('{root}/topic=*/partition=*/*.parquet', hive_partitioning = true)"
    order = f"GROUP BY {by} ORDER BY ALL" if by else ""
    return _fetched(
        f"SET TimeZone = 'UTC'; SELECT {by + ',' if by else ''} {what} FROM {files} "
        f"WHERE {where} {order}"
    )


def _fetched(sql: str) -> list[tuple[Any, ...]]:
    return duckdb.execute(sql).fetchall()


def _within(part: tuple[int | None, int | None]) -> str:
    since, until = part
    return (
        f"epoch_ms(event_time) >= {START_MS if since is None else since} AND "
        f"epoch_ms(event_time) < {END_MS if until is None else until}"
    )


def _plain(counts: Mapping[Any, Count]) -> list[tuple[Any, ...]]:
    keys = [key if isinstance(key, tuple) else (key,) for key in counts]
    return sorted(
        (*key, c.rows, c.scored, c.ood) for key, c in zip(keys, counts.values(), strict=True)
    )


COUNTS = "count(*), count(ood_p_value), count(*) FILTER (is_ood)"


@pytest.mark.parametrize("part", PARTS)
def test_counts_are_those_of_duckdb(root: Path, part: tuple[int | None, int | None]) -> None:
    found = _asked(root, Asked(since_ms=part[0], until_ms=part[1])).tally
    where = _within(part)

    assert found.all.rows == _duck(root, "count(*)", where)[0][0] > 0
    assert _plain(found.statuses) == _duck(root, COUNTS, where, "status")
    assert _plain(found.keys or {}) == _duck(root, COUNTS, where, "decode(key)")
    scored = f"{where} AND status = 'ok'"
    assert _plain(found.classes) == _duck(root, COUNTS, scored, "class_name")
    by = "topic, model_fingerprint, calibration_fingerprint"
    assert _plain(found.judged) == _duck(root, COUNTS, where, by)
    for counts, name in ((found.times, "event"), (found.scored_times, "scored")):
        start = f"epoch_ms({name}_time) // {found.width_ms} * {found.width_ms}"
        assert _plain(counts) == _duck(root, COUNTS, where, f"topic, {start}")
    ends = "epoch_ms(min(event_time)), epoch_ms(max(event_time))"
    assert (found.all.first_ms, found.all.last_ms) == _duck(root, ends, where)[0]


@pytest.mark.parametrize("part", PARTS)
def test_delays_are_those_of_duckdb_rounded_up(
    root: Path, part: tuple[int | None, int | None]
) -> None:
    found = _asked(root, Asked(since_ms=part[0], until_ms=part[1])).tally
    for counts, name in ((found.lags, "event"), (found.delays, "ingest")):
        exact = f"epoch_ms(scored_time) - epoch_ms({name}_time)"
        rows = sorted(row[0] for row in _duck(root, exact, _within(part)))
        for share in (0.5, 0.99, 1.0):
            # Below a second every millisecond is told apart.
            assert quantile(counts, share) == rows[math.ceil(share * len(rows)) - 1] < 1_000


@given(st.lists(st.integers(-50, 10**13), min_size=1, max_size=30))
def test_a_delay_is_rounded_up_to_three_digits(values: list[int]) -> None:
    text = counts_module._rounded("d")
    found = _fetched(f"SELECT d, {text} FROM (SELECT unnest({values}) AS d)")
    for value, rounded in found:
        digits = max(0, len(str(value)) - 3)
        assert rounded == (-1 if value < 0 else -(-value // 10**digits) * 10**digits)


def test_keys_are_told_apart_by_what_the_newest_run_says(root: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(root, tmp_path / "log"))
    keys = {"by": "header:line"}
    append_event(LocalStore(copy), run_started("30T00:00", "coordinator-9", keys=keys))
    found = _asked(copy, Asked())
    assert found.key_by == "header:line"
    name = "decode([h.value FOR h IN headers IF h.name = 'line'][1])"
    assert _plain(found.tally.keys or {}) == _duck(root, COUNTS, _within(WHOLE), name)


@pytest.mark.parametrize("most", [5, 2])
def test_more_keys_than_can_be_told_apart(
    root: Path, whole: Figures, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(counts_module, "MAX_KEYS", most)
    monkeypatch.setattr("nap_stream.scored_log.engine.CHUNK_ROWS", 1_000)
    found = _asked(root, Asked()).tally
    assert found.keys is None
    assert dataclasses.replace(found, keys=whole.tally.keys) == whole.tally


def test_intervals_are_scipys(whole: Figures) -> None:
    found = whole.tally
    for count in (*found.classes.values(), *(found.keys or {}).values(), Count(9, 9, 0)):
        test = binomtest(count.ood, count.scored).proportion_ci(method="wilson")
        assert count.interval == pytest.approx((test.low, test.high), abs=1e-12)


def test_the_most_anomalous_rows(root: Path, whole: Figures) -> None:
    found = whole.anomalous
    place = 'topic, partition, "offset", "index"'
    wanted = _fetched(
        f"SELECT ood_p_value, {place} FROM read_parquet('{root}/topic=*/partition=*/*.parquet', "
        f"hive_partitioning = true) ORDER BY ood_p_value, {place} LIMIT 7"
    )
    names = ("ood_p_value", "topic", "partition", "offset", "index")
    assert [tuple(row[name] for name in names) for row in found] == wanted


def test_an_anomalous_row_is_named_as_keys_are_and_says_what_was_erased(
    root: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(root, tmp_path / "log"))
    append_event(
        LocalStore(copy), run_started("30T00:00", "coordinator-9", keys={"by": "header:line"})
    )
    first, second = _asked(copy, Asked(images=2)).anomalous
    assert {first["key"], second["key"]} <= {"east", "west"}
    data = {"sha256": [second["sha256"]], "files": 1, "reason": "asked for"}
    event = Event(time_ms=at("30T12:00"), kind="erased", by="Ada", data=data)
    append_event(LocalStore(copy), event)
    found = _asked(copy, Asked(images=2)).anomalous
    told = [row["no_picture"] for row in found]
    assert told == ["No store of images was named.", "It was erased 2026-05-30 by Ada."]


def test_two_periods(root: Path) -> None:
    week = (at("20T00:00"), at("27T00:00"))
    before = (at("13T00:00"), at("20T00:00"))
    found = _asked(root, Asked(since_ms=week[0], until_ms=week[1], compared=before)).comparison
    assert found is not None
    for tally, part in ((found.first, before), (found.second, week)):
        assert _plain(tally.statuses) == _duck(root, COUNTS, _within(part), "status")
    assert found.shared is None
    open_end = Asked(since_ms=week[0], until_ms=week[1], compared=(at("25T00:00"), None))
    found = _asked(root, open_end).comparison
    assert found is not None
    assert found.shared == (at("25T00:00"), week[1])


def test_two_models(root: Path) -> None:
    found = _asked(root, Asked(model="d4d4")).comparison
    assert found is not None
    assert found.names == (MODELS[0][:12], MODELS[1][:12])
    for tally, model in zip((found.first, found.second), MODELS, strict=True):
        where = f"model_fingerprint = '{model}'"
        assert _plain(tally.classes) == _duck(
            root, COUNTS, f"{where} AND status = 'ok'", "class_name"
        )
    with pytest.raises(ConfigError, match="one of several models' fingerprints begins, got 'ff'"):
        _asked(root, Asked(model="ff"))
    with pytest.raises(ConfigError, match="of a1a1"):
        _asked(root, Asked(model="a1", until_ms=at("02T00:00")))


def test_a_period_ends_now_or_with_the_log(root: Path) -> None:
    now = END_MS + DAY_MS

    def period(since: int | None, until: int | None) -> tuple[int, int]:
        found = _asked(root, Asked(since_ms=since, until_ms=until), now)
        return found.since_ms, found.until_ms

    last = END_MS - 600_000 + 7
    assert period(None, None) == (START_MS, last + 1)
    assert period(at("07T00:00"), None) == (at("07T00:00"), now)
    assert period(None, at("02T00:00")) == (START_MS, at("02T00:00"))
    assert period(now + 5, None) == (now + 5, now + 6)
    # What comes from a clock that is wrong is not the end.
    found = _asked(root, Asked(), at("07T00:00"))
    assert (found.since_ms, found.until_ms) == (START_MS, at("07T00:00"))


def test_what_is_not_there_is_an_error(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"no topic 'botles'; it has {TOPIC}"):
        _asked(root, Asked(topic="botles"))
    with pytest.raises(ConfigError, match="there is no chain here"):
        _asked(tmp_path, Asked())


def test_an_empty_period_says_where_the_rows_are(root: Path) -> None:
    found = _asked(root, Asked(since_ms=OUTAGE[0], until_ms=OUTAGE[1]))
    assert found.tally == Tally(found.tally.width_ms, {}, {}, {}, {}, {}, {}, {}, {})
    assert found.anomalous == ()
    found = _asked(root, Asked(since_ms=END_MS, until_ms=END_MS + 1))
    assert found.held == (START_MS, END_MS - 600_000 + 7)


@given(st.integers(1, 10**15))
def test_a_chart_has_as_many_stretches_as_it_can_show(span_ms: int) -> None:
    width = chart_width_ms(span_ms)
    assert span_ms / width <= MAX_BINS
    assert width < HOUR_MS or width % HOUR_MS == 0


@given(st.lists(st.integers(-1, 50), min_size=1), st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_is_of_the_sorted_values(values: list[int], share: float) -> None:
    counts = {value: values.count(value) for value in values}
    assert quantile(counts, share) == sorted(values)[math.ceil(share * len(values) - 1e-9) - 1]
    assert quantile({}, share) is None
