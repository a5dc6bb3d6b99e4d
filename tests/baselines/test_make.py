import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nap_stream.baselines.counting import chosen_keys, count_blocks, fine_ms, thinned
from nap_stream.baselines.make import BaselineRequest, MadeBaseline, make_baseline
from nap_stream.baselines.report import more_rows, promise_of, rows_of, warnings_of
from nap_stream.baselines.spool import RECORD, RecordSpool
from nap_stream.baselines.stretch import Stretch, StretchQuery, read_stretch
from nap_stream.calibration.baseline import Baseline
from nap_stream.calibration.calibration import Calibration
from nap_stream.core.conformal import Rule
from nap_stream.core.time_kinds import TimeKinds
from nap_stream.errors import CalibrationError, ConfigError
from nap_stream.records import Status
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.settings.drift import DriftSettings, KeySettings
from tests.baselines.streams import (
    DAY_MS,
    HOUR_MS,
    START_MS,
    Stream,
    Writer,
    cameras,
    images,
    joined,
    within,
)

IMAGES = images()
QUERY = StretchQuery("cars", START_MS, START_MS + 30 * DAY_MS, KeySettings(), 1_000)


def request(**changes: Any) -> BaselineRequest:
    fields: dict[str, Any] = {
        "log_root": "scored-log",
        "made_by": "Ada",
        "reason": "good days",
        "block_ms": None,
        "kinds": None,
        "timezone": "UTC",
        "max_foreign": 0.02,
    }
    return BaselineRequest(**(fields | changes))


@contextmanager
def stretch_of(
    root: Path, stream: Stream, calibration: Calibration = IMAGES, query: StretchQuery = QUERY
) -> Iterator[Stretch]:
    Writer(root, calibration).write(stream)
    with RecordSpool() as spool:
        yield read_stretch(LocalStore(root), query, calibration, spool, lambda _d, _t: None)


def make(
    root: Path, stream: Stream, query: StretchQuery | None = None, **changes: Any
) -> tuple[MadeBaseline, list[str]]:
    """A baseline, and its warnings at a promise of one false alarm in 30 days."""
    query = query or replace(QUERY, until_ms=int(stream.times_ms[-1]) + 1)
    with stretch_of(root, stream, query=query) as stretch:
        made = make_baseline(
            stretch, query, IMAGES, request(**changes), created_ms=7, advance=lambda _d, _t: None
        )
        promise = promise_of(made, DriftSettings())
        return made, list(warnings_of(stretch, query, made, promise))


def baseline_of(made: MadeBaseline) -> Baseline:
    assert made.calibration.document.baseline is not None
    return made.calibration.document.baseline


def test_the_scores_of_the_stretch_take_the_place_of_those_of_the_images(tmp_path: Path) -> None:
    stream = cameras(4, 48, every_ms=30_000, shift={"camera-1": -1.0})
    made, warnings = make(tmp_path, stream)
    calibration, baseline = made.calibration, baseline_of(made)

    assert warnings == []
    assert (baseline.parent, baseline.judged_by) == (IMAGES.fingerprint, (IMAGES.fingerprint,))
    assert (baseline.records, baseline.by, baseline.topic) == (len(stream.fused), "key", "cars")
    assert (baseline.since_ms, baseline.until_ms) == (START_MS, int(stream.times_ms[-1]) + 1)
    assert (baseline.made_by, baseline.reason) == ("Ada", "good days")
    assert calibration.document.created_ms == 7
    assert calibration.document.method == IMAGES.document.method
    # One of them moved is flagged more often than the others, all together as alpha says.
    flagged = {name: made.blocks.of(name).flagged.sum() for name in made.blocks.keys}
    assert flagged[""] / len(stream.fused) == pytest.approx(0.05, abs=0.01)
    assert flagged["camera-1"] > 5 * flagged["camera-2"]
    # Independent records: blocks are as short as twenty records allow.
    assert (baseline.block_ms, made.choice.reason) == (600_000, "records")
    assert set(made.blocks.of("camera-1").records.tolist()) == {20}
    assert set(made.blocks.of("").records.tolist()) == {80}
    assert baseline.foreign_share == 0
    # Judged anew, the log gives the same blocks.
    judged = calibration.judge_fused(stream.fused, np.zeros(len(stream.fused), np.int64))
    assert flagged[""] == judged.is_ood.sum()
    by_images = IMAGES.judge_fused(stream.fused, np.zeros(len(stream.fused), np.int64))
    assert judged.calibration_p_value is not None
    assert judged.calibration_p_value.tolist() == by_images.ood_p_value.tolist()


def test_dependent_records_make_blocks_long_and_scores_few(tmp_path: Path) -> None:
    made, _ = make(tmp_path, cameras(5, 72, every_ms=20_000, kept=0.9))
    baseline = baseline_of(made)
    # (1 + 0.9) / (1 - 0.9) images of 20 s each; of flags and tails it is less.
    assert 200_000 < baseline.decorrelation_ms < 600_000
    assert baseline.block_ms in {HOUR_MS, 2 * HOUR_MS}
    assert made.choice.reason == "decorrelation"
    assert baseline.thinned_ms <= round(baseline.decorrelation_ms)
    assert made.correlation <= made.correlation_limit
    assert 2_000 <= made.calibration.size <= 5 * 72 * HOUR_MS / 150_000


def test_a_baseline_of_a_baseline_keeps_the_images(tmp_path: Path) -> None:
    first, _ = make(tmp_path / "first", cameras(2, 24, every_ms=60_000))
    stream = cameras(2, 24, every_ms=60_000, seed=5)
    with stretch_of(tmp_path / "second", stream, first.calibration) as stretch:
        second = make_baseline(
            stretch, QUERY, first.calibration, request(), created_ms=8, advance=lambda _d, _t: None
        )
    baseline = baseline_of(second)
    assert baseline.parent == IMAGES.fingerprint
    assert baseline.judged_by == (first.calibration.fingerprint,)
    arrays = second.calibration.arrays
    assert arrays["parent.score"].tolist() == IMAGES.arrays["score"].tolist()


def test_a_stretch_with_foreign_records_is_refused_by_name(tmp_path: Path) -> None:
    stream = cameras(3, 48, every_ms=30_000)
    stream.fused[within(stream, "camera-1", 20, 24)] -= 8
    with pytest.raises(CalibrationError) as caught:
        make(tmp_path / "a", stream)
    text = str(caught.value)
    assert "look foreign" in text
    assert "camera-1 8.23 %" in text
    assert "2026-01-01T18:00:00.000Z to 2026-01-02T00:00:00.000Z" in text
    assert "camera-2" not in text
    made, warnings = make(tmp_path / "b", stream, max_foreign=0.1)
    assert baseline_of(made).foreign_share == pytest.approx(4 / 48 / 3, rel=0.1)
    assert any("camera-1 8.23 %" in each for each in warnings)
    # Foreign or not, what records depend on is not told from it.
    assert baseline_of(made).block_ms <= 1_800_000


def test_a_short_stretch_is_refused_with_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"has [0-9] blocks of 1 h.* at least 10 are needed"):
        make(tmp_path, cameras(2, 3, every_ms=20_000), block_ms=HOUR_MS)


def test_few_blocks_are_told_of(tmp_path: Path) -> None:
    made, warnings = make(tmp_path, cameras(2, 24, every_ms=20_000), block_ms=HOUR_MS)
    assert (baseline_of(made).block_ms, made.choice.reason) == (HOUR_MS, "asked")
    (warning,) = warnings
    assert "as few as 24 blocks are compared with, of the stream, camera-0, camera-1" in warning


def test_a_time_with_too_few_blocks_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"fewer than 10 .* 1 h at these times: 00:00-06:00"):
        make(
            tmp_path,
            cameras(2, 24, every_ms=60_000),
            block_ms=HOUR_MS,
            kinds=TimeKinds((0, 6)),
            max_foreign=1.0,
        )


def test_days_and_nights_are_told_apart(tmp_path: Path) -> None:
    stream = cameras(3, 6 * 24, every_ms=120_000)
    hours = (stream.times_ms - START_MS) // HOUR_MS % 24
    stream.fused[(hours < 6) | (hours >= 20)] -= 2
    made, _ = make(tmp_path / "a", stream, block_ms=HOUR_MS)
    assert baseline_of(made).kinds == TimeKinds((6, 20))
    assert (made.foreign.share, made.foreign.keys) == (0, 3)
    none, _ = make(tmp_path / "b", stream, kinds=TimeKinds(), max_foreign=1.0, block_ms=HOUR_MS)
    assert baseline_of(none).kinds == TimeKinds()


def test_kinds_that_are_dropped_and_those_that_cost_are_told_of(tmp_path: Path) -> None:
    stream = cameras(3, 4 * 24, every_ms=120_000)
    hours = (stream.times_ms - START_MS) // HOUR_MS % 24
    stream.fused[(hours >= 8) & (hours < 12)] -= 2
    made, warnings = make(tmp_path / "a", stream, block_ms=4 * HOUR_MS, max_foreign=1.0)
    assert baseline_of(made).kinds != TimeKinds((8, 12))
    assert warnings[0].startswith(
        "the time matters, but there are too few blocks to tell 08:00-12:00, 12:00-08:00 apart"
    )
    # A block a day: twelve are needed.
    assert warnings[0].endswith("A stretch of about 12 days would do")
    made, (warning, few) = make(tmp_path / "b", stream, block_ms=HOUR_MS, max_foreign=1.0)
    assert baseline_of(made).kinds == TimeKinds((8, 12))
    assert "as few as 16 blocks" in few
    found = re.search(
        r"is seen after about (.*); .* none seen after about (.*), but .* of about 10 days, "
        r"seen after about (.*)$",
        warning,
    )
    assert found is not None
    now, alike, good = (hours_of(text) for text in found.groups())
    assert 1 <= alike < now
    assert good < now


def hours_of(text: str) -> float:
    units = {"min": 1 / 60, "h": 1, "d": 24}
    words = text.split()
    return sum(float(n) * units[unit] for n, unit in zip(words[::2], words[1::2], strict=True))


def test_a_change_in_the_stretch_is_told_of(tmp_path: Path) -> None:
    before = cameras(3, 24, every_ms=60_000)
    after = cameras(3, 24, every_ms=60_000, seed=1, start_ms=START_MS + DAY_MS)
    after.fused -= 1.5
    _, warnings = make(tmp_path, joined(before, after), block_ms=HOUR_MS, max_foreign=1.0)
    assert any("neighbouring blocks are alike" in each for each in warnings)


def test_odd_keys_are_told_of(tmp_path: Path) -> None:
    first = cameras(2, 24, every_ms=60_000)
    both = cameras(3, 24, every_ms=60_000, start_ms=START_MS + DAY_MS, seed=1)
    last = both.times_ms < START_MS + 26 * HOUR_MS
    gone = np.array(both.keys) == "camera-0"
    kept = np.flatnonzero(~gone | last)
    both = Stream(
        both.times_ms[kept],
        [both.keys[row] if row % 50 else None for row in kept.tolist()],
        both.fused[kept],
    )
    _, warnings = make(tmp_path, joined(first, both))
    text = "\n".join(warnings)
    assert "appear in the middle of the stretch: camera-2 (from 2026-01-02T00:0" in text
    assert "end in the middle of the stretch: camera-0 (until 2026-01-02T01:59:0" in text
    assert "records have no key" in text


def test_what_the_stretch_lacks_is_told_of(tmp_path: Path) -> None:
    stream = cameras(2, 24, every_ms=60_000)
    stream.keys = [
        key.upper() if key and row % 4 > 1 else key for row, key in enumerate(stream.keys)
    ]
    stream.status = dict.fromkeys(range(0, 2_880, 20), Status.CORRUPT) | {1: Status.TOMBSTONE}
    _, warnings = make(tmp_path, stream, QUERY)
    text = "\n".join(warnings)
    assert "144 images (5 %) have no scores" in text
    assert "case alone: CAMERA-0 and camera-0, CAMERA-1 and camera-1" in text
    assert "records from 2026-01-01T00:01:00.000Z to 2026-01-01T23:59:00.002Z alone" in text


def test_one_key_only_is_told_of(tmp_path: Path) -> None:
    _, warnings = make(tmp_path, cameras(1, 24, every_ms=30_000))
    assert any("there is one key only, camera-0" in each for each in warnings)


def test_hours_without_records_are_told_of(tmp_path: Path) -> None:
    first = cameras(2, 12, every_ms=30_000)
    second = cameras(2, 12, every_ms=30_000, start_ms=START_MS + DAY_MS)
    _, warnings = make(tmp_path, joined(first, second))
    assert any(
        "33.3 % of the stretch has no records, longest from 2026-01-01T12:00:00.000Z to "
        "2026-01-02T00:00:00.000Z" in each
        for each in warnings
    )


def test_gaps_and_clocks_are_told_of(tmp_path: Path) -> None:
    writer = Writer(tmp_path, IMAGES)
    first = cameras(2, 12, every_ms=30_000)
    times = first.times_ms.copy()
    times[100:120] += 90 * DAY_MS
    first.event_times_ms = times
    writer.write(first)
    writer.gap(500)
    writer.write(cameras(2, 12, every_ms=30_000, start_ms=START_MS + 12 * HOUR_MS))
    with RecordSpool() as spool:
        query = replace(QUERY, until_ms=START_MS + DAY_MS)
        stretch = read_stretch(LocalStore(tmp_path), query, IMAGES, spool, lambda _d, _t: None)
        made = make_baseline(
            stretch, query, IMAGES, request(), created_ms=7, advance=lambda _d, _t: None
        )
    gaps, clocks, *_ = warnings_of(stretch, query, made, promise_of(made, DriftSettings()))
    assert gaps == (
        "500 offsets of the stretch are declared as lost: cars/0 [2880, 3380): "
        "retention deleted them"
    )
    assert clocks.startswith("the event times of 20 images jump")
    assert clocks.endswith("the first at cars/0 offset 100")


def test_a_rule_that_needs_more_is_refused(tmp_path: Path) -> None:
    classes = [0, 1] * 200
    per_class = images(rule=Rule(0.05, per_class=True), class_id=classes)
    with (
        stretch_of(tmp_path, cameras(2, 12, every_ms=60_000), per_class) as stretch,
        pytest.raises(CalibrationError, match="class 1 has 0"),
    ):
        make_baseline(
            stretch, QUERY, per_class, request(), created_ms=7, advance=lambda _d, _t: None
        )


def test_blocks_are_not_shorter_than_panes(tmp_path: Path) -> None:
    query = StretchQuery("cars", START_MS, START_MS + DAY_MS, KeySettings(), 60_000)
    asked = request(block_ms=10_000)
    with (
        stretch_of(tmp_path, cameras(2, 12, every_ms=60_000), query=query) as stretch,
        pytest.raises(ConfigError, match="blocks of 10 s are shorter than the panes"),
    ):
        make_baseline(stretch, query, IMAGES, asked, created_ms=7, advance=lambda _d, _t: None)


def test_promises_are_told_in_time_and_blocks(tmp_path: Path) -> None:
    made, _ = make(tmp_path, cameras(2, 48, every_ms=30_000), block_ms=1_800_000)
    rows = dict(rows_of(baseline_of(made), made.blocks))
    assert rows["records"] == "11,520 of 2 keys by key; 4.99 % flagged"
    assert rows["vouched for by"] == "Ada: good days"
    assert rows["blocks"] == "30 min long, 96 of the stream, 96 of a key (96 to 96)"
    promised = promise_of(made, DriftSettings(false_alarms="one per 10 days at 50 images/s"))
    assert promised.run_time_ms == 10 * DAY_MS
    told = dict(more_rows(made, promised))["promise"]
    assert told == "at most one false alarm in 10 d, or 480 blocks, for 95% of the baselines"
    likely = promise_of(made, DriftSettings(false_alarms="probability 0.1 in 7 days at 9 images/s"))
    assert likely.run_time_ms == 70 * DAY_MS
    # 11,520 records in two days.
    counted = promise_of(made, DriftSettings(expected_run_length=115_200))
    assert counted.run_time_ms == pytest.approx(20 * DAY_MS, rel=1e-3)
    with pytest.raises(ConfigError, match="more often than once in a block of 30 min"):
        promise_of(made, DriftSettings(expected_run_length=100))


def spooled(times_ms: list[int], keys: list[int], spool: RecordSpool) -> Stretch:
    records = np.zeros(len(times_ms), RECORD)
    records["time_ms"], records["key"] = times_ms, keys
    records["fused"] = np.arange(len(times_ms))
    spool.begin_partition()
    spool.append(records)
    names = tuple(f"camera-{number}" for number in range(max(keys) + 1))
    count = np.bincount(keys)
    ends = np.full(len(names), max(times_ms))
    starts = np.full(len(names), min(times_ms))
    return Stretch(spool, names, count, starts, ends, (), (), 0, "", (), 0, 0, len(times_ms))


def test_one_record_of_a_key_is_taken_in_each_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nap_stream.baselines.spool.CHUNK_RECORDS", 3)
    monkeypatch.setattr("nap_stream.baselines.counting.WANTED_SCORES", 4)
    with RecordSpool() as spool:
        stretch = spooled([0, 5, 6, 9, 10, 11, 25, 29], [0, 0, 1, 1, 0, 1, 0, 0], spool)
        scores, _, slot_ms = thinned(stretch, 10.0)
        assert (scores.tolist(), slot_ms) == ([0, 2, 4, 5, 6], 10)
        monkeypatch.setattr("nap_stream.baselines.counting.MAX_SCORES", 3)
        assert len(thinned(stretch, 10.0)[0]) == 3


def test_slots_are_shortened_where_scores_would_be_few() -> None:
    with RecordSpool() as spool:
        stretch = spooled(list(range(5_000)), [0] * 5_000, spool)
        scores, _, slot_ms = thinned(stretch, 1_000.0)
    assert (len(scores), slot_ms) == (2_500, 2)


def test_records_count_in_the_block_in_which_their_pane_begins() -> None:
    with RecordSpool() as spool:
        stretch = spooled([900, 1_999, 2_000, 2_100, 9_999], [0, 0, 0, 1, 1], spool)
        blocks = count_blocks(
            stretch, lambda fused, _: (np.full(len(fused), 0.5), fused == 3), 5_000, 2_000
        )
        some = count_blocks(
            stretch, lambda fused, _: (np.full(len(fused), 0.5), fused == 3), 5_000, 2_000, ()
        )
        assert fine_ms(stretch, 3_000) == 5_000
        assert chosen_keys(stretch, 1_000) == ("camera-0", "camera-1")
    assert blocks.keys == ("", "camera-0", "camera-1")
    assert blocks.key.tolist() == [0, 0, 1, 2, 2]
    assert blocks.start_ms.tolist() == [0, 5_000, 0, 0, 5_000]
    assert blocks.records.tolist() == [4, 1, 3, 1, 1]
    assert blocks.flagged.tolist() == [1, 0, 0, 1, 0]
    assert (some.keys, some.records.tolist()) == (("",), [4, 1])


def test_some_keys_stand_for_very_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nap_stream.baselines.counting.MAX_CELLS", 30)
    with RecordSpool() as spool:
        stretch = spooled(list(range(10)), list(range(10)), spool)
        assert chosen_keys(stretch, 1) == ("camera-0", "camera-4", "camera-9")
