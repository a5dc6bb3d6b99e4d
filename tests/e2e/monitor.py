"""A monitor of the tiny net on topics of its own, and what it has left behind."""

import hashlib
import json
import re
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from prometheus_client.parser import text_string_to_metric_families

from nap_stream.demo.produce import produce
from nap_stream.kafka.client import create_topics
from nap_stream.scored_log.footer import SegmentFooter
from nap_stream.scored_log.query import Query, scan
from nap_stream.scored_log.read import partitions, segments
from nap_stream.scored_log.stores import SegmentStore, store_at
from nap_stream.scored_log.verify.run import verify
from nap_stream.settings.schema import KafkaSettings
from tests.e2e.processes import Program
from tests.support.log_files import read_footer
from tests.support.topics import committed_offsets, describe_group, new_settings, read_all
from tests.support.waiting import PATIENCE_S, wait_until

PROJECT = Path(__file__).parents[2]
PARTITIONS = 4
WORKERS = 2
KEPT = 100
"""Images that `producing` keeps for the end: some for each partition."""

Row = tuple[int, int, int]
"""(partition, offset, index): what names a row."""


def model_section(factory: str = "tests.support.tiny_net:build", **kwargs: str) -> dict[str, Any]:
    return {
        "factory": factory,
        "kwargs": kwargs,
        "python_path": [str(PROJECT)],
        "class_names": ["circle", "square", "cross"],
        "precision": "float32",
        "channels_last": False,
        "preprocessing": {"resize": None, "crop": 16},
    }


@dataclass(frozen=True)
class Monitor:
    """A configuration file with its topics, and the log that it names."""

    kafka: KafkaSettings
    folder: Path
    bucket: str | None = None
    """Where the log lies, if in an object store."""
    _writers: dict[str, str] = field(default_factory=dict, init=False)
    """Of segments whose footers were read: they do not change."""

    @property
    def store(self) -> SegmentStore:
        return store_at(self.bucket or self.log)

    @property
    def config(self) -> Path:
        return self.folder / "monitor.yaml"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def alert_topic(self) -> str:
        return f"{self.kafka.topic}-alerts"

    @property
    def dead_letter_topic(self) -> str:
        return f"{self.kafka.topic}-dead-letters"

    def rows(self, *columns: str) -> list[dict[str, Any]]:
        """All rows of the log, in order, with these columns beside those that name a row."""
        if self.bucket is None and not self.log.is_dir():
            return []
        wanted = ("partition", "offset", "index", *columns)
        batches = scan(self.store, Query(topic=self.kafka.topic), wanted)
        return [row for batch in batches for row in batch.to_pylist()]

    def row_names(self) -> list[Row]:
        return [(row["partition"], row["offset"], row["index"]) for row in self.rows()]

    def writers(self) -> Counter[str]:
        """How many segments each incarnation of each worker, as worker.N@host:pid, has written."""
        if self.bucket is None and not self.log.is_dir():
            return Counter()
        store = self.store
        for partition in partitions(store, self.kafka.topic):
            for path in segments(store, partition):
                if path not in self._writers:
                    self._writers[path] = read_footer(store, path).writer_id.rpartition(":")[0]
        return Counter(self._writers.values())

    def pids(self) -> dict[str, int]:
        """The process of each incarnation of a worker that has written, by worker.N."""
        pids = {}
        for writer in self.writers():
            incarnation, _, place = writer.partition("@")
            pids[incarnation] = int(place.rpartition(":")[2])
        return pids

    def assert_complete(self, messages: int) -> None:
        """Every image of the topic once, as it was sent; chain, footers and commits agree."""
        produced = self.topic_rows(messages)
        rows = self.rows("sha256", "status")
        names = [(row["partition"], row["offset"], row["index"]) for row in rows]
        assert sorted(names) == sorted(produced)
        assert {row["status"] for row in rows} == {"ok"}
        logged = [row["sha256"] for row in rows]
        assert dict(zip(names, logged, strict=True)) == produced
        ends = self.chain_ends()
        assert sum(ends.values()) == messages
        assert self.committed() == ends

    def footers(self) -> dict[int, list[SegmentFooter]]:
        """Those of each partition's segments, in order."""
        store = self.store
        return {
            name.partition: [read_footer(store, path) for path in segments(store, name)]
            for name in partitions(store, self.kafka.topic)
        }

    def is_under_way(self, rows: int = 0) -> bool:
        """Whether every partition has rows, and the log so many.

        A partition whose chain is empty has no committed offset.
        """
        found = self.rows()
        return len(found) >= rows and len({row["partition"] for row in found}) == PARTITIONS

    def change(self, **sections: Any) -> None:
        """Write other values into the configuration; what a section has beside them stays."""
        tree = yaml.safe_load(self.config.read_text())
        for name, values in sections.items():
            is_section = isinstance(values, dict)
            tree[name] = tree.get(name, {}) | values if is_section else values
        self.config.write_text(yaml.safe_dump(tree))

    def chain_ends(self) -> dict[int, int]:
        """Where each partition's chain ends; fails where the log has a defect."""
        report = verify(self.store, deep=True)
        assert report.clean, report.defects
        assert not report.gaps
        return {head.partition.partition: head.end_offset for head in report.heads}

    def committed(self) -> dict[int, int]:
        """The offsets that the group has committed, by partition."""
        return committed_offsets(self.kafka)

    def group(self) -> dict[str, Any]:
        """The consumer group as the broker describes it."""
        return describe_group(self.kafka)

    def topic_rows(self, messages: int) -> dict[Row, str]:
        """SHA-256 of the value of each of the topic's messages, which hold one image each."""
        return {
            (record.partition, record.offset, 0): hashlib.sha256(record.value or b"").hexdigest()
            for record in read_all(self.kafka, self.kafka.topic, messages)
        }


def new_monitor(
    bootstrap: str, folder: Path, calibration: Path, **sections: dict[str, Any]
) -> Monitor:
    """Write the configuration of a monitor and create its topics."""
    folder.mkdir(parents=True, exist_ok=True)
    kafka = new_settings(bootstrap, partitions=PARTITIONS)
    root = sections.get("log", {}).get("root", "log")
    monitor = Monitor(kafka, folder, root if "://" in root else None)
    create_topics(kafka, [monitor.alert_topic, monitor.dead_letter_topic], 1)
    tree: dict[str, Any] = {
        "kafka": {
            "bootstrap_servers": bootstrap,
            "topic": kafka.topic,
            "group_id": kafka.group_id,
        },
        "model": model_section(),
        "calibration": str(calibration),
        "log": {"root": "log", "segment_max_age_s": 0.5},
        "worker": {"count": WORKERS, "num_gpus": 0},
        "drift": {
            "window_records": 200,
            "pane_ms": 100,
            "expected_run_length": 100_000,
            # Of a worker that stands still: after the default of 10 s its records would be late,
            # and a replay, which has no clock, would differ.
            "idle_partition_s": PATIENCE_S,
        },
        "alerts": {"topic": monitor.alert_topic},
        "dead_letters": {"topic": monitor.dead_letter_topic},
        "metrics": {"port": 0},
        # That a stop takes long is no failure, where a test does not ask for that.
        "driver": {"shutdown_deadline_s": PATIENCE_S},
    }
    monitor.config.write_text(yaml.safe_dump(tree))
    monitor.change(**sections)
    return monitor


@contextmanager
def producing(monitor: Monitor, images: Path, rate: float) -> Iterator[None]:
    """Images at a rate, from a thread that is joined at the end; no failure of it is hidden.

    However slow the machine is, the stream is not over before the block is: its last `KEPT` images
    are sent then.
    """
    is_over = threading.Event()

    def keep(sent: int, total: int | None) -> None:
        if total is not None and sent == total - KEPT:
            is_over.wait()

    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(produce, monitor.kafka, images, rate=rate, progress=keep)
        try:
            yield
        finally:
            is_over.set()
    sending.result()


@dataclass
class Sent:
    """How many messages `streaming` has sent, once its block is over."""

    messages: int = 0


@contextmanager
def streaming(monitor: Monitor, images: Path, rate: float) -> Iterator[Sent]:
    """A folder's images at a rate, again and again for as long as the block takes."""
    is_over, sent = threading.Event(), Sent()

    def send() -> None:
        while not is_over.is_set():
            sent.messages += produce(monitor.kafka, images, rate=rate).messages

    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send)
        try:
            yield sent
        finally:
            is_over.set()
    sending.result()


def metrics_url(program: Program) -> str:
    """Where the run's /metrics are, as it says when it has started."""
    url: str = json.loads(program.wait_for_line("monitor_started"))["metrics"]
    return url


def wait_for_assignments(program: Program) -> None:
    """Return when every worker of a run has partitions."""
    names = [f"worker-{number}" for number in range(WORKERS)]

    def all_have() -> bool:
        # What has ended says no more: whether it has is asked first.
        running = program.running
        found = all(assignments(program, name) for name in names)
        assert found or running, f"ended before every worker had partitions\n{program.tail}"
        return found

    wait_until(all_have, "partitions for every worker")


_ASSIGNED = re.compile(r'pid=(\d+)[^{}\n]*(\{[^{}\n]*"partition_assigned"[^{}\n]*\})')
"""As Ray tells it: whole, and also where what else is told stands on its line."""


class Assignment(NamedTuple):
    """That a worker's process was given a partition, and when, by its own clock."""

    pid: int
    at: datetime


def assignments(program: Program, worker: str) -> list[Assignment]:
    """The partitions that all incarnations of a worker have been given, as far as Ray has told.

    It may tell late: how many there are says nothing of who was given one since when.
    """
    events = ((int(told[1]), json.loads(told[2])) for told in _ASSIGNED.finditer(program.stderr))
    return [
        Assignment(pid, datetime.fromisoformat(event["timestamp"]))
        for pid, event in events
        if event["worker"] == worker
    ]


def has_partitions(program: Program, worker: str, *, but: int) -> bool:
    """Whether another process than this one has been given partitions as a worker."""
    assert program.running, program.tail
    return any(each.pid != but for each in assignments(program, worker))


def health(url: str) -> tuple[int, dict[str, Any]]:
    """The status of /healthz beside a run's /metrics, and what it says."""
    try:
        with urllib.request.urlopen(
            url.replace("/metrics", "/healthz"), timeout=PATIENCE_S
        ) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def scrape(url: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample by its name and its labels, sorted."""
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
        assert answer.status == 200
        text = answer.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
