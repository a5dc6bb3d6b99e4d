"""A real endpoint of OTLP over HTTP, which keeps the spans that it is sent."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.http_receiver import HttpReceiver


@dataclass(frozen=True)
class Span:
    """A span as sent; ids in hexadecimal, an empty parent for a root, times in nanoseconds."""

    service: str
    name: str
    trace: str
    span: str
    parent: str
    start: int
    end: int
    attributes: dict[str, Any]
    links: tuple[str, ...]


class SpanReceiver(HttpReceiver):
    """Takes spans until the block ends."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/traces"

    def spans(self) -> list[Span]:
        """All so far, in the order of arrival."""
        return [span for request in self.requests for span in _spans(request.body)]


def _spans(body: bytes) -> Iterator[Span]:
    message = ExportTraceServiceRequest.FromString(body)
    for resource in message.resource_spans:
        about = _values(resource.resource.attributes)
        for scope in resource.scope_spans:
            for each in scope.spans:
                yield Span(
                    service=about["service.instance.id"],
                    name=each.name,
                    trace=each.trace_id.hex(),
                    span=each.span_id.hex(),
                    parent=each.parent_span_id.hex(),
                    start=each.start_time_unix_nano,
                    end=each.end_time_unix_nano,
                    attributes=_values(each.attributes),
                    links=tuple(link.trace_id.hex() for link in each.links),
                )


def _values(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in pairs}


@contextmanager
def span_receiver() -> Iterator[SpanReceiver]:
    receiver = SpanReceiver()
    with receiver.listening():
        yield receiver
