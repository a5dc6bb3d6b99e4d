"""What events tell: runs, alerts, answers and changes, by hand."""

import time
from dataclasses import replace

import pytest

from nap_stream.report.history import (
    History,
    Run,
    history,
    outside,
    streams_of,
    topics_read,
    without_monitor,
)
from nap_stream.scored_log.events import Event
from tests.report.month import TOPIC, alert, at, run_started, write_events
from tests.support.memory_store import MemoryStore

PERIOD = (at("01T00:00"), at("31T00:00"))


@pytest.fixture(scope="module")
def month() -> History:
    return history(write_events(MemoryStore()))


def test_runs_begin_and_end(month: History) -> None:
    told = [(run.start_ms, run.stopped and run.stopped.time_ms, run.next_ms) for run in month.runs]
    assert told == [
        (at("01T00:00"), at("12T03:00"), at("12T09:00")),
        (at("12T09:00"), None, at("16T12:00")),
        (at("16T12:00"), None, None),
    ]
    assert [run.bound for run in month.runs] == [0.1, 0.1, 0.08]
    assert month.runs[0].run_length == 30 * 86_400 * 0.01


def test_a_killed_run_was_at_work_until_its_last_image(month: History) -> None:
    last = (at("12T02:59"), at("14T23:10"), at("30T02:20"))
    runs = [replace(run, seen_ms=seen) for run, seen in zip(month.runs, last, strict=True)]
    off, unsure = without_monitor(runs, PERIOD)
    assert off == [(at("12T03:00"), at("12T09:00")), (at("14T23:10"), at("16T12:00"))]
    # Whether the newest run is still at work, nothing tells.
    assert unsure == [(at("30T02:20"), at("31T00:00"))]
    assert without_monitor((), PERIOD) == ([PERIOD], [])
    off, unsure = without_monitor(month.runs[2:], PERIOD)
    assert (off, unsure) == (
        [(PERIOD[0], at("16T12:00"))],
        [(at("16T12:00"), PERIOD[1])],
    )
    # A run that never scored was not at work, and another monitor's run can be.
    killed = replace(runs[1], seen_ms=None)
    other = replace(runs[0], stopped=None, next_ms=None, seen_ms=at("13T00:00"))
    off, unsure = without_monitor([killed], (at("12T09:00"), at("16T00:00")))
    assert (off, unsure) == ([(at("12T09:00"), at("16T00:00"))], [])
    assert without_monitor([killed, other], PERIOD)[1] == [(at("13T00:00"), PERIOD[1])]


def test_a_bound_holds_until_the_run_ends_or_another_begins(month: History) -> None:
    assert month.bounds(TOPIC)[:2] == [
        ((at("01T00:00"), at("12T03:00")), 0.1),
        ((at("12T09:00"), at("16T12:00")), 0.1),
    ]
    first = run_started("01T00:00", "one")
    blocks = {**first.data, "detectors": ["blocks", "unscored-images"]}
    second = replace(run_started("02T00:00", "two"), data=blocks)
    assert history([first, second]).bounds(TOPIC) == [((at("01T00:00"), at("02T00:00")), 0.1)]
    other = replace(second, monitor="another")
    assert history([first, other]).runs[0].next_ms is None
    assert history([first, other]).bounds(TOPIC) == [((at("01T00:00"), at("02T00:00")), 0.1)]


def test_what_spans_leave_of_a_period() -> None:
    assert outside([(7, 8), (0, 2), (1, 3)], (1, 10)) == [(3, 7), (8, 10)]
    assert outside([(12, 13), (2, 2), (4, 0)], (1, 10)) == [(1, 10)]


def test_alerts_are_told_from_beginning_to_end(month: History) -> None:
    told = [(e.about, e.key, e.severity, e.start_ms, e.end_ms, e.ids) for e in month.episodes]
    assert told == [
        ("gap", "partition 1", "", at("10T00:00"), at("10T00:00"), ("gap-1",)),
        (
            "drift",
            "",
            "critical",
            at("20T14:00"),
            at("21T18:00"),
            ("drift-1", "drift-2", "drift-3"),
        ),
        ("drift", "camera-5", "warning", at("20T15:00"), at("21T19:00"), ("key-1", "key-2")),
        ("unscored", "", "warning", at("29T08:00"), None, ("bad-1",)),
    ]
    assert month.episodes[1].words.startswith("Now critical: 31 of 90 images")
    answers = [[(a.kind, a.by) for a in e.answers] for e in month.episodes]
    by = "Ada Moreno"
    assert answers == [[], [("acknowledged", by)], [("accepted", by)], []]


def test_an_alert_that_was_written_twice_counts_once() -> None:
    first = alert("20T14:00", "drift-1", "firing", "warning", "words")
    end = alert("20T15:00", "drift-2", "resolved", "warning", "words")
    again = alert("20T16:00", "drift-3", "firing", "warning", "words")
    found = history([first, first, end, replace(end, time_ms=end.time_ms + 5), again])
    assert [e.ids for e in found.episodes] == [("drift-1", "drift-2"), ("drift-3",)]


def test_answers_to_alerts_that_are_not_there_are_told() -> None:
    event = Event(time_ms=5, kind="acknowledged", by="Ada", topic=TOPIC, data={"alert": "gone"})
    assert history([event]).unplaced == (event,)


def test_settings_that_changed(month: History) -> None:
    found = [(run.started.by, *change) for run, *change in month.changes]
    by = "coordinator-3"
    assert sorted(each[:2] for each in found) == [
        (by, "bound"),
        (by, "calibration_fingerprint"),
        (by, "drift.window_records"),
        (by, "model_fingerprint"),
    ]
    assert (by, "drift.window_records", "500", "600") in found
    other = replace(run_started("02T00:00", "three", keys=None), monitor="another")
    changed = [run_started("01T00:00", "one"), other, run_started("02T00:00", "two", keys=None)]
    told = [(run.started.by, *each) for run, *each in history(changed).changes]
    assert ("two", "drift.keys", "not set", "null") in told
    assert ("two", "drift.keys.by", '"key"', "not set") in told
    assert {each[0] for each in told} == {"two"}


@pytest.mark.parametrize(
    "data", [{}, {"settings": 3}, {"settings": {"drift": []}}, {"bound": "<b>", "detectors": 7}]
)
def test_a_run_that_says_nothing_that_can_be_used(data: dict[str, object]) -> None:
    run = Run(replace(run_started("01T00:00", "one"), data=data), None, None)
    assert (run.bound, run.run_length, dict(run.drift)) == (None, None, {})
    assert (run.version, run.reason) == ("not recorded", "it runs, or was killed")
    assert replace(run, stopped=run.started).reason == "not recorded"
    for at_ in ("noon", "0001-01-01T00:00:00", 3):
        strange = Event(time_ms=1, kind="alert", by="c", data={"event": {"data": 3, "time": at_}})
        assert history([strange, replace(strange, data={})]).episodes[0].start_ms <= 1


def test_a_period_has_what_it_has_a_part_of(month: History) -> None:
    found = month.within(at("12T03:00"), at("20T14:00"))
    assert [run.started.by[-1] for run in found.runs] == ["1", "2", "3"]
    assert [each.ids[0] for each in found.episodes] == []
    assert len(found.changes) == 4
    found = month.within(at("20T14:30"), at("30T00:00"))
    assert [run.started.by[-1] for run in found.runs] == ["3"]
    assert [each.ids[0] for each in found.episodes] == ["drift-1", "key-1", "bad-1"]
    assert found.changes == ()


def test_topics_that_a_monitor_judges_together_are_one_stream() -> None:
    def started(name: str, **kafka: object) -> Event:
        event = run_started("01T00:00", "a")
        settings = {"kafka": {"topic": name, **kafka}}
        return replace(event, topic=name, data={**event.data, "settings": settings})

    topics = ["cam-1", "cam-2", "vans", "cars", "alone"]
    events = [
        started("cams", topics=[], topic_pattern="cam-.*"),
        started("others", topics=["vans", "cars", "not-in-the-log"], topic_pattern=None),
        started("gone"),
        started("hostile", topic_pattern="(a+)+b"),
        started("strange", topics=[1, None], topic_pattern=5),
    ]
    assert streams_of(topics_read(events, topics), topics) == {
        "cams": {"cam-1", "cam-2"},
        "others": {"vans", "cars"},
        "alone": {"alone"},
    }


def test_a_run_counts_the_topics_that_it_read_itself() -> None:
    def started(time: str, **kafka: object) -> Event:
        event = run_started(time, "a")
        data = {**event.data, "settings": {"kafka": {"topic": "cars", **kafka}}}
        return replace(event, topic="cars", data=data)

    topics = ["cars", "vans"]
    events = [started("01T00:00"), started("02T00:00", topics=topics)]
    read = topics_read(events, topics)
    found = history(events, None, read)
    assert [run.topics for run in found.runs] == [{"cars"}, {"cars", "vans"}]
    assert streams_of(read, topics) == {"cars": {"cars", "vans"}}


@pytest.mark.parametrize(
    "pattern", ["(.*.*.*)*x?y?[^a-z]", "(?=a)(.*.*.*)*x?y?[^a-z]", "((a{1000}){1000}){1000}", "("]
)
def test_a_pattern_that_others_wrote_to_hang_whoever_reads_it_does_not(pattern: str) -> None:
    topic = "a" * 60
    event = run_started("01T00:00", "a")
    event = replace(event, data={"settings": {"kafka": {"topic_pattern": pattern}}})
    began_s = time.process_time()
    assert streams_of(topics_read([event], [topic]), [topic]) == {topic: {topic}}
    assert time.process_time() - began_s < 5


def test_of_a_topic_only_its_own_events(month: History) -> None:
    found = history(write_events(MemoryStore()), ["another"])
    assert (found.runs, found.episodes, found.count) == ((), (), month.count)
