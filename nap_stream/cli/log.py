"""nap-stream compact, prune: the commands that exchange and remove files of the scored log."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from nap_stream.cli.options import (
    ConfigOption,
    JsonReportOption,
    LogOption,
    TopicOption,
    log_store,
    progress_bar,
    time_ms,
)
from nap_stream.clock import SystemClock
from nap_stream.errors import ConfigError
from nap_stream.text import printable, rfc3339

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from nap_stream.scored_log.compact import CompactionReport
    from nap_stream.scored_log.prune import PruneReport

DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
BreakLockOption = Annotated[
    bool,
    typer.Option(
        "--break-lock",
        help="Take the lock of a compaction or prune that is surely dead: of one that lives, rows "
        "may be lost.",
    ),
]


def compact(
    config: ConfigOption = None,
    log: LogOption = None,
    topic: TopicOption = None,
    max_rows: Annotated[int, typer.Option(min=1, help="Rows of a merged file, at most.")] = 250_000,
    max_mb: Annotated[
        int, typer.Option(min=1, help="MiB of the segments that one file merges, at most.")
    ] = 64,
    dry_run: DryRunOption = False,
    break_lock: BreakLockOption = False,
    rebuild_index: Annotated[
        bool,
        typer.Option(
            "--rebuild-index", help="Make the index of all large files anew, not of new ones alone."
        ),
    ] = False,
    as_json: JsonReportOption = False,
) -> None:
    """Merge the segments of hours and days that are over (UTC), while the monitor runs.

    Each finished hour becomes a file a partition, five minutes after its end; when the day is over,
    its hours become one. Run it every hour. What these files hold is noted in an index beside the
    log, which makes query fast: removed, it is made again.

    The chain stays what it was: verify finds the same before and after, query gives the same
    rows at every moment. Another Parquet reader may, for the instant in which files are
    exchanged, meet a row twice or a file that is gone, but never miss a row. Interrupted at any
    step, the next run finishes it. A partition with a defect is left as it is, and named.

    One compaction of a log runs at a time. One that was killed leaves its lock: --break-lock
    takes it, and may lose rows if that process lives after all.

    Exit code 0; 1 where a partition was left out or the run could not go on; 2 where there is no
    such topic.

    \b
    Example:
      nap-stream compact --log scored-log
    """
    from nap_stream.process import stop_on_signals
    from nap_stream.scored_log.compact import compact as compact_log
    from nap_stream.scored_log.compact_plan import FileLimits
    from nap_stream.scored_log.verify.run import require_chain

    store = log_store(config, log)
    require_chain(store, topic)
    with stop_on_signals() as stop, progress_bar("Merging", unit="segments") as progress:
        report = compact_log(
            store,
            clock=SystemClock(),
            topic=topic,
            limits=FileLimits(max_rows, max_mb * 2**20),
            dry_run=dry_run,
            break_lock=break_lock,
            rebuild_index=rebuild_index,
            progress=progress,
            should_stop=stop.is_set,
        )
    _end(report, _compacted(report), as_json=as_json)


def _compacted(report: "CompactionReport") -> "Iterator[str]":
    merged, removed = ("would merge", "remove") if report.dry_run else ("merged", "removed")
    yield (
        f"{report.partitions} partitions: {merged} {report.segments} segments into "
        f"{report.files} files, {report.rows} rows"
    )
    if report.files and not report.dry_run:
        yield f"{report.bytes_before:,} bytes became {report.bytes_after:,}"
    if report.alone:
        yield f"rewrote {report.alone} alone: their rows leave no room for more in memory"
    if report.leftovers:
        yield f"{removed} {report.leftovers} segments that stand in a compacted file too"
    if report.indexed:
        yield f"wrote the index of {report.indexed} files"


def prune(
    before: Annotated[
        str,
        typer.Option(
            metavar="DATE",
            help="Rows of event times before that: ISO 8601 (UTC), or 90d ago. Files are kept "
            "whole.",
        ),
    ],
    by: Annotated[str, typer.Option(metavar="NAME", help="Who prunes; it is recorded.")],
    reason: Annotated[str, typer.Option(help="Why; it is recorded.")],
    config: ConfigOption = None,
    log: LogOption = None,
    topic: TopicOption = None,
    sign_with: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The private key that signs the seals, of checkpoint-key; best one of its own. "
            "Without it verify --checkpoints calls what was pruned a defect.",
        ),
    ] = None,
    dry_run: DryRunOption = False,
    break_lock: BreakLockOption = False,
    as_json: JsonReportOption = False,
) -> None:
    """Remove the oldest rows of the log, for good, and seal what proves that it was whole.

    Of each chain the files at its beginning go whose rows are all from before DATE. A file that
    reaches over DATE stays whole, and what stands behind it, whatever its time. What is seen to be
    damaged stays, and is named. So do the newest file of a chain, what was published within a day,
    and the newest rows of which a monitor makes its window when it starts.

    In their place stands a seal: footers and digests of their segments, counts, times, by whom and
    why. verify proves the chain as before, and old reports and checkpoints agree with it; query and
    others say what was pruned. Two events of the log tell of it. Monitors may run. One that was
    interrupted is finished by the next: where the same key signed its seals, or where no key did
    and the same is asked for. Copies, evidence and the old versions in a bucket that keeps them are
    not touched.

    Before it, run verify --deep --checkpoints: what is pruned cannot be looked at again.

    Exit code 0; 1 where a partition was left out.

    \b
    Examples:
      nap-stream prune --log scored-log --before 2026-01-01 --by "A. Auditor" \\
        --reason "kept for 90 days" --sign-with retention.key --dry-run
      nap-stream prune --config monitor.yaml --before 90d --by retention --reason "90 days"
    """
    from nap_stream import __version__
    from nap_stream.process import stop_on_signals
    from nap_stream.scored_log.proof.note import read_signer
    from nap_stream.scored_log.prune import Request
    from nap_stream.scored_log.prune import prune as prune_log
    from nap_stream.scored_log.verify.run import require_chain

    store, clock = log_store(config, log), SystemClock()
    before_ms = time_ms("--before", before, clock)
    if before_ms > clock.now_ms():
        raise ConfigError("it lies in the future", f"--before {before}", "Give a time that is past")
    require_chain(store, topic)
    signer = None if sign_with is None else read_signer(sign_with, "--sign-with")
    request = Request(before_ms, by, reason, topic, signer, __version__)
    with stop_on_signals() as stop, progress_bar("Reading", unit="files") as progress:
        report = prune_log(
            store,
            request,
            clock=clock,
            dry_run=dry_run,
            break_lock=break_lock,
            progress=progress,
            should_stop=stop.is_set,
        )
    if report.spans and not dry_run and "://" in store.root:
        typer.echo(
            "a bucket that keeps versions, or what is deleted, has them still: remove those there",
            err=True,
        )
    _end(report, _pruned(report), as_json=as_json)


def _pruned(report: "PruneReport") -> "Iterator[str]":
    pruned = "would prune" if report.dry_run else "pruned"
    rows = sum(span.rows for span in report.spans)
    yield (
        f"{report.partitions} partitions: {pruned} {rows:,} rows in {report.files:,} files, "
        f"{report.size_bytes:,} bytes"
    )
    for span in report.spans:
        counts = ", ".join(f"{count:,} {name}" for name, count in span.rows_by_status.items())
        told = f"{span.place}: [{span.start_offset}, {span.end_offset}), {span.rows:,} rows"
        yield f"{pruned}  {told}: {counts or 'none'}; {span.flagged_rows:,} flagged"
    if report.finished:
        done = "would remove" if report.dry_run else "removed"
        yield (
            f"{done} {report.finished:,} files with {report.finished_rows:,} rows that an "
            "interrupted prune had sealed"
        )
    for span in report.unsigned:
        yield (
            f"unsigned  {span.path}: by {span.by} on {rfc3339(span.pruned_ms)}: {span.reason}. "
            "No key says so: whoever can write to the log can make such a seal, and its event"
        )
    for kept in report.kept:
        yield f"kept  {kept.partition} from offset {kept.offset} on: {kept.why}"


def _end(
    report: "CompactionReport | PruneReport", lines: "Iterable[str]", *, as_json: bool
) -> NoReturn:
    """Say what was done, and end with the code that says whether all was."""
    if as_json:
        typer.echo(json.dumps({"clean": report.clean, **dataclasses.asdict(report)}, indent=2))
        sys.exit(0 if report.clean else 1)
    for line in lines:
        typer.echo(printable(line))
    for refusal in report.refusals:
        typer.echo(printable(f"left out  {refusal.partition}: {refusal.reason}"))
    if report.stopped:
        typer.echo("stopped early; the next run goes on from here")
    sys.exit(0 if report.clean else 1)
