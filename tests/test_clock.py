import pytest

from nap_stream.clock import Deadline, ManualClock, StopRequest, SystemClock


def test_manual_clock_moves_both_clocks() -> None:
    clock = ManualClock(now_ms=1_000)

    clock.advance(2.5)

    assert clock.now_ms() == 3_500
    assert clock.monotonic() == 2.5


def test_manual_clock_never_goes_back() -> None:
    with pytest.raises(ValueError, match="never goes back"):
        ManualClock().advance(-1)


def test_system_clock_is_in_milliseconds_since_the_epoch() -> None:
    year_2020_ms, year_2100_ms = 1_577_836_800_000, 4_102_444_800_000

    assert year_2020_ms < SystemClock().now_ms() < year_2100_ms


def test_deadline_counts_down_and_stops_at_zero() -> None:
    clock = ManualClock()
    deadline = Deadline(clock, 3.0)

    clock.advance(1.0)
    assert deadline.remaining_s() == 2.0
    assert not deadline.expired()

    clock.advance(5.0)
    assert deadline.remaining_s() == 0.0
    assert deadline.expired()


def test_a_deadline_is_one_moment_for_all_that_ask() -> None:
    clock = ManualClock()
    deadline = Deadline(clock, 3.0)
    clock.advance(2.0)
    assert (deadline.remaining_s(), deadline.expired()) == (1.0, False)
    clock.advance(2.0)
    assert (deadline.remaining_s(), deadline.expired()) == (0.0, True)


def test_a_request_to_stop_ages_from_when_it_was_made_first() -> None:
    clock = ManualClock()
    stop = StopRequest(clock)
    clock.advance(5.0)
    assert (stop.is_made(), stop.age_s()) == (False, 0.0)
    stop.make()
    clock.advance(2.0)
    stop.make()
    assert (stop.is_made(), stop.age_s()) == (True, 2.0)
