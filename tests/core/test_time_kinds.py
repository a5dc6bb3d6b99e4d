from datetime import UTC, datetime

import numpy as np
import pytest
from numpy.typing import NDArray

from nap_stream.core.time_kinds import (
    DAY_MS,
    HOUR_MS,
    LEVEL,
    MAX_KINDS,
    TimeKinds,
    find_kinds,
)

MONDAY_MS = 4 * DAY_MS
"""5 January 1970."""
DAY_AND_NIGHT = TimeKinds((6, 18))


def at(year: int, month: int, day: int, hour: int, minute: int) -> int:
    return round(datetime(year, month, day, hour, minute, tzinfo=UTC).timestamp() * 1_000)


def hours(days: int) -> NDArray[np.int64]:
    """The middle of each hour."""
    return MONDAY_MS + np.arange(days * 24) * HOUR_MS + HOUR_MS // 2


def noise(size: int, seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal((size, 3))


def test_without_boundaries_all_times_are_one_kind() -> None:
    assert TimeKinds().kind_of(hours(7)).tolist() == [0] * 168
    assert (TimeKinds().count, TimeKinds().names) == (1, ("all day",))


def test_the_last_part_goes_past_midnight() -> None:
    found = DAY_AND_NIGHT.kind_of(hours(1))
    assert found.tolist() == [1] * 6 + [0] * 12 + [1] * 6
    assert DAY_AND_NIGHT.names == ("06:00-18:00", "18:00-06:00")


def test_weekends_have_parts_of_their_own() -> None:
    kinds = TimeKinds((6, 18), weekend_apart=True)
    found = kinds.kind_of(MONDAY_MS + np.arange(7) * DAY_MS + 12 * HOUR_MS)
    assert found.tolist() == [0] * 5 + [2] * 2
    assert (kinds.count, kinds.names[3]) == (4, "weekend 18:00-06:00")
    assert TimeKinds(weekend_apart=True).names == ("weekday all day", "weekend all day")


def test_hours_are_those_of_the_clock_on_the_wall() -> None:
    kinds = TimeKinds((6, 18), timezone="Europe/Berlin")
    # 05:30 UTC is 06:30 in winter and 07:30 in summer; 04:30 UTC is night in winter alone.
    times = [at(2026, 1, 5, 5, 30), at(2026, 7, 6, 5, 30), at(2026, 1, 5, 4, 30)]
    times.append(at(2026, 7, 6, 4, 30))
    assert kinds.kind_of(np.array(times)).tolist() == [0, 0, 1, 0]
    india = TimeKinds((6, 18), timezone="Asia/Kolkata")
    assert india.kind_of(np.array([at(2026, 1, 5, 0, 29), at(2026, 1, 5, 0, 30)])).tolist() == [
        1,
        0,
    ]


def test_an_array_of_any_shape_has_its_kinds() -> None:
    kinds = TimeKinds((6, 18), timezone="Europe/Berlin")
    times = hours(2)
    assert (
        kinds.kind_of(times.reshape(2, 24)).tolist() == kinds.kind_of(times).reshape(2, 24).tolist()
    )


@pytest.mark.parametrize("wrong", [(6,), (18, 6), (6, 6), (0, 24), (-1, 6)])
def test_boundaries_that_make_no_parts_are_refused(wrong: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="two or more of 0 to 23"):
        TimeKinds(wrong)


@pytest.mark.parametrize(("days", "keys"), [(3, 5), (14, 1)])
def test_day_and_night_are_found(days: int, keys: int) -> None:
    times = np.tile(hours(days), keys)
    key = np.repeat(np.arange(keys), days * 24)
    values = noise(len(times), 1) + 3 * DAY_AND_NIGHT.kind_of(times)[:, np.newaxis] + key[:, None]
    kinds, evidence = find_kinds(key, times, values)
    assert kinds == DAY_AND_NIGHT
    assert evidence.day_p_value is not None
    assert evidence.day_p_value <= LEVEL
    assert evidence.explained == pytest.approx(9 / 13, abs=0.1)
    assert evidence.days == days


def test_longer_blocks_give_the_hours_at_which_they_begin() -> None:
    times = MONDAY_MS + np.arange(14 * 6) * 4 * HOUR_MS + 2 * HOUR_MS
    found, _ = find_kinds(
        np.zeros(len(times), int),
        times,
        noise(len(times), 6) + 3 * TimeKinds((8, 20)).kind_of(times)[:, np.newaxis],
    )
    assert found == TimeKinds((8, 20))


def test_boundaries_are_found_in_local_time() -> None:
    times, zone = hours(7), "America/New_York"
    local = TimeKinds((6, 18), timezone=zone)
    values = noise(len(times), 2) + 3 * local.kind_of(times)[:, np.newaxis]
    assert find_kinds(np.zeros(len(times), int), times, values, timezone=zone)[0] == local


def test_weekends_are_found() -> None:
    times = hours(21)
    weekend = TimeKinds(weekend_apart=True).kind_of(times)[:, np.newaxis]
    kinds, evidence = find_kinds(
        np.zeros(len(times), int), times, noise(len(times), 3) + 3 * weekend
    )
    assert (kinds.boundaries_h, kinds.weekend_apart) == ((), True)
    assert evidence.weekend_p_value is not None
    both = noise(len(times), 4) + 3 * weekend + 3 * (times % DAY_MS // HOUR_MS // 4)[:, np.newaxis]
    kinds, _ = find_kinds(np.zeros(len(times), int), times, both)
    assert kinds.weekend_apart
    assert kinds.count <= MAX_KINDS


def test_kinds_with_too_few_blocks_are_dropped() -> None:
    # Blocks of two hours over a week: of the short kind, from 2 to 6, there are 14.
    times = MONDAY_MS + np.arange(7 * 12) * 2 * HOUR_MS + HOUR_MS
    values = noise(len(times), 7) + 5 * TimeKinds((2, 6)).kind_of(times)[:, np.newaxis]
    key = np.zeros(len(times), int)
    kinds, evidence = find_kinds(key, times, values, least=14)
    assert (kinds, evidence.wanted) == (TimeKinds((2, 6)), None)
    fewer, evidence = find_kinds(key, times, values, least=15)
    assert evidence.day_p_value is not None
    assert evidence.day_p_value <= LEVEL
    counts = np.bincount(fewer.kind_of(times), minlength=fewer.count)
    assert counts.min() >= 15
    # 14 in a week make 15 in 7.5 days.
    assert (evidence.wanted, evidence.wanted_days) == (TimeKinds((2, 6)), 8)
    assert 0 <= evidence.explained < evidence.wanted_explained - 0.1
    none, evidence = find_kinds(key, times, values, least=43)
    assert (none, evidence.wanted, evidence.explained) == (TimeKinds(), TimeKinds((2, 6)), 0)
    # The median key has half the blocks of the stream.
    half = np.arange(len(times)) % 2 == 0
    two = np.concatenate((times, times[half])), np.concatenate((values, values[half]))
    found, _ = find_kinds(np.repeat([0, 1], [len(times), half.sum()]), *two, least=14)
    assert found != TimeKinds((2, 6))
    assert np.bincount(found.kind_of(times[half]), minlength=found.count).min() >= 14


def test_weekends_with_too_few_blocks_are_not_told_apart() -> None:
    times = hours(21)
    weekend = TimeKinds(weekend_apart=True).kind_of(times)[:, np.newaxis]
    values = noise(len(times), 3) + 3 * weekend
    # Six days of 24 blocks.
    for least, apart in ((144, True), (145, False)):
        kinds, evidence = find_kinds(np.zeros(len(times), int), times, values, least=least)
        assert (kinds.boundaries_h, kinds.weekend_apart) == ((), apart)
        assert evidence.wanted == (None if apart else TimeKinds(weekend_apart=True))


def test_a_short_stretch_tells_nothing() -> None:
    times = hours(2)
    values = noise(len(times), 5) + 9 * DAY_AND_NIGHT.kind_of(times)[:, np.newaxis]
    kinds, evidence = find_kinds(np.zeros(len(times), int), times, values)
    assert kinds == TimeKinds()
    assert (evidence.day_p_value, evidence.weekend_p_value) == (None, None)


def test_constant_blocks_have_no_kinds() -> None:
    times = hours(7)
    kinds, evidence = find_kinds(np.zeros(len(times), int), times, np.ones((len(times), 3)))
    assert (kinds, evidence.explained) == (TimeKinds(), 0.0)


@pytest.mark.slow
def test_where_time_does_not_matter_kinds_are_rarely_found() -> None:
    """Neighbouring hours are alike: that must not be taken for the time of day."""
    found = 0
    for seed in range(200):
        steps = np.random.default_rng(seed).standard_normal((5 * 24, 3))
        values = np.zeros_like(steps)
        for hour in range(1, len(steps)):
            values[hour] = 0.8 * values[hour - 1] + steps[hour]
        kinds, _ = find_kinds(np.zeros(len(values), int), hours(5), values)
        found += kinds.count > 1
    # 2 are expected at the level, 10 have a probability of 5e-5.
    assert found < 10
