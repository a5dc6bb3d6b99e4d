import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nap_stream.baselines import stretch as module
from nap_stream.baselines.spool import RecordSpool
from nap_stream.baselines.stretch import Stretch, StretchQuery, read_stretch
from nap_stream.calibration.calibration import Calibration
from nap_stream.clock import ManualClock
from nap_stream.errors import CalibrationError, ConfigError, LogRootError
from nap_stream.records import Status, TopicPartition
from nap_stream.scored_log.compact import compact
from nap_stream.scored_log.footer import segment_sha256
from nap_stream.scored_log.read import segments
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.settings.drift import KeySettings
from tests.baselines.streams import CARS, DAY_MS, HOUR_MS, START_MS, Stream, Writer, cameras, images
from tests.support.baseline_calibrations import with_baseline
from tests.support.log_files import read_footer

SECOND = TopicPartition("cars", 1)
IMAGES = images()
BY_KEY = KeySettings()
EVER = (START_MS - 1, START_MS + 30 * DAY_MS)


class Read:
    """What was read, with the records themselves."""

    def __init__(self, found: Stretch) -> None:
        self.found = found
        chunks = list(found.spool.chunks())
        self.times_ms = [time for chunk in chunks for time in chunk["time_ms"].tolist()]
        self.fused = [score for chunk in chunks for score in chunk["fused"].tolist()]
        self.keys = [found.keys[number] for chunk in chunks for number in chunk["key"].tolist()]


def read(
    root: Path,
    calibration: Calibration = IMAGES,
    span: tuple[int, int] = EVER,
    keys: KeySettings | None = BY_KEY,
    **changes: Any,
) -> Read:
    query = StretchQuery("cars", *span, keys, 1_000, **changes)
    with RecordSpool() as spool:
        store = LocalStore(root)
        return Read(read_stretch(store, query, calibration, spool, lambda _done, _total: None))


def test_all_scored_records_are_read_with_keys_and_scores(tmp_path: Path) -> None:
    stream = cameras(3, 0.5)
    stream.status = {0: Status.CORRUPT, 7: Status.CORRUPT}
    Writer(tmp_path, IMAGES).write(stream, segment=100)
    found = read(tmp_path)
    kept = [row for row in range(len(stream.fused)) if row not in stream.status]
    assert found.fused == stream.fused[kept].tolist()
    assert found.times_ms == stream.times_ms[kept].tolist()
    assert found.keys == [stream.keys[row] for row in kept]
    whole = found.found
    assert whole.records == len(kept)
    assert dict(zip(whole.keys, whole.key_records.tolist(), strict=True)) == {
        "camera-0": 179,
        "camera-1": 179,
        "camera-2": 180,
    }
    assert whole.last_ms.max() == stream.times_ms[-1]
    assert (whole.gaps, whole.jumping, whole.split_keys) == ((), 0, 0)
    assert whole.judged_by == (IMAGES.fingerprint,)


def test_a_part_names_its_segments_and_the_head_of_its_chain(tmp_path: Path) -> None:
    Writer(tmp_path, IMAGES).write(cameras(1, 1), segment=50)
    span = START_MS + 1_000_000, START_MS + 2_000_000
    found = read(tmp_path, span=span)
    # An image each ten seconds: offsets 100 to 199.
    assert (found.times_ms[0], found.times_ms[-1]) == (span[0], span[1] - 10_000)
    (part,) = found.found.chains
    assert (part.partition, part.start, part.end) == (0, 100, 200)
    store = LocalStore(tmp_path)
    assert part.head_sha256 == segment_sha256(read_footer(store, segments(store, CARS)[3]))
    compact(store, clock=ManualClock(START_MS + 10 * DAY_MS))
    again = read(tmp_path, span=span).found
    assert (again.records, again.chains) == (100, (part,))


def test_small_tables_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Writer(tmp_path, IMAGES).write(cameras(3, 1), segment=70)
    compact(LocalStore(tmp_path), clock=ManualClock(START_MS + 10 * DAY_MS), topic=None)
    Writer(tmp_path, IMAGES).write(cameras(3, 1, start_ms=START_MS + HOUR_MS), segment=70)
    span = START_MS + HOUR_MS // 2, START_MS + HOUR_MS * 3 // 2
    expected = read(tmp_path, span=span)
    monkeypatch.setattr(module, "_GATHERED_ROWS", 100)
    found = read(tmp_path, span=span)
    assert found.fused == expected.fused
    assert found.found.chains == expected.found.chains
    assert len(found.fused) == 3 * 360


def test_partitions_are_read_one_after_another(tmp_path: Path) -> None:
    writer = Writer(tmp_path, IMAGES)
    writer.write(cameras(2, 0.2))
    writer.write(cameras(2, 0.2, seed=1), SECOND)
    found = read(tmp_path)
    assert [part.partition for part in found.found.chains] == [0, 1]
    assert found.found.records == 4 * 72
    assert found.found.split_keys == 2
    assert np.diff(found.times_ms[:144]).min() >= 0


def test_keys_that_are_not_told_apart(tmp_path: Path) -> None:
    Writer(tmp_path, IMAGES).write(cameras(3, 0.2))
    found = read(tmp_path, keys=None)
    assert (found.found.keys, found.found.records) == (("",), 3 * 72)


def test_one_record_a_pane_counts_where_asked_for(tmp_path: Path) -> None:
    stream = cameras(2, 0.1, every_ms=300)
    stream.keys = [key if number % 10 else None for number, key in enumerate(stream.keys)]
    stream.status = {5: Status.CORRUPT}
    Writer(tmp_path, IMAGES).write(stream, segment=150)
    found = read(tmp_path, keys=KeySettings(one_per_pane=True))
    counted = {(key, time // 1_000) for key, time in zip(found.keys, found.times_ms, strict=True)}
    keyed = [key for key in found.keys if key]
    assert len(keyed) == sum(1 for key, _ in counted if key)
    # Of records without a key all count.
    assert found.keys.count("") == stream.keys.count(None)
    # What has no scores is told of all images, and not of those that count.
    assert (found.found.images, found.found.unscored) == (len(stream.keys), 1)


def test_clocks_that_jump_are_counted_and_too_many_are_refused(tmp_path: Path) -> None:
    stream = cameras(1, 1)
    times = stream.times_ms.copy()
    times[5] += 90 * DAY_MS
    times[9] -= HOUR_MS
    Writer(tmp_path / "few", IMAGES).write(dataclasses.replace(stream, event_times_ms=times))
    found = read(tmp_path / "few", span=(START_MS - 2 * HOUR_MS, EVER[1]))
    assert (found.found.jumping, found.found.first_jump) == (2, "cars/0 offset 5")
    # The time of reading counts, and then the largest before.
    assert found.times_ms[5] == stream.times_ms[5] + 5
    assert found.times_ms[9] == found.times_ms[8]
    times[20:60] -= 60 * DAY_MS
    Writer(tmp_path / "many", IMAGES).write(dataclasses.replace(stream, event_times_ms=times))
    with pytest.raises(CalibrationError, match=r"clocks .* jump: 42 of 360 .* cars/0 offset 5"):
        read(tmp_path / "many")


def test_gaps_are_named_where_they_lie_within(tmp_path: Path) -> None:
    writer = Writer(tmp_path, IMAGES)
    for hour in range(4):
        writer.write(cameras(1, 1, start_ms=START_MS + hour * HOUR_MS))
        writer.gap(10)
    found = read(tmp_path, span=(START_MS + HOUR_MS, START_MS + 3 * HOUR_MS)).found
    assert [str(gap) for gap in found.gaps] == ["cars/0 [730, 740): retention deleted them"]
    assert (found.chains[0].start, found.chains[0].end) == (370, 1_100)


def test_a_partition_that_is_lost_as_a_whole_is_named(tmp_path: Path) -> None:
    writer = Writer(tmp_path, IMAGES)
    writer.gap(500, SECOND)
    with pytest.raises(ConfigError, match=r"no scored records: lost are cars/1 \[0, 500\)"):
        read(tmp_path)
    writer.write(cameras(1, 0.5))
    (gap,) = read(tmp_path).found.gaps
    assert (gap.partition, gap.start, gap.end) == (SECOND, 0, 500)


def test_missing_segments_are_refused_where_they_lie_within(tmp_path: Path) -> None:
    Writer(tmp_path, IMAGES).write(cameras(1, 1), segment=60)
    store = LocalStore(tmp_path)
    (tmp_path / segments(store, CARS)[2]).unlink()
    with pytest.raises(CalibrationError, match=r"offsets \[120, 180\) of cars/0 are missing"):
        read(tmp_path)
    assert read(tmp_path, span=(START_MS + 1_800_000, EVER[1])).found.records == 180


def test_another_model_is_refused(tmp_path: Path) -> None:
    Writer(tmp_path, IMAGES).write(cameras(1, 0.5))
    later = cameras(1, 0.5, start_ms=START_MS + HOUR_MS)
    Writer(tmp_path, IMAGES, model="ab" * 32).write(later)
    with pytest.raises(
        CalibrationError, match=r"another model .* offset 180 of cars/0 .* abababab"
    ):
        read(tmp_path)
    assert read(tmp_path, span=(START_MS, START_MS + HOUR_MS)).found.records == 180


def test_another_calibration_is_refused(tmp_path: Path) -> None:
    Writer(tmp_path, IMAGES).write(cameras(1, 0.5))
    other = images(300)
    Writer(tmp_path, other).write(cameras(1, 0.5, start_ms=START_MS + HOUR_MS))
    with pytest.raises(
        CalibrationError, match=rf"judged by the calibration {other.fingerprint[:16]}.* offset 180"
    ):
        read(tmp_path)
    with pytest.raises(
        CalibrationError, match=f"judged by the calibration {IMAGES.fingerprint[:8]}"
    ):
        read(tmp_path, other)


def test_baselines_of_the_same_images_go_together(tmp_path: Path) -> None:
    first = with_baseline(IMAGES, np.random.default_rng(2).normal(size=300))
    second = with_baseline(IMAGES, np.random.default_rng(3).normal(size=300))
    foreign = with_baseline(images(300), np.random.default_rng(3).normal(size=300))
    for number, calibration in enumerate((IMAGES, first, second)):
        stream = cameras(1, 0.5, start_ms=START_MS + number * HOUR_MS)
        Writer(tmp_path, calibration).write(stream)
    for calibration in (first, second, IMAGES):
        found = read(tmp_path, calibration).found
        assert found.records == 3 * 180
        assert set(found.judged_by) == {each.fingerprint for each in (IMAGES, first, second)}
    Writer(tmp_path, foreign).write(cameras(1, 0.5, start_ms=START_MS + 3 * HOUR_MS))
    with pytest.raises(CalibrationError, match=f"the calibration {foreign.fingerprint[:16]}"):
        read(tmp_path, second)


def test_p_values_that_contradict_the_scores_are_refused(tmp_path: Path) -> None:
    """Such as those of a run whose method was another one."""

    class Other(Writer):
        def _rows(self, stream: Stream, *rest: Any) -> Any:
            rows = super()._rows(stream, *rest)
            column = rows.schema.get_field_index("fused")
            return rows.set_column(column, rows.schema.field(column), [stream.fused - 0.5])

    Other(tmp_path, IMAGES).write(cameras(1, 0.5))
    with pytest.raises(CalibrationError, match="their p-values contradict their scores"):
        read(tmp_path)


def test_a_stretch_without_records_is_refused(tmp_path: Path) -> None:
    Writer(tmp_path, IMAGES).write(cameras(1, 0.5))
    with pytest.raises(ConfigError, match="holds no scored records"):
        read(tmp_path, span=(START_MS + DAY_MS, START_MS + 2 * DAY_MS))
    unreadable = dataclasses.replace(
        cameras(1, 0.5), status=dict.fromkeys(range(180), Status.CORRUPT)
    )
    Writer(tmp_path / "bad", IMAGES).write(unreadable)
    with pytest.raises(ConfigError, match="none of its 180 images has scores"):
        read(tmp_path / "bad")
    (tmp_path / "none").mkdir()
    with pytest.raises(LogRootError, match="no partition of the topic 'cars'"):
        read(tmp_path / "none")


def test_names_of_keys_that_nothing_has_are_refused(tmp_path: Path) -> None:
    Writer(tmp_path, IMAGES).write(cameras(1, 0.5))
    with pytest.raises(ConfigError, match="none of the 180 records has a key by 'header:camera'"):
        read(tmp_path, keys=KeySettings(by="header:camera"))


def test_too_many_keys_and_records_are_refused(tmp_path: Path) -> None:
    Writer(tmp_path, IMAGES).write(cameras(5, 0.5))
    with pytest.raises(ConfigError, match="more than 3 keys by 'key'"):
        read(tmp_path, keys=KeySettings(max_keys=3))
    with pytest.raises(ConfigError, match="more than 500 scored records"):
        read(tmp_path, max_records=500)
