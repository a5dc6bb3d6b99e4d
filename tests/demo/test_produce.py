import itertools
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nap_stream.clock import ManualClock, SystemClock
from nap_stream.decode.arrow import ARROW_STREAM
from nap_stream.decode.message import decode_message
from nap_stream.demo.produce import ProduceReport, _Outgoing, _paced, arrow_batch, produce
from nap_stream.errors import ConfigError, InputDataError, TopicNotFoundError
from nap_stream.image_files import ImageFile
from nap_stream.records import Message, TopicPartition
from nap_stream.settings.schema import KafkaSettings, LimitSettings
from tests.support.image_bytes import encoded
from tests.support.images import smooth_image, write_images
from tests.support.scored_records import DecodedImage, images_of
from tests.support.topics import new_settings, read_all


def test_files_are_sent_byte_for_byte_with_name_and_label(broker: str, tmp_path: Path) -> None:
    settings = new_settings(broker)
    write_images(tmp_path / "cats", 2)
    write_images(tmp_path / "dogs", 1)

    report = produce(settings, tmp_path, label_header="label")
    records = read_all(settings, settings.topic, 3)

    assert (report.messages, report.images) == (3, 3)
    assert [record.key for record in records] == [
        b"cats/000000.jpg",
        b"cats/000001.jpg",
        b"dogs/000000.jpg",
    ]
    assert [dict(r.headers)["label"] for r in records] == [b"cats", b"cats", b"dogs"]
    assert records[1].value == (tmp_path / "cats" / "000001.jpg").read_bytes()


def test_a_parquet_file_is_sent_with_its_labels(broker: str, tmp_path: Path) -> None:
    settings = new_settings(broker)
    path = tmp_path / "set.parquet"
    images = [encoded(smooth_image(seed)) for seed in range(3)]
    table = {"image": images, "label": ["a", "b", "a"], "name": ["x.jpg", "y.jpg", "z.jpg"]}
    pq.write_table(pa.table(table), path)

    produce(settings, path, label_header="class", limit=2)
    records = read_all(settings, settings.topic, 2)

    assert [(r.key, r.value) for r in records] == [(b"x.jpg", images[0]), (b"y.jpg", images[1])]
    assert [dict(r.headers)["class"] for r in records] == [b"a", b"b"]


def test_several_images_a_message_can_be_decoded_again(broker: str, tmp_path: Path) -> None:
    settings = new_settings(broker)
    write_images(tmp_path, 5)

    report = produce(settings, tmp_path, images_per_message=3)
    first, second = read_all(settings, settings.topic, 2)

    assert (report.messages, report.images) == (2, 5)
    assert dict(first.headers)["content-type"] == ARROW_STREAM.encode()
    assert [len(decoded(record.value)) for record in (first, second)] == [3, 2]


def decoded(value: bytes) -> list[DecodedImage]:
    headers = (("content-type", ARROW_STREAM.encode()),)
    message = Message(TopicPartition("t", 0), 0, 0, None, value, headers)
    rows = decode_message(message, LimitSettings(), kept_headers=(), ingest_time_ms=0)
    images = images_of(rows, message.partition)
    return [image for image in images if isinstance(image, DecodedImage)]


def test_a_batch_carries_names_as_keys_and_event_times() -> None:
    images = [ImageFile(f"{seed}.jpg", None, encoded(smooth_image(seed))) for seed in range(2)]

    rows = decoded(arrow_batch(images, 1_700_000_000_000))

    assert [row.origin.key for row in rows] == [b"0.jpg", b"1.jpg"]
    assert {row.origin.event_time_ms for row in rows} == {1_700_000_000_000}


def test_the_rate_is_kept_without_bursts() -> None:
    clock = ManualClock()
    sent: list[float] = []
    for number, _ in enumerate(_paced(iter([_Outgoing(b"", b"", [], 1)] * 6), 10, clock)):
        sent.append(clock.monotonic())
        if number == 2:
            clock.advance(5)  # the broker was slow

    gaps = [after - before for before, after in itertools.pairwise(sent)]
    assert gaps == pytest.approx([0.1, 0.1, 5.0, 0.1, 0.1])


def test_labels_with_several_images_a_message_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path, 1)

    with pytest.raises(ConfigError, match="one set of headers"):
        produce(KafkaSettings(topic="t"), tmp_path, label_header="label", images_per_message=2)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputDataError):
        produce(KafkaSettings(topic="t"), tmp_path)


def test_a_topic_that_does_not_exist_is_refused(broker: str, tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    settings = KafkaSettings(bootstrap_servers=(broker,), topic="no-such-topic")

    with pytest.raises(TopicNotFoundError, match="no-such-topic"):
        produce(settings, tmp_path)


def test_the_report_tells_the_seconds(broker: str, tmp_path: Path) -> None:
    settings = new_settings(broker)
    write_images(tmp_path, 3)

    report = produce(settings, tmp_path, rate=20, clock=SystemClock())

    assert isinstance(report, ProduceReport)
    assert report.seconds >= 0.1
