"""Forms of messages on Apache Kafka, through a worker, to the log: every offset has its rows."""

import hashlib
import json
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus
from uuid import uuid4

import obstore
import pytest
from obstore.store import S3Store

from nap_stream.clock import StopRequest, SystemClock
from nap_stream.monitor.worker import run_worker
from nap_stream.settings.load import load_settings
from tests.e2e.monitor import Monitor, new_monitor
from tests.e2e.on_ray import running_alone
from tests.messages.avro_data import FRAME, frame
from tests.support.apache_kafka import ApacheKafka
from tests.support.image_bytes import jpeg
from tests.support.object_server import ObjectServer, answer
from tests.support.s3 import BUCKET, Fault, FaultProxy
from tests.support.schema_registry import Registry, framed
from tests.support.told import Told
from tests.support.topics import read_to_end, send
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

IMAGES = [jpeg(seed) for seed in range(40)]
PROTO = 'syntax = "proto3"; message Other { int32 a = 1; } message Frame { bytes image = 3; }'


@dataclass(frozen=True)
class Sent:
    """A message, and what its rows are to be: (status, the image's bytes) each."""

    value: bytes | None
    rows: tuple[tuple[str, bytes | None], ...]


def good(value: bytes, image: bytes) -> Sent:
    return Sent(value, (("ok", image),))


def bad(value: bytes | None, status: str) -> Sent:
    return Sent(value, ((status, None),))


class Worker:
    """A worker in a thread, without Ray, until all that was sent is in the log."""

    def __init__(self, monitor: Monitor) -> None:
        self.told, self.error = Told(), list[BaseException]()
        self._stop = StopRequest(SystemClock())
        self._thread = threading.Thread(target=self._run, args=(monitor,))
        self._thread.start()

    def stop(self) -> None:
        self._stop.make()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        assert not self.error, self.error

    @property
    def waiting_for(self) -> str | None:
        return self.told.reports[-1].waiting_for if self.told.reports else None

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def _run(self, monitor: Monitor) -> None:
        try:
            run_worker(
                load_settings(monitor.config),
                "worker-0",
                0,
                num_cpus=1,
                num_gpus=0,
                reporter=self.told,
                stop=self._stop,
                clock=SystemClock(),
            )
        except BaseException as error:  # noqa: BLE001  raised again by `stop`
            self.error.append(error)


@contextmanager
def working(monitor: Monitor) -> Iterator[Worker]:
    worker = Worker(monitor)
    try:
        yield worker
    finally:
        worker.stop()


def sent_all(monitor: Monitor, messages: list[Sent]) -> dict[tuple[int, int], Sent]:
    places = send(monitor.kafka, [message.value for message in messages])
    return dict(zip(places, messages, strict=True))


def assert_logged(monitor: Monitor, sent: dict[tuple[int, int], Sent]) -> None:
    """Nothing is lost and nothing doubled; digests and dead letters are right."""
    found: dict[tuple[int, int], list[tuple[str, str | None]]] = {}
    for row in monitor.rows("status", "sha256"):
        digest = row["sha256"] if row["status"] == "ok" else None
        found.setdefault((row["partition"], row["offset"]), []).append((row["status"], digest))
    expected = {
        place: [
            (status, hashlib.sha256(image).hexdigest() if image else None)
            for status, image in message.rows
        ]
        for place, message in sent.items()
    }
    assert found == expected
    assert sum(monitor.chain_ends().values()) == len(sent)
    letters = sorted(
        (record.value or b"") for record in read_to_end(monitor.kafka, monitor.dead_letter_topic)
    )
    # None of these has an image's bytes: one of each message holds what came.
    expected_letters = []
    for message in sent.values():
        failed = sum(status != "ok" for status, _ in message.rows)
        expected_letters += [message.value or b"", *[b""] * (failed - 1)] if failed else []
    assert letters == sorted(expected_letters)


def run_to_end(monitor: Monitor, messages: list[Sent]) -> Worker:
    sent = sent_all(monitor, messages)
    rows = sum(len(message.rows) for message in messages)
    with working(monitor) as worker:
        wait_until(lambda: not worker.running or len(monitor.rows()) >= rows, f"{rows} rows")
    assert_logged(monitor, sent)
    return worker


@pytest.fixture
def new(apache_kafka: ApacheKafka, calibration: Path, tmp_path: Path) -> Callable[..., Monitor]:
    def make(**messages: Any) -> Monitor:
        return new_monitor(apache_kafka.bootstrap, tmp_path, calibration, messages=messages)

    return make


def text(image: bytes) -> str:
    return b64encode(image).decode()


def test_json_with_base64(new: Callable[..., Monitor]) -> None:
    link = {"each": "frames", "path": "data", "key": "camera"}
    one = [good(json.dumps({"frames": [{"data": text(i), "camera": "a"}]}).encode(), i)
           for i in IMAGES]  # fmt: skip
    uri = f"data:image/jpeg;base64,{text(IMAGES[1])}"
    frames = [{"data": text(IMAGES[0]), "camera": 1}, {"camera": 2}, {"data": uri, "camera": 3}]
    many = Sent(
        json.dumps({"frames": frames}).encode(),
        (("ok", IMAGES[0]), ("bad_message", None), ("ok", IMAGES[1])),
    )
    hostile = [
        bad(IMAGES[0], "bad_message"),
        bad(b"[" * 50_000, "bad_message"),
        bad(b"[" + b"{}," * 200_000 + b"0]", "bad_message"),
        bad(b"\0" * 64, "bad_message"),
        bad(b"", "empty"),
        bad(None, "tombstone"),
    ]
    run_to_end(new(read=[{"json_field": link}, "base64"]), [*one, many, *hostile])


def test_avro_of_a_registry(new: Callable[..., Monitor], schema_registry: Registry) -> None:
    number = schema_registry.register(f"avro-{uuid4().hex}", json.dumps(FRAME))
    linked = {"type": "record", "name": "N", "fields": [
        {"name": "frame", "type": "bytes"}, {"name": "n", "type": ["null", "N"]}]}  # fmt: skip
    bomb = schema_registry.register(f"bomb-{uuid4().hex}", json.dumps(linked))
    monitor = new(
        read=[{"confluent_avro": {"path": "frame.data", "key": "camera", "event_time": "at"}}],
        registry={"url": schema_registry.url},
    )
    hostile = [
        bad(framed(bomb, b"\0" + b"\x02" * 500_000), "bad_message"),
        bad(framed(4_711, frame(b"x")), "bad_message"),
        bad(framed(number, b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01" + bytes(99)), "bad_message"),
        bad(IMAGES[0], "bad_message"),
        bad(frame(IMAGES[0]), "bad_message"),
    ]
    run_to_end(monitor, [good(framed(number, frame(i)), i) for i in IMAGES] + hostile)


def test_protobuf_of_a_registry(new: Callable[..., Monitor], schema_registry: Registry) -> None:
    number = schema_registry.register(f"proto-{uuid4().hex}", PROTO, "PROTOBUF")

    def message(image: bytes) -> bytes:
        size = len(image)
        return framed(number, b"\x1a" + bytes([size & 127 | 128, size >> 7]) + image, b"\x02\x02")

    monitor = new(
        read=[{"confluent_protobuf": {"path": "image", "message": "Frame"}}],
        registry={"url": schema_registry.url},
    )
    hostile = [
        bad(framed(number, b"\x0b" * 10_000, b"\x02\x02"), "bad_message"),
        bad(framed(number, b"\x1a\xff\xff\xff\xff\x0fx", b"\x02\x02"), "bad_message"),
        bad(framed(number, b"", b"\0"), "bad_message"),
        bad(framed(number, b"", b"\xff" * 20), "bad_message"),
    ]
    run_to_end(monitor, [good(message(i), i) for i in IMAGES] + hostile)


def test_notifications_of_a_store_that_is_away_for_a_while(
    new: Callable[..., Monitor], s3: FaultProxy
) -> None:
    store, folder = S3Store(BUCKET, client_options={"allow_http": True}), f"in/{uuid4().hex}"
    keys = [f"{folder}/camera 1/{number}+.jpg" for number in range(len(IMAGES))]
    for key, image in zip(keys, IMAGES, strict=True):
        obstore.put(store, key, image)

    def record(key: str, bucket: str = BUCKET) -> dict[str, Any]:
        named = {"bucket": {"name": bucket}, "object": {"key": quote_plus(key)}}
        return {"eventName": "s3:ObjectCreated:Put", "s3": named}

    def message(*records: dict[str, Any]) -> bytes:
        return json.dumps({"Records": records}).encode()

    messages = [good(message(record(k)), i) for k, i in zip(keys, IMAGES, strict=True)]
    several = message(record(keys[0]), record(f"{folder}/none.jpg"), record(keys[1], "other"))
    messages.append(Sent(several, (("ok", IMAGES[0]), ("missing", None), ("not_allowed", None))))
    messages.append(bad(b"{}", "bad_message"))
    s3.fail("GET", *[Fault.SLOW_DOWN, Fault.INTERNAL, Fault.CUT_BODY] * 2)
    fetch = {"allow_buckets": [BUCKET], "attempts": 1, "threads": 4}
    run_to_end(new(read=["s3_event", {"fetch": fetch}]), messages)
    assert s3.pending() == 0


def test_an_outage_of_a_host_holds_the_stream_and_loses_nothing(
    new: Callable[..., Monitor],
) -> None:
    """It is said meanwhile, and a worker that is told to stop then stops."""
    server = ObjectServer({f"/{n}.jpg": answer(image) for n, image in enumerate(IMAGES)})
    server.objects["/moved.jpg"] = answer(b"", 302, "Location: http://169.254.169.254/")
    with server.listening():
        pass
    fetch = {"allow_hosts": [f"127.0.0.1:{server.port}"], "attempts": 1}
    monitor = new(read=[{"json_field": {"path": "frame.url"}}, {"fetch": fetch}])

    def message(address: str) -> bytes:
        return json.dumps({"frame": {"url": address}}).encode()

    sent = sent_all(
        monitor,
        [
            *(good(message(server.url(f"/{n}.jpg")), i) for n, i in enumerate(IMAGES)),
            bad(message(server.url("/gone.jpg")), "missing"),
            bad(message(server.url("/moved.jpg")), "fetch_failed"),
            bad(message("http://169.254.169.254/latest/meta-data/"), "not_allowed"),
        ],
    )
    away = f"http://127.0.0.1:{server.port}: it cannot be reached"
    with working(monitor) as worker:
        wait_until(lambda: away in str(worker.waiting_for), f"{away}, not {worker.waiting_for}")
    # Only what came before it in its partition, and needed no host, may be there.
    assert {row["status"] for row in monitor.rows("status")} <= {"not_allowed"}
    with working(monitor) as worker:
        wait_until(lambda: away in str(worker.waiting_for), f"{away}, not {worker.waiting_for}")
        with server.listening():
            wait_until(lambda: len(monitor.rows()) >= len(sent), f"{len(sent)} rows")
            wait_until(lambda: worker.waiting_for is None, "nothing that is waited for")
    assert_logged(monitor, sent)


@pytest.mark.ray
def test_a_run_with_a_chain(
    new: Callable[..., Monitor], local_ray: dict[str, str], tmp_path: Path
) -> None:
    monitor = new(read=["base64"])
    sent = sent_all(monitor, [good(b64encode(image), image) for image in IMAGES])
    with running_alone(monitor, local_ray, tmp_path / "run", "--until-idle", "5") as run:
        assert run.wait() == 0, run.tail
    assert_logged(monitor, sent)
