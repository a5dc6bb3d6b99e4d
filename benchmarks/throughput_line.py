"""How `benchmarks.throughput` runs nap-stream: its command line, its settings, its scored log.

Nothing else of the line is used, so that a line of before is measured as the one of now.
"""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from kafka import KafkaProducer
from numpy.typing import NDArray

from benchmarks.throughput_peers import NETWORKS, middle_rate
from nap_stream.kafka.client import create_topics
from nap_stream.settings.schema import KafkaSettings

PROJECT = Path(__file__).parents[1]
PARTITIONS = 4
_IDLE_S = 5.0
_RUN_S = 600.0
_SAMPLE_S = 0.2
_ARROW_STREAM = b"application/vnd.apache.arrow.stream"
_TICKS = os.sysconf("SC_CLK_TCK")
_SHARED = 0.25
"""Least share of the rows that all workers must have scored side by side."""

Times = NDArray[np.float64]


class RunFailedError(Exception):
    """A run ended with an error, or left another number of rows than there were images."""


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic of images, ``images`` of them in all."""

    bootstrap: str
    name: str
    images: int


@dataclass(frozen=True, slots=True)
class Measured:
    """Rows a second, and seconds of CPU a row of all of Ray's actors, in the middle of the rows."""

    rate: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Line:
    """A version of nap-stream: the folder of its source, and a folder for what it makes.

    ``device`` is what it calibrates on.
    """

    source: Path
    folder: Path
    device: str = "cpu"

    def knows(self, section: str, key: str) -> bool:
        """Whether a section of the settings has this key in this version."""
        fields = f"schema.{section}.model_fields"
        program = f"from nap_stream.settings import schema; print({key!r} in {fields})"
        found = self._run("-c", program, output=self.folder / "knows.log")
        return found.strip() == "True"

    def calibrate(
        self,
        network: str,
        files: tuple[Path, Path],
        name: str,
        *,
        preprocessing: dict[str, Any],
        method: str | None,
    ) -> Path:
        """Calibrate a network, and give the folder that its runs begin from.

        ``files`` are its weights and the images; ``preprocessing`` goes beside the network's own.
        """
        weights, images = files
        folder = self.folder / name
        folder.mkdir()
        described = NETWORKS[network]
        section = {
            "factory": described.factory,
            "kwargs": described.kwargs,
            "weights": str(weights),
            "python_path": [str(PROJECT)],
            "preprocessing": {"resize": described.resize, "crop": described.crop} | preprocessing,
        }
        (folder / "model.yaml").write_text(
            yaml.safe_dump({"model": section, "scoring": {"method": method}})
        )
        options = ("--model", "model.yaml", "--images", str(images), "--out", "calibration")
        output = folder / "calibrate.log"
        on = ("--torch-threads", "2", "--device", self.device)
        command = ("-m", "nap_stream", "calibrate", *options, *on)
        self._run(*command, output=output, folder=folder)
        return folder

    def run(self, calibrated: Path, topic: Topic, number: int, worker: dict[str, Any]) -> Measured:
        """Run the line over a topic until it is idle.

        Raises:
            RunFailedError: It failed, or its log has not one scored row an image.
        """
        name = f"run-{number}"
        folder = calibrated / name
        folder.mkdir()
        others = {kind: f"{topic.name}-{name}-{kind}" for kind in ("alerts", "dead")}
        kafka = KafkaSettings(bootstrap_servers=(topic.bootstrap,), topic=topic.name)
        create_topics(kafka, list(others.values()), 1)
        settings = yaml.safe_load((calibrated / "model.yaml").read_text()) | {
            "kafka": {
                "bootstrap_servers": topic.bootstrap,
                "topic": topic.name,
                "group_id": others["alerts"],
            },
            "calibration": str(calibrated / "calibration"),
            "log": {"root": str(folder / "log")},
            "worker": worker,
            "alerts": {"topic": others["alerts"]},
            "dead_letters": {"topic": others["dead"]},
            "metrics": {"port": 0},
        }
        (folder / "monitor.yaml").write_text(yaml.safe_dump(settings))
        samples: list[tuple[float, float]] = []
        command = ("-m", "nap_stream", "run", "--config", str(folder / "monitor.yaml"))
        self._run(
            *(*command, "--until-idle", str(_IDLE_S)),
            output=folder / "run.log",
            sample=lambda session: samples.append((time.time(), workers_cpu_s(session))),
        )
        times = scored_times_s(folder / "log")
        rows = sum(map(len, times))
        if rows != topic.images:
            raise RunFailedError(f"{rows} rows of {topic.images} images: {folder}")
        shared = while_all_work(times)
        if len(times) < worker["count"] or len(shared) < _SHARED * rows:
            raise RunFailedError(
                f"{len(times)} workers shared {len(shared)} of {rows} rows: take more images"
            )
        rate, first, last = middle_rate(shared)
        at, cpu = (np.array(column) for column in zip(*samples, strict=True))
        used = np.interp(last, at, cpu) - np.interp(first, at, cpu)
        return Measured(rate, float(used) / (rate * (last - first)))

    def _run(
        self,
        *arguments: str,
        output: Path,
        folder: Path | None = None,
        sample: Callable[[int], None] = lambda _session: None,
    ) -> str:
        environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("NAP_STREAM__", "RAY_"))
        } | {
            "PYTHONPATH": str(self.source),
            "RAY_TMPDIR": str(self.folder),
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        command = [sys.executable, *arguments]
        with (
            output.open("w+b") as file,
            _session(command, folder or self.source, file, environ) as process,
        ):
            deadline = time.monotonic() + _RUN_S
            while process.poll() is None and time.monotonic() < deadline:
                sample(process.pid)
                time.sleep(_SAMPLE_S)
            file.seek(0)
            text = file.read().decode(errors="replace")
        if process.returncode != 0:
            raise RunFailedError(f"{' '.join(command)} of {self.source} failed:\n{text[-3_000:]}")
        return text


@contextmanager
def line_of(revision: str, folder: Path, device: str) -> Iterator[Line]:
    """The line of a revision of this repository, in a work tree that is gone at the end."""
    source = folder / "source"
    git = ("git", "-C", str(PROJECT), "worktree")
    add = ("add", "--quiet", "--detach", str(source), revision)
    subprocess.run([*git, *add], check=True)  # noqa: S603  no shell
    try:
        yield Line(source, folder, device)
    finally:
        subprocess.run([*git, "remove", "--force", str(source)], check=True)  # noqa: S603  no shell


def run_peer(task: dict[str, Any], folder: Path, python: str) -> dict[str, Any]:
    """Run a task of `benchmarks.throughput_peers` in a process of its own."""
    files = [folder / f"{task['task']}.{kind}" for kind in ("task.json", "result.json", "log")]
    files[0].write_text(json.dumps(task))
    files[1].unlink(missing_ok=True)
    command = [python, "-m", "benchmarks.throughput_peers", *map(str, files[:2])]
    environ = os.environ | {"PYTHONPATH": str(PROJECT), "RAY_TMPDIR": str(folder)}
    environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    with files[2].open("wb") as file, _session(command, PROJECT, file, environ) as process:
        process.wait(_RUN_S)
    if process.returncode != 0:
        raise RunFailedError(f"{task} failed:\n{files[2].read_text()[-3_000:]}")
    found: dict[str, Any] = json.loads(files[1].read_text())
    return found


def send_images(topic: Topic, images: list[bytes], images_per_message: int) -> None:
    """Make the topic and send it so many images, the same ones again and again.

    Several images a message are an Arrow IPC stream. Keys are those of eight cameras.
    """
    settings = KafkaSettings(bootstrap_servers=(topic.bootstrap,), topic=topic.name)
    create_topics(settings, [topic.name], PARTITIONS)
    producer = KafkaProducer(bootstrap_servers=topic.bootstrap, max_request_size=2**26, linger_ms=5)
    headers = [("content-type", _ARROW_STREAM)] if images_per_message > 1 else []
    try:
        values = _messages(islice(cycle(images), topic.images), images_per_message)
        for number, value in enumerate(values):
            key = f"camera-{number % 8}".encode()
            partition = number % PARTITIONS
            producer.send(topic.name, key=key, value=value, headers=headers, partition=partition)
        producer.flush(120)
    finally:
        producer.close()


def scored_times_s(root: Path) -> list[Times]:
    """When each scored row of a log was scored, seconds since the epoch, by worker."""
    found: dict[bytes, list[Times]] = defaultdict(list)
    for path in sorted(root.glob("topic=*/partition=*/[!._]*.parquet")):
        file = pq.ParquetFile(path)
        (writer,) = (v for k, v in file.metadata.metadata.items() if k.endswith(b"writer_id"))
        table = file.read(["scored_time", "status"])
        scored = table.filter(pc.field("status") == "ok")["scored_time"]
        found[writer].append(scored.cast(pa.int64()).to_numpy() / 1_000)
    return [np.concatenate(times) for times in found.values()]


def while_all_work(times_s: Sequence[Times]) -> Times:
    """The times of rows between the first row of the last worker and the last of the first.

    Workers do not join a group at once, and one of them is done before the others: only what lies
    between is the rate of all of them.
    """
    begin = max(float(one.min()) for one in times_s)
    end = min(float(one.max()) for one in times_s)
    every = np.concatenate(times_s)
    return every[(every >= begin) & (every <= end)]


def workers_cpu_s(session: int) -> float:
    """Seconds of CPU that Ray's actors of a session have used so far, by /proc."""
    total = 0.0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and (entry / "cmdline").read_bytes().startswith(b"ray::"):
                total += (int(fields[11]) + int(fields[12])) / _TICKS
    return total


def _messages(images: Iterable[bytes], images_per_message: int) -> Iterator[bytes]:
    iterator = iter(images)
    schema = pa.schema([("image", pa.binary())])
    while batch := list(islice(iterator, images_per_message)):
        if images_per_message == 1:
            yield batch[0]
            continue
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, schema) as writer:
            writer.write_batch(pa.record_batch([pa.array(batch, pa.binary())], schema=schema))
        yield sink.getvalue()


@contextmanager
def _session(
    command: list[str], folder: Path, output: Any, environ: dict[str, str]
) -> Iterator["subprocess.Popen[bytes]"]:
    """A process and all that it starts, which is gone at the end."""
    process = subprocess.Popen(  # noqa: S603  this repository's own programs, and no shell
        command,
        cwd=folder,
        env=environ,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
        for pid in _members(process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def _members(session: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if int((entry / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                    found.append(int(entry.name))
    return found
