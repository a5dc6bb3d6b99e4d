"""Traces by OpenTelemetry: what became of a segment's messages, from their poll to an alert.

A trace is of one segment. Its worker knows only once the segment is durable which batches are in
it; so their steps are noted with times, and become spans then. The trace's context goes to the
coordinator with the segment's summary, as W3C's traceparent. Nothing here may hold the line up:
spans that an endpoint does not take are dropped.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog

from nap_stream.clock import Clock, Timed
from nap_stream.errors import ConfigError
from nap_stream.files import read_token
from nap_stream.places import places_of
from nap_stream.records import SegmentSummary, TopicPartition
from nap_stream.settings.run import TracingSettings
from nap_stream.settings.schema import Settings

MOST_SPANS = 100
"""Of the steps of one segment: a large one has hundreds of batches. Its span counts them all."""
MOST_SEGMENTS = 4_096
"""Segments of which the coordinator remembers the trace, for alerts that speak of them."""
MOST_LINKS = 32
EXPORT_TIMEOUT_S = 5.0
"""For one attempt; also how long the end of a run waits for the last spans, about."""
_READ_FROM = "tracing.bearer_token_file"
Place = tuple[TopicPartition, int]
"""A partition, and a segment's base offset."""


class Tracing:
    """Off: notes nothing, and costs nothing."""

    is_on = False

    def segment(self, summary: SegmentSummary, steps: Sequence[Timed]) -> str | None:  # noqa: ARG002
        """Make a trace of a durable segment's steps; give its context, where there is one."""
        return None

    @contextmanager
    def span(self, name: str, parent: str | None, **attributes: str | int) -> Iterator[None]:  # noqa: ARG002
        """Trace what is within, as a part of ``parent``."""
        yield

    def remember(self, summary: SegmentSummary) -> None:
        """Note the trace of a segment, for alerts."""

    def of_alert(self, event: Mapping[str, Any]) -> tuple[str | None, tuple[str, ...]]:  # noqa: ARG002
        """The trace of the newest segment that an alert speaks of, and those of others."""
        return None, ()

    @contextmanager
    def alert(self, event: Mapping[str, Any], sink: str) -> Iterator[None]:  # noqa: ARG002
        """Trace the delivery of an alert, as a part of its newest segment's trace."""
        yield

    def close(self) -> None:
        """Send what waits, for a few seconds. Safe to call twice."""


OFF = Tracing()


def open_tracing(settings: Settings, name: str, clock: Clock) -> Tracing:
    """Traces of a worker or the coordinator, called ``name``; `OFF` where settings want none.

    Raises:
        ConfigError: The library is missing, or a file cannot be read.
    """
    if settings.tracing is None:
        return OFF
    return OtlpTracing(settings.tracing, settings, name, clock)


def require_library(settings: Settings) -> None:
    """Refuse to start where traces are wanted and cannot be made.

    Raises:
        ConfigError: The library is missing.
    """
    if settings.tracing is not None:
        _library()


def _library() -> Any:
    try:
        from opentelemetry.exporter.otlp.proto.http import trace_exporter  # noqa: PLC0415
        from opentelemetry.sdk import trace  # noqa: F401, PLC0415
    except ImportError as error:
        raise ConfigError(
            "the exporter of OpenTelemetry is not installed",
            "tracing",
            "Install it: pip install 'nap-stream[traces]'; or leave tracing out",
        ) from error
    return trace_exporter


class OtlpTracing(Tracing):
    """Sends spans to an endpoint of OTLP over HTTP, from a thread of its own."""

    is_on = True

    def __init__(
        self, tracing: TracingSettings, settings: Settings, name: str, clock: Clock
    ) -> None:
        library = _library()
        from opentelemetry import trace  # noqa: PLC0415 - an extra
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        from opentelemetry.sdk.trace.sampling import (  # noqa: PLC0415
            ParentBased,
            TraceIdRatioBased,
        )
        from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
            TraceContextTextMapPropagator,
        )

        self._api, self._clock = trace, clock
        self._propagator = TraceContextTextMapPropagator()
        resource = {
            "service.name": "nap-stream",
            "service.instance.id": name,
            "service.version": version("nap-stream"),
            "nap_stream.monitor": settings.alerts.monitor,
            "nap_stream.topic": settings.kafka.topic,
        }
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(tracing.sample)),
            resource=Resource.create(resource),
            shutdown_on_exit=False,
        )
        sends = library.OTLPSpanExporter(
            endpoint=tracing.endpoint,
            certificate_file=None if tracing.ca_file is None else str(tracing.ca_file),
            session=_session(tracing.bearer_token_file),
            timeout=EXPORT_TIMEOUT_S,
        )
        # Its class is an extra's: it is like one in what it does.
        exporter: Any = _Exporter(sends)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("nap_stream", version("nap-stream"))
        self._closed = False
        self._lock = threading.Lock()
        self._known: OrderedDict[Place, tuple[int, str]] = OrderedDict()

    def segment(self, summary: SegmentSummary, steps: Sequence[Timed]) -> str | None:
        """As `Tracing.segment`."""
        if not steps:
            return None
        # One poll brings several batches.
        steps = tuple(dict.fromkeys(steps))
        # From the monotonic clock to the time of day, as both are now.
        shift_ns = self._clock.now_ms() * 1_000_000 - self._ns(self._clock.monotonic())
        begin = min(start for _, start, _ in steps)
        end = max(end for _, _, end in steps)
        root = self._tracer.start_span(
            "segment", start_time=shift_ns + self._ns(begin), attributes=_attributes(summary, steps)
        )
        within = self._api.set_span_in_context(root)
        for name, start, stop in steps[-MOST_SPANS:]:
            self._tracer.start_span(name, within, start_time=shift_ns + self._ns(start)).end(
                shift_ns + self._ns(stop)
            )
        root.end(shift_ns + self._ns(end))
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, within)
        return carrier.get("traceparent")

    @contextmanager
    def span(self, name: str, parent: str | None, **attributes: str | int) -> Iterator[None]:
        """As `Tracing.span`."""
        with self._tracer.start_as_current_span(
            name, self._context(parent), attributes=attributes, record_exception=False
        ):
            yield

    def remember(self, summary: SegmentSummary) -> None:
        """As `Tracing.remember`."""
        if summary.trace is None:
            return
        with self._lock:
            place = summary.partition, summary.base_offset
            self._known[place] = summary.end_offset, summary.trace
            if len(self._known) > MOST_SEGMENTS:
                self._known.popitem(last=False)

    def of_alert(self, event: Mapping[str, Any]) -> tuple[str | None, tuple[str, ...]]:
        """As `Tracing.of_alert`."""
        places = list(places_of(event.get("data")))
        with self._lock:
            found = [
                trace
                for (partition, base), (end, trace) in self._known.items()
                if any(
                    partition == place.partition and base < place.end and end > place.start
                    for place in places
                )
            ]
        return (found[-1], tuple(found[-MOST_LINKS:-1])) if found else (None, ())

    @contextmanager
    def alert(self, event: Mapping[str, Any], sink: str) -> Iterator[None]:
        """As `Tracing.alert`."""
        parent, others = self.of_alert(event)
        links = [
            self._api.Link(self._api.get_current_span(self._context(other)).get_span_context())
            for other in others
        ]
        about = {"nap_stream.alert": str(event.get("id")), "nap_stream.sink": sink}
        with self._tracer.start_as_current_span(
            "alert",
            self._context(parent),
            attributes=about | {"nap_stream.type": str(event.get("type"))},
            links=links,
            record_exception=False,
        ):
            yield

    def close(self) -> None:
        """As `Tracing.close`."""
        # It has no deadline of its own, and an endpoint that is away takes a minute of retries.
        if self._closed:
            return
        self._closed = True
        ending = threading.Thread(target=self._provider.shutdown, name="traces-end", daemon=True)
        ending.start()
        ending.join(EXPORT_TIMEOUT_S)

    def _context(self, parent: str | None) -> Any:
        return self._propagator.extract({} if parent is None else {"traceparent": parent})

    @staticmethod
    def _ns(seconds: float) -> int:
        return int(seconds * 1e9)


def _attributes(summary: SegmentSummary, steps: Sequence[Timed]) -> dict[str, str | int]:
    counts = {f"nap_stream.rows.{name}": n for name, n in summary.rows_by_status.items()}
    return {
        "messaging.system": "kafka",
        "messaging.destination.name": summary.partition.topic,
        "messaging.destination.partition.id": str(summary.partition.partition),
        "nap_stream.base_offset": summary.base_offset,
        "nap_stream.end_offset": summary.end_offset,
        "nap_stream.steps": len(steps),
        **counts,
    }


class _Exporter:
    """An exporter, of which the log tells when spans are dropped, once until they go again."""

    def __init__(self, exporter: Any) -> None:
        self._exporter, self._is_told = exporter, False

    def export(self, spans: Sequence[Any]) -> Any:
        result = self._exporter.export(spans)
        has_failed = result.name != "SUCCESS"
        if has_failed and not self._is_told:
            structlog.get_logger().warning(
                "spans_dropped",
                spans=len(spans),
                action="See that tracing.endpoint answers, and takes the token; alerts and the log "
                "are as they should be",
            )
        self._is_told = has_failed
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return bool(self._exporter.force_flush(timeout_millis))


def _session(token: Path | None) -> Any:
    """What requests are sent by; the token is read for each, as it may be another one by then."""
    if token is None:
        return None
    import requests  # noqa: PLC0415 - the exporter needs it

    read_token(token, _READ_FROM)

    def authorized(request: Any) -> Any:
        request.headers["Authorization"] = f"Bearer {read_token(token, _READ_FROM)}"
        return request

    session = requests.Session()
    session.auth = authorized
    return session
