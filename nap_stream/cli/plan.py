"""nap-stream plan."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from nap_stream.cli.options import (
    ConfigOption,
    SinceOption,
    UntilOption,
    log_store,
    progress_bars,
    show_warnings,
    span_ms,
)
from nap_stream.errors import ConfigError
from nap_stream.settings.drift import MAX_WINDOW_RECORDS

if TYPE_CHECKING:
    from nap_stream.cli.options import NewBar
    from nap_stream.planning.expected import Expectation
    from nap_stream.planning.findings import Findings, Warned
    from nap_stream.planning.recorded import Selection
    from nap_stream.planning.request import PlanRequest

_TABLE_WIDTH = 160


def plan(
    calibration: Annotated[
        Path | None,
        typer.Option(help="The folder that `calibrate` wrote, instead of that of --config."),
    ] = None,
    config: ConfigOption = None,
    false_alarms: Annotated[
        str | None,
        typer.Option(
            help='How many false alarms are tolerated, as in "one per 30 days at 50 images/s" or '
            '"probability 0.01 in 7 days at 50 images/s".'
        ),
    ] = None,
    expected_run_length: Annotated[
        float | None,
        typer.Option(help="The same, as the number of records between two false alarms."),
    ] = None,
    confidence: Annotated[
        float | None, typer.Option(help="Share of calibrations that keep the promise.")
    ] = None,
    window: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            max=MAX_WINDOW_RECORDS,
            help="Records of a rolling window to look at too; repeat it.",
        ),
    ] = None,
    log: Annotated[
        str | None,
        typer.Option(
            metavar="ROOT",
            help="A scored log of a time without drift: how often would it raise false alarms?",
        ),
    ] = None,
    topic: Annotated[
        str | None,
        typer.Option(help="The log's topic; without it, that of --config, or the only one."),
    ] = None,
    since: SinceOption = None,
    until: UntilOption = None,
    block: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Records that are resampled together; chosen by their autocorrelation without it.",
        ),
    ] = None,
    streams: Annotated[
        int,
        typer.Option(
            min=2,
            max=10_000,
            help="Streams to simulate and to resample; more take longer and tell more.",
        ),
    ] = 200,
    seed: Annotated[
        int, typer.Option(min=0, help="The seed of the simulations and the resampling.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON document, for machines.")] = False,
    png: Annotated[Path | None, typer.Option(help="Draw the delays to this file.")] = None,
) -> None:
    """Say what a promise about false alarms costs in delay, and whether a stream keeps it.

    Give the calibration, or the configuration that names it. With --log a recorded time
    without drift is analysed too: its flag rate, its dependence, its real false-alarm rate. It
    may hold 20,000,000 scored records; cut a longer one with --since and --until.

    \b
    Examples:
      nap-stream plan --calibration calibration/ --false-alarms "one per week at 20 images/s"
      nap-stream plan --config monitor.yaml --log scored-log/ --since 7d --until 1d
    """
    from nap_stream.calibration.artifact import load_calibration
    from nap_stream.clock import SystemClock
    from nap_stream.evaluation.metrics import require_evaluate_extra
    from nap_stream.planning.expected import expect
    from nap_stream.planning.findings import warnings_of
    from nap_stream.planning.recorded import Selection
    from nap_stream.planning.render import draw_plan
    from nap_stream.planning.request import ask, with_changes
    from nap_stream.settings.drift import DriftSettings
    from nap_stream.settings.load import load_settings

    if calibration is None and config is None:
        raise ConfigError("expected --calibration DIR or --config FILE")
    if log is None and (topic, since, until, block) != (None,) * 4:
        raise ConfigError("--topic, --since, --until and --block are for --log ROOT", "--log")
    if png is not None:
        require_evaluate_extra()
    settings = None if config is None else load_settings(config)
    drift = with_changes(
        DriftSettings() if settings is None else settings.drift,
        false_alarms=false_alarms,
        expected_run_length=expected_run_length,
        confidence=confidence,
    )
    folder = calibration
    if settings is not None:
        folder, topic = folder or settings.calibration, topic or settings.kafka.topic
    assert folder is not None
    loaded = load_calibration(folder)
    request = ask(drift, loaded.facts, loaded.document.rule.sides)
    messages = Console(stderr=True)
    with progress_bars(messages) as new_bar:
        findings = None
        if log is not None:
            selection = Selection(topic, *span_ms(since, until, SystemClock()))
            findings = _findings(request, log, selection, block, streams, seed, new_bar)
        expectation = expect(
            request,
            tuple(window or ()),
            streams=streams,
            seed=seed,
            advance=new_bar("simulating delays", "drifts"),
        )
    warnings = () if findings is None else warnings_of(request, findings)
    _show(request, expectation, findings, warnings, as_json=as_json)
    show_warnings((each.text for each in warnings), messages)
    if png is not None:
        draw_plan(request, expectation, png)
        messages.print(f"drawn to {png}", markup=False)


def _show(
    request: "PlanRequest",
    expectation: "Expectation",
    findings: "Findings | None",
    warnings: "tuple[Warned, ...]",
    *,
    as_json: bool,
) -> None:
    from nap_stream.planning.document import plan_document
    from nap_stream.planning.render import render_findings, render_plan

    if as_json:
        document = plan_document(request, expectation, findings, warnings)
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(_TABLE_WIDTH, console.width))
    console.print(render_plan(request, expectation), highlight=False)
    if findings is not None:
        console.print()
        console.print(render_findings(request, findings), highlight=False)


def _findings(
    request: "PlanRequest",
    log: str,
    selection: "Selection",
    block: int | None,
    streams: int,
    seed: int,
    new_bar: "NewBar",
) -> "Findings":
    from nap_stream.planning.findings import find
    from nap_stream.planning.recorded import read_stretch

    store = log_store(None, log)
    reading = new_bar("reading the log", "partitions")
    recorded = read_stretch(store, selection, request.drift, request.facts, reading)
    running = new_bar("running the detectors", "panes")
    return find(request, recorded, block_records=block, streams=streams, seed=seed, advance=running)
