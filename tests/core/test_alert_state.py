import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_stream.core.alert_state import (
    DEFAULT_FALSE_ALARMS,
    EXAMPLES,
    AlertState,
    Change,
    Detector,
    Firing,
    Reason,
    Severity,
    Transition,
    parse_false_alarms,
    promised_hours,
    step,
)


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


@pytest.mark.parametrize(
    ("text", "hours"),
    [
        (DEFAULT_FALSE_ALARMS, 30 * 24),
        ("one every 1.5 hours at 7 records/s", 1.5),
        ("probability 0.01 in 7 days at 50 images/s", 700 * 24),
    ],
)
def test_sentences_name_a_time_too(text: str, hours: float) -> None:
    assert promised_hours(text) == pytest.approx(hours, rel=1e-12)


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


WINDOW, SEQUENTIAL, SHIFT, *_ = Detector
WARNING, CRITICAL = Severity
REPEAT_MS = 1_000


def firing(
    *,
    sent_ms: int = 500,
    detectors: tuple[Detector, ...] = (WINDOW,),
    severity: Severity = WARNING,
    repeats: int = 0,
) -> Firing:
    """An alert that began at 500 with an onset at 400."""
    return Firing(500, 400, sent_ms, detectors, severity, repeats)


TRANSITIONS: dict[
    str,
    tuple[Firing | None, tuple[Detector, ...], Severity, int, Firing | None, Change | None],
] = {
    "quiet": (None, (), WARNING, 600, None, None),
    "quiet, however severe": (None, (), CRITICAL, 600, None, None),
    "begins": (
        None,
        (SEQUENTIAL,),
        WARNING,
        600,
        Firing(600, 7, 600, (SEQUENTIAL,), WARNING),
        Change(Reason.BEGAN, Firing(600, 7, 600, (SEQUENTIAL,), WARNING)),
    ),
    "begins as critical": (
        None,
        (WINDOW, SHIFT),
        CRITICAL,
        600,
        Firing(600, 7, 600, (WINDOW, SHIFT), CRITICAL),
        Change(Reason.BEGAN, Firing(600, 7, 600, (WINDOW, SHIFT), CRITICAL)),
    ),
    "goes on": (firing(), (WINDOW,), WARNING, 1_499, firing(), None),
    "another detector joins": (
        firing(detectors=(SEQUENTIAL,)),
        (WINDOW, SEQUENTIAL),
        WARNING,
        600,
        firing(detectors=(WINDOW, SEQUENTIAL)),
        None,
    ),
    "one takes over from another": (
        firing(),
        (SHIFT,),
        WARNING,
        600,
        firing(detectors=(WINDOW, SHIFT)),
        None,
    ),
    "is repeated": (
        firing(repeats=2),
        (WINDOW,),
        WARNING,
        1_500,
        firing(sent_ms=1_500, repeats=3),
        Change(Reason.REPEATED, firing(sent_ms=1_500, repeats=3)),
    ),
    "is repeated after a long silence": (
        firing(),
        (WINDOW, SEQUENTIAL),
        WARNING,
        90_000,
        firing(sent_ms=90_000, repeats=1, detectors=(WINDOW, SEQUENTIAL)),
        Change(Reason.REPEATED, firing(sent_ms=90_000, repeats=1, detectors=(WINDOW, SEQUENTIAL))),
    ),
    "escalates": (
        firing(),
        (WINDOW, SHIFT),
        CRITICAL,
        600,
        firing(sent_ms=600, detectors=(WINDOW, SHIFT), severity=CRITICAL, repeats=1),
        Change(
            Reason.ESCALATED,
            firing(sent_ms=600, detectors=(WINDOW, SHIFT), severity=CRITICAL, repeats=1),
            WARNING,
        ),
    ),
    "escalates when a repeat is due": (
        firing(),
        (WINDOW,),
        CRITICAL,
        1_500,
        firing(sent_ms=1_500, severity=CRITICAL, repeats=1),
        Change(Reason.ESCALATED, firing(sent_ms=1_500, severity=CRITICAL, repeats=1), WARNING),
    ),
    "stays critical": (
        firing(severity=CRITICAL),
        (WINDOW,),
        WARNING,
        600,
        firing(severity=CRITICAL),
        None,
    ),
    "does not escalate twice": (
        firing(severity=CRITICAL),
        (WINDOW,),
        CRITICAL,
        600,
        firing(severity=CRITICAL),
        None,
    ),
    "repeats the highest severity": (
        firing(severity=CRITICAL),
        (WINDOW,),
        WARNING,
        1_500,
        firing(sent_ms=1_500, severity=CRITICAL, repeats=1),
        Change(Reason.REPEATED, firing(sent_ms=1_500, severity=CRITICAL, repeats=1)),
    ),
    "ends": (firing(repeats=4), (), WARNING, 600, None, Change(Reason.ENDED, firing(repeats=4))),
    "ends when a repeat is due": (
        firing(severity=CRITICAL),
        (),
        CRITICAL,
        9_000,
        None,
        Change(Reason.ENDED, firing(severity=CRITICAL)),
    ),
}


@pytest.mark.parametrize("case", TRANSITIONS.values(), ids=TRANSITIONS.keys())
def test_transitions(
    case: tuple[Firing | None, tuple[Detector, ...], Severity, int, Firing | None, Change | None],
) -> None:
    before, active, severity, now_ms, after, change = case
    found = step(
        before, active, severity=severity, onset_ms=7, now_ms=now_ms, repeat_interval_ms=REPEAT_MS
    )
    assert found == (after, change)


def test_only_the_end_resolves() -> None:
    told = {reason: Change(reason, firing()).transition for reason in Reason}
    assert told.pop(Reason.ENDED) is Transition.RESOLVED
    assert told.pop(Reason.SILENT) is Transition.RESOLVED
    assert told.pop(Reason.FORGOTTEN) is Transition.RESOLVED
    assert told.pop(Reason.ACCEPTED) is Transition.RESOLVED
    assert set(told.values()) == {Transition.FIRING}
    assert len(told) == 3


def test_words_are_those_of_prometheus() -> None:
    assert [*AlertState] == ["inactive", "firing"]
    assert [*Transition] == ["firing", "resolved"]
    assert [*Severity] == ["warning", "critical"]


PANES = st.lists(
    st.tuples(
        st.integers(1, 600),
        st.lists(st.sampled_from(Detector), unique=True).map(tuple),
        st.sampled_from(Severity),
    ),
    max_size=40,
)


@given(PANES)
def test_alerts_begin_and_end_in_turn_and_are_sent_in_time(
    panes: list[tuple[int, tuple[Detector, ...], Severity]],
) -> None:
    alert, now, sent, repeats = None, 0, 0, 0
    worst = WARNING
    for passed, active, severity in panes:
        now += passed
        before = alert
        alert, change = step(
            before,
            active,
            severity=severity,
            onset_ms=now - passed,
            now_ms=now,
            repeat_interval_ms=REPEAT_MS,
        )
        reason = change.reason if change else None
        assert (alert is not None) == bool(active)
        assert (reason is Reason.BEGAN) == (before is None and alert is not None)
        assert (reason is Reason.ENDED) == (before is not None and alert is None)
        if before is None or alert is None:
            sent, repeats, worst = now, 0, severity
            continue
        worst = max(worst, severity, key=list(Severity).index)
        assert (alert.since_ms, alert.onset_ms) == (before.since_ms, before.onset_ms)
        assert alert.severity is worst
        assert set(alert.detectors) == {*before.detectors, *active}
        escalates = before.severity is not worst
        assert (reason is Reason.ESCALATED) == escalates
        assert (reason is Reason.REPEATED) == (not escalates and now - sent >= REPEAT_MS)
        if change is not None:
            assert change.alert == alert
            sent, repeats = now, repeats + 1
        assert (alert.sent_ms, alert.repeats) == (sent, repeats)
