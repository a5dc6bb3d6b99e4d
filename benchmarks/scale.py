"""How the whole line grows on one machine, with a model that sleeps: a simulated accelerator.

    python -m benchmarks.scale [--partitions 1 4 16 64] [--workers 1 2 4 8] [--rate 100]
        [--seconds 6] [--all]

Each cell is a real `nap-stream run --until-idle` on Ray, with Apache Kafka, a topic of so many
partitions and so many workers. The forward pass of the tiny net sleeps its number of images divided
by ``--rate`` seconds, and holds no core meanwhile, so that 8 workers fit on 2 cores. Workers beyond
the partitions have nothing to do: such cells are left out unless ``--all`` asks for them.

1. Once the workers have their partitions, ``--seconds`` of work for them come at once. Rows a
   second are their images over the time from when a model first began with them to when the last
   was done: no model can have taken more than its rate, however the machine stalls.
2. When they are in the log, images of another kind come at half that rate. The alert's latency is
   from the timestamp of the first of them to that of the alert, both in Kafka; segments are
   published every `SEGMENT_AGE_S` seconds, and the alert waits for its own.

CPU is in cores, from the first row of step 1 in the metrics to the last, by /proc; "rest" is Ray,
the driver and whatever else the program has started. Memory is resident; of workers, the most.
"""

import argparse
import json
import os
import signal
import tempfile
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from kafka import KafkaProducer

from tests.e2e.calibrated import Faulty, faulty_net
from tests.e2e.monitor import Monitor, metrics_url, new_monitor, scrape
from tests.e2e.on_ray import running_alone
from tests.e2e.processes import MARK, Program
from tests.support.apache_kafka import ApacheKafka, resolve_jars
from tests.support.faulty_net import slow_down, slow_forwards
from tests.support.image_bytes import encoded
from tests.support.images import flat_image, smooth_image
from tests.support.leftovers import marked, short_folder, watch_over_this_process
from tests.support.memory import MIB, rss_bytes
from tests.support.topics import new_settings, read_to_end
from tests.support.waiting import PATIENCE_S, wait_until

SEGMENT_AGE_S = 1.0
UNTIL_IDLE_S = 60
"""Longer than the last worker needs to start; the run is stopped when its alert is there."""
DIFFERENT = 200
"""Images of each kind, sent again and again."""
SETTLED_S = 5.0
"""Longer than between two heartbeats, with which a worker learns that partitions are to move."""
PUBLISHED = "alert_published"
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
ENVIRON = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}


@dataclass(frozen=True, slots=True)
class Cell:
    """One run. ``rate`` is how many images a second the model of one worker takes."""

    partitions: int
    workers: int
    rate: float
    seconds: float

    @property
    def busy(self) -> int:
        """Workers that have partitions."""
        return min(self.partitions, self.workers)

    @property
    def images(self) -> int:
        """Images of step 1."""
        return round(self.busy * self.rate * self.seconds)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a cell gave.

    ``cores`` are CPU seconds a second of the workers together, of the coordinator and of the rest.
    ``alert_s`` is null where none came.
    """

    cell: Cell
    rows_per_s: float
    cores: tuple[float, float, float]
    worker_bytes: int
    coordinator_bytes: int
    alert_s: float | None

    @property
    def share(self) -> float:
        """Of what the models of the workers with partitions take."""
        return self.rows_per_s / (self.cell.rate * self.cell.busy)


@dataclass(frozen=True, slots=True)
class Usage:
    """Processes of a run at one moment: CPU seconds and resident bytes by (role, pid)."""

    at_s: float
    cpu_s: dict[tuple[str, int], float]
    rss: dict[tuple[str, int], int]

    def cores_since(self, before: "Usage", role: str) -> float:
        """Of all processes with a role."""
        own = {one: cpu_s for one, cpu_s in self.cpu_s.items() if one[0] == role}
        used = sum(cpu_s - before.cpu_s.get(one, 0.0) for one, cpu_s in own.items())
        return used / (self.at_s - before.at_s)

    def most_bytes(self, role: str) -> int:
        """Of the largest process with a role."""
        return max((size for (one, _), size in self.rss.items() if one == role), default=0)


def usage(run: Program) -> Usage:
    """Look at all processes that a run has started: Ray's have titles for an environment."""
    parents, ticks = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            parents[int(stat.parent.name)] = int(fields[1])
            ticks[int(stat.parent.name)] = int(fields[11]) + int(fields[12])
    own = set(marked(MARK, run.mark))
    while more := {pid for pid, parent in parents.items() if parent in own} - own:
        own |= more
    known = own & ticks.keys()
    named = {pid: (_role(pid), pid) for pid in known}
    return Usage(
        time.monotonic(),
        {named[pid]: ticks[pid] / _TICKS_PER_S for pid in known},
        {named[pid]: rss_bytes(pid) for pid in known},
    )


def _role(pid: int) -> str:
    with suppress(OSError):
        title = Path(f"/proc/{pid}/cmdline").read_bytes()
        for role, part in (("coordinator", b"oordinator"), ("worker", b"WorkerActor")):
            if title.startswith(b"ray::") and part in title:
                return role
    return "rest"


def run_cell(cell: Cell, bootstrap: str, net: Faulty, folder: Path) -> Cost:
    """Run one cell; ``folder`` is its own."""
    slow_down(net.faults, 1 / cell.rate)
    kafka = new_settings(bootstrap, partitions=cell.partitions)
    made = new_monitor(
        bootstrap,
        folder / "monitor",
        net.calibration,
        model=net.model,
        kafka={"topic": kafka.topic, "group_id": kafka.group_id},
        worker={"count": cell.workers, "num_gpus": 0, "num_cpus": 1},
        log={"root": "log", "segment_max_age_s": SEGMENT_AGE_S},
    )
    until_idle = ("--until-idle", str(UNTIL_IDLE_S))
    with short_folder() as temporary:
        environ = {**ENVIRON, "RAY_TMPDIR": str(temporary)}
        with (
            closing(KafkaProducer(bootstrap_servers=bootstrap, acks="all")) as producer,
            running_alone(made, environ, folder / "run", *until_idle) as run,
        ):
            url = metrics_url(run)
            _wait_for_workers(run, url, cell)
            sent_s = time.monotonic()
            _send(producer, cell, kafka.topic, foreign=False)
            _wait_for_rows(run, url, 1)
            before = usage(run)
            _wait_for_rows(run, url, cell.images)
            after = usage(run)
            forwards = [times for times in slow_forwards(net.faults) if times[0] > sent_s]
            first_ms = _drift(run, producer, cell, kafka.topic)
            run.send(signal.SIGTERM)
            run.wait()
    return Cost(
        cell,
        cell.images / (max(ended for _, ended in forwards) - min(forwards)[0]),
        (
            after.cores_since(before, "worker"),
            after.cores_since(before, "coordinator"),
            after.cores_since(before, "rest"),
        ),
        after.most_bytes("worker"),
        after.most_bytes("coordinator"),
        _alert_s(made, first_ms),
    )


def _send(producer: Any, cell: Cell, topic: str, *, foreign: bool) -> int:
    """Send images of one kind, to one partition after the other; give the first's timestamp, ms.

    Foreign ones come at half the rate of the models, a second of them or one a partition.
    """
    rate = cell.rate * cell.busy / 2
    count = max(cell.partitions, round(rate)) if foreign else cell.images
    make = flat_image if foreign else smooth_image
    values = [encoded(make(seed)) for seed in range(DIFFERENT)]
    began_s, first = time.monotonic(), None
    for number in range(count):
        if foreign:
            time.sleep(max(0.0, began_s + number / rate - time.monotonic()))
        value = values[number % DIFFERENT]
        sent = producer.send(topic, value=value, partition=number % cell.partitions)
        first = first or sent
    producer.flush(PATIENCE_S)
    assert first is not None
    return int(first.get(timeout=PATIENCE_S).timestamp)


def _drift(run: Program, producer: Any, cell: Cell, topic: str) -> int:
    """Send images of another kind until an alert is out; give the first one's timestamp, in ms."""
    told, end_s = run.stderr.count(PUBLISHED), time.monotonic() + PATIENCE_S
    first_ms = None
    while run.stderr.count(PUBLISHED) == told and time.monotonic() < end_s:
        sent_ms = _send(producer, cell, topic, foreign=True)
        first_ms = first_ms or sent_ms
    assert first_ms is not None
    return first_ms


def _alert_s(monitor: Monitor, first_ms: int) -> float | None:
    alerts = read_to_end(monitor.kafka, monitor.alert_topic)
    began_ms = [
        alert.timestamp
        for alert in alerts
        if alert.timestamp >= first_ms and json.loads(alert.value)["data"]["reason"] == "began"
    ]
    return (min(began_ms) - first_ms) / 1000 if began_ms else None


def _wait_for_workers(run: Program, url: str, cell: Cell) -> None:
    """Return when all that can have partitions have them, and none has moved for a while."""
    moves, moved_s = 0, time.monotonic()

    def settled() -> bool:
        nonlocal moves, moved_s
        assert run.running, run.tail
        lines = [line for line in run.stderr.splitlines() if "partition_assigned" in line]
        busy = sum(any(f'"worker-{n}"' in line for line in lines) for n in range(cell.workers))
        if len(lines) != moves:
            moves, moved_s = len(lines), time.monotonic()
        if busy < cell.busy or time.monotonic() - moved_s < SETTLED_S:
            return False
        return scrape(url)["nap_stream_workers", ()] == cell.workers

    wait_until(settled, "partitions for the workers")


def _wait_for_rows(run: Program, url: str, rows: int) -> None:
    def logged() -> bool:
        assert run.running, run.tail
        samples = scrape(url).items()
        return sum(v for (name, _), v in samples if name == "nap_stream_records_total") >= rows

    wait_until(logged, f"{rows} rows")


def show(cost: Cost) -> str:
    """One row of the table."""
    cell, alert = cost.cell, "none" if cost.alert_s is None else f"{cost.alert_s:.1f}"
    return (
        f"| {cell.partitions} | {cell.workers} | {cost.rows_per_s:,.0f} | {cost.share:.2f} | "
        + " | ".join(f"{cores:.2f}" for cores in cost.cores)
        + f" | {cost.worker_bytes / MIB:,.0f} | {cost.coordinator_bytes / MIB:,.0f} | {alert} |"
    )


HEADER = (
    "| partitions | workers | rows/s | of the models' | cores: workers | coordinator | rest "
    "| worker MiB | coordinator MiB | alert after s |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--partitions", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rate", type=float, default=100.0, help="images/s of a worker's model")
    parser.add_argument("--seconds", type=float, default=6.0, help="of work for the workers")
    parser.add_argument("--all", action="store_true", help="more workers than partitions, too")
    arguments = parser.parse_args()
    watch_over_this_process()
    os.environ["OMP_NUM_THREADS"] = "1"
    print(HEADER, flush=True)
    with tempfile.TemporaryDirectory(prefix="nap-stream-scale-") as name:
        folder = Path(name)
        (folder / "kafka").mkdir()
        (folder / "net").mkdir()
        net = faulty_net(folder / "net")
        with ApacheKafka(resolve_jars(), folder / "kafka") as kafka:
            for partitions, workers in product(arguments.partitions, arguments.workers):
                if workers <= partitions or arguments.all:
                    cell = Cell(partitions, workers, arguments.rate, arguments.seconds)
                    own = folder / f"{partitions}-{workers}"
                    print(show(run_cell(cell, kafka.bootstrap, net, own)), flush=True)


if __name__ == "__main__":
    main()
