"""nap-stream verify: the log proved whole, alone or beside what tells of it."""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nap_stream.cli.options import (
    CheckpointsOption,
    ConfigOption,
    JsonReportOption,
    LogOption,
    TopicOption,
    log_store,
    progress_bar,
)
from nap_stream.clock import SystemClock
from nap_stream.errors import BrokerError, ConfigError
from nap_stream.files import publish
from nap_stream.settings.topics import TopicSelection
from nap_stream.text import listed, printable, rfc3339

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from nap_stream.records import TopicPartition
    from nap_stream.scored_log.proof.checkpoint import FoundCheckpoint
    from nap_stream.scored_log.proof.note import PublicKey
    from nap_stream.scored_log.stores import SegmentStore
    from nap_stream.scored_log.verify.report import (
        AnchorReport,
        BrokerReport,
        ContentsReport,
        Head,
        PrunedFile,
        VerifyReport,
    )
    from nap_stream.settings.schema import KafkaSettings, Settings


def verify(
    config: ConfigOption = None,
    log: LogOption = None,
    topic: TopicOption = None,
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
    contents: Annotated[
        bool,
        typer.Option(
            "--contents",
            help="With --against-broker: read each message that the topic still has, and compare "
            "the SHA-256 of its images with their rows.",
        ),
    ] = False,
    kept: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Compare with the ends of the chains in an earlier --report."
        ),
    ] = None,
    checkpoints: CheckpointsOption = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A checkpoint that was kept elsewhere, beside those in the log; repeatable.",
        ),
    ] = None,
    log_id: Annotated[
        str | None,
        typer.Option(
            "--log-id",
            metavar="ID",
            help="The log's id, as verify printed it before: that it is this log, and no other "
            "that the same key has signed.",
        ),
    ] = None,
    timestamps: Annotated[
        Path | None,
        typer.Option(
            metavar="CERTIFICATES",
            help="Verify the time stamps beside checkpoints, by these certificates in PEM.",
        ),
    ] = None,
    as_json: JsonReportOption = False,
    report_file: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE", help="Also write the JSON report to this file."),
    ] = None,
) -> None:
    """Check that the log is whole: each partition's chain, footers, digests and rows.

    Exit code 0 where nothing is wrong, 1 where there is a defect; each is named. Also 1 where the
    broker or its topic went away while the log was read: what was not compared is said. 2 where
    there is nothing to verify: a log without chains, or a topic that it does not have. With --kept,
    --checkpoints or --against-broker, which tell what should be there, that is a defect too.
    --checkpoints needs no network; without a checkpoint by one of the keys it ends with code 2.

    \b
    Example:
      nap-stream verify --log scored-log
      nap-stream verify --config monitor.yaml --deep --against-broker --report audit.json
      nap-stream verify --config monitor.yaml --deep --against-broker --contents
      nap-stream verify --config monitor.yaml --deep --kept last-audit.json
      nap-stream verify --log scored-log --deep --checkpoints keys.txt
    """
    from nap_stream import __version__
    from nap_stream.scored_log.proof.checkpoint import read_checkpoints
    from nap_stream.scored_log.proof.note import read_public_keys
    from nap_stream.scored_log.proof.timestamps import read_roots
    from nap_stream.scored_log.verify.report import Circumstances, encode_report

    store = log_store(config, log, report_file)
    broker_side = _broker_side(config, topic) if against_broker else None
    settings = _settings(config, broker_side) if contents else None
    if report_file is not None and not report_file.parent.is_dir():
        raise ConfigError("no such folder", str(report_file.parent), "Make it for --report")
    heads = _kept_heads(kept, topic)
    if (checkpoint or timestamps or log_id) and checkpoints is None:
        raise ConfigError("expected --checkpoints KEYS with --checkpoint, --log-id, --timestamps")
    keys = () if checkpoints is None else read_public_keys(checkpoints, "--checkpoints")
    roots = () if timestamps is None else read_roots(timestamps, "--timestamps")
    signed = read_checkpoints(store, keys, checkpoint or (), roots) if keys else None
    began_ms = SystemClock().now_ms()
    report, broker, anchors = _verified(
        *(store, broker_side, topic, heads, signed, keys),
        settings=settings,
        deep=deep,
        log_id=log_id,
        with_stamps=timestamps is not None,
    )
    circumstances = Circumstances(store.root, topic, __version__, began_ms)
    text = encode_report(report, broker, circumstances, heads, anchors)
    if report_file is not None:
        publish(report_file, text.encode())
    if as_json:
        typer.echo(text, nl=False)
    else:
        _print_verified(report, broker, heads, anchors)
    sys.exit(0 if report.clean and not (broker and broker.is_cut) else 1)


@dataclasses.dataclass(frozen=True, slots=True)
class _BrokerSide:
    """What is compared with a broker: the topics that are read, and those of them that it has."""

    kafka: "KafkaSettings"
    reads: TopicSelection
    topics: "Sequence[str]"

    @property
    def missing(self) -> str:
        """Which topics it does not have, in words; empty where it has all."""
        names = sorted({*self.reads.names} - {*self.topics})
        noun = "topic" if len(names) == 1 else "topics"
        return f"{noun} {listed(names, 5)}: the broker has none of the name" if names else ""


def _settings(config: Path | None, side: _BrokerSide | None) -> "Settings":
    """The configuration by which messages are read."""
    if config is None or side is None:
        raise ConfigError("expected --against-broker with --contents")
    from nap_stream.contents import require_images
    from nap_stream.settings.load import load_uncalibrated_settings

    own = load_uncalibrated_settings(config)
    return require_images(own.model_copy(update={"kafka": side.kafka}))


def _broker_side(config: Path | None, topic: str | None) -> _BrokerSide:
    """All topics of a configuration, or one of them.

    Raises:
        TopicNotFoundError: The broker has none of them.
    """
    from nap_stream.kafka.client import topics_missing, topics_read
    from nap_stream.settings.load import load_uncalibrated_settings

    if config is None:
        raise ConfigError("expected --config FILE with --against-broker, to know the broker")
    settings = load_uncalibrated_settings(config)
    kafka, reads = settings.kafka, settings.reads
    if topic is not None:
        kafka, reads = kafka.one(topic), TopicSelection((topic,))
    missing = topics_missing(kafka, reads.names) if reads.names else ()
    there = tuple(name for name in reads.names if name not in missing)
    return _BrokerSide(kafka, reads, there or topics_read(kafka, reads))


def _verified(
    store: "SegmentStore",
    side: _BrokerSide | None,
    topic: str | None,
    kept: "list[Head]",
    signed: "Iterable[FoundCheckpoint] | None",
    keys: "Sequence[PublicKey]",
    *,
    settings: "Settings | None",
    deep: bool,
    log_id: str | None,
    with_stamps: bool,
) -> tuple["VerifyReport", "BrokerReport | None", "AnchorReport | None"]:
    """The report, with the defects against the broker, an earlier report and checkpoints in it."""
    from nap_stream.scored_log.verify.anchored import compare_with_checkpoints
    from nap_stream.scored_log.verify.compared import compare_with_kept
    from nap_stream.scored_log.verify.report import sorted_defects
    from nap_stream.scored_log.verify.run import require_chain
    from nap_stream.scored_log.verify.run import verify as verify_log
    from nap_stream.scored_log.verify.sealed import unsigned_seals

    committed: Mapping[TopicPartition, int] = {}
    if side is not None:
        from nap_stream.kafka.offsets import committed_offsets

        # Workers commit what they have published: so the committed offsets come first.
        committed = committed_offsets(side.kafka, side.reads)
    with progress_bar("verifying", unit="files") as advance:
        report = verify_log(store, deep=deep, topic=topic, advance=advance, may_be_empty=True)
    broker = None if side is None else _beside_broker(store, side, settings, committed, report)
    defects = [*report.defects, *compare_with_kept(store, kept)]
    defects += () if broker is None else broker.defects
    anchors = None
    if signed is not None:
        anchors = compare_with_checkpoints(
            *(store, report.heads, signed, topic), expected_id=log_id, with_stamps=with_stamps
        )
        defects += [*anchors.defects, *unsigned_seals(store, report.pruned, keys)]
    if not report.partitions and (not defects or not (kept or side or anchors)):
        require_chain(store, topic)
    return dataclasses.replace(report, defects=sorted_defects(defects)), broker, anchors


def _beside_broker(
    store: "SegmentStore",
    side: _BrokerSide,
    settings: "Settings | None",
    committed: "Mapping[TopicPartition, int]",
    report: "VerifyReport",
) -> "BrokerReport":
    """What the broker has beside a log that was read. Where it is away now, the report says so."""
    from nap_stream.kafka.offsets import offsets_of
    from nap_stream.scored_log.verify.compared import compare_with_broker
    from nap_stream.scored_log.verify.report import BrokerReport

    kafka = side.kafka
    try:
        offsets = offsets_of(kafka, committed, side.topics)
    except BrokerError as error:
        return BrokerReport(kafka.topic, kafka.group_id, (), (), problem=str(error))
    broker = compare_with_broker(
        report,
        offsets,
        topic=kafka.topic,
        group_id=kafka.group_id,
        from_earliest=kafka.start == "earliest",
        reads=side.reads,
    )
    broker = dataclasses.replace(broker, problem=side.missing)
    if settings is None:
        return broker
    from nap_stream.contents import compare_contents

    with progress_bar("reading the topic", unit="messages") as advance:
        compared = compare_contents(store, settings, report, offsets, advance)
    found = (*broker.defects, *compared.defects)
    return dataclasses.replace(broker, contents=compared, defects=found)


def _kept_heads(path: Path | None, topic: str | None) -> "list[Head]":
    from nap_stream.scored_log.verify.report import ChainHead, parse_kept

    if path is None:
        return []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the kept report: {error}", str(path)) from error
    heads = parse_kept(text, str(path))
    topics = {head.partition.topic for head in heads if isinstance(head, ChainHead)}
    if topic is not None and topic not in topics:
        others = ", ".join(sorted(topics))
        raise ConfigError(
            f"the kept report has no chain of the topic {topic!r}; its topics are {others}",
            str(path),
            "Name another topic or report",
        )
    return [
        head
        for head in heads
        if not isinstance(head, ChainHead) or topic in {None, head.partition.topic}
    ]


def _print_verified(
    report: "VerifyReport",
    broker: "BrokerReport | None",
    kept: "list[Head]",
    anchors: "AnchorReport | None",
) -> None:
    typer.echo(
        f"{report.partitions} partitions, {report.segments} segments, {report.rows} rows, "
        f"{report.offsets} offsets"
    )
    for head in report.heads:
        typer.echo(
            f"chain   {head.partition}: [{head.start_offset}, {head.end_offset}) {head.sha256}"
        )
    if report.events is not None:
        typer.echo(f"events  {report.events.count} events {report.events.sha256}")
    if report.compacted:
        merged = sum(file.segments for file in report.compacted)
        typer.echo(f"merged  {merged} segments in {len(report.compacted)} compacted files")
    for found in report.pruned:
        typer.echo(printable(f"pruned  {_pruned(found, is_signed=anchors is not None)}"))
    for gap in report.gaps:
        span = f"[{gap.base_offset}, {gap.end_offset})"
        typer.echo(printable(f"gap     {gap.file}: {span}: {gap.reason}"))
    if broker is not None:
        _print_broker(broker)
    if kept:
        _print_kept(report, kept)
    if anchors is not None:
        _print_anchors(report, anchors)
    for defect in report.defects:
        typer.echo(printable(f"defect  {defect}"))
    gone = sum(found.span.rows for found in report.pruned)
    rest = f", but for {gone:,} rows that were pruned: their footers are proved, they are not"
    cut = ", but not compared with all that the broker has" if broker and broker.is_cut else ""
    clean = f"clean{rest if gone else ''}{cut}"
    typer.echo(clean if report.clean else f"{len(report.defects)} defects")


def _pruned(found: "PrunedFile", *, is_signed: bool) -> str:
    """What was pruned, by whom, and on what that rests."""
    from nap_stream.scored_log.seals import pruned_words

    span = found.span
    (told,) = pruned_words([span])
    signed = f"signed by {', '.join(found.claimed)}" if found.claimed else "not signed"
    unchecked = ", which is not checked without --checkpoints KEYS"
    return (
        f"{span.place}: [{span.start_offset}, {span.end_offset}): {told}; sealed in {found.file}, "
        f"{signed}{'' if is_signed or not found.claimed else unchecked}"
    )


def _within(report: "VerifyReport", partition: "TopicPartition", end: int) -> str:
    """What is to be said of an end that lies where rows were pruned."""
    found = report.pruned_at(partition, end)
    if found is None:
        return ""
    span = found.span
    return (
        f", within what was pruned, sealed by {span.by} on {rfc3339(span.pruned_ms)}: the footers "
        "of the segments until there are in the seal, their rows are gone"
    )


def _print_kept(report: "VerifyReport", kept: "list[Head]") -> None:
    """What the kept report proves, and of which chains it says nothing."""
    from nap_stream.scored_log.verify.report import ChainHead

    ends = {head.partition: head for head in kept if isinstance(head, ChainHead)}
    for head in report.heads:
        then = ends.get(head.partition)
        told = "is not in it" if then is None else f"compared at {then.end_offset}"
        told += "" if then is None else _within(report, head.partition, then.end_offset)
        typer.echo(printable(f"kept    {head.partition}: {told}"))
    if report.events is not None or len(kept) > len(ends):
        counts = [head.count for head in kept if not isinstance(head, ChainHead)]
        typer.echo(f"kept    events: {f'compared at {counts[0]}' if counts else 'are not in it'}")


def _print_anchors(report: "VerifyReport", anchors: "AnchorReport") -> None:
    """What the checkpoints prove of each chain, and what of it none has seen."""
    typer.echo(
        printable(
            f"signed  {anchors.checkpoints} checkpoints by {', '.join(anchors.signers)}, the last "
            f"of {rfc3339(anchors.newest_time_ms)}, of the log {anchors.log_id}"
        )
    )
    for file, problem in anchors.unknown:
        typer.echo(printable(f"signed  {file}: {problem}; not counted"))
    for partition in anchors.unread:
        typer.echo(printable(f"signed  {partition}: the last could not read it"))
    if anchors.unstamped is not None:
        _print_stamps(anchors, anchors.unstamped)
    for found in anchors.chains:
        offset, end, time_ms = found.anchored_offset, found.end_offset, found.anchored_time_ms
        if offset is None or time_ms is None:
            told = "no checkpoint agrees with it" if found.disagrees else "in no checkpoint"
        elif end is None or end > offset:
            rest = (
                "its end cannot be read" if end is None else f"unanchored since: [{offset}, {end})"
            )
            told = f"anchored until {offset} at {rfc3339(time_ms)}; {rest}"
        else:
            told = f"anchored until its end {offset} at {rfc3339(time_ms)}"
        told += "" if offset is None else _within(report, found.partition, offset)
        if anchors.unstamped is not None:
            told += (
                "; not stamped"
                if found.stamped_ms is None
                else f"; stamped until {found.stamped_offset} at {rfc3339(found.stamped_ms)}"
            )
        typer.echo(printable(f"anchor  {found.partition}: {told}"))


def _print_stamps(anchors: "AnchorReport", unstamped: "Sequence[str]") -> None:
    told = f"stamped {len(anchors.stamps)} of {anchors.checkpoints} by a TSA"
    if anchors.stamps:
        file, signed_ms, stamped_ms = max(anchors.stamps, key=lambda stamp: stamp[2])
        told += f", the last at {rfc3339(stamped_ms)}: {file}, signed as of {rfc3339(signed_ms)}"
    typer.echo(printable(told))
    if unstamped:
        typer.echo(printable(f"stamped not: {listed(unstamped)}"))


def _print_broker(broker: "BrokerReport") -> None:
    if broker.problem:
        typer.echo(printable(f"broker  not compared: {broker.problem}"))
    if broker.contents is not None:
        _print_contents(broker.contents)
    for found in broker.partitions:
        one = found.offsets
        committed = "nothing" if one.committed is None else one.committed
        lag = "no chain" if found.lag is None else f"the chain is {found.lag} behind"
        typer.echo(
            f"broker  {one.partition}: [{one.earliest}, {one.end}), committed {committed}, {lag}"
        )
        if found.before_chain:
            typer.echo(
                f"broker  {one.partition}: it has {found.before_chain} offsets from before the "
                f"chain's start at {found.chain_start}, which are in no segment"
            )
        if found.gap_to_come:
            typer.echo(
                f"broker  {one.partition}: retention has deleted the {found.gap_to_come} offsets "
                f"from the chain's end at {found.chain_end} on: a gap is to come"
            )


def _print_contents(found: "ContentsReport") -> None:
    told = (
        f"{found.messages:,} messages read, {found.images:,} images have the SHA-256 of their rows"
    )
    if found.gone:
        told += f"; {found.gone:,} rows whose message the topic has no more"
    if found.unread:
        told += f"; {found.unread:,} images lie elsewhere and could not be had, then or now"
    if found.pruned:
        told += f"; {found.pruned:,} offsets not read, as their rows were pruned"
    if found.problem:
        told += f"; the rest was not compared: {found.problem}"
    typer.echo(printable(f"contents {told}"))
