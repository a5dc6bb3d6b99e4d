"""nap-stream history, ack: who did what beside the log's rows, and what was done about alerts."""

import dataclasses
import sys
import textwrap
from itertools import zip_longest
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated

import typer

from nap_stream.cli.options import ConfigOption, LogOption, TopicOption, log_store, span_ms
from nap_stream.cli.query import EXIT_UNREAD, FormatOption, OutputOption, write_rows
from nap_stream.clock import SystemClock
from nap_stream.errors import ConfigError
from nap_stream.text import listed, moment, printable, rfc3339

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from nap_stream.scored_log.events import Event
    from nap_stream.scored_log.history import Entry
    from nap_stream.scored_log.stores import SegmentStore
    from nap_stream.scored_log.verify.report import Defect

_SHOWN, _MORE = ("time", "kind", "by", "what"), ("topic", "monitor", "alert", "number")
_WHO, _OTHERS, _LEAST = 14, 51, 20
"""Characters of who, of all but what, and of that at least."""


def history(
    config: ConfigOption = None,
    log: LogOption = None,
    topic: TopicOption = None,
    since: Annotated[
        str | None, typer.Option(help="From then on: ISO 8601 (UTC), or 90m, 6h, 2d ago.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Before then.")] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(help="Only run-started, run-stopped, changed, alert and so on; repeatable."),
    ] = None,
    output_format: FormatOption = "table",
    output: OutputOption = None,
) -> None:
    """Show what happened, by whom and when: runs, alerts, what was done about them, acceptances.

    Below each start of a monitor stands what was changed since the run before: settings, model,
    calibration, bound. Secrets are masked, so that a change of one is not seen. A run that died
    has no end, and it is said.

    Exit code 3 where an event cannot be read, is missing or was exchanged: it is named.

    \b
    Examples:
      nap-stream history --log scored-log --since 2026-05-01 --until 2026-06-01 --kind changed
      nap-stream history --log scored-log --kind alert --kind acknowledged --format csv
    """
    from nap_stream.scored_log.events import EventKind
    from nap_stream.scored_log.history import CHANGED, entries

    store = log_store(config, log, output)
    events, defects = _events(store)
    kinds = {*EventKind, CHANGED, *(event.kind for event in events)}
    if unknown := set(kind or ()) - kinds:
        raise ConfigError(
            f"no such kind: {min(unknown)!r}", "--kind", f"Give {', '.join(sorted(kinds))}"
        )
    since_ms, until_ms = span_ms(since, until, SystemClock())
    _require_topic(store, events, topic)
    found = [
        each
        for each in entries(events)
        if topic in {None, each.topic}
        and (not kind or each.kind in kind)
        and (since_ms is None or each.time_ms >= since_ms)
        and (until_ms is None or each.time_ms < until_ms)
    ]
    if not found:
        typer.echo("No event matches." if events else "The log has no events.", err=True)
    is_table = output_format == "table"
    is_shown = is_table and output is None and sys.stdout.isatty()
    width = get_terminal_size().columns if is_shown else None
    table = as_table(found, for_people=is_table, width=width)
    write_rows(table.schema, iter(table.to_batches()), output_format, output, None)
    if defects:
        sys.exit(EXIT_UNREAD)


def ack(
    alert: Annotated[
        str, typer.Argument(metavar="ALERT", help="The alert's id, or how it alone begins.")
    ],
    by: Annotated[str, typer.Option(help="Who has seen to it.")],
    comment: Annotated[str, typer.Option(help="What it was, and what was done.")],
    config: ConfigOption = None,
    log: LogOption = None,
) -> None:
    """Acknowledge an alert: who has seen to it, and what was done, for good, beside the log.

    It changes nothing for the monitor, which says itself when the alert is over. An alert may be
    acknowledged again.

    \b
    Example:
      nap-stream ack 3f2a90c1d2e4 --log scored-log --by Ann --comment "lens cleaned"
    """
    from nap_stream.scored_log.events import EventKind, alert_id
    from nap_stream.scored_log.history import acknowledge

    store = log_store(config, log)
    events, _ = _events(store)
    now_ms = SystemClock().now_ms()
    event = acknowledge(store, events, alert, by=by, comment=comment, now_ms=now_ms)
    typer.echo(f"acknowledged as event {event.number}: alert {alert_id(event)}")
    for each in events:
        if each.kind == EventKind.ACKNOWLEDGED and alert_id(each) == alert_id(event):
            when = moment(rfc3339(each.time_ms))
            said = f"It was before, by {each.by} at {when}: {each.data.get('comment')}"
            typer.echo(printable(said))


def _events(store: "SegmentStore") -> "tuple[list[Event], list[Defect]]":
    """All events that can be read. What is wrong with others is told."""
    from nap_stream.scored_log.events import read_events

    defects: list[Defect] = []
    events = list(read_events(store, defects=defects))
    for defect in defects:
        typer.echo(printable(f"defect  {defect}"), err=True)
    return events, defects


def _require_topic(store: "SegmentStore", events: "Sequence[Event]", topic: str | None) -> None:
    """Refuse a root that is no log, and a topic of which nothing is told."""
    from nap_stream.scored_log.read import partitions

    if not events and not partitions(store):
        raise ConfigError("there are neither events nor rows", store.root, "Name a log's root")
    topics = sorted({event.topic for event in events if event.topic})
    if topic is not None and topic not in topics:
        raise ConfigError(
            f"no event is of the topic {topic!r}",
            "--topic",
            f"There are {listed(topics, 10) or 'none'}",
        )


def as_table(
    entries: "Sequence[Entry]", *, for_people: bool = False, width: int | None = None
) -> "pa.Table":
    """Entries as rows.

    For people with whole seconds, and of which monitor each is, where there are several; with
    ``width``, what does not fit goes on in rows of its own.
    """
    import pyarrow as pa

    types = {"time": pa.timestamp("ms", "UTC"), "number": pa.int64()}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in (*_SHOWN, *_MORE)])
    several = len({(entry.topic, entry.monitor) for entry in entries if entry.monitor}) > 1
    rows: list[dict[str, object]] = []
    for entry in entries:
        row = {**dataclasses.asdict(entry), "time": entry.time_ms}
        texts = [[entry.by], [entry.what]]
        if for_people:
            row["time"] = entry.time_ms // 1000 * 1000
            of = "/".join(name for name in (entry.topic, entry.monitor) if name)
            texts[1] = [f"{of}: {entry.what}" if several else entry.what]
        if width is not None:
            room = _WHO, max(_LEAST, width - _OTHERS)
            texts = [textwrap.wrap(text[0], most) for text, most in zip(texts, room, strict=True)]
        for line, (by, what) in enumerate(zip_longest(*texts)):
            rows.append({**({} if line else row), "by": by, "what": what})
    table = pa.Table.from_pylist(rows, schema=schema)
    return table.select(_SHOWN) if for_people else table
