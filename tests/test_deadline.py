from nap_stream.clock import Deadline, ManualClock, StopRequest


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
