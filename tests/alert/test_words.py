from dataclasses import replace

import pytest

from nap_stream.alert.words import detector_words, promise_words, summary
from nap_stream.core.alert_state import Change, Reason
from nap_stream.core.sequential import Onset
from nap_stream.core.tails import TailEvent
from nap_stream.drift.records import Contribution, DriftAlert, TailShift
from tests.alert.samples import (
    BEGAN,
    ENDED,
    ESCALATED,
    FACTS,
    FIRING_LIMIT,
    KEY_BEGAN,
    NIGHT_MS,
    ONSET_MS,
    PLAN,
    RESOLVE_LIMIT,
    SETTINGS,
    SHIFTED,
    window,
)

SEQUENTIAL = replace(
    BEGAN,
    window=window(50),
    readings=(
        replace(BEGAN.readings[0], active=False),
        replace(BEGAN.readings[1], active=True),
        BEGAN.readings[2],
    ),
)
LESS = TailShift(TailEvent(0.1, upper=False), 0.12, Onset(0, NIGHT_MS - 100_000_000, 5_000, 800))


@pytest.mark.parametrize(
    ("alert", "sentence"),
    [
        (
            BEGAN,
            (
                "65 of the last 1,020 images (6.37 %) look out-of-distribution, fewer than 61 "
                "(5.98 %) expected; began about 02:03:04 UTC; camera-7 contributes most"
            ),
        ),
        (
            SEQUENTIAL,
            (
                "61 of 816 images (7.48 %) since about 02:03:04 UTC look out-of-distribution, at "
                "most 2.66 % expected; camera-7 contributes most"
            ),
        ),
        (
            KEY_BEGAN,
            (
                "18 of 40 images of camera-7 (45 %) since about 02:03:04 UTC look "
                "out-of-distribution, at most 2.66 % expected"
            ),
        ),
        (
            ESCALATED,
            (
                "Now critical: 347 of the last 1,020 images (34 %) look out-of-distribution, fewer "
                "than 61 (5.98 %) expected; began about 2026-01-30 22:01:50 UTC; class cat "
                "contributes most"
            ),
        ),
        (
            SHIFTED,
            (
                "The model's scores have shifted towards more in-distribution: 240 of 816 images "
                "(29.4 %) since about 02:03:04 UTC score like the most in-distribution 5 % of "
                "calibration images, at most 6.52 % expected"
            ),
        ),
        (
            replace(SHIFTED, tail=LESS),
            (
                "The model's scores have shifted towards less in-distribution: 800 of 5,000 images "
                "(16 %) since about 2026-01-29 22:16:40 UTC score like the least in-distribution "
                "10 % of calibration images, at most 12 % expected"
            ),
        ),
        (
            ENDED,
            (
                "Over after 1 h 5 min: images no longer look out-of-distribution more often than "
                "expected; 24 of the last 1,020 do (2.35 %)"
            ),
        ),
        (
            replace(KEY_BEGAN, change=ENDED.change),
            (
                "Over after 1 h 5 min: the images of camera-7 no longer look out-of-distribution "
                "more often than expected"
            ),
        ),
        (
            replace(KEY_BEGAN, change=replace(ENDED.change, reason=Reason.FORGOTTEN)),
            (
                "Closed after 1 h 5 min: more keys are active than drift.keys.max_keys, and "
                "camera-7 is no longer known; it may be as it was"
            ),
        ),
        (
            replace(SHIFTED, change=replace(SHIFTED.change, reason=Reason.ENDED)),
            "Over after less than 1 s: the model's scores are no longer shifted",
        ),
    ],
)
def test_one_sentence_says_it(alert: DriftAlert, sentence: str) -> None:
    assert summary(alert, PLAN) == sentence


def test_a_reminder_says_so_and_a_window_below_its_limit_is_not_called_above_it() -> None:
    change = Change(Reason.REPEATED, replace(BEGAN.change.alert, repeats=3))
    found = summary(replace(BEGAN, change=change, window=window(FIRING_LIMIT - 1)), PLAN)
    assert found.startswith(
        "Still firing: 60 of the last 1,020 images (5.88 %) look out-of-distribution, and the "
        f"alert ends below {RESOLVE_LIMIT}; began"
    )


def test_the_worse_of_two_fractions_counts() -> None:
    """Severity is judged by it, so a critical alert must show what made it critical."""
    worse = replace(ESCALATED, since=Onset(0, ONSET_MS, 100, 90))
    assert summary(worse, PLAN).startswith("Now critical: 90 of 100 images (90 %) since about")


def test_names_do_not_break_the_sentence() -> None:
    name = "a\nb" + "x" * 2_000
    found = summary(replace(BEGAN, keys=(Contribution(name, 30),)), PLAN)
    assert found.isprintable()
    assert len(found) < 400


@pytest.mark.parametrize(
    ("keys", "classes", "named"),
    [
        ((("camera-7", 22), ("camera-2", 21)), (("cat", 65),), "camera-7 contributes most"),
        ((("camera-7", 21), ("camera-2", 21)), (("cat", 65),), "class cat contributes most"),
        ((("camera-7", 21), ("camera-2", 21)), (("cat", 21),), "about 02:03:04 UTC"),
        ((), (), "about 02:03:04 UTC"),
    ],
)
def test_who_has_a_third_of_the_65_flags_is_named(
    keys: tuple[tuple[str, int], ...], classes: tuple[tuple[str, int], ...], named: str
) -> None:
    given = [tuple(Contribution(*each) for each in many) for many in (keys, classes)]
    assert summary(replace(BEGAN, keys=given[0], classes=given[1]), PLAN).endswith(named)


def test_a_detector_says_what_it_found_and_what_it_promises() -> None:
    window_words, flag_words, shift_words = (
        detector_words(reading, BEGAN, PLAN) for reading in BEGAN.readings
    )
    assert window_words == (
        "65 of the last 1,020 records are flagged; it fires at 61 and ends below 30. Independent "
        "flags with a rate of at most 2.66 % make it fire within T records with a probability of "
        "at most T / 518,400,000."
    )
    assert flag_words == (
        "61 of 816 records (7.48 %) since about 02:03:04 UTC are flagged, at most 2.66 % "
        "expected. Its evidence is 41,251; it fires at 518,400,000 and ends below 518,400, or "
        "earlier, once the records speak at most 10 to 1 for a change. It fires by chance within T "
        "records with a probability of at most T / 518,400,000, however flags depend on each "
        "other, as long as a flag is no more likely than 2.66 % given the records before."
    )
    assert shift_words.endswith(
        "no tail of the p-values is more likely, given the records before, than its bound."
    )
    (of_key,) = (detector_words(reading, KEY_BEGAN, PLAN) for reading in KEY_BEGAN.readings)
    assert "18 of 40 records of this key (45 %) since about 02:03:04 UTC" in of_key
    assert "within T records of this key with a probability of at most T / 518,400,000" in of_key


def test_the_promise_names_its_conditions() -> None:
    assert promise_words(PLAN, SETTINGS, FACTS) == (
        "While the stream is in-distribution, the probability that this monitor raises a false "
        "alarm within T records is at most T / 129,600,000, for every T: 1 % within 1,296,000 "
        "records. This holds for at least 95 % of all draws of 2,000 calibration images, provided "
        "that flags are independent, with a rate of at most 2.66 % (rolling window), and that, "
        "given the records before, a flag is no more likely than 2.66 %, for each key on its own "
        "too, and no tail of the p-values more likely than its bound (sequential tests, which "
        "need no independence)."
    )
    without_tails = promise_words(replace(PLAN, tail_rates=()), SETTINGS, FACTS)
    assert "tail" not in without_tails
