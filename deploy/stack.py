"""A whole stack on this machine, with the demo's stream through it: `make stack`.

Apache Kafka, a Ray head and a worker node, the monitor as a Ray job with its configuration, model,
calibration and log on an S3 server (SeaweedFS), Prometheus with the rules, Alertmanager, and a
producer. It shows each alert when it arrives in Alertmanager, and asks Prometheus each query of the
Grafana dashboard. Everything ends with it; what it has written stays in its folder.

Without Kafka the demo's own broker stands in for it, without SeaweedFS a folder, and without
Prometheus no query is asked; without Alertmanager there is nothing to show. Each of these is said.

    python -m deploy.stack [--out stack-run] [--rate 7] [--no-build]

Exit code: 0 the drift's alert arrived in Alertmanager and was resolved, and the log holds what was
sent; 1 not so, or a part did not start; 130 interrupted.
"""

import argparse
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from deploy.compose.upload import upload
from nap_stream.clock import SystemClock
from nap_stream.demo.digits import one_torch_thread
from nap_stream.demo.display import Display, show_outcome
from nap_stream.demo.outcome import Check
from nap_stream.demo.processes import MonitorProcess, embedded_broker
from nap_stream.demo.run import Show, Task, finishing_undisturbed, interrupted_by_sigterm
from nap_stream.demo.setup import (
    PARTITIONS,
    DemoFolder,
    demo_folder,
    make_calibration,
    make_model_and_images,
    write_configuration,
)
from nap_stream.errors import NapStreamError
from nap_stream.fetched import shown
from nap_stream.kafka.client import create_topics
from nap_stream.process import configure_logging
from nap_stream.settings.load import load_settings
from tests.deploy.dashboard import for_prometheus, queries
from tests.e2e.conftest import ray_node, started_head
from tests.e2e.on_ray import JOB_SCRIPT
from tests.support.apache_kafka import ApacheKafka, KafkaNotThereError, resolve_jars
from tests.support.http_receiver import HttpReceiver
from tests.support.leftovers import watch_over_this_process
from tests.support.ports import free_port
from tests.support.prometheus import (
    ALERTMANAGER,
    PACKAGES,
    ask,
    installed,
    running_alertmanager,
    running_prometheus,
    scrape_config,
    values,
    written,
)
from tests.support.ray_start import RAY_ENVIRON
from tests.support.s3 import BUCKET, environment
from tests.support.seaweedfs import SeaweedNotThereError, resolve_weed, running_seaweed

ROOT = f"s3://{BUCKET}/stack"
WORKERS = 2
ALERT = "NapStreamDrift"
"""What the webhook calls an alert. That of the stream has no key, that of a camera has one."""
UNFILLED = frozenset(
    {
        "Accepted changes, blocks B",
        "How old verdicts are C",
        "This month against the baseline A",
        "Last commit, checkpoints and start C",
    }
)
"""Queries of the dashboard without data here: of baselines, and of checkpoints that are signed."""
LOOK_EVERY_S = 0.5
SEED = 0


@dataclass(frozen=True, slots=True)
class Parts:
    """What this machine has. The paths are of programs and jars; None where one is missing."""

    jars: Path | None
    weed: Path | None
    has_prometheus: bool

    @property
    def root(self) -> str | None:
        """Where the monitor's files lie in the S3 server, if there is one."""
        return None if self.weed is None else ROOT


def main() -> int:
    """Start all, stream, and say what came of it."""
    parser = argparse.ArgumentParser(
        prog="make stack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("stack-run"), help="the folder to fill")
    parser.add_argument("--rate", type=float, default=7.0, help="images a second; 800 are sent")
    parser.add_argument(
        "--no-build", action="store_true", help="no SeaweedFS where it is not built yet"
    )
    given = parser.parse_args()
    watch_over_this_process()
    os.environ.update(RAY_ENVIRON)
    configure_logging(for_people=True)
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    display = Display(Console(), SystemClock())
    try:
        with interrupted_by_sigterm():
            parts = _look(display, build=not given.no_build)
            if parts is None:
                return 1
            # Parts of it are started in folders of their own.
            return 0 if _run(given.out.resolve(), given.rate, parts, display) else 1
    except (NapStreamError, AssertionError, OSError, subprocess.SubprocessError) as error:
        display.step(f"failed: {error}", "bold red")
        return 1
    except KeyboardInterrupt:
        display.step("interrupted; all that was started ends with this", "bold")
        return 130


def _look(display: Display, *, build: bool) -> Parts | None:
    """What this machine has of the parts, each said; None where there is no use to begin."""
    jars = weed = None
    if installed(*ALERTMANAGER) is None:
        display.step(f"no Alertmanager ({PACKAGES}): no alert could arrive", "bold red")
        return None
    try:
        display.step("Apache Kafka: fetched from Maven the first time")
        jars = resolve_jars()
    except (KafkaNotThereError, OSError) as error:
        display.step(f"no Apache Kafka ({error}): the demo's own broker stands in", "yellow")
    try:
        display.step("SeaweedFS: built from its Go module the first time, some 20 minutes")
        weed = resolve_weed(build=build)
    except (SeaweedNotThereError, OSError) as error:
        display.step(f"no S3 server ({error}): log and model lie in a folder", "yellow")
    has_prometheus = installed("prometheus") is not None
    if not has_prometheus:
        display.step(f"no Prometheus ({PACKAGES}): rules and dashboard are not tried", "yellow")
    display.step("Grafana is not started: its dashboard's queries are asked of Prometheus")
    return Parts(jars, weed, has_prometheus)


def _run(out: Path, rate: float, parts: Parts, display: Display) -> bool:
    clock, ports = SystemClock(), (free_port(), free_port())
    with demo_folder(out) as folder, one_torch_thread(), ExitStack() as stack:
        run = folder.root / "parts"
        shutil.rmtree(run, ignore_errors=True)
        phases = make_model_and_images(folder, SEED, display)
        if parts.weed is not None:
            seaweed = stack.enter_context(running_seaweed(parts.weed, _made(run / "seaweed")))
            os.environ.update(environment(seaweed.endpoint))
            display.step(f"S3 server (SeaweedFS) at {seaweed.endpoint}")
        broker = stack.enter_context(_broker(parts, run))
        display.step(f"Kafka at {broker}")
        receiver = HttpReceiver()
        stack.enter_context(receiver.listening())
        config = written(run / "alertmanager.yaml", _routes(receiver.url))
        alertmanager = stack.enter_context(running_alertmanager(run, config))
        display.step(f"Alertmanager at {alertmanager}")
        prometheus = None
        if parts.has_prometheus:
            instance = f"127.0.0.1:{ports[0]}"
            config = written(run / "prometheus.yaml", scrape_config(instance, alertmanager))
            prometheus = stack.enter_context(running_prometheus(run, config))
            display.step(f"Prometheus at {prometheus}, with the rules of deploy/")
        write_configuration(folder, broker=broker, metrics_port=ports[0], workers=WORKERS)
        make_calibration(folder, display, clock)
        config = _whole(folder, parts.root, f"{alertmanager}/api/v2/alerts")
        settings = load_settings(config, environ={})
        create_topics(settings.kafka, [settings.kafka.topic], PARTITIONS)
        create_topics(settings.kafka, [settings.alerts.topic, settings.dead_letters.topic], 1)
        with (
            _monitor(config, ports[0], folder, run, display) as monitor,
            finishing_undisturbed(display),
        ):
            show = Show(folder, settings, phases, monitor, display, clock)
            show.wait_until_ready()
            sites = Sites(alertmanager, receiver, prometheus, f"127.0.0.1:{ports[0]}")
            with Watch(sites, display) as watch:
                streamed = show.play(rate)
                watch.check()
                watch.look()
        checks = (*watch.checks(), *show.checks(streamed, show.images()))
    show_outcome(checks, display.console)
    display.console.print(f"\nThe stack ran for {display.seconds():.0f} s.", highlight=False)
    return all(check.holds for check in checks)


def _routes(url: str) -> dict[str, Any]:
    """All alerts to one receiver, each at once."""
    at_once = {"group_by": ["..."], "group_wait": "0s", "group_interval": "1s"}
    return {
        "route": {"receiver": "watch", **at_once},
        "receivers": [{"name": "watch", "webhook_configs": [{"url": url}]}],
    }


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _broker(parts: Parts, run: Path) -> Iterator[str]:
    if parts.jars is None:
        with embedded_broker() as address:
            yield address
        return
    with ApacheKafka(parts.jars, _made(run / "kafka")) as kafka:
        yield kafka.bootstrap


def _whole(folder: DemoFolder, root: str | None, webhook: str) -> Path:
    """The configuration of the demo with a webhook; in the S3 server, with all that it names."""
    tree: dict[str, Any] = yaml.safe_load(folder.config.read_text())
    tree["alerts"]["webhook"] = {"url": webhook}
    written(folder.config, tree)
    if root is None:
        return folder.config
    upload(root, folder.root, folder.config)
    return Path(f"{root}/{folder.config.name}")


@contextmanager
def _monitor(
    config: Path, port: int, folder: DemoFolder, run: Path, display: Display
) -> Iterator[MonitorProcess]:
    """The monitor as a Ray job on two nodes, followed by the script that submits it."""
    with started_head(run / "head", cpus=0) as head, ray_node(head, WORKERS, run / "node"):
        display.step(f"Ray: a head, its dashboard at {head.dashboard}, and a worker node")
        command = [str(JOB_SCRIPT), "--follow", shown(config)]
        environ = {**os.environ, **head.environ, "PYTHON": sys.executable}
        with folder.monitor_output.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603  the script beside this one
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environ,
                start_new_session=True,
            )
        monitor = MonitorProcess(process, port, folder.monitor_output)
        try:
            yield monitor
        finally:
            monitor.abandon()


@dataclass(frozen=True, slots=True)
class Sites:
    """Where is watched: ``receiver`` is whom Alertmanager tells, ``instance`` has the metrics."""

    alertmanager: str
    receiver: HttpReceiver
    prometheus: str | None
    instance: str


class Watch(Task):
    """Looks at Alertmanager and Prometheus, and shows each alert that arrives.

    An alert may be over before anybody looks: so Alertmanager tells of each.
    """

    def __init__(self, sites: Sites, display: Display) -> None:
        super().__init__("watch")
        self._sites, self._prometheus, self._display = sites, sites.prometheus, display
        self._asked = {where: for_prometheus(expr, sites.instance) for where, expr in queries()}
        self._empty = dict(self._asked)
        self._seen: set[tuple[str, str, bool]] = set()
        self._active: list[str] = []

    def work(self) -> None:
        """Look, until the stream is over."""
        while not self._halt.wait(LOOK_EVERY_S):
            self.look()

    def look(self) -> None:
        """Look once."""
        active = ask(f"{self._sites.alertmanager}/api/v2/alerts")
        self._active = [alert["labels"]["alertname"] for alert in active]
        for alert in [
            each for told in self._sites.receiver.requests for each in told.tree["alerts"]
        ]:
            labels, name = alert["labels"], alert["labels"]["alertname"]
            known = name, alert["fingerprint"], "key" in labels
            if known not in self._seen:
                self._seen.add(known)
                said = alert["annotations"].get("summary") or alert["annotations"]["description"]
                severity = labels.get("severity", "-")
                self._display.step(f"in Alertmanager: {name} ({severity}): {said}", "bold red")
        if self._prometheus is not None:
            for where, expr in list(self._empty.items()):
                if values(self._prometheus, expr):
                    del self._empty[where]

    def checks(self) -> tuple[Check, ...]:
        """What was seen."""
        names = sorted({name for name, *_ in self._seen})
        of_stream = [name for name, _, has_key in self._seen if name == ALERT and not has_key]
        told = Check(
            "the alert of the stream arrived in Alertmanager",
            bool(of_stream),
            ", ".join(names) or "none",
        )
        active = sorted(set(self._active))
        over = Check(
            "and was resolved there", ALERT not in active, f"active: {', '.join(active) or 'none'}"
        )
        if self._prometheus is None:
            return told, over
        empty, asked = set(self._empty), len(self._asked)
        filled = Check(
            "every query of the dashboard had data, but those of baselines and signed checkpoints",
            empty <= UNFILLED,
            f"{asked - len(empty)} of {asked}; without: {', '.join(sorted(empty)) or 'none'}",
        )
        return told, over, filled


if __name__ == "__main__":
    sys.exit(main())
