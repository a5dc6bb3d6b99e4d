"""nap-stream prune: retention; and what other commands say of what was pruned."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from nap_stream.text import printable

if TYPE_CHECKING:
    from collections.abc import Container

    from nap_stream.scored_log.prune import PruneReport
    from nap_stream.scored_log.stores import SegmentStore


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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.")
    ] = False,
    break_lock: Annotated[
        bool,
        typer.Option(
            "--break-lock", help="Take the lock of a prune or compaction that is surely dead."
        ),
    ] = False,
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
    interrupted is finished by the next, where its seals are signed by the same key. Copies,
    evidence and the old versions in a bucket that keeps them are not touched.

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
    if as_json:
        typer.echo(json.dumps({"clean": report.clean, **dataclasses.asdict(report)}, indent=2))
    else:
        _print_pruned(report)
    if report.spans and not dry_run and "://" in store.root:
        typer.echo("a bucket that keeps versions has them still: remove those there", err=True)
    sys.exit(0 if report.clean else 1)


def _print_pruned(report: "PruneReport") -> None:
    pruned = "would prune" if report.dry_run else "pruned"
    rows = sum(span.rows for span in report.spans)
    typer.echo(
        f"{report.partitions} partitions: {pruned} {rows:,} rows in {report.files:,} files, "
        f"{report.size_bytes:,} bytes"
    )
    for span in report.spans:
        counts = ", ".join(f"{count:,} {name}" for name, count in span.rows_by_status.items())
        told = f"{span.place}: [{span.start_offset}, {span.end_offset}), {span.rows:,} rows"
        typer.echo(
            printable(f"{pruned}  {told}: {counts or 'none'}; {span.flagged_rows:,} flagged")
        )
    if report.finished:
        done = "would remove" if report.dry_run else "removed"
        typer.echo(f"{done} {report.finished:,} files that an interrupted prune had sealed")
    for kept in report.kept:
        typer.echo(printable(f"kept  {kept.partition} from offset {kept.offset} on: {kept.why}"))
    for refusal in report.refusals:
        typer.echo(printable(f"left out  {refusal.partition}: {refusal.reason}"))
    if report.stopped:
        typer.echo("stopped early; the next run goes on from here")


def tell_pruned(
    store: "SegmentStore",
    topic: str | None = None,
    since_ms: int | None = None,
    until_ms: int | None = None,
    *,
    chains: "Container[int]" = (),
    offsets: tuple[int, int] | None = None,
) -> None:
    """Say on stderr what was pruned of what is asked for, before an error that it may explain.

    ``chains`` are numbers of partitions, none for all; ``offsets`` the first and the last.
    """
    from nap_stream.scored_log.read import partitions
    from nap_stream.scored_log.seals import told_pruned

    own = [p for p in partitions(store, topic) if not chains or p.partition in chains]
    for words in told_pruned(store, own, since_ms, until_ms, offsets):
        typer.echo(printable(f"pruned  {words}"), err=True)
