"""nap-stream compact."""

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from nap_stream.cli.options import ConfigOption, LogOption, log_store, progress_bar
from nap_stream.clock import SystemClock
from nap_stream.text import printable

if TYPE_CHECKING:
    from nap_stream.scored_log.compact import CompactionReport


def compact(
    config: ConfigOption = None,
    log: LogOption = None,
    topic: Annotated[str | None, typer.Option(help="Only this topic.")] = None,
    max_rows: Annotated[int, typer.Option(min=1, help="Rows of a merged file, at most.")] = 250_000,
    max_mb: Annotated[
        int, typer.Option(min=1, help="MiB of the segments that one file merges, at most.")
    ] = 64,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.")
    ] = False,
    break_lock: Annotated[
        bool,
        typer.Option(
            "--break-lock", help="Take the lock of a compaction that is surely dead. See below."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON report.")] = False,
) -> None:
    """Merge the segments of days that are over (UTC) into few files, while the monitor runs.

    The chain stays what it was: verify finds the same before and after, query gives the same
    rows at every moment. Another Parquet reader may, for the instant in which files are
    exchanged, meet a row twice or a file that is gone, but never miss a row. Interrupted at any
    step, the next run finishes it. A partition with a defect is left as it is, and named.

    One compaction of a log runs at a time. One that was killed leaves its lock: --break-lock
    takes it, and may lose rows if that process lives after all.

    Exit code 0; 1 where a partition was left out or the run could not go on.

    \b
    Example:
      nap-stream compact --log scored-log
    """
    from nap_stream.process import stop_on_signals
    from nap_stream.scored_log.compact import compact as compact_log
    from nap_stream.scored_log.compact_plan import FileLimits

    store = log_store(config, log)
    with stop_on_signals() as stop, progress_bar("Merging", unit="segments") as progress:
        report = compact_log(
            store,
            clock=SystemClock(),
            topic=topic,
            limits=FileLimits(max_rows, max_mb * 2**20),
            dry_run=dry_run,
            break_lock=break_lock,
            progress=progress,
            should_stop=stop.is_set,
        )
    if as_json:
        typer.echo(json.dumps({"clean": report.clean, **dataclasses.asdict(report)}, indent=2))
    else:
        _print(report)
    sys.exit(0 if report.clean else 1)


def _print(report: "CompactionReport") -> None:
    merged, removed = ("would merge", "remove") if report.dry_run else ("merged", "removed")
    typer.echo(
        f"{report.partitions} partitions: {merged} {report.segments} segments into "
        f"{report.files} files, {report.rows} rows"
    )
    if report.files and not report.dry_run:
        typer.echo(f"{report.bytes_before:,} bytes became {report.bytes_after:,}")
    if report.leftovers:
        typer.echo(f"{removed} {report.leftovers} segments that stand in a compacted file too")
    for refusal in report.refusals:
        typer.echo(printable(f"left out  {refusal.partition}: {refusal.reason}"))
    if report.stopped:
        typer.echo("stopped early; the next run goes on from here")
