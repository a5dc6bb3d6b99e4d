"""nap-stream verify."""

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import uuid4

import typer

from nap_stream.cli.options import ConfigOption, LogOption, kafka_settings, log_store, progress_bar
from nap_stream.clock import SystemClock
from nap_stream.errors import ConfigError
from nap_stream.text import printable

if TYPE_CHECKING:
    from nap_stream.scored_log.stores.base import SegmentStore
    from nap_stream.scored_log.verify.report import BrokerReport, ChainHead, VerifyReport
    from nap_stream.settings.schema import KafkaSettings


def verify(
    config: ConfigOption = None,
    log: LogOption = None,
    topic: Annotated[str | None, typer.Option(help="Only this topic.", show_default=False)] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every value too, not footers alone.")
    ] = False,
    against_broker: Annotated[
        bool,
        typer.Option(
            "--against-broker",
            help="Compare with the topic's and the group's offsets too; needs --config.",
        ),
    ] = False,
    kept: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Compare with the ends of the chains in an earlier --report.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON report.")] = False,
    report_file: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FILE",
            help="Also write the JSON report to this file.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Check that the log is whole: each partition's chain, footers, digests and rows.

    Exit code 0 where nothing is wrong, 1 where there is a defect; each is named.

    \b
    Example:
      nap-stream verify --log scored-log
      nap-stream verify --config monitor.yaml --deep --against-broker --report audit.json
      nap-stream verify --config monitor.yaml --deep --kept last-audit.json
    """
    from nap_stream import __version__
    from nap_stream.scored_log.verify.report import Circumstances, encode_report

    store = log_store(config, log)
    kafka = _kafka(config, topic) if against_broker else None
    if report_file is not None and not report_file.parent.is_dir():
        raise ConfigError("no such folder", str(report_file.parent), "Make it for --report")
    heads = _kept_heads(kept, topic)
    began_ms = SystemClock().now_ms()
    report, broker = _verified(store, kafka, topic, deep=deep)
    report = _with_kept(report, store, heads)
    text = encode_report(report, broker, Circumstances(store.root, topic, __version__, began_ms))
    if report_file is not None:
        _write(report_file, text)
    if as_json:
        typer.echo(text, nl=False)
    else:
        _print(report, broker)
    sys.exit(0 if report.clean else 1)


def _kafka(config: Path | None, topic: str | None) -> "KafkaSettings":
    from nap_stream.kafka.client import require_topics

    if config is None:
        raise ConfigError("expected --config FILE with --against-broker, to know the broker")
    settings = kafka_settings(config, None, topic)
    require_topics(settings, [settings.topic])
    return settings


def _verified(
    store: "SegmentStore", kafka: "KafkaSettings | None", topic: str | None, *, deep: bool
) -> tuple["VerifyReport", "BrokerReport | None"]:
    """The report, with the defects against the broker in it."""
    from nap_stream.kafka.offsets import committed_offsets, topic_offsets
    from nap_stream.scored_log.verify.run import compare_with_broker, sorted_defects
    from nap_stream.scored_log.verify.run import verify as verify_log

    # Workers commit what they have published: so the committed offsets come first, the ends last.
    committed = {} if kafka is None else committed_offsets(kafka)
    with progress_bar("verifying", unit="files") as advance:
        report = verify_log(store, deep=deep, topic=topic, advance=advance)
    if kafka is None:
        return report, None
    offsets = topic_offsets(kafka, committed)
    broker = compare_with_broker(report, offsets, topic=kafka.topic, group_id=kafka.group_id)
    defects = sorted_defects([*report.defects, *broker.defects])
    return dataclasses.replace(report, defects=defects), broker


def _kept_heads(path: Path | None, topic: str | None) -> "list[ChainHead]":
    from nap_stream.scored_log.verify.report import parse_kept

    if path is None:
        return []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the kept report: {error}", str(path)) from error
    return [head for head in parse_kept(text, str(path)) if topic in {None, head.partition.topic}]


def _with_kept(
    report: "VerifyReport", store: "SegmentStore", kept: "list[ChainHead]"
) -> "VerifyReport":
    from nap_stream.scored_log.verify.run import compare_with_kept, sorted_defects

    defects = sorted_defects([*report.defects, *compare_with_kept(store, kept)])
    return dataclasses.replace(report, defects=defects)


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{uuid4().hex}.tmp")
    try:
        try:
            with temporary.open("x", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write the report: {error.strerror}", str(path)) from error


def _print(report: "VerifyReport", broker: "BrokerReport | None") -> None:
    typer.echo(
        f"{report.partitions} partitions, {report.segments} segments, {report.rows} rows, "
        f"{report.offsets} offsets"
    )
    for head in report.heads:
        typer.echo(
            f"chain   {head.partition}: [{head.start_offset}, {head.end_offset}) {head.sha256}"
        )
    if report.compacted:
        merged = sum(file.segments for file in report.compacted)
        typer.echo(f"merged  {merged} segments in {len(report.compacted)} compacted files")
    for gap in report.gaps:
        span = f"[{gap.base_offset}, {gap.end_offset})"
        typer.echo(printable(f"gap     {gap.file}: {span}: {gap.reason}"))
    if broker is not None:
        _print_broker(broker)
    for defect in report.defects:
        typer.echo(printable(f"defect  {defect}"))
    typer.echo("clean" if report.clean else f"{len(report.defects)} defects")


def _print_broker(broker: "BrokerReport") -> None:
    for found in broker.partitions:
        one = found.offsets
        committed = "nothing" if one.committed is None else one.committed
        lag = "no chain" if found.lag is None else f"the chain is {found.lag} behind"
        typer.echo(
            f"broker  {one.partition}: [{one.earliest}, {one.end}), committed {committed}, {lag}"
        )
        if found.gap_to_come:
            typer.echo(
                f"broker  {one.partition}: retention has deleted the {found.gap_to_come} offsets "
                f"from the chain's end at {found.chain_end} on: a gap is to come"
            )
