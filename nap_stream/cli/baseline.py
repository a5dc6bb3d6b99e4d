"""nap-stream baseline, and nap-stream compare."""

import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nap_stream.cli.options import (
    ConfigOption,
    JsonReportOption,
    SinceOption,
    UntilOption,
    log_store,
    pairs,
    progress_bars,
    require_can_make,
    show_warnings,
    span_ms,
    tell_pruned,
)
from nap_stream.clock import SystemClock
from nap_stream.errors import ConfigError
from nap_stream.text import bounded, duration, json_text, listed, percent, printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nap_stream.alert.event import AlertEvent
    from nap_stream.baselines.compare import Comparison
    from nap_stream.baselines.make import MadeBaseline
    from nap_stream.baselines.stretch import Stretch, StretchQuery
    from nap_stream.calibration.calibration import Calibration
    from nap_stream.cli.options import NewBar
    from nap_stream.clock import Progress
    from nap_stream.core.block_plan import BlockPlan
    from nap_stream.core.time_kinds import TimeKinds
    from nap_stream.scored_log.stores import SegmentStore
    from nap_stream.settings.schema import Settings
    from nap_stream.settings.topics import TopicSelection

_LENGTH = re.compile(r"([0-9]{1,6})\s*(s|m|min|h|d)")
_UNITS_MS = {"s": 1_000, "m": 60_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
_WEEKEND = "weekend"
_ALERTS_SHOWN = 5
_WIDE = 160

CalibrationOption = Annotated[
    Path | None,
    typer.Option(help="The folder of the calibration, instead of that of --config."),
]
RootOption = Annotated[
    str | None,
    typer.Option(
        "--log", metavar="ROOT", help="The root of the scored log, instead of that of --config."
    ),
]
OneTopicOption = Annotated[
    str | None,
    typer.Option(
        help="The log's topic, instead of all of --config as one stream, or the only one."
    ),
]


def baseline(
    since: Annotated[
        str, typer.Option(help="From this event time on: ISO 8601 (UTC), or 90m, 6h, 2d ago.")
    ],
    until: Annotated[str, typer.Option(help="Before this event time.")],
    by: Annotated[str, typer.Option("--by", metavar="NAME", help="Who vouches for the stretch.")],
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why it may serve as a baseline.")],
    out: Annotated[Path, typer.Option(help="The folder to write the new calibration to.")],
    config: ConfigOption = None,
    log: RootOption = None,
    calibration: CalibrationOption = None,
    topic: OneTopicOption = None,
    key_by: Annotated[
        str | None,
        typer.Option(
            metavar="key|header:NAME",
            help="What names a camera; without it drift.keys.by of --config.",
        ),
    ] = None,
    block: Annotated[
        str | None,
        typer.Option(help="Length of blocks, such as 10min; without it the stretch decides."),
    ] = None,
    times: Annotated[
        str,
        typer.Option(
            help="Kinds of time that are compared among themselves: auto, none, or the hours at "
            "which a part of the day begins, such as 6,18 or 6,18,weekend."
        ),
    ] = "auto",
    timezone: Annotated[str, typer.Option(help="In which days begin, such as Europe/Berlin.")] = (
        "UTC"
    ),
    max_foreign: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of foreign-looking records that is put up with."),
    ] = 0.02,
    force: Annotated[bool, typer.Option("--force", help="Replace a calibration in --out.")] = False,
) -> None:
    """Make a stretch of the scored log that you vouch for what later records are judged by.

    Writes a new calibration: no model runs, no images are needed. Method and weights stay; p-values
    are by the scores of the stretch, and alarms by its blocks. The old calibration's p-values are
    logged beside them.

    \b
    Example:
      nap-stream baseline --config monitor.yaml --since 2026-05-12 --until 2026-05-26 \\
        --by "Ada Lovelace" --reason "two weeks of good parts" --out calibration-2/
    """
    messages = Console(stderr=True)
    with messages.status("starting"):
        from nap_stream.baselines.make import BaselineRequest, make_baseline
        from nap_stream.baselines.report import promise_of, warnings_of
        from nap_stream.calibration.artifact import require_free, write_calibration
        from nap_stream.calibration.calibration import Calibration
        from nap_stream.settings.drift import DriftSettings

    clock = SystemClock()
    require_free(out, force=force)
    require_can_make(out.resolve().parent)
    store, parent, settings = _sources(config, log, calibration)
    drift = DriftSettings() if settings is None else settings.drift
    since_ms, until_ms = span_ms(since, until, clock)
    assert since_ms is not None
    assert until_ms is not None
    if until_ms > clock.now_ms():
        raise ConfigError(f"{until} is not over yet", "--until", "Vouch for what has happened")
    query = _query(store, settings, topic, key_by, (since_ms, until_ms))
    request = BaselineRequest(
        log_root=store.root,
        made_by=_said("--by", by),
        reason=_said("--reason", reason),
        block_ms=None if block is None else parse_block(block),
        kinds=parse_times(times, timezone),
        timezone=timezone,
        max_foreign=max_foreign,
    )
    with progress_bars(messages) as new_bar:
        with _read(store, query, parent, new_bar) as stretch:
            made = make_baseline(
                stretch,
                query,
                parent,
                request,
                created_ms=clock.now_ms(),
                advance=new_bar("counting blocks", "passes"),
            )
        promise = promise_of(made, drift)
        silenced = () if settings is None else _alerts(store, settings, parent, query, new_bar)
    warnings = (*warnings_of(stretch, query, made, promise), *silenced)
    document = made.calibration.document.model_copy(update={"warnings": warnings})
    whole = Calibration(document, made.calibration.arrays)
    write_calibration(whole, out, force=force)
    _show(whole, made, promise, out)
    show_warnings(warnings, messages)
    messages.print(
        f"To take it up, set calibration: {out} in the configuration and start `nap-stream run` "
        "anew.",
        markup=False,
        soft_wrap=True,
    )


def _said(option: str, text: str) -> str:
    """What was said, without spaces around it.

    Raises:
        ConfigError: Nothing was.
    """
    said = text.strip()
    if not said:
        raise ConfigError("this must not be empty", option, "It stands in the log for others")
    return said


def _sources(
    config: Path | None, log: str | None, calibration: Path | None
) -> "tuple[SegmentStore, Calibration, Settings | None]":
    """The log, the calibration that judged it, and the settings, where they are given."""
    from nap_stream.calibration.artifact import load_calibration
    from nap_stream.calibration.calibration import require_scoring
    from nap_stream.settings.load import load_settings

    settings = None if config is None else load_settings(config)
    folder = calibration or (None if settings is None else settings.calibration)
    if folder is None:
        raise ConfigError("expected --calibration FOLDER or --config FILE")
    store = log_store(config, None) if log is None else log_store(None, log)
    found = load_calibration(folder)
    if settings is not None:
        require_scoring(found, settings.scoring)
    return store, found, settings


def _query(
    store: "SegmentStore",
    settings: "Settings | None",
    topic: str | None,
    key_by: str | None,
    span: tuple[int, int],
) -> "StretchQuery":
    from pydantic import ValidationError

    from nap_stream.baselines.stretch import StretchQuery
    from nap_stream.core.hidden_keys import CLEAR
    from nap_stream.planning.recorded import only_topic
    from nap_stream.settings.drift import DriftSettings, KeySettings
    from nap_stream.settings.log import hidden_keys

    drift = DriftSettings() if settings is None else settings.drift
    keys = drift.keys
    if key_by is not None:
        try:
            keys = KeySettings.model_validate(
                {**(keys or KeySettings()).model_dump(), "by": key_by}
            )
        except ValidationError as error:
            raise ConfigError(f"expected key or header:NAME, got {key_by!r}", "--key-by") from error
    topic, reads = _stream(settings, topic)
    hidden = CLEAR if settings is None else hidden_keys(settings.log.keys)
    name = topic or only_topic(store)
    return StretchQuery(name, *span, keys, drift.pane_ms, hidden=hidden, reads=reads)


def _stream(
    settings: "Settings | None", topic: str | None
) -> "tuple[str | None, TopicSelection | None]":
    """The name of what is read, and which topics that is: one, or all of a configuration."""
    if topic is not None or settings is None:
        return topic, None
    return settings.kafka.topic, settings.reads


def parse_block(text: str) -> int:
    """A length of blocks in milliseconds, as in 10min, 30s, 2h.

    Raises:
        ConfigError: It is none, or not one that blocks can have.
    """
    from nap_stream.core.decorrelation import BLOCK_GRID_MS

    found = _LENGTH.fullmatch(text.strip())
    length = int(found[1]) * _UNITS_MS[found[2]] if found else 0
    if length not in BLOCK_GRID_MS:
        lengths = ", ".join(duration(each).replace(" ", "") for each in BLOCK_GRID_MS)
        raise ConfigError(f"no length of blocks: {text!r}", "--block", f"Expected one of {lengths}")
    return length


def parse_times(text: str, timezone: str) -> "TimeKinds | None":
    """Kinds of time; None where the stretch decides.

    ``auto``, ``none``, or the hours at which a part of the day begins, with ``weekend`` where
    weekends have parts of their own, as in 6,18 and 6,18,weekend.

    Raises:
        ConfigError: It is none of these, or there is no such time zone.
    """
    from nap_stream.core.time_kinds import TimeKinds

    try:
        ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigError(
            f"there is no time zone {timezone!r}", "--timezone", "Expected a name as Europe/Berlin"
        ) from error
    if text == "auto":
        return None
    words = [] if text == "none" else [word.strip() for word in text.split(",")]
    hours = [word for word in words if word != _WEEKEND]
    try:
        return TimeKinds(tuple(int(hour) for hour in hours), _WEEKEND in words, timezone)
    except ValueError as error:
        raise ConfigError(
            f"no kinds of time: {text!r}",
            "--times",
            "Expected auto, none, or hours at which a part of the day begins, such as 6,18 or "
            "6,18,weekend",
        ) from error


@contextmanager
def _read(
    store: "SegmentStore", query: "StretchQuery", calibration: "Calibration", new_bar: "NewBar"
) -> "Iterator[Stretch]":
    from nap_stream.baselines.spool import RecordSpool
    from nap_stream.baselines.stretch import read_stretch

    tell_pruned(store, query.reads or query.topic, query.since_ms, query.until_ms)
    with RecordSpool() as spool:
        yield read_stretch(store, query, calibration, spool, new_bar("reading the log", "records"))


def _alerts(
    store: "SegmentStore",
    settings: "Settings",
    parent: "Calibration",
    query: "StretchQuery",
    new_bar: "NewBar",
) -> tuple[str, ...]:
    """Warn of the alerts that fire within the stretch, and that the baseline would silence."""
    from nap_stream.alert.event import TYPE_PREFIX
    from nap_stream.replay import EventSpan, replay

    fired: list[AlertEvent] = []

    def note(alert: "AlertEvent") -> None:
        # That of images without scores is none of the baseline's.
        if alert.event["type"] == f"{TYPE_PREFIX}firing":
            fired.append(alert)

    advance: Progress = new_bar("replaying alerts", "records")
    span = EventSpan(query.since_ms, query.until_ms)
    own = settings
    if query.reads is None:
        kafka = settings.kafka.one(query.topic)
        own = settings.model_copy(update={"kafka": kafka})
    replay(store, own, parent.facts, span=span, on_alert=note, advance=advance)
    if not fired:
        return ()
    named = listed([_alert_words(alert) for alert in fired], _ALERTS_SHOWN, "; ")
    text = f"alerts fire within the stretch, and what they are about will not alarm again: {named}"
    return (f"{text}. If that was no fault, all is well",)


def _alert_words(alert: "AlertEvent") -> str:
    event = alert.event
    data = event.get("data", {})
    key = f" of {bounded(data['key'])}" if data.get("key") else ""
    return f"{event['time']}{key} (id {event['id']})"


def _show(
    calibration: "Calibration", made: "MadeBaseline", promise: "BlockPlan", out: Path
) -> None:
    from nap_stream.baselines.report import more_rows, rows_of

    rows = (
        *rows_of(made.baseline, made.blocks),
        *more_rows(made, promise),
        ("calibration", calibration.fingerprint[:16]),
        ("folder", str(out)),
    )
    Console().print(pairs(rows))


def compare(
    calibration: CalibrationOption = None,
    config: ConfigOption = None,
    log: RootOption = None,
    topic: OneTopicOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    by: Annotated[
        Literal["key", "month"] | None,
        typer.Option(help="Compare each key, or each calendar month (UTC) of the stream."),
    ] = None,
    as_json: JsonReportOption = False,
) -> None:
    """Compare a stretch of the log with a baseline: how far the OOD fraction is from it.

    An effect with an interval, and no test: with enough records any change is significant. It
    shows what changes so slowly that no alarm tells of it.

    \b
    Examples:
      nap-stream compare --config monitor.yaml --since 7d --by key
      nap-stream compare --calibration calibration-2/ --log scored-log --by month
    """
    from nap_stream.baselines.compare import compare_stretch, query_like
    from nap_stream.core.hidden_keys import CLEAR
    from nap_stream.settings.log import hidden_keys

    store, found, settings = _sources(config, log, calibration)
    since_ms, until_ms = span_ms(since, until, SystemClock())
    topic, reads = _stream(settings, topic)
    first_ms, last_ms = -(2**63), 2**63 - 1
    query = query_like(
        found,
        topic,
        first_ms if since_ms is None else since_ms,
        last_ms if until_ms is None else until_ms,
        hidden=CLEAR if settings is None else hidden_keys(settings.log.keys),
        reads=reads,
    )
    if topic is None:
        _require_named(store, query.topic)
    tell_pruned(store, query.reads or query.topic, since_ms, until_ms)
    with progress_bars() as new_bar:
        advance = new_bar("reading the log", "records")
        compared = compare_stretch(store, query, found, advance, by_month=by == "month")
    rows = [each for each in compared if by == "key" or not each.key]
    if as_json:
        document = [each.document() for each in rows]
        typer.echo(json_text(document, 2))
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(_WIDE, console.width))
    console.print(_comparison_table(rows))


def _require_named(store: "SegmentStore", stream: str) -> None:
    """Refuse a baseline of several topics where nothing says which they are.

    Raises:
        ConfigError: The log has topics, and none of the stream's name.
    """
    from nap_stream.scored_log.read import partitions

    topics = sorted({partition.topic for partition in partitions(store)})
    if topics and stream not in topics:
        raise ConfigError(
            f"the baseline is of {stream}, and the log has no topic of that name, but "
            f"{listed(topics, 5)}",
            store.root,
            "Give --config, which says of which topics the stream is, or one with --topic",
        )


def _comparison_table(rows: "list[Comparison]") -> Table:
    table = Table(
        "", "blocks", "records", "flagged", "baseline", "change", "95 % interval", box=None
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for each in rows:
        name = each.month or (bounded(each.key) if each.key else "the stream")
        counts = Text(printable(name)), f"{each.blocks:,}", f"{each.records:,}"
        found = each.effect
        if found is None:
            table.add_row(*counts, "", "not in it", "", "")
            continue
        ends = "unknown: one block alone"
        if found.high < float("inf"):
            ends = f"{_points(found.low)} to {_points(found.high)}"
        shares = percent(found.share), percent(found.baseline_share)
        table.add_row(*counts, *shares, _points(found.difference), ends)
    return table


def _points(share: float) -> str:
    """A change of a share in percentage points."""
    return f"{100 * share:+.2f} %"
