"""A chain as a whole: what it gives, what it costs to wait, how it ends."""

import json
import sys
import threading
from base64 import b64encode
from typing import Any

import pytest

from nap_stream.clock import ManualClock
from nap_stream.decode.arrow import ARROW_STREAM
from nap_stream.errors import ConfigError
from nap_stream.messages.pieces import Away, Piece
from nap_stream.messages.reader import MessageReader, ReadingEndedError, open_reader
from nap_stream.pipeline.rows import MessageDecoder
from nap_stream.records import FailedImage, Message, TopicPartition
from nap_stream.settings.messages import MessageSettings
from nap_stream.settings.schema import LimitSettings, PreprocessingSettings
from tests.messages.chains import LIMITS, chain, message, one
from tests.support.image_bytes import arrow_stream, jpeg
from tests.support.waiting import PATIENCE_S, wait_until

PREPROCESSING = PreprocessingSettings(resize=None, crop=4)


class Gate:
    """A link that is away until it is opened."""

    def __init__(self) -> None:
        self.opened, self.asked = threading.Event(), threading.Event()
        self.closed = 0

    def __call__(self, piece: Piece) -> list[Piece]:
        self.asked.set()
        if not self.opened.is_set():
            raise Away("the gate", "it is shut")
        return [piece]

    def close(self) -> None:
        self.closed += 1


def gated(gate: Gate, wait_s: float | None = None) -> MessageReader:
    return MessageReader(
        [gate],
        LIMITS,
        wait_s=wait_s,
        clock=ManualClock(),
        backoff_initial_s=0.01,
        backoff_max_s=0.02,
    )


def decoder(reader: MessageReader | None, threads: int = 1, **changes: Any) -> MessageDecoder:
    given: dict[str, Any] = {"preprocessing": PREPROCESSING, "limits": LIMITS}
    return MessageDecoder(
        kept_headers=(),
        clock=ManualClock(now_ms=9_000),
        read=reader,
        decode_threads=threads,
        **(given | changes),
    )


def test_no_links_make_no_reader() -> None:
    assert open_reader(MessageSettings(), LimitSettings()) is None


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grpc_tools", None)
    link = {"confluent_protobuf": {"path": "a"}}
    with pytest.raises(ConfigError) as raised:
        chain(link, registry={"url": "http://127.0.0.1:1"})
    assert "confluent_protobuf needs the package grpc_tools" in str(raised.value)
    assert "nap-stream[registry]" in str(raised.value)


def test_rows_of_a_message_of_several_images() -> None:
    link = {"each": "frames", "path": "data", "key": "camera", "event_time": "at"}
    image = b64encode(jpeg()).decode()
    frames = [
        {"data": image, "camera": "a", "at": 5_000},
        {"data": b64encode(b"no image").decode(), "camera": "b", "at": None},
        {"data": "!", "camera": None, "at": -5},
        {"data": "?", "camera": None, "at": -5},
    ]
    value = json.dumps({"frames": frames}).encode()
    decode = decoder(chain({"json_field": link}, "base64"))
    first, second = decode(message(value)), decode(message(value))
    # Read again, the same rows come of it.
    assert first.columns == second.columns
    assert first.columns["index"] == [0, 1, 2, 3]
    assert first.columns["offset"] == [7] * 4
    assert first.columns["key"] == [b"a", b"b", None, None]
    assert first.columns["event_time"] == [5_000, 1_000, 1_000, 1_000]
    assert first.columns["status"] == ["ok", "unsupported", "bad_message", "bad_message"]
    assert [digest is None for digest in first.columns["sha256"]] == [False, False, True, True]
    assert len(first.pixels) == 1
    # Of those without bytes, one is the message as it came.
    assert [failed.payload for failed in first.failed] == [b"no image", value, None]


def test_dead_letters_of_one_message_are_no_larger_than_twice_what_came() -> None:
    images = [b64encode(bytes([number]) * 1_000).decode() for number in range(10)]
    value = json.dumps({"frames": [*images, *["!"] * 10]}).encode()
    rows = decoder(chain({"json_field": {"each": "frames"}}, "base64"))(message(value))
    assert len(rows.failed) == 20
    assert sum(len(failed.payload or b"") for failed in rows.failed) < 2 * len(value)


def test_the_dead_letter_of_a_message_of_one_image_is_the_message() -> None:
    for text in (b64encode(b"no image"), b"!"):
        (failed,) = decoder(chain("base64"))(message(text)).failed
        assert failed.payload == text


def test_jpegs_that_are_left_to_a_gpu_keep_the_message() -> None:
    preprocessing = PreprocessingSettings(resize=None, crop=4, jpeg_decoder="nvjpeg")
    value = b64encode(jpeg())
    rows = decoder(chain("base64"), preprocessing=preprocessing)(message(value))
    (left,) = rows.pixels
    assert getattr(left, "payload", None) == value


def test_batches_go_past_the_chain() -> None:
    value = arrow_stream({"image": [jpeg()]})
    headers = (("content-type", ARROW_STREAM.encode()),)
    batch = Message(TopicPartition("images", 0), 0, 1_000, None, value, headers)
    assert decoder(chain("base64"))(batch).columns["status"] == ["ok"]


def test_a_message_that_is_too_large_is_not_read() -> None:
    limits = LimitSettings(max_message_bytes=10)
    rows = decoder(chain("base64"), limits=limits)(message(b"A" * 11))
    assert rows.columns["status"] == ["too_large"]
    assert [type(failed) for failed in rows.failed] == [FailedImage]


def test_what_is_waited_for_is_said_until_it_is_over() -> None:
    gate = Gate()
    reader, found = gated(gate), list[Any]()
    thread = threading.Thread(target=lambda: found.append(one(reader, b"image")))
    thread.start()
    assert gate.asked.wait(PATIENCE_S)
    wait_until(lambda: reader.waiting_for == "the gate: it is shut", "what is waited for")
    gate.opened.set()
    thread.join(PATIENCE_S)
    assert (found[0].data, reader.waiting_for) == (b"image", None)


def test_others_decode_while_one_waits() -> None:
    gate = Gate()
    decode = decoder(gated(gate))
    waiting = threading.Thread(target=decode, args=(message(jpeg()),))
    waiting.start()
    assert gate.asked.wait(PATIENCE_S)
    batch = Message(
        TopicPartition("images", 0), 0, 1_000, None, arrow_stream({"image": [jpeg()]}),
        (("content-type", ARROW_STREAM.encode()),),
    )  # fmt: skip
    assert decode(batch).columns["status"] == ["ok"]
    gate.opened.set()
    waiting.join(PATIENCE_S)


def test_closing_ends_what_waits() -> None:
    gate = Gate()
    reader, errors = gated(gate), list[BaseException]()

    def wait() -> None:
        with pytest.raises(ReadingEndedError) as raised:
            reader(message(b"image"))
        errors.append(raised.value)

    thread = threading.Thread(target=wait)
    thread.start()
    assert gate.asked.wait(PATIENCE_S)
    reader.close()
    reader.close()
    thread.join(PATIENCE_S)
    assert len(errors) == 1
    assert gate.closed == 2
    assert reader.waiting_for is None


def test_a_wait_of_nothing_is_a_row_at_once() -> None:
    found = one(gated(Gate(), wait_s=0), b"image")
    assert (found.status, found.error) == ("fetch_failed", "the gate: it is shut")
