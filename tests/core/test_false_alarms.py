import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_stream.core.alert_state import DEFAULT_FALSE_ALARMS, EXAMPLES, parse_false_alarms


@pytest.mark.parametrize(
    ("text", "records"),
    [
        (DEFAULT_FALSE_ALARMS, 30 * 86_400 * 50),
        ("one per 30 days at 50 images/s", 129_600_000),
        ("one per day at 1 image/s", 86_400),
        ("one in 2 weeks at 10 records/s", 12_096_000),
        ("one every 1.5 hours at 0.5 images / s", 2_700),
        ("  One Per Year at 3 images per second ", 94_608_000),
        ("probability 0.01 in 7 days at 50 images/s", 3_024_000_000),
        ("probability 1e-3 over 1 hour at 2 records/s", 7_200_000),
        ("probability 1 in day at 1 image/s", 86_400),
    ],
)
def test_sentences(text: str, records: float) -> None:
    assert parse_false_alarms(text) == pytest.approx(records, rel=1e-12)


def test_the_examples_that_are_shown_are_understood() -> None:
    for example in EXAMPLES.split('"')[1::2]:
        assert parse_false_alarms(example) > 0


@given(st.integers(1, 1_000), st.integers(1, 500))
def test_twice_the_time_or_the_rate_is_twice_as_many_records(days: int, rate: int) -> None:
    records = parse_false_alarms(f"one per {days} days at {rate} images/s")
    assert records == days * rate * 86_400
    assert parse_false_alarms(f"one per {2 * days} days at {rate} images/s") == 2 * records
    assert parse_false_alarms(f"one per {days} days at {2 * rate} images/s") == 2 * records
    text = f"probability 0.5 in {days} days at {rate} images/s"
    assert parse_false_alarms(text) == 2 * records


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1e6",
        "never",
        "one per 30 days",
        "two per 30 days at 50 images/s",
        "one per 30 minutes at 50 images/s",
        "one per -1 days at 50 images/s",
        "one per 30 days at 50 images",
        "one per 30days at 50 images/s and more",
        "probability in 7 days at 50 images/s",
        "probability 1% in 7 days at 50 images/s",
    ],
)
def test_anything_else_is_answered_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="one per 30 days at 50 images/s") as caught:
        parse_false_alarms(text)
    assert str(caught.value) == f"expected {EXAMPLES}, got {text!r}"


@pytest.mark.parametrize("probability", ["0", "1.5", "0.0", "1e-999"])
def test_a_probability_out_of_range_is_named(probability: str) -> None:
    with pytest.raises(ValueError, match=r"a probability in \(0, 1\], got "):
        parse_false_alarms(f"probability {probability} in 7 days at 50 images/s")


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("one per hour at 0.01 images/s", "36"),
        ("one per day at 0 images/s", "0"),
        ("one per 100 years at 1000000 images/s", "3.1536e\\+15"),
        ("one per 99999999999999 years at 1 image/s", "3.1536e\\+21"),
        (f"one per {'9' * 400} years at 1 image/s", "inf"),
        (f"one per {'9' * 400} years at 0 images/s", "nan"),
        ("probability 1e-9 in 7 days at 50 images/s", "3.024e\\+16"),
    ],
)
def test_a_run_length_that_makes_no_sense_is_named(text: str, got: str) -> None:
    with pytest.raises(ValueError, match=rf"expected 100 to 1e\+15 records, got {got}$"):
        parse_false_alarms(text)
