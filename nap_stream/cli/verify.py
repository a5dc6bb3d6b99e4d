"""nap-stream verify."""

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from nap_stream.cli.options import ConfigOption, LogOption, log_root

if TYPE_CHECKING:
    from nap_stream.scored_log.defects import VerifyReport


def verify(
    config: ConfigOption = None,
    log: LogOption = None,
    topic: Annotated[str | None, typer.Option(help="Only this topic.")] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Decode every value too, not offsets alone.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON report.")] = False,
) -> None:
    """Check that the log is whole: each partition's chain, footers, hashes and rows.

    Exit code 0 where nothing is wrong, 1 where there is a defect; each is named.

    \b
    Example:
      nap-stream verify --log scored-log
    """
    from nap_stream.scored_log.verify import verify as verify_log

    report = verify_log(log_root(config, log), deep=deep, topic=topic)
    if as_json:
        typer.echo(json.dumps({"clean": report.clean, **dataclasses.asdict(report)}, indent=2))
    else:
        _print(report)
    sys.exit(0 if report.clean else 1)


def _print(report: "VerifyReport") -> None:
    from nap_stream.scored_log.output import printable

    typer.echo(
        f"{report.partitions} partitions, {report.segments} segments, {report.rows} rows, "
        f"{report.offsets} offsets"
    )
    for head in report.heads:
        typer.echo(
            f"chain   {head.partition}: [{head.start_offset}, {head.end_offset}) {head.sha256}"
        )
    for gap in report.gaps:
        span = f"[{gap.base_offset}, {gap.end_offset})"
        typer.echo(printable(f"gap     {gap.file}: {span}: {gap.reason}"))
    for defect in report.defects:
        typer.echo(printable(f"defect  {defect}"))
    typer.echo("clean" if report.clean else f"{len(report.defects)} defects")
