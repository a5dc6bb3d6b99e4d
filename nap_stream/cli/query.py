"""nap-stream query."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from nap_stream.cli.options import ConfigOption, LogOption, log_store
from nap_stream.clock import Clock, SystemClock
from nap_stream.errors import ConfigError
from nap_stream.records import Status
from nap_stream.scored_log.query import (
    GroupBy,
    OutputFormat,
    aggregate,
    write_batches,
    write_result,
)
from nap_stream.scored_log.read import SCAN_SCHEMA, Query, scan

DEFAULT_TABLE_ROWS = 50

_AGO = re.compile(r"^(\d+)([smhd])$")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def query(
    config: ConfigOption = None,
    log: LogOption = None,
    topic: Annotated[str | None, typer.Option(help="Only this topic.")] = None,
    partition: Annotated[
        list[int] | None, typer.Option(help="Only this partition; may be repeated.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(help="From this event time on: ISO 8601 (UTC), or 90m, 6h, 2d ago."),
    ] = None,
    until: Annotated[str | None, typer.Option(help="Before this event time.")] = None,
    class_name: Annotated[
        list[str] | None,
        typer.Option("--class", help="Only this predicted class, by name or id; repeatable."),
    ] = None,
    ood: Annotated[
        bool | None, typer.Option("--ood/--in-distribution", help="Only flagged, or unflagged.")
    ] = None,
    min_p_value: Annotated[float | None, typer.Option(min=0, max=1)] = None,
    max_p_value: Annotated[float | None, typer.Option(min=0, max=1)] = None,
    status: Annotated[
        list[Status] | None, typer.Option(help="Only rows with this status; repeatable.")
    ] = None,
    by: Annotated[
        GroupBy | None, typer.Option(help="Count rows and give the OOD fraction by this.")
    ] = None,
    output_format: Annotated[OutputFormat, typer.Option("--format", "-f")] = OutputFormat.TABLE,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file instead of standard output.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help=f"At most so many rows; a table shows {DEFAULT_TABLE_ROWS}."),
    ] = None,
) -> None:
    """Show rows of the scored log, or count them.

    \b
    Examples:
      nap-stream query --log scored-log --since 1h --ood
      nap-stream query --log scored-log --by hour --format csv
      nap-stream query --log scored-log --status corrupt --format json
    """
    store = log_store(config, log)
    since_ms, until_ms = span_ms(since, until, SystemClock())
    filters = Query(
        topic=topic,
        partitions=tuple(partition or ()),
        since_ms=since_ms,
        until_ms=until_ms,
        classes=tuple(class_name or ()),
        is_ood=ood,
        min_p_value=min_p_value,
        max_p_value=max_p_value,
        statuses=tuple(status or ()),
    )
    _refuse_parquet_on_a_terminal(output_format, output)
    if limit is None and output_format is OutputFormat.TABLE:
        limit = DEFAULT_TABLE_ROWS
    with _opened(output) as stream:
        if by is None:
            write_batches(SCAN_SCHEMA, scan(store, filters), output_format, stream, limit=limit)
        else:
            write_result(aggregate(store, filters, by), output_format, stream)


def span_ms(since: str | None, until: str | None, clock: Clock) -> tuple[int | None, int | None]:
    """What --since and --until mean, in milliseconds since the epoch.

    Raises:
        ConfigError: One is no time, or nothing can lie between them.
    """
    now = datetime.fromtimestamp(clock.now_ms() / 1000, UTC)
    since_ms, until_ms = _time_ms("--since", since, now), _time_ms("--until", until, now)
    if since_ms is not None and until_ms is not None and since_ms >= until_ms:
        raise ConfigError(
            f"{since} is not before {until}", "--since, --until", "Give the earlier one first"
        )
    return since_ms, until_ms


def _time_ms(option: str, text: str | None, now: datetime) -> int | None:
    """Milliseconds since the epoch of an ISO 8601 time, or of a time so long ago."""
    if text is None:
        return None
    ago = _AGO.match(text)
    try:
        if ago:
            when = now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        else:
            when = datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        raise ConfigError(
            f"not a time: {text!r}", option, "Expected 2026-11-23T10:00, or 90m, 6h, 2d ago"
        ) from error
    return round((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)


def _refuse_parquet_on_a_terminal(output_format: OutputFormat, output: Path | None) -> None:
    if output_format is OutputFormat.PARQUET and output is None and sys.stdout.isatty():
        raise ConfigError("Parquet is not text", "--format parquet", "Give --output FILE")


@contextmanager
def _opened(output: Path | None) -> Iterator[BinaryIO]:
    """Standard output, or the file."""
    if output is None:
        yield sys.stdout.buffer
        return
    try:
        with output.open("wb") as stream:
            yield stream
    except OSError as error:
        raise ConfigError(f"cannot write: {error.strerror}", f"--output {output}") from error
