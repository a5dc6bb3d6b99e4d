"""Traces: what is sent to an endpoint of OTLP, and that nothing is where it is off."""

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from structlog.testing import capture_logs

from nap_stream import tracing
from nap_stream.alert.event import AlertEvent
from nap_stream.alert.sinks import TracedSink
from nap_stream.clock import Clock, Deadline, ManualClock, SystemClock, Timed
from nap_stream.errors import ConfigError
from nap_stream.pipeline.commits import Publisher, WorkerCounters
from nap_stream.pipeline.partition import Partition
from nap_stream.records import Fetched, SegmentSummary, TopicPartition
from nap_stream.scored_log.chain import WriterIdentity
from nap_stream.scored_log.summary import SummaryShape, summarise
from nap_stream.tracing import (
    MOST_SEGMENTS,
    MOST_SPANS,
    OFF,
    Tracing,
    open_tracing,
    require_library,
)
from tests.pipeline.test_scoring import message, stage
from tests.support.alert_sinks import FlakySink
from tests.support.doubles import MemoryDeadLetters
from tests.support.http_receiver import Answer
from tests.support.memory_store import MemoryStore
from tests.support.otlp import SpanReceiver, span_receiver
from tests.support.scored_records import RecordLog
from tests.support.summaries import partition, settings, summary
from tests.support.told import Told
from tests.support.waiting import PATIENCE_S

NOW_MS = 1_800_000_000_000
SPAN = {"start": 0, "end": 1}
STEPS: tuple[Timed, ...] = (("poll", 1.0, 2.0), ("decode", 2.0, 2.5), ("score", 2.5, 4.0))


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[SpanReceiver]:
    """It answers at once; where it is late, the machine stood still."""
    monkeypatch.setattr(tracing, "EXPORT_TIMEOUT_S", PATIENCE_S)
    with span_receiver() as found:
        yield found


def traced(
    receiver: SpanReceiver,
    name: str = "worker-0.0",
    clock: Clock | None = None,
    **more: Any,
) -> Tracing:
    chosen = settings(tracing={"endpoint": receiver.url, **more})
    return open_tracing(chosen, name, clock or ManualClock(NOW_MS))


def test_without_settings_nothing_is_traced_or_imported() -> None:
    assert open_tracing(settings(), "worker-0.0", SystemClock()) is OFF
    assert OFF.segment(summary(0, 0, [(1, False)]), STEPS) is None
    with OFF.span("decide", None), OFF.alert({}, "kafka"):
        pass
    OFF.close()


def test_a_segment_is_a_trace_that_goes_on_in_the_coordinator_and_to_the_alert(
    receiver: SpanReceiver,
) -> None:
    worker, coordinator = traced(receiver), traced(receiver, "coordinator")
    earlier, segment = summary(0, 0, [(1, False)] * 5), summary(0, 5, [(1, False)] * 5)
    segment = replace(segment, trace=worker.segment(segment, STEPS))
    earlier = replace(earlier, trace=worker.segment(earlier, STEPS))
    for each in (earlier, segment):
        coordinator.remember(each)
        with coordinator.span("decide", each.trace):
            pass
    sink = FlakySink()
    event = {
        "id": "1",
        "type": "io.nap-stream.drift.firing",
        "data": {"topic": "images", "offsets": [{"partition": 0, "start": 3, "end": 6}]},
    }
    TracedSink(sink, coordinator).publish(AlertEvent("m", event))
    worker.close()
    coordinator.close()
    spans = receiver.spans()
    (root,) = [s for s in spans if s.name == "segment" and s.attributes["nap_stream.base_offset"]]
    mine = {s.name: s for s in spans if s.trace == root.trace}
    assert set(mine) == {"segment", "poll", "decode", "score", "decide", "alert"}
    assert {span.parent for name, span in mine.items() if name != "segment"} == {root.span}
    assert (mine["decide"].service, mine["poll"].service) == ("coordinator", "worker-0.0")
    assert (root.end - root.start, root.parent) == (3_000_000_000, "")
    assert mine["score"].start - root.start == 1_500_000_000
    assert root.attributes["nap_stream.rows.ok"] == 5
    assert root.attributes["nap_stream.steps"] == 3
    assert mine["alert"].attributes["nap_stream.alert"] == "1"
    (other,) = mine["alert"].links
    assert other == next(s.trace for s in spans if s.name == "segment" and s is not root)
    assert len(sink.alerts) == 1


def test_times_are_those_of_the_day(receiver: SpanReceiver) -> None:
    ours = traced(receiver)
    now_s = ManualClock(NOW_MS).monotonic()
    ours.segment(summary(0, 0, [(1, False)]), [("poll", now_s - 2, now_s - 1)])
    ours.close()
    starts = {span.start for span in receiver.spans()}
    assert starts == {(NOW_MS - 2_000) * 1_000_000}


def test_a_share_is_traced_as_a_whole_and_what_is_not_stays_out(receiver: SpanReceiver) -> None:
    worker, coordinator = traced(receiver, sample=0), traced(receiver, "coordinator")
    trace = worker.segment(summary(0, 0, [(1, False)]), STEPS)
    assert trace is not None
    with coordinator.span("decide", trace):
        pass
    worker.close()
    coordinator.close()
    assert receiver.spans() == []


def test_large_segments_and_many_of_them_are_bounded(receiver: SpanReceiver) -> None:
    ours = traced(receiver)
    segment = summary(0, 0, [(1, False)])
    trace = ours.segment(segment, [("score", float(n), n + 1.0) for n in range(1_000)])
    for number in range(MOST_SEGMENTS + 10):
        ours.remember(replace(segment, partition=partition(number), trace=trace))
    ours.close()
    spans = receiver.spans()
    assert len(spans) == MOST_SPANS + 1
    data: dict[str, Any] = {"topic": "images", "partition": 3, "base_offset": 0, "end_offset": 1}
    assert ours.of_alert({"data": data}) == (None, ())
    assert ours.of_alert({"data": data | {"partition": 4_000, "offsets": 1}}) == (trace, ())
    several = {"topic": "all", "offsets": [{"topic": "images", "partition": 4_000} | SPAN]}
    assert ours.of_alert({"data": several}) == (trace, ())


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {"offsets": [None, {}, {"partition": 0}]},
        {"topic": {}, "offsets": [{"partition": 0} | SPAN]},
        {"topic": "images", "offsets": [{"partition": [], "start": "0", "end": None}]},
        {"topic": "images", "offsets": [{"partition": 0, "start": 5, "end": 1}]},
        {"topic": "images", "base_offset": 0, "end_offset": 9},
        {"topic": "images", "base_offset": 0, "partition": 0},
        {"topic": "images", "examples": {"partition": 0, "offset": 0}},
        {"topic": "images", "examples": [0, {"offset": 0}, {"partition": 0, "offset": -1}]},
    ],
)
def test_an_alert_of_another_shape_is_sent_without_its_segments(
    receiver: SpanReceiver, data: Any
) -> None:
    ours, sink = traced(receiver), FlakySink()
    segment = summary(0, 0, [(1, False)])
    ours.remember(replace(segment, trace=ours.segment(segment, STEPS)))
    assert ours.of_alert({"data": data}) == (None, ())
    TracedSink(sink, ours).publish(AlertEvent("m", {"id": "1", "data": data}))
    ours.close()
    assert len(sink.alerts) == 1


@pytest.mark.parametrize("away", ["nobody", "refuses"])
def test_an_endpoint_that_takes_nothing_holds_nothing_up(
    receiver: SpanReceiver, away: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a run waits a few seconds for it, and not for the library's retries."""
    monkeypatch.undo()
    if away == "refuses":
        receiver.answers += [Answer(503)] * 100
    url = "http://127.0.0.1:1/v1/traces" if away == "nobody" else receiver.url
    ours = open_tracing(settings(tracing={"endpoint": url}), "worker-0.0", SystemClock())
    for _ in range(1_000):
        ours.segment(summary(0, 0, [(1, False)]), STEPS)
    began = time.monotonic()
    ours.close()
    ours.close()
    assert time.monotonic() - began < PATIENCE_S / 2


def test_a_token_goes_with_it_and_is_not_shown(receiver: SpanReceiver, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("another\n")
    ours = traced(receiver, bearer_token_file=file)
    file.write_text("t0ken\n")
    ours.segment(summary(0, 0, [(1, False)]), STEPS)
    ours.close()
    sent = {name.lower(): value for name, value in receiver.requests[0].headers.items()}
    assert sent["authorization"] == "Bearer t0ken"
    assert "t0ken" not in repr(ours.__dict__)
    elsewhere = {"endpoint": "http://collector:4318/v1/traces", "bearer_token_file": str(file)}
    with pytest.raises(ValidationError, match="expected https: the token would go over"):
        settings(tracing=elsewhere)
    file.unlink()
    with pytest.raises(ConfigError, match="the secret cannot be read"):
        traced(receiver, bearer_token_file=file)


def test_spans_that_are_dropped_are_told_of(receiver: SpanReceiver) -> None:
    ours = traced(receiver)
    receiver.answers.append(Answer(400))
    with capture_logs() as logs:
        ours.segment(summary(0, 0, [(1, False)]), STEPS)
        ours.close()
    # Threads of other tests may log too.
    (told,) = [each for each in logs if each["event"] == "spans_dropped"]
    assert told["spans"] == 1 + len(STEPS)


def test_without_the_library_a_run_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)
    require_library(settings())
    with pytest.raises(ConfigError, match="not installed") as caught:
        require_library(settings(tracing={"endpoint": "http://localhost:4318/v1/traces"}))
    assert "nap-stream[traces]" in caught.value.action


def test_a_publisher_traces_what_became_of_a_batch(receiver: SpanReceiver) -> None:
    """From the stage's threads, over dead letters, segment and commit, to the summary."""
    told, clock = Told(), SystemClock()
    ours = traced(receiver, clock=clock)
    log = RecordLog(MemoryStore(), WriterIdentity("w", "0" * 64, "1" * 64), clock)
    name = TopicPartition("images", 0)
    mine = Partition(name, 1, log.begin(name, 0), 0)
    publisher = Publisher(
        *(log, MemoryDeadLetters(), told, _summary),
        counters=WorkerCounters("worker-0", 0),
        clock=clock,
        tracing=ours,
    )
    with stage(traced=True) as scoring:
        batch = Fetched(name, (message(0, b"gb", name),), 1)
        scoring.submit(batch, 1, clock.monotonic() - 1)
        assert scoring.wait_until_done(frozenset([name]), PATIENCE_S)
        for each in scoring.take():
            mine.add(each, clock.monotonic())
    assert publisher.checkpoint([mine], Deadline(clock, PATIENCE_S), lambda _offsets: True) == []
    ours.close()
    spans = sorted(receiver.spans(), key=lambda span: span.start)
    names = [span.name for span in spans]
    steps = ["poll", "decode", "score", "dead_letters", "publish", "commit", "submit"]
    assert [name for name in names if name != "segment"] == steps
    (handed,) = told.summaries
    assert handed.trace is not None
    assert {span.trace for span in spans} == {handed.trace.split("-")[1]}
    assert mine.steps == []


def _summary(segment: Any, rows: Any, gap: str | None) -> SegmentSummary:
    return summarise(segment, rows, SummaryShape(100, 3), gap)
