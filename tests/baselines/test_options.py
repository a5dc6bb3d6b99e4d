import pytest

from nap_stream.baselines.options import parse_block, parse_times
from nap_stream.core.time_kinds import TimeKinds
from nap_stream.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected_ms"),
    [
        ("10min", 600_000),
        ("10 min", 600_000),
        ("10m", 600_000),
        ("20s", 20_000),
        ("1d", 86_400_000),
    ],
)
def test_lengths(text: str, expected_ms: int) -> None:
    assert parse_block(text) == expected_ms


@pytest.mark.parametrize("text", ["", "7min", "10", "min", "-1h", "1.5h", "10 parsec", "9999999s"])
def test_what_is_no_length_of_blocks(text: str) -> None:
    with pytest.raises(ConfigError, match=r"Expected one of 1s, .* 10min, .* 1d"):
        parse_block(text)


def test_kinds_of_time() -> None:
    assert parse_times("auto", "UTC") is None
    assert parse_times("none", "Europe/Berlin") == TimeKinds(timezone="Europe/Berlin")
    assert parse_times("6, 18", "UTC") == TimeKinds((6, 18))
    assert parse_times("6,18,weekend", "UTC") == TimeKinds((6, 18), weekend_apart=True)
    assert parse_times("weekend", "UTC") == TimeKinds((), weekend_apart=True)


@pytest.mark.parametrize("text", ["", "day", "6", "18,6", "6,25", "6;18", "6,18,sunday"])
def test_what_are_no_kinds_of_time(text: str) -> None:
    with pytest.raises(ConfigError, match="Expected auto, none, or hours"):
        parse_times(text, "UTC")


@pytest.mark.parametrize("timezone", ["Mars/Base", "", "../../etc/passwd", "europe"])
def test_what_is_no_time_zone(timezone: str) -> None:
    with pytest.raises(ConfigError, match="there is no time zone"):
        parse_times("auto", timezone)
