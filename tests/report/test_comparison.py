"""Two periods or models side by side: figures against DuckDB and by hand."""

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from nap_stream.core.blocks import Blocks, added_up, effect, shift
from nap_stream.core.panes import NO_KEY
from nap_stream.core.tails import EDGES, bins_of
from nap_stream.report import counts
from nap_stream.report.comparison import tables_of, unit_of
from nap_stream.report.gather import Asked, Figures, gather
from nap_stream.report.page import render
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.text import percent
from tests.report.month import DAY_MS, END_MS, HOUR_MS, MODELS, at, write_rows
from tests.scored_log.builders import chain, origin, scored

WEEKS = (at("06T00:00"), at("13T00:00")), (at("20T00:00"), at("27T00:00"))
DAYS = (at("18T00:00"), at("19T00:00")), (at("20T00:00"), at("21T00:00"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("log")
    write_rows(LocalStore(root))
    return root


def _gathered(root: Path, asked: Asked) -> Figures:
    return gather(LocalStore(root), asked, now_ms=END_MS + DAY_MS)


def _periods(root: Path, first: tuple[int, int], second: tuple[int, int]) -> Figures:
    asked = Asked(since_ms=second[0], until_ms=second[1], compared=first, verified=False)
    return _gathered(root, asked)


def _rows(root: Path, where: str) -> dict[str, Any]:
    files = f"read_parquet('{root}/topic=*/partition=*/*.parquet', hive_partitioning = true)"
    columns = "epoch_ms(event_time) AS time, decode(key) AS key, class_name, is_ood, ood_p_value"
    found = duckdb.execute(f"SELECT {columns} FROM {files} WHERE {where}").fetchnumpy()
    return dict(found)


def _within(span: tuple[int, int]) -> str:
    return f"epoch_ms(event_time) >= {span[0]} AND epoch_ms(event_time) < {span[1]}"


def _blocks(rows: dict[str, Any], unit_ms: int, is_own: Any = None) -> Blocks:
    """Blocks of the scored rows, counted without SQL."""
    p = np.ma.filled(rows["ood_p_value"].astype(float), np.nan)
    own = ~np.isnan(p) if is_own is None else ~np.isnan(p) & is_own
    count = int(own.sum())
    counts = np.zeros((count, 3 + len(EDGES)), np.int64)
    counts[:, 0], counts[:, 1] = 1, p[own] <= 0.02
    counts[np.arange(count), 2 + bins_of(p[own])] = 1
    time = rows["time"][own].astype(np.int64)
    return added_up(np.zeros(count, np.int64), time, counts, (NO_KEY,), unit_ms)


def _points(low: float, high: float) -> str:
    return f"{100 * low:+.3g} to {100 * high:+.3g}"


@pytest.mark.parametrize(("spans", "unit_ms"), [(WEEKS, DAY_MS), (DAYS, HOUR_MS)])
def test_two_periods_are_compared_by_how_days_or_hours_differ(
    root: Path, spans: tuple[tuple[int, int], tuple[int, int]], unit_ms: int
) -> None:
    figures = _periods(root, *spans)
    tables = dict(tables_of(figures))
    first, second = (_rows(root, _within(span)) for span in spans)
    one, other = _blocks(first, HOUR_MS), _blocks(second, HOUR_MS)
    expected, order = effect(one, other), shift(one, other)
    assert expected.unit_ms == unit_ms
    assert unit_of(figures) == ("1 d" if unit_ms == DAY_MS else "1 h")
    whole = {row[0]: row[1:] for row in tables["In all"]}
    assert whole["Flagged, of scored images"] == (
        percent(expected.baseline_share),
        percent(expected.share),
        f"{100 * expected.difference:+.3g} points",
        _points(expected.low, expected.high),
    )
    name = "Of two scored images, one of each side, the more anomalous is of"
    assert whole[name][:2] == (percent(1 - order.probability), percent(order.probability))
    assert whole[name][3] == f"{100 * order.low:.3g} to {percent(order.high)}"
    p = [np.ma.filled(rows["ood_p_value"].astype(float), np.nan) for rows in (first, second)]
    bins = [bins_of(values[~np.isnan(values)]) for values in p]
    assert order.probability == pytest.approx(
        mannwhitneyu(bins[0], bins[1]).statistic / len(bins[0]) / len(bins[1])
    )
    for caption, column in (
        ("Flagged by key", "key"),
        ("Flagged by predicted class", "class_name"),
    ):
        for row in tables[caption]:
            sides = [_blocks(rows, HOUR_MS, rows[column] == row[0]) for rows in (first, second)]
            found = effect(sides[0], sides[1])
            assert row[4] == _points(max(-1, found.low), min(1, found.high)), row


def test_the_surest_difference_comes_first(root: Path) -> None:
    rows = dict(tables_of(_periods(root, *DAYS)))["Flagged by key"]
    # The cameras that drift on the 20th, and no other.
    assert {row[0] for row in rows[:2]} == {"camera-5", "camera-6"}
    assert all(float(row[4].split(" to ")[0]) > 0 for row in rows[:2])
    lows = [float(row[4].split(" to ")[0]) for row in rows]
    assert all(low <= 0 for low in lows[2:])


def test_what_is_large_against_its_doubt_comes_before_what_is_small(root: Path) -> None:
    rows = dict(tables_of(_periods(root, *WEEKS)))["Flagged by key"]
    # Two days of the week: the days differ too much to be sure, and no other camera is as far.
    assert {row[0] for row in rows[:2]} == {"camera-5", "camera-6"}
    assert all(float(row[4].split(" to ")[0]) < 0 for row in rows)


def test_two_models_are_compared_by_the_days_of_each(root: Path) -> None:
    figures = _gathered(root, Asked(model="d4d4", verified=False))
    assert unit_of(figures) == "1 d"
    sides = [_blocks(_rows(root, f"model_fingerprint = '{model}'"), HOUR_MS) for model in MODELS]
    found = effect(sides[0], sides[1])
    row = dict(tables_of(figures))["In all"][1]
    assert row[4] == _points(found.low, found.high)


def test_one_stretch_alone_has_no_interval_and_none_no_share(root: Path) -> None:
    minutes = (at("18T00:00"), at("18T00:01")), (at("20T00:00"), at("20T00:01"))
    whole = {row[0]: row[1:] for row in dict(tables_of(_periods(root, *minutes)))["In all"]}
    assert whole["Flagged, of scored images"][3] == "not known: one unit alone"
    nothing = (at("18T00:01"), at("18T00:02"))
    figures = _periods(root, nothing, minutes[1])
    whole = {row[0]: row[1:] for row in dict(tables_of(figures))["In all"]}
    assert whole["Flagged, of scored images"] == ("no images", "0 %", "", "")
    assert unit_of(figures) == ""
    assert "stretches of the clock differ: days where" in render(figures)


def test_a_fortnight_without_a_flag_is_as_sure_as_its_hours_are_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = at("04T00:00")
    rows = [
        scored(origin(2 * hour + rare, event_time_ms=start + hour * HOUR_MS, key=key))
        for hour in range(14 * 24)
        for rare, key in enumerate((b"each day", None))
        # Three days of each week.
        if not rare or hour // 24 % 7 in {0, 2, 4}
    ]
    chain(tmp_path, [(2 * 14 * 24, rows)])
    weeks = [(start + 7 * n * DAY_MS, start + 7 * (n + 1) * DAY_MS) for n in (0, 1)]

    def intervals() -> list[str]:
        tables = dict(tables_of(_periods(tmp_path, weeks[0], weeks[1])))
        by_key = {row[0]: row[4] for row in tables["Flagged by key"]}
        return [tables["In all"][1][4], by_key["each day"], by_key[""]]

    hours, days, few = (_points(-most / 100, most / 100) for most in (1.783, 42.80, 99.86))
    assert intervals() == [hours, hours, few]
    page = render(_periods(tmp_path, weeks[0], weeks[1]))
    assert '<th scope="row">(none, or empty)</th>' in page.partition('id="compared"')[2]
    monkeypatch.setattr(counts, "MAX_UNITS", 100)
    assert intervals() == [hours, days, few]
