"""nap-stream alerts, and nap-stream replay: alerts as they were sent, and again from the log."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from nap_stream.cli.options import (
    BootstrapOption,
    ConfigOption,
    JsonEventsOption,
    SinceOption,
    UntilOption,
    kafka_settings,
    log_store,
    progress_bar,
    span_ms,
    tell_pruned,
)
from nap_stream.clock import SystemClock

if TYPE_CHECKING:
    from nap_stream.alert.event import AlertEvent
    from nap_stream.replay import MissingOffsets, ReplayReport

State = Literal["firing", "resolved", "gap"]
"""What an event of the alert topic can tell."""
Severity = Literal["warning", "critical"]
"""Of an alert of drift, or of images without scores."""


def alerts(
    config: ConfigOption = None,
    bootstrap_servers: BootstrapOption = None,
    topic: Annotated[
        str | None, typer.Option(help="The alert topic; without it, that of --config.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on waiting for new alerts (Ctrl-C ends it).")
    ] = False,
    new: Annotated[
        bool, typer.Option("--new", help="Leave out the alerts that are there already.")
    ] = False,
    state: Annotated[State | None, typer.Option(help="Only alerts in this state.")] = None,
    severity: Annotated[
        Severity | None, typer.Option(help="Only alerts of this severity, which gaps have not.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="Only alerts of this key, such as a camera.")
    ] = None,
    as_json: JsonEventsOption = False,
) -> None:
    """Print the alerts of the alert topic.

    \b
    Examples:
      nap-stream alerts --config monitor.yaml
      nap-stream alerts --config monitor.yaml --follow --state firing --severity critical
      nap-stream alerts --bootstrap-servers localhost:9092 --topic nap-stream-alerts --json
    """
    from nap_stream.alert.kafka import read_alerts
    from nap_stream.kafka.client import connect

    settings = kafka_settings(config, bootstrap_servers, None)
    name = topic or _alert_topic(config)
    connect(settings)
    wanted = {"severity": severity, "key": key}
    found = read_alerts(settings, name, clock=SystemClock(), follow=follow, from_beginning=not new)
    console, notices = Console(soft_wrap=True), Console(stderr=True, soft_wrap=True)
    for alert in found:
        if alert.event is None:
            notices.print(
                f"skipped {name}/{alert.partition}@{alert.offset}: {alert.problem}", markup=False
            )
        elif not _is_wanted(alert.event, state, wanted):
            continue
        elif as_json:
            typer.echo(json.dumps(alert.event, ensure_ascii=True))
        else:
            _show(alert.event, console)


def _is_wanted(
    event: Mapping[str, Any], state: State | None, wanted: Mapping[str, str | None]
) -> bool:
    data = event.get("data")
    fields = data if isinstance(data, Mapping) else {}
    told = str(event.get("type")).rpartition(".")[2]
    return state in {None, told} and all(
        value is None or fields.get(name) == value for name, value in wanted.items()
    )


def _show(event: Mapping[str, Any], console: Console) -> None:
    from nap_stream.alert.render import render

    console.print(render(event))
    console.print()


def _alert_topic(config: Path | None) -> str:
    from nap_stream.settings.alerts import AlertSettings
    from nap_stream.settings.load import load_alert_settings

    return AlertSettings().topic if config is None else load_alert_settings(config).topic


def replay(
    config: Annotated[
        Path,
        typer.Option(
            "--config", "-c", help="The YAML file whose settings and calibration judge the log."
        ),
    ],
    log: Annotated[
        str | None,
        typer.Option(
            "--log", metavar="ROOT", help="The root of another scored log than that of --config."
        ),
    ] = None,
    since: SinceOption = None,
    until: UntilOption = None,
    as_json: JsonEventsOption = False,
) -> None:
    """Recompute all alerts from the scored log, without a broker and without sending any.

    The window is empty at the beginning. Where no record came late, and the monitor began where
    the log does, the alerts are those that it sent, with the same ids. The last line says what was
    read; with --json it goes to standard error.

    \b
    Examples:
      nap-stream replay --config monitor.yaml
      nap-stream replay --config other.yaml --log scored-log --since 2d
      nap-stream replay --config monitor.yaml --json | jq -r .id
    """
    from nap_stream.calibration.artifact import load_calibration
    from nap_stream.process import configure_logging
    from nap_stream.replay import EventSpan
    from nap_stream.replay import replay as replay_log
    from nap_stream.settings.load import load_settings

    # Standard output is for alerts alone; missing segments, which the log's reader warns of one by
    # one, are told at the end.
    configure_logging(for_people=True, level=logging.ERROR)
    settings, clock = load_settings(config), SystemClock()
    span = EventSpan(*span_ms(since, until, clock))
    console, began_s = Console(soft_wrap=True), clock.monotonic()

    def tell(alert: "AlertEvent") -> None:
        if as_json:
            typer.echo(json.dumps(alert.event, ensure_ascii=True))
        else:
            _show(alert.event, console)

    store = log_store(None, str(settings.log.root) if log is None else log)
    tell_pruned(store, settings.reads, span.since_ms, span.until_ms)
    with progress_bar("replaying", unit="records") as advance:
        report = replay_log(
            store,
            settings,
            load_calibration(settings.calibration).facts,
            span=span,
            on_alert=tell,
            advance=advance,
        )
    _warn(report)
    Console(stderr=as_json, soft_wrap=True, highlight=False).print(
        _last_line(report, clock.monotonic() - began_s)
    )


def _warn(report: "ReplayReport") -> None:
    notices = Console(stderr=True, soft_wrap=True)
    if not report.records:
        notices.print(
            "warning: there is no scored record in that part of the log: nothing was judged, "
            "which is not the same as no drift",
            style="yellow",
        )
    if report.missing.ranges:
        notices.print(f"warning: {_missing(report.missing)}", style="yellow")
    if report.foreign:
        notices.print(
            f"warning: {report.foreign:,} of {report.records:,} records were judged by another "
            "calibration than that of --config: their p-values and flags are not comparable",
            style="yellow",
        )
    if report.contradicting:
        notices.print(
            f"warning: at least {report.contradicting:,} records are flagged against their p-value "
            "and the alpha of the calibration",
            style="yellow",
        )
    if report.late:
        notices.print(
            f"note: {report.late:,} records came too late: their panes had been closed", style="dim"
        )


def _missing(missing: "MissingOffsets") -> str:
    ranges = ", ".join(f"{each.partition} [{each.start}, {each.end})" for each in missing.first)
    left = missing.ranges - len(missing.first)
    more = f" and {left:,} more" if left else ""
    return (
        f"{missing.offsets:,} offsets are missing from the log, and were not judged: "
        f"{ranges}{more}; `nap-stream verify` names all that is wrong"
    )


def _last_line(report: "ReplayReport", seconds: float) -> str:
    told = ", ".join(f"{count:,} {state}" for state, count in sorted(report.alerts.items()))
    unscored = f" and {report.unscored:,} images without scores" if report.unscored else ""
    return (
        f"{sum(report.alerts.values()):,} alerts ({told or 'none'}) of {report.records:,} records"
        f"{unscored} in {report.segments:,} segments of {report.partitions:,} partitions, "
        f"{report.records / max(seconds, 1e-9):,.0f} records/s"
    )
