"""nap-stream report: one page about a period, for people who answer for it."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nap_stream.cli.options import (
    CheckpointsOption,
    EvidenceOption,
    NewBar,
    SinceOption,
    TopicOption,
    UntilOption,
    evidence_store,
    log_store,
    progress_bars,
    span_ms,
)
from nap_stream.cli.query import EXIT_UNREAD
from nap_stream.clock import SystemClock
from nap_stream.errors import ConfigError, ReportError
from nap_stream.files import publish, replacing
from nap_stream.text import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nap_stream.baselines.compare import Comparison
    from nap_stream.calibration.calibration import Calibration
    from nap_stream.report.gather import Months, Stated
    from nap_stream.report.history import Span
    from nap_stream.scored_log.stores import SegmentStore
    from nap_stream.settings.schema import Settings

PDF_S = 300
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def report(
    out: Annotated[Path, typer.Option(help="The HTML file; one that is there is replaced.")],
    log: Annotated[
        str | None,
        typer.Option(
            "--log", metavar="ROOT", help="The root of the scored log; that of --config without it."
        ),
    ] = None,
    since: SinceOption = None,
    until: UntilOption = None,
    topic: TopicOption = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            help="The monitor's YAML file: for the bound of a log without events, and to compare "
            "each month with the baseline of its calibration, if that has one.",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The same of a calibration and the default settings."),
    ] = None,
    evidence: EvidenceOption = None,
    compare_since: Annotated[
        str | None, typer.Option(help="Compare with another period, from this event time on.")
    ] = None,
    compare_until: Annotated[
        str | None, typer.Option(help="Compare with another period, before this event time.")
    ] = None,
    compare_model: Annotated[
        str | None,
        typer.Option(
            metavar="HEX",
            help="Compare this model, by how its fingerprint begins, with the others.",
        ),
    ] = None,
    pdf: Annotated[
        bool, typer.Option("--pdf", help="Print it to a PDF beside it too, by Chromium.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Check the log's chains too.")
    ] = True,
    checkpoints: CheckpointsOption = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every value for that, not footers alone.")
    ] = False,
) -> None:
    """Write a report of a period as one HTML page that needs nothing else: no script, no network.

    It says whether monitoring was always on and the log is whole, what happened, what is open, and
    the figures behind that. Without --since it begins with the first run or image; without --until
    it ends now, or with the log where there is no --since either.

    Exit code 3 where a file of the log could not be read, 1 where the log has another defect: the
    page names them.

    \b
    Examples:
      nap-stream report --log scored-log --since 2026-05-01T00:00Z --out may.html
      nap-stream report --log scored-log --since 7d --evidence kept --pdf --out week.html
      nap-stream report --log scored-log --since 7d --out week.html \\
          --compare-since 14d --compare-until 7d
    """
    from nap_stream.report.gather import Asked, gather
    from nap_stream.report.page import render
    from nap_stream.scored_log.proof.checkpoint import read_checkpoints
    from nap_stream.scored_log.proof.note import read_public_keys

    clock = SystemClock()
    _require_one(
        {
            "--config and --calibration": (config, calibration),
            "another period and another model": (compare_since or compare_until, compare_model),
            "--deep and --no-verify": (deep, not verify),
            "--checkpoints and --no-verify": (checkpoints, not verify),
            "--pdf and an --out that ends in .pdf": (pdf, out.suffix.lower() == ".pdf"),
        }
    )
    browser = _browser() if pdf else None
    store = log_store(None if log else config, log, out)
    settings = None
    if config is not None:
        from nap_stream.settings.load import load_settings

        settings = load_settings(config)
    judged_by = _judged_by(settings, calibration)
    since_ms, until_ms = span_ms(since, until, clock)
    compared = span_ms(compare_since, compare_until, clock)
    asked = Asked(
        topic=topic,
        since_ms=since_ms,
        until_ms=until_ms,
        compared=None if compared == (None, None) else compared,
        model=compare_model,
        stated=None if judged_by is None else _stated(settings, judged_by),
        verified=verify,
        deep=deep,
    )
    keys = () if checkpoints is None else read_public_keys(checkpoints, "--checkpoints")
    signed = read_checkpoints(store, keys, ()) if keys else None
    kept = evidence_store(evidence, settings)
    pictures = None
    if kept is not None:
        from nap_stream.report.pictures import kept_in

        pictures = kept_in(kept, settings)
    with progress_bars() as new_bar:
        figures = gather(
            store,
            asked,
            now_ms=clock.now_ms(),
            pictures=pictures,
            months=None
            if judged_by is None
            else _months(store, settings, judged_by, topic, new_bar),
            signed=signed,
            keys=keys,
            advance=new_bar("verifying", "files"),
        )
    publish(out, render(figures).encode("utf-8", "replace"))
    typer.echo(f"Report   {out}")
    if browser is not None:
        print_page(browser, out, out.with_suffix(".pdf"))
        typer.echo(f"PDF      {out.with_suffix('.pdf')}")
    if not figures.tally.all.rows:
        typer.echo("No row of the log is in that period.", err=True)
    beside = () if figures.comparison is None else figures.comparison.pruned
    for line in dict.fromkeys((*figures.pruned, *beside)):
        typer.echo(printable(f"pruned  {line}"), err=True)
    for line in figures.unread:
        typer.echo(printable(f"not read  {line}"), err=True)
    for defect in figures.defects:
        typer.echo(printable(f"defect  {defect}"), err=True)
    if figures.unread:
        sys.exit(EXIT_UNREAD)
    if figures.defects:
        sys.exit(1)


def _require_one(options: "Mapping[str, tuple[object, object]]") -> None:
    for names, (one, other) in options.items():
        if one and other:
            raise ConfigError(f"expected one of {names}, not both")


def _judged_by(settings: "Settings | None", folder: Path | None) -> "Calibration | None":
    """The calibration that is named; nothing where none is."""
    folder = folder if settings is None else settings.calibration
    if folder is None:
        return None
    from nap_stream.calibration.artifact import load_calibration

    return load_calibration(folder)


def _months(
    store: "SegmentStore",
    settings: "Settings | None",
    calibration: "Calibration",
    topic: str | None,
    new_bar: NewBar,
) -> "Months | None":
    """What compares a period with a calibration's baseline; nothing where it has none."""
    from nap_stream.baselines.compare import compare_stretch, query_like
    from nap_stream.core.hidden_keys import CLEAR
    from nap_stream.settings.log import hidden_keys

    if calibration.document.baseline is None:
        return None
    hidden = CLEAR if settings is None else hidden_keys(settings.log.keys)
    name, reads = topic, None
    if topic is None and settings is not None:
        name, reads = settings.kafka.topic, settings.reads

    def months(period: "Span") -> "list[Comparison]":
        query = query_like(calibration, name, *period, hidden=hidden, reads=reads)
        advance = new_bar("comparing with the baseline", "records")
        found = compare_stretch(store, query, calibration, advance, by_month=True)
        return [each for each in found if not each.key]

    return months


def _stated(settings: "Settings | None", calibration: "Calibration") -> "Stated":
    """What a configuration, or the default settings, promise with a calibration."""
    from nap_stream.core.detection import window_bound
    from nap_stream.drift.detectors import detection_plan
    from nap_stream.report.gather import Stated
    from nap_stream.settings.drift import DriftSettings

    drift = DriftSettings() if settings is None else settings.drift
    plan = detection_plan(drift, calibration.facts)
    return Stated(
        window_bound(plan), plan.run_length, None if drift.keys is None else drift.keys.by
    )


def _browser() -> str:
    found = next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        raise ConfigError(
            f"there is no browser to print with: none of {', '.join(_BROWSERS)} is on the PATH",
            "--pdf",
            "Install Chromium, or open the page in a browser and print it there",
        )
    return found


def print_page(browser: str, page: Path, pdf: Path) -> None:
    """Print a page of ours to a PDF, in place of one that is there.

    Raises:
        ReportError: The browser could not.
    """
    with tempfile.TemporaryDirectory(prefix="nap-stream-") as profile, replacing(pdf) as made:
        command = [
            browser,
            *("--headless", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            f"--user-data-dir={profile}",
            "--no-pdf-header-footer",
            f"--print-to-pdf={made.resolve()}",
        ]
        # Chromium's sandbox refuses to run as root. What it opens is a page without scripts, of
        # which every value is escaped and every picture encoded anew.
        if os.geteuid() == 0:
            command.append("--no-sandbox")
        try:
            ended = subprocess.run(  # noqa: S603  a browser of the PATH, and our own arguments
                [*command, page.resolve().as_uri()],
                capture_output=True,
                timeout=PDF_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ReportError(f"the browser did not print: {error}", browser) from error
        if ended.returncode or not made.is_file():
            said = ended.stderr.decode(errors="replace").strip().splitlines()
            raise ReportError(
                f"the browser did not print (exit code {ended.returncode}): "
                f"{said[-1] if said else 'it said nothing'}",
                browser,
                f"The page itself is at {page}",
            )
