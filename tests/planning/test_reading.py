import dataclasses
from pathlib import Path

import numpy as np
import pytest

from nap_stream.core.hidden_keys import HiddenKeys, Stored
from nap_stream.errors import ConfigError, LogRootError
from nap_stream.planning.recorded import Recorded, Selection, read_stretch
from nap_stream.records import TopicPartition
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.settings.drift import DriftSettings, KeySettings
from tests.planning.streams import SPACING_MS, calibration, independent, rows, write_log
from tests.scored_log.builders import (
    CALIBRATION,
    CARS,
    NOON_MS,
    chain,
    failed,
    make_version,
    origin,
)
from tests.support.scored_records import ScoredRecord

OTHER = "d4" * 32
FACTS = dataclasses.replace(calibration().facts, fingerprint=CALIBRATION)
DRIFT = DriftSettings(pane_ms=200)
SECOND = TopicPartition("cars", 1)


def read(root: Path, selection: Selection | None = None, drift: DriftSettings = DRIFT) -> Recorded:
    return read_stretch(
        LocalStore(root),
        selection or Selection(),
        drift,
        FACTS,
        lambda _done, _total: None,
    )


def recorded(count: int) -> list[ScoredRecord]:
    return rows(independent(count).tolist())


def test_a_stretch_is_counted_in_the_monitors_panes(tmp_path: Path) -> None:
    p_values = independent(1_500)
    write_log(tmp_path, rows(p_values.tolist()), CALIBRATION)

    found = read(tmp_path)

    assert (found.topic, found.other_calibrations) == ("cars", 0)
    assert found.series.records == 1_500
    assert found.series.flagged == int((p_values <= 0.05).sum())
    assert found.series.panes.start_ms.tolist() == list(range(NOON_MS, NOON_MS + 30_000, 200))
    assert set(found.series.panes.records.tolist()) == {10}
    assert found.series.keys == ()


@pytest.mark.parametrize("one_per_pane", [False, True])
def test_records_that_are_counted_piece_by_piece_are_counted_alike(
    tmp_path: Path, *, one_per_pane: bool
) -> None:
    found = [
        dataclasses.replace(
            record,
            origin=dataclasses.replace(
                record.origin,
                key=[b"a", None, b"b"][number % 3],
                # Late ones count in the pane that time has come to.
                event_time_ms=record.origin.event_time_ms - (number % 5) * 90,
            ),
        )
        for number, record in enumerate(recorded(2_400))
    ]
    write_log(tmp_path, found, CALIBRATION)
    drift = DriftSettings(pane_ms=200, keys=KeySettings(by="key", one_per_pane=one_per_pane))

    def series(held_records: int) -> str:
        read = read_stretch(
            LocalStore(tmp_path),
            Selection(),
            drift,
            FACTS,
            lambda _done, _total: None,
            held_records=held_records,
        )
        return repr(read.series)

    with np.printoptions(threshold=2**31):
        assert series(1) == series(10**9)


def test_a_log_that_begins_in_version_3_is_read_alike(tmp_path: Path) -> None:
    write_log(tmp_path, recorded(5_000), CALIBRATION)
    before = read(tmp_path)
    make_version(LocalStore(tmp_path), CARS, 2)
    after = read(tmp_path)
    assert after.series.records == before.series.records == 5_000
    assert after.series.flagged == before.series.flagged
    for name in ("start_ms", "records"):
        found, expected = (getattr(each.series.panes, name) for each in (after, before))
        assert found.tolist() == expected.tolist()


def test_only_scored_rows_of_the_calibration_and_the_time_count(tmp_path: Path) -> None:
    records = recorded(3_000)
    bad = [failed(dataclasses.replace(records[-1].origin, offset=3_000))]
    write_log(tmp_path, [*records, *bad], CALIBRATION)
    others = rows(independent(500).tolist(), partition=SECOND)
    write_log(tmp_path, others, OTHER, SECOND)

    selection = Selection("cars", NOON_MS + 1_000 * SPACING_MS, NOON_MS + 2_500 * SPACING_MS)
    found = read(tmp_path, selection)
    everything = read(tmp_path)

    assert (found.series.records, found.other_calibrations) == (1_500, 0)
    assert (everything.series.records, everything.other_calibrations) == (3_000, 500)


def flagged_wrongly(record: ScoredRecord) -> ScoredRecord:
    assert record.scores is not None
    scores = dataclasses.replace(record.scores, is_ood=not record.scores.is_ood)
    return dataclasses.replace(record, scores=scores)


def test_flags_that_contradict_p_values_are_counted_and_placed(tmp_path: Path) -> None:
    write_log(tmp_path, recorded(1_000), CALIBRATION)
    records = rows(independent(3_000).tolist(), partition=SECOND)
    for place in (700, 701, 2_900):
        records[place] = flagged_wrongly(records[place])
    write_log(tmp_path, records, CALIBRATION, SECOND)

    found = read(tmp_path)

    assert (found.contradicting, found.first_contradicting) == (3, "cars/1 offset 700")
    assert found.series.records == 4_000
    flags = [bool(each.scores and each.scores.is_ood) for each in (*recorded(1_000), *records)]
    assert found.series.flagged == sum(flags)


def test_another_alpha_contradicts_the_flags(tmp_path: Path) -> None:
    p_values = independent(1_500)
    write_log(tmp_path, rows(p_values.tolist()), CALIBRATION)
    facts = dataclasses.replace(FACTS, alpha=0.1)

    found = read_stretch(LocalStore(tmp_path), Selection(), DRIFT, facts, lambda _d, _t: None)

    between = (p_values > 0.05) & (p_values <= 0.1)
    assert found.contradicting == int(between.sum())
    assert found.first_contradicting == f"cars/0 offset {int(between.argmax())}"
    assert (read(tmp_path).contradicting, read(tmp_path).first_contradicting) == (0, "")


def test_keys_that_were_stored_in_clear_are_taken_as_they_are_stored_now(tmp_path: Path) -> None:
    write_log(tmp_path, rows(independent(2_000).tolist()), CALIBRATION)
    hidden = HiddenKeys(Stored.HASHED, secret=b"0123456789abcdef")
    found = read(tmp_path, Selection(hidden=hidden), DriftSettings(pane_ms=400, keys=KeySettings()))
    names = {hidden.hashed(b"camera-%d" % n).decode() for n in range(10)}
    assert set(found.series.keys) == names


def test_keys_are_told_apart_and_thinned(tmp_path: Path) -> None:
    write_log(tmp_path, rows(independent(2_000).tolist()), CALIBRATION)
    drift = DriftSettings(pane_ms=400, keys=KeySettings())
    thinned = DriftSettings(pane_ms=400, keys=KeySettings(one_per_pane=True))

    full, thin = read(tmp_path, drift=drift).series, read(tmp_path, drift=thinned).series

    assert full.keys == thin.keys == tuple(f"camera-{n}" for n in range(10))
    assert full.key_counts()[0].tolist() == [200] * 10
    assert (full.records, thin.records) == (2_000, 1_000)
    assert set(thin.by_key.records.tolist()) == {1}


def test_partitions_come_together(tmp_path: Path) -> None:
    write_log(tmp_path, recorded(1_000), CALIBRATION)
    write_log(tmp_path, rows(independent(500).tolist(), partition=SECOND), CALIBRATION, SECOND)

    stretch = read(tmp_path).series

    assert stretch.records == 1_500
    assert stretch.panes.records.tolist() == [20] * 50 + [10] * 50


def test_event_times_far_ahead_of_the_reading_count_as_that(tmp_path: Path) -> None:
    records = recorded(1_000)
    ahead = dataclasses.replace(records[-1].origin, event_time_ms=NOON_MS + 90_000_000)
    write_log(
        tmp_path, [*records[:-1], dataclasses.replace(records[-1], origin=ahead)], CALIBRATION
    )

    assert read(tmp_path).series.last_ms == NOON_MS + 1_000 * SPACING_MS


def test_what_holds_too_little_is_refused(tmp_path: Path) -> None:
    write_log(tmp_path, recorded(900), CALIBRATION)

    with pytest.raises(ConfigError, match="900 scored records in 90 panes; at least 1,000 in 50"):
        read(tmp_path)


def test_panes_can_be_too_few_too(tmp_path: Path) -> None:
    write_log(tmp_path, recorded(1_500), CALIBRATION)

    with pytest.raises(ConfigError, match="1,500 scored records in 30 panes"):
        read(tmp_path, drift=DriftSettings(pane_ms=1_000))


def test_a_log_of_another_calibration_is_refused(tmp_path: Path) -> None:
    write_log(tmp_path, recorded(1_000), OTHER)

    with pytest.raises(
        ConfigError, match=r"all 1,000 scored records .* other calibrations than b2"
    ):
        read(tmp_path)


def test_the_topic_must_be_clear(tmp_path: Path) -> None:
    chain(tmp_path, [(1, [failed(origin(0))])])
    bikes = TopicPartition("bikes", 0)
    chain(tmp_path, [(1, [failed(origin(0, partition=bikes))])], bikes)

    with pytest.raises(ConfigError, match="the log holds the topics bikes, cars"):
        read(tmp_path)
    with pytest.raises(LogRootError, match="topic 'boats'; its topics are bikes, cars"):
        read(tmp_path, Selection("boats"))
    with pytest.raises(LogRootError):
        read(tmp_path / "none")


def test_a_log_that_holds_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LogRootError, match="the log holds no topics"):
        read(tmp_path)
    with pytest.raises(LogRootError, match="topic 'cars'; it holds no topics"):
        read(tmp_path, Selection("cars"))


def test_a_stretch_that_is_too_long_is_refused(tmp_path: Path) -> None:
    write_log(tmp_path, recorded(1_000), CALIBRATION)
    write_log(tmp_path, rows(independent(500).tolist(), partition=SECOND), CALIBRATION, SECOND)

    assert read(tmp_path, Selection(max_records=1_500)).series.records == 1_500
    with pytest.raises(ConfigError, match=r"more than 1,499 scored records.*--since and --until"):
        read(tmp_path, Selection(max_records=1_499))
