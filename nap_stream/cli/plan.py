"""nap-stream plan: of a calibration, of a recorded stretch, of a baseline."""

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
    tell_pruned,
)
from nap_stream.errors import ConfigError
from nap_stream.settings.drift import MAX_WINDOW_RECORDS
from nap_stream.text import json_text

if TYPE_CHECKING:
    from nap_stream.cli.options import NewBar
    from nap_stream.planning.expected import Expectation
    from nap_stream.planning.findings import Findings, Warned
    from nap_stream.planning.recorded import Selection
    from nap_stream.planning.request import PlanRequest
    from nap_stream.settings.schema import Settings

_TABLE_WIDTH = 160
_BLOCKS_DECIDE = (
    "the calibration holds a baseline, whose blocks decide, not the detectors below: "
    "`nap-stream plan --baseline {}` is about them"
)


def plan(
    calibration: Annotated[
        Path | None,
        typer.Option(help="The folder that `calibrate` wrote, instead of that of --config."),
    ] = None,
    config: ConfigOption = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            help="The folder that `nap-stream baseline` wrote: what its blocks promise, and how "
            "soon they see faults of cameras."
        ),
    ] = None,
    strength: Annotated[
        list[float] | None,
        typer.Option(
            help="With --baseline: the share of a faulty camera's frames that turn flagged, in "
            "(0, 1]; repeat it. 0.1, 0.3 and 1 without it."
        ),
    ] = None,
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
        typer.Option(
            help="The log's topic; without it, all of --config as one stream, or the only one."
        ),
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

    With --baseline it says what the blocks of a baseline promise, in hours, and the delay until
    a fault is seen in one camera, in a tenth of them and in all.

    \b
    Examples:
      nap-stream plan --config monitor.yaml --baseline calibration-2/
      nap-stream plan --calibration calibration/ --false-alarms "one per week at 20 images/s"
      nap-stream plan --config monitor.yaml --log scored-log/ --since 7d --until 1d
    """
    from nap_stream.calibration.artifact import load_calibration
    from nap_stream.clock import SystemClock
    from nap_stream.evaluation.metrics import require_evaluate_extra
    from nap_stream.planning.expected import expect
    from nap_stream.planning.findings import warnings_of
    from nap_stream.planning.render import draw_plan
    from nap_stream.planning.request import ask, with_changes
    from nap_stream.settings.drift import DriftSettings
    from nap_stream.settings.load import load_settings

    if baseline is not None:
        others = (calibration, log, topic, since, until, block, window or None, png)
        if any(each is not None for each in others):
            raise ConfigError(
                "--calibration, --log, --topic, --since, --until, --block, --window and --png are "
                "for the detectors of records",
                "--baseline",
            )
        changes = false_alarms, expected_run_length, confidence
        _plan_baseline(baseline, config, changes, strength, streams, seed, as_json=as_json)
        return
    if strength:
        raise ConfigError("it is for --baseline DIR", "--strength")
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
        folder = folder or settings.calibration
    assert folder is not None
    loaded = load_calibration(folder)
    request = ask(drift, loaded.facts, loaded.document.rule.sides)
    messages = Console(stderr=True)
    blocks_decide = loaded.document.baseline is not None and drift.blocks != "off"
    show_warnings((_BLOCKS_DECIDE.format(folder),) * blocks_decide, messages)
    with progress_bars(messages) as new_bar:
        findings = None
        if log is not None:
            selection = _selection(settings, topic, span_ms(since, until, SystemClock()))
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


def _selection(
    settings: "Settings | None", topic: str | None, span: tuple[int | None, int | None]
) -> "Selection":
    """The stretch of a topic, or of all topics of a configuration, which are one stream."""
    from nap_stream.planning.recorded import Selection
    from nap_stream.settings.log import hidden_keys

    if settings is None:
        return Selection(topic, *span)
    hidden = hidden_keys(settings.log.keys)
    if topic is not None:
        return Selection(topic, *span, hidden=hidden)
    return Selection(settings.kafka.topic, *span, hidden=hidden, reads=settings.reads)


def _plan_baseline(
    folder: Path,
    config: Path | None,
    changes: tuple[str | None, float | None, float | None],
    strengths: list[float] | None,
    streams: int,
    seed: int,
    *,
    as_json: bool,
) -> None:
    from nap_stream.calibration.artifact import load_calibration
    from nap_stream.planning.baseline import (
        baseline_document,
        baseline_warnings,
        plan_baseline,
        render_baseline,
    )
    from nap_stream.planning.block_delays import STRENGTHS
    from nap_stream.planning.request import with_changes
    from nap_stream.settings.drift import DriftSettings, KeySettings
    from nap_stream.settings.load import load_settings

    chosen = tuple(strengths or STRENGTHS)
    if not all(0 < each <= 1 for each in chosen):
        raise ConfigError("expected a share in (0, 1]", "--strength")
    loaded = load_calibration(folder)
    facts, of_baseline = loaded.facts, loaded.document.baseline
    if config is None:
        drift = DriftSettings()
        if of_baseline is not None and of_baseline.by is not None:
            keys = KeySettings(by=of_baseline.by, one_per_pane=of_baseline.one_per_pane)
            drift = DriftSettings(keys=keys, pane_ms=of_baseline.pane_ms)
    else:
        drift = load_settings(config).drift
    false_alarms, expected_run_length, confidence = changes
    messages = Console(stderr=True)
    with progress_bars(messages) as new_bar:
        found = plan_baseline(
            with_changes(
                drift,
                false_alarms=false_alarms,
                expected_run_length=expected_run_length,
                confidence=confidence,
            ),
            facts,
            decorrelation_ms=0.0 if of_baseline is None else of_baseline.decorrelation_ms,
            strengths=chosen,
            streams=streams,
            seed=seed,
            advance=new_bar("simulating faults", "faults"),
        )
    warnings = baseline_warnings(found)
    if as_json:
        document = baseline_document(found, warnings)
        typer.echo(json_text(document, 2))
    else:
        _wide_console().print(render_baseline(found), highlight=False)
    show_warnings((each.text for each in warnings), messages)


def _wide_console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=max(_TABLE_WIDTH, console.width))


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
        typer.echo(json_text(document, 2))
        return
    console = _wide_console()
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
    tell_pruned(store, selection.reads or selection.topic, selection.since_ms, selection.until_ms)
    recorded = read_stretch(store, selection, request.drift, request.facts, reading)
    running = new_bar("running the detectors", "panes")
    return find(request, recorded, block_records=block, streams=streams, seed=seed, advance=running)
