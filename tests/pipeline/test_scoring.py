import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from nap_stream.clock import SystemClock
from nap_stream.pipeline.scoring import Decode, Score, ScoredMessage, ScoringStage
from nap_stream.records import (
    DecodedImage,
    FailedImage,
    Fetched,
    Message,
    Origin,
    ScoredRecord,
    Scores,
    Status,
    TopicPartition,
)
from tests.support.waiting import wait_until

PARTITION = TopicPartition("images", 0)
OTHER = TopicPartition("images", 1)


def message(offset: int, value: bytes = b"good", partition: TopicPartition = PARTITION) -> Message:
    return Message(partition, offset, timestamp_ms=offset, key=None, value=value)


def decode(given: Message) -> list[DecodedImage | FailedImage]:
    """One row a letter: g(ood) decodes, b(ad) does not."""
    rows: list[DecodedImage | FailedImage] = []
    for index, letter in enumerate((given.value or b"").decode()):
        origin = Origin(given.partition, given.offset, index, None, given.timestamp_ms, 0)
        if letter == "b":
            rows.append(FailedImage(origin, Status.CORRUPT, "bad", b"b", None))
        else:
            pixels = torch.zeros(3, 2, 2, dtype=torch.uint8)
            rows.append(DecodedImage(origin, pixels, 2, 2, "png", "0" * 64))
    return rows


def row(image: DecodedImage | FailedImage) -> ScoredRecord:
    good = isinstance(image, DecodedImage)
    scores = Scores(0, "cat", 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, is_ood=False) if good else None
    status = Status.OK if good else Status.CORRUPT
    return ScoredRecord(image.origin, status, None, 0, scores, None, None, None, None)


def score(images: Sequence[DecodedImage]) -> list[ScoredRecord]:
    return [row(image) for image in images]


@contextmanager
def stage(
    *,
    decoder: Decode = decode,
    scorer: Score = score,
    batch_size: int = 4,
    linger_s: float = 0.0,
    max_decoded_images: int = 100,
    max_decoded_bytes: int = 2**20,
) -> Iterator[ScoringStage]:
    made = ScoringStage(
        decoder,
        scorer,
        row,
        batch_size=batch_size,
        linger_s=linger_s,
        decode_threads=2,
        max_decoded_images=max_decoded_images,
        max_decoded_bytes=max_decoded_bytes,
        clock=SystemClock(),
        observe=lambda _stage, _seconds: None,
    )
    try:
        yield made
    finally:
        made.close()


def take_all(made: ScoringStage, count: int) -> list[ScoredMessage]:
    taken: list[ScoredMessage] = []

    def enough() -> bool:
        taken.extend(made.take())
        return len(taken) >= count

    wait_until(enough, 10, f"{count} scored messages")
    return taken


def fetched(*messages: Message, end: int | None = None) -> Fetched:
    last = messages[-1]
    return Fetched(last.partition, messages, last.offset + 1 if end is None else end)


def test_messages_come_back_in_order_with_their_ends() -> None:
    with stage() as made:
        made.submit(fetched(message(0), message(5), message(7), end=9), epoch=1)
        taken = take_all(made, 3)

    assert [(m.records[0].origin.offset, m.end) for m in taken] == [(0, 1), (5, 6), (7, 9)]
    assert {m.epoch for m in taken} == {1}


def test_rows_of_a_batch_message_stay_in_order_of_index_and_bad_ones_stand_between() -> None:
    with stage(batch_size=3) as made:
        made.submit(fetched(message(0, b"gbggbgg")), epoch=1)
        (taken,) = take_all(made, 1)

    assert [record.origin.index for record in taken.records] == [0, 1, 2, 3, 4, 5, 6]
    assert [index for index, r in enumerate(taken.records) if r.status is Status.CORRUPT] == [1, 4]
    assert [image.origin.index for image in taken.failed] == [1, 4]


def test_no_batch_is_larger_than_asked_for() -> None:
    sizes: list[int] = []

    def measure(images: Sequence[DecodedImage]) -> list[ScoredRecord]:
        sizes.append(len(images))
        return score(images)

    with stage(scorer=measure, batch_size=4, linger_s=5.0) as made:
        made.submit(fetched(*(message(offset, b"ggg") for offset in range(5))), epoch=1)
        made.submit(fetched(message(5, b"g")), epoch=1)
        take_all(made, 6)

    assert sum(sizes) == 16
    assert max(sizes) <= 4


def test_a_lone_image_waits_no_longer_than_the_linger() -> None:
    with stage(batch_size=1_000, linger_s=0.02) as made:
        made.submit(fetched(message(0)), epoch=1)

        assert len(take_all(made, 1)) == 1


def test_what_is_in_hand_is_counted_until_it_is_scored() -> None:
    gate = threading.Event()

    def wait_and_score(images: Sequence[DecodedImage]) -> list[ScoredRecord]:
        gate.wait(10)
        return score(images)

    with stage(scorer=wait_and_score) as made:
        made.submit(fetched(message(0, b"ggg")), epoch=1)
        # Three images of 3 x 2 x 2 pixels instead of three bytes.
        wait_until(lambda: made.in_flight() == (3, 36), 10, "the message to be decoded")
        assert made.has_in_flight(PARTITION)
        assert not made.wait_until_done(frozenset([PARTITION]), 0.01)
        assert made.wait_until_done(frozenset([OTHER]), 0.01)

        gate.set()
        assert made.wait_until_done(frozenset([PARTITION]), 10)
        assert made.in_flight() == (0, 0)
        assert len(made.take()) == 1
        assert not made.has_in_flight(PARTITION)


def test_decoding_stays_near_scoring_where_messages_hold_many_images() -> None:
    decoded: list[int] = []
    scored = 0
    ahead: list[int] = []

    def counting(given: Message) -> list[DecodedImage | FailedImage]:
        decoded.append(len(given.value or b""))
        return decode(given)

    def measure(images: Sequence[DecodedImage]) -> list[ScoredRecord]:
        nonlocal scored
        ahead.append(sum(decoded) - scored)
        scored += len(images)
        return score(images)

    with stage(decoder=counting, scorer=measure, max_decoded_images=20) as made:
        made.submit(fetched(*(message(offset, b"g" * 10) for offset in range(50))), epoch=1)
        taken = take_all(made, 50)

    assert [m.end for m in taken] == list(range(1, 51))
    # Two threads may each be at a message when the limit is reached.
    assert max(ahead) <= 20 + 2 * 10


def test_decoding_stays_near_scoring_where_images_are_large() -> None:
    """Each image takes 3 x 1,000 x 1,000 bytes; 10 of them may wait, and two are on the way."""
    pixels = torch.zeros(3, 1_000, 1_000, dtype=torch.uint8)
    decoded = scored = 0
    ahead: list[int] = []

    def large(given: Message) -> list[DecodedImage | FailedImage]:
        nonlocal decoded
        decoded += 1
        return [replace(image, pixels=pixels) for image in decode(given)]  # type: ignore[arg-type]

    def measure(images: Sequence[DecodedImage]) -> list[ScoredRecord]:
        nonlocal scored
        ahead.append(decoded - scored)
        scored += len(images)
        return score(images)

    with stage(decoder=large, scorer=measure, max_decoded_bytes=30_000_000) as made:
        made.submit(fetched(*(message(offset, b"g") for offset in range(50))), epoch=1)
        taken = take_all(made, 50)
        assert made.in_flight() == (0, 0)

    assert [m.end for m in taken] == list(range(1, 51))
    assert max(ahead) <= 10 + 2


def test_the_value_of_a_message_is_let_go_when_it_is_decoded() -> None:
    """What then counts are the pixels, and the payloads of failed images."""
    gate = threading.Event()

    def wait_and_score(images: Sequence[DecodedImage]) -> list[ScoredRecord]:
        gate.wait(10)
        return score(images)

    with stage(scorer=wait_and_score, batch_size=1) as made:
        made.submit(fetched(message(0, b"gb"), message(1, b"b" * 1_000)), epoch=1)
        # One of 3 x 2 x 2 pixels; 1,001 payloads of a byte each.
        wait_until(lambda: made.in_flight() == (1_002, 12 + 1_001), 10, "both to be decoded")
        gate.set()
        take_all(made, 2)
        assert made.in_flight() == (0, 0)


def test_an_error_while_scoring_reaches_the_thread_that_takes() -> None:
    def fail(_images: Sequence[DecodedImage]) -> list[ScoredRecord]:
        raise RuntimeError("CUDA error: out of memory")

    with stage(scorer=fail) as made:
        made.submit(fetched(message(0)), epoch=1)
        assert made.wait_until_done(frozenset([PARTITION]), 10)

        with pytest.raises(RuntimeError, match="out of memory"):
            made.take()


def test_an_error_while_decoding_reaches_the_thread_that_takes() -> None:
    def fail(_message: Message) -> list[DecodedImage | FailedImage]:
        raise RuntimeError("a defect in the decoder")

    with stage(decoder=fail) as made:
        made.submit(fetched(message(0)), epoch=1)
        assert made.wait_until_done(frozenset([PARTITION]), 10)

        with pytest.raises(RuntimeError, match="a defect in the decoder"):
            made.take()


def test_close_ends_the_threads_and_may_be_called_twice() -> None:
    before = threading.active_count()
    with stage() as made:
        made.submit(fetched(*(message(offset) for offset in range(100))), epoch=1)
        made.close()

    assert threading.active_count() == before
