from nap_stream.planning.question import searched_windows, usual_windows
from nap_stream.settings.schema import MAX_WINDOW_RECORDS


def test_usual_windows_are_around_the_configured_one() -> None:
    assert usual_windows(1_000) == (250, 1_000, 4_000)
    assert usual_windows(40) == (20, 40, 160)


def test_searched_windows_are_smaller_and_larger() -> None:
    assert searched_windows(1_000) == (125, 250, 500, 1_000, 2_000, 4_000, 8_000, 16_000)
    assert searched_windows(60) == (20, 30, 60, 120, 240, 480, 960)


def test_none_is_larger_than_can_be_configured() -> None:
    assert usual_windows(3_000_000) == (750_000, 3_000_000, MAX_WINDOW_RECORDS)
    assert usual_windows(MAX_WINDOW_RECORDS) == (2_500_000, MAX_WINDOW_RECORDS)
    assert searched_windows(MAX_WINDOW_RECORDS)[-2:] == (5_000_000, MAX_WINDOW_RECORDS)
