from typing import Any

import pytest

from nap_stream.text import (
    MAX_FIELD,
    bounded,
    duration,
    listed,
    moment,
    number,
    percent,
    plain,
    rfc3339,
    without_secrets,
)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://a.blob.core.windows.net/c/p?sv=1&sig=X", "https://a.blob.core.windows.net/c/p?…"),
        ("/etc/https:/a.net/c?sig=X", "/etc/https:/a.net/c?…"),
        ("s3://key:sec/ret@bucket/x", "s3://…@bucket/x"),
        ("s3://key:sec?ret@bucket/x", "s3://…"),
        ("s3://bucket/x", "s3://bucket/x"),
        ("gs://bucket/a b?sig=X", "gs://bucket/a b?…"),
        ("cars? cats@home", "cars? cats@home"),
        ("S3://key:hush@bucket/x", "S3://…@bucket/x"),
        ("HTTPS://h/x?X-Amz-Signature=hush", "HTTPS://h/x?…"),
        ("postgresql+psycopg2://u:hush@db:5432/x", "postgresql+psycopg2://…@db:5432/x"),
        ("jdbc:mysql://db/x?password=hush", "jdbc:mysql://db/x?…"),
        ("a_scheme_that_is_longer_than_any://u:hush@h", "a_scheme_that_is_longer_than_any://…@h"),
        ("https:///u:hush@h/x", "https://…@h/x"),
        ("https:// u:hu sh@h/x", "https://…@h/x"),
        ("//u:hush@h/x", "//…@h/x"),
        ("https://h/x#access_token=hush", "https://h/x#…"),
        ("http://a/b https://u:hush@h http://c/d?sig=hush", "http://…@h http://c/d?…"),
        ('{"url": "https://h/x?sig=hush", "n": 1}', '{"url": "https://h/x?…'),
        ("hf://models/a#main, https://h/x#top", "hf://models/a#main, https://h/x#top"),
        ("/data//x@2x.png, a // b @ c", "/data//x@2x.png, a // b @ c"),
        ("user@host, what? 10:30 C:\\x", "user@host, what? 10:30 C:\\x"),
    ],
)
def test_addresses_are_shown_without_what_may_be_a_secret(address: str, shown: str) -> None:
    assert without_secrets(address) == shown


def test_long_fields_are_cut() -> None:
    assert plain("x" * 10_000) == "x" * MAX_FIELD + "…"
    assert bounded("x" * 200) == "x" * 200
    assert bounded("x" * 201) == "x" * 199 + "…"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 %"),
        (0.0333333, "3.33 %"),
        (1, "100 %"),
        (1.5, "1.5"),
        (True, "True"),
        ("\n", "\\n"),
    ],
)
def test_percent(value: Any, text: str) -> None:
    assert percent(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (129_600_000.0, "129,600,000"),
        (41_250.7, "41,251"),
        (0.0025, "0.0025"),
        (3.4e-12, "3.4e-12"),
        (1e300, "1e+300"),
        (10**20, "1" + "0" * 20),
        (float("nan"), "nan"),
        (False, "False"),
        ("a\x1bb", "a\\x1bb"),
    ],
)
def test_number(value: Any, text: str) -> None:
    assert number(value) == text


def test_of_many_names_the_first_are_shown() -> None:
    assert listed(["a", "b"], 2) == "a, b"
    assert listed([*"abcd"], 2) == "a, b and 2 more"
    assert listed([*"abc"], 1, "; ") == "a; and 2 more"
    assert listed([], 2) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("2026-01-31T12:00:00.007Z", "2026-01-31 12:00:00 UTC"),
        ("2026-01-31T12:00:00+02:00", "2026-01-31 10:00:00 UTC"),
        ("2026-01-31T12:00:00", "2026-01-31T12:00:00"),
        ("0001-01-01T00:00:00+14:00", "0001-01-01T00:00:00+14:00"),
        ("soon\n", "soon\\n"),
        (None, "None"),
    ],
)
def test_moment(value: Any, text: str) -> None:
    assert moment(value) == text


@pytest.mark.parametrize(
    ("time_ms", "text"),
    [
        (-5, "less than 1 s"),
        (999, "less than 1 s"),
        (1_000, "1 s"),
        (125_000, "2 min 5 s"),
        (3_600_000, "1 h"),
        (3_900_000, "1 h 5 min"),
        (3_605_000, "1 h"),
        (90_000_000, "1 d 1 h"),
    ],
)
def test_duration(time_ms: int, text: str) -> None:
    assert duration(time_ms) == text


@pytest.mark.parametrize(
    ("time_ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (-1, "1969-12-31T23:59:59.999Z"),
        (1_769_860_800_007, "2026-01-31T12:00:00.007Z"),
        (10**18, "9999-12-31T23:59:59.999Z"),
        (-(10**18), "0001-01-01T00:00:00.000Z"),
    ],
)
def test_rfc3339(time_ms: int, text: str) -> None:
    assert rfc3339(time_ms) == text
