"""CIFAR-10 test images, then textures, through Kafka; the log against plain PyTorch.

    .venv/bin/python -m benchmarks.cifar_stream
    .venv/bin/python -m benchmarks.cifar_stream --workers 2 --broker embedded --json result.json

It calibrates a DenseNet-BC-100 by the default method on the CIFAR-10 test images that are not
streamed, runs the monitor as a process of its own, and scores the same files again with
`plain_pytorch`, which shares no code with nap_stream and takes from the calibration what was fitted
and the weights alone. Exit code 1 where one of the checks at the end fails.

The producer stamps the event times and is faster than the model on two cores, so that images
wait in the topic: the throughput is then the monitor's own. Drift is judged in event time with
the default settings, a window of 1,000 records in panes of 100 ms; at 300 images a second a pane
holds 30, which is how finely an alert is placed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.cifar_comparison import compare
from nap_stream.alert.kafka import read_alerts
from nap_stream.clock import SystemClock
from nap_stream.demo.processes import embedded_broker
from nap_stream.demo.produce import produce
from nap_stream.kafka.client import create_topics
from nap_stream.settings.load import load_settings
from nap_stream.settings.schema import Settings
from tests.support.apache_kafka import KAFKA_VERSION, ApacheKafka, KafkaNotThereError, resolve_jars

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("NAP_STREAM_TEST_DATA", ROOT.parent / "shared" / "data"))
CHECKPOINT = "checkpoints/densenet_bc100_12_cifar10.safetensors"
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
MEAN = [125.3 / 255, 123.0 / 255, 113.9 / 255]
STD = [63.0 / 255, 62.1 / 255, 66.7 / 255]
CONFIG = "monitor.yaml"
PARTITIONS = 2
IDLE_S = 8
RUN_LIMIT_S = 3_600
AUROC_TOLERANCE = 0.01

console = Console(stderr=True)


def main() -> int:
    options = _options()
    keep = options.keep
    if keep is not None:
        keep.mkdir(parents=True)
    with nullcontext(str(keep)) if keep else tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        cifar, textures = _write_sets(options.data, options.images, options.held_out, folder)
        with _broker(options.broker, folder) as (broker, address):
            _configure(folder, options, broker, address)
            console.print(f"{broker}; calibrating on the held-out images")
            _calibrate(folder)
            settings = load_settings(folder / CONFIG)
            create_topics(settings.kafka, [settings.kafka.topic], PARTITIONS)
            create_topics(settings.kafka, [settings.alerts.topic, settings.dead_letters.topic], 1)
            _stream(folder, settings, options.rate)
            events = _alert_events(settings)
        result = compare(settings, cifar, textures, events)
    checks = _checks(result)
    run = {"broker": broker, "workers": options.workers, "images_produced_per_s": options.rate}
    result = run | result | {"checks": checks}
    _print(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if all(checks.values()) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="CIFAR-10, then textures, against plain PyTorch.")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the Parquet files")
    parser.add_argument("--images", type=int, default=3_000, help="CIFAR-10 images to stream")
    parser.add_argument("--held-out", type=int, default=3_000, help="images to calibrate on")
    parser.add_argument("--rate", type=float, default=300.0, help="images a second produced")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--broker", choices=("apache", "embedded"), default="apache")
    parser.add_argument("--keep", type=Path, help="a new folder for everything that is made")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    return parser.parse_args()


def _write_sets(
    data: Path, images: int, most_held_out: int, folder: Path
) -> tuple[pa.Table, pa.Table]:
    """The streamed sets, also as Parquet files with the held-out one. Names become unique."""
    cifar = _named(data / "cifar10_test.parquet", "cifar10")
    textures = _named(data / "textures_dtd5.parquet", "textures")
    held_out = cifar.slice(images, most_held_out)
    streamed = cifar.slice(0, images)
    for name, table in (("cifar", streamed), ("held_out", held_out), ("textures", textures)):
        pq.write_table(table, folder / f"{name}.parquet")
    return streamed, textures


def _named(path: Path, prefix: str) -> pa.Table:
    table = pq.read_table(path, columns=["image", "label", "name"])
    rows = zip(table["label"].to_pylist(), table["name"].to_pylist(), strict=True)
    names = pa.array([f"{prefix}/{label}/{name}" for label, name in rows])
    return table.set_column(table.schema.get_field_index("name"), "name", names)


@contextmanager
def _broker(kind: str, folder: Path) -> Iterator[tuple[str, str]]:
    """A broker's name and address."""
    jars = None
    if kind == "apache":
        try:
            jars = resolve_jars()
        except KafkaNotThereError as error:
            console.print(f"Apache Kafka is not there, taking the embedded broker: {error}")
    if jars is None:
        with embedded_broker() as address:
            yield "embedded broker", address
        return
    home = folder / "kafka"
    home.mkdir()
    with ApacheKafka(jars, home) as kafka:
        yield f"Apache Kafka {KAFKA_VERSION}", kafka.bootstrap


def _configure(folder: Path, options: argparse.Namespace, broker: str, address: str) -> None:
    # The embedded broker makes a group's first member wait for half of the session timeout.
    patience = {"session_timeout_s": 10} if broker.startswith("embedded") else {}
    tree = {
        "kafka": {"bootstrap_servers": address, "topic": "images", **patience},
        "model": {
            "factory": "tests.support.cifar_models:densenet_bc100",
            "python_path": [str(ROOT)],
            "weights": str((options.data / CHECKPOINT).resolve()),
            "class_names": CLASSES,
            "preprocessing": {"resize": 32, "crop": 32, "mean": MEAN, "std": STD},
        },
        "calibration": "calibration",
        "log": {"root": "log"},
        "worker": {"count": options.workers},
        "metrics": {"port": 0},
    }
    (folder / CONFIG).write_text(yaml.safe_dump(tree), encoding="utf-8")


def _calibrate(folder: Path) -> None:
    sets = ("--images", "held_out.parquet", "--out", "calibration")
    _succeed(_start(folder, "calibrate", "--model", CONFIG, *sets), folder, "calibrate")


def _start(folder: Path, command: str, *arguments: str) -> "subprocess.Popen[bytes]":
    with (folder / f"{command}.log").open("wb") as log:
        return subprocess.Popen(  # noqa: S603  our own program, and no shell
            [sys.executable, "-m", "nap_stream", command, *arguments],
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _succeed(process: "subprocess.Popen[bytes]", folder: Path, command: str) -> None:
    if process.wait(RUN_LIMIT_S):
        output = (folder / f"{command}.log").read_text(encoding="utf-8", errors="replace")
        raise SystemExit(f"nap-stream {command}: exit {process.returncode}\n{output[-3_000:]}")


def _stream(folder: Path, settings: Settings, rate: float) -> None:
    run = _start(folder, "run", "--config", CONFIG, "--until-idle", str(IDLE_S))
    try:
        for name in ("cifar", "textures"):
            sent = produce(settings.kafka, folder / f"{name}.parquet", rate=rate)
            console.print(f"{sent.images:,} {name} images produced in {sent.seconds:.1f} s")
        _succeed(run, folder, "run")
    finally:
        if run.poll() is None:
            run.terminate()
            run.wait(settings.driver.shutdown_deadline_s * 2)


def _alert_events(settings: Settings) -> list[Mapping[str, Any]]:
    topic, clock = settings.alerts.topic, SystemClock()
    found = read_alerts(settings.kafka, topic, clock=clock, follow=False, from_beginning=True)
    return [alert.event or {"problem": alert.problem} for alert in found]


def _checks(result: Mapping[str, Any]) -> dict[str, bool]:
    sizes, verified = result["sizes"], result["verify"]
    firing = [alert for alert in result["alerts"] if alert["state"] == "firing"]
    return {
        "every AUROC within 1 point of plain PyTorch": all(
            abs(row["auroc_log"] - row["auroc_plain"]) <= AUROC_TOLERANCE
            for row in result["scores"]
        ),
        "firing after the change": any(alert["textures_in_window"] > 0 for alert in firing),
        "no firing before it": all(alert["textures_in_window"] > 0 for alert in firing),
        "one row an offset, one a file": sizes["cifar"] + sizes["textures"]
        == verified["rows"]
        == verified["offsets"],
        "verify clean": not verified["defects"],
    }


def _print(result: Mapping[str, Any]) -> None:
    sizes, verified = result["sizes"], result["verify"]
    weights = ", ".join(f"{name} {weight:.2f}" for name, weight in result["weights"].items())
    print(
        f"{result['broker']}, {result['workers']} worker(s): {sizes['cifar']:,} CIFAR-10 images, "
        f"then {sizes['textures']:,} textures, {sizes['megabytes']:.1f} MB; calibrated on "
        f"{result['calibration_images']:,}, alpha {result['alpha']:g}, "
        f"{result['method']}: {weights}"
    )
    table = Table("score", "AUROC log", "plain", "FPR95 log", "plain", "|diff| CIFAR", "textures")
    for row in result["scores"]:
        rates = [
            f"{100 * row[name]:.2f}"
            for name in ("auroc_log", "auroc_plain", "fpr95_log", "fpr95_plain")
        ]
        gaps = [f"{row[name]:.2g}" for name in ("difference_cifar", "difference_textures")]
        table.add_row(row["score"], *rates, *gaps)
    Console().print(table)
    for alert in result["alerts"]:
        print(
            f"{alert['state']}: {alert['flagged']} of {alert['records']} flagged, limit "
            f"{alert['firing_limit']}; window {alert['window_start_ms'] / 1000:+.1f} to "
            f"{alert['window_end_ms'] / 1000:+.1f} s of the change, with "
            f"{alert['textures_in_window']} textures"
        )
    print(
        f"accuracy {result['accuracy_log']:.4f}, plain {result['accuracy_plain']:.4f}; flagged "
        f"{result['flagged_cifar']:.2%} of CIFAR-10, {result['flagged_textures']:.2%} of textures"
    )
    print(
        f"{verified['rows']:,} rows, {verified['offsets']:,} offsets, {verified['segments']} "
        f"segments; {result['images_scored_per_s']:.1f} images/s scored"
    )
    for name, passed in result["checks"].items():
        print(f"{'pass' if passed else 'FAIL'}  {name}")


if __name__ == "__main__":
    sys.exit(main())
