import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
import torch

from nap_stream.clock import ManualClock, SystemClock
from nap_stream.pipeline.scoring import PARCEL_MESSAGES, Decode, Score, ScoringStage, _Times
from nap_stream.records import (
    IMAGE_COLUMNS,
    DecodedRows,
    FailedImage,
    Fetched,
    Message,
    Origin,
    ScoredRows,
    Status,
    TopicPartition,
)
from nap_stream.scored_log.format import rows_of
from tests.support.waiting import PATIENCE_S, wait_until

PARTITION = TopicPartition("images", 0)
OTHER = TopicPartition("images", 1)


def message(offset: int, value: bytes = b"g", partition: TopicPartition = PARTITION) -> Message:
    return Message(partition, offset, timestamp_ms=offset, key=None, value=value)


PIXELS = torch.zeros(3, 2, 2, dtype=torch.uint8)


def decode(given: Message) -> DecodedRows:
    """One row a letter: g(ood) decodes, w(arned of) does too, b(ad) does not."""
    letters = (given.value or b"").decode()
    failed = tuple(
        FailedImage(
            Origin(given.partition, given.offset, index, None, given.timestamp_ms, 0),
            Status.CORRUPT,
            "bad",
            b"b",
            None,
        )
        for index, letter in enumerate(letters)
        if letter == "b"
    )
    bad = [letter == "b" for letter in letters]
    columns: dict[str, list[Any]] = {
        "offset": [given.offset] * len(letters),
        "index": list(range(len(letters))),
        "event_time": [given.timestamp_ms] * len(letters),
        "status": [Status.CORRUPT if is_bad else Status.OK for is_bad in bad],
        "error": ["bad" if is_bad else None for is_bad in bad],
        "headers": [()] * len(letters),
        "decode_warning": ["odd" if letter == "w" else None for letter in letters],
    }
    for name in set(IMAGE_COLUMNS) - columns.keys():
        columns[name] = [0 if name == "ingest_time" else None] * len(letters)
    return DecodedRows(columns, (PIXELS,) * bad.count(False), list(failed))


def images_in(decoded: Sequence[DecodedRows]) -> int:
    """How many of them are scored."""
    return sum(len(rows.pixels) for rows in decoded)


def score(decoded: Sequence[DecodedRows]) -> pa.RecordBatch:
    """The same scores for all images."""
    columns: dict[str, Any] = {
        name: [value for rows in decoded for value in rows.columns[name]] for name in IMAGE_COLUMNS
    }
    good = [status is Status.OK for status in columns["status"]]
    columns["scored_time"] = [0] * len(good)
    columns["class_id"] = [0 if is_good else None for is_good in good]
    columns["class_name"] = ["cat" if is_good else None for is_good in good]
    columns["is_ood"] = [False if is_good else None for is_good in good]
    for name in ("confidence", "max_logit", "energy", "nap", "fused", "ood_p_value"):
        columns[name] = [1.0 if is_good else None for is_good in good]
    return rows_of(columns, len(good))


@contextmanager
def stage(
    *,
    decoder: Decode = decode,
    scorer: Score = score,
    batch_size: int = 4,
    linger_s: float = 0.0,
    max_decoded_images: int = 100,
    max_decoded_bytes: int = 2**20,
    lanes: int = 1,
    decode_threads: int = 2,
    parcel_messages: int = PARCEL_MESSAGES,
    traced: bool = False,
) -> Iterator[ScoringStage]:
    made = ScoringStage(
        decoder,
        [scorer] * lanes,
        batch_size=batch_size,
        linger_s=linger_s,
        decode_threads=decode_threads,
        parcel_messages=parcel_messages,
        max_decoded_images=max_decoded_images,
        max_decoded_bytes=max_decoded_bytes,
        clock=SystemClock(),
        observe=lambda _stage, _seconds: None,
        traced=traced,
    )
    try:
        yield made
    finally:
        made.close()


def take_all(made: ScoringStage, count: int) -> list[ScoredRows]:
    """What the stage gives until it has given so many rows."""
    taken: list[ScoredRows] = []

    def enough() -> bool:
        taken.extend(made.take())
        return sum(len(column([rows], "offset")) for rows in taken) >= count

    wait_until(enough, f"{count} rows")
    return taken


def column(taken: Sequence[ScoredRows], name: str) -> list[Any]:
    """A column of all rows."""
    return [value for rows in taken for value in rows.rows.column(name).to_pylist()]


def fetched(*messages: Message, end: int | None = None) -> Fetched:
    last = messages[-1]
    return Fetched(last.partition, messages, last.offset + 1 if end is None else end)


def test_messages_come_back_in_order_with_their_ends() -> None:
    with stage(batch_size=1) as made:
        for each in (fetched(message(0), end=3), fetched(message(5)), fetched(message(7), end=9)):
            made.submit(each, epoch=1)
        taken = take_all(made, 3)

    assert column(taken, "offset") == [0, 5, 7]
    assert [rows.end for rows in taken] == [3, 6, 9]
    assert {rows.epoch for rows in taken} == {1}


def test_messages_that_are_waited_for_are_decoded_by_a_thread_each() -> None:
    """Each waits for all others: a thread with two of them would wait for ever."""
    all_begun = threading.Barrier(8)

    def wait_for_others(given: Message) -> DecodedRows:
        all_begun.wait(PATIENCE_S)
        return decode(given)

    with stage(decoder=wait_for_others, decode_threads=8, parcel_messages=1) as made:
        made.submit(fetched(*(message(offset) for offset in range(8))), epoch=1)
        taken = take_all(made, 8)

    assert column(taken, "offset") == list(range(8))


def test_rows_of_one_batch_are_divided_among_partitions_and_placements() -> None:
    with stage(batch_size=5, linger_s=PATIENCE_S) as made:
        made.submit(fetched(message(0, b"gb"), message(1)), epoch=1)
        made.submit(fetched(message(7, b"bg", OTHER)), epoch=2)
        made.submit(fetched(message(2)), epoch=1)
        made.submit(fetched(message(5)), epoch=3)
        taken = take_all(made, 7)

    found = [(rows.partition, rows.epoch, rows.end, column([rows], "offset")) for rows in taken]
    assert found == [
        (PARTITION, 1, 3, [0, 0, 1, 2]),
        (OTHER, 2, 8, [7, 7]),
        (PARTITION, 3, 6, [5]),
    ]
    assert [[image.origin.index for image in rows.failed] for rows in taken] == [[1], [0], []]
    assert [rows.scored for rows in taken] == [3, 1, 1]


def test_rows_keep_their_order_whichever_thread_is_first() -> None:
    """The first batch is scored only when all the others are."""
    others = threading.Semaphore(0)
    numbers = itertools.count()

    def slow_first(decoded: Sequence[DecodedRows]) -> pa.RecordBatch:
        if next(numbers) == 0:
            for _ in range(5):
                assert others.acquire(timeout=PATIENCE_S)
        else:
            others.release()
        return score(decoded)

    with stage(scorer=slow_first, batch_size=PARCEL_MESSAGES, lanes=3) as made:
        made.submit(fetched(*(message(o) for o in range(6 * PARCEL_MESSAGES))), epoch=1)
        taken = take_all(made, 6 * PARCEL_MESSAGES)

    assert column(taken, "offset") == list(range(6 * PARCEL_MESSAGES))
    assert [rows.end for rows in taken] == [8, 16, 24, 32, 40, 48]


def test_rows_of_a_batch_message_stay_in_order_of_index_and_bad_ones_stand_between() -> None:
    with stage(batch_size=3) as made:
        made.submit(fetched(message(0, b"gbggbgg")), epoch=1)
        taken = take_all(made, 7)

    assert column(taken, "index") == [0, 1, 2, 3, 4, 5, 6]
    statuses = column(taken, "status")
    assert [index for index, status in enumerate(statuses) if status == "corrupt"] == [1, 4]
    assert [image.origin.index for image in taken[0].failed] == [1, 4]


def test_a_batch_is_scored_as_soon_as_it_is_complete() -> None:
    sizes: list[int] = []

    def measure(decoded: Sequence[DecodedRows]) -> pa.RecordBatch:
        sizes.append(images_in(decoded))
        return score(decoded)

    with stage(scorer=measure, batch_size=4, linger_s=PATIENCE_S) as made:
        for offset in range(5):
            made.submit(fetched(message(offset, b"gbgg")), epoch=1)
        made.submit(fetched(message(5, b"g")), epoch=1)
        take_all(made, 21)

    assert sizes == [3, 3, 3, 3, 4]


def test_a_lone_image_waits_no_longer_than_the_linger() -> None:
    with stage(batch_size=1_000, linger_s=0.02) as made:
        made.submit(fetched(message(0)), epoch=1)

        assert len(take_all(made, 1)) == 1


def test_what_is_in_hand_is_counted_until_it_is_scored() -> None:
    gate = threading.Event()

    def wait_and_score(decoded: Sequence[DecodedRows]) -> pa.RecordBatch:
        gate.wait(PATIENCE_S)
        return score(decoded)

    with stage(scorer=wait_and_score) as made:
        made.submit(fetched(message(0, b"ggg")), epoch=1)
        # Three images of 3 x 2 x 2 pixels instead of three bytes.
        wait_until(lambda: made.in_flight() == (3, 36), "the message to be decoded")
        assert made.has_in_flight(PARTITION)
        assert not made.wait_until_done(frozenset([PARTITION]), 0.01)
        assert made.wait_until_done(frozenset([OTHER]), 0.01)

        gate.set()
        assert made.wait_until_done(frozenset([PARTITION]), PATIENCE_S)
        assert made.in_flight() == (0, 0)
        assert len(made.take()) == 1
        assert not made.has_in_flight(PARTITION)


def test_decoding_stays_near_scoring_where_messages_hold_many_images() -> None:
    decoded: list[int] = []
    scored = 0
    ahead: list[int] = []

    def counting(given: Message) -> DecodedRows:
        decoded.append(len(given.value or b""))
        return decode(given)

    def measure(batch: Sequence[DecodedRows]) -> pa.RecordBatch:
        nonlocal scored
        ahead.append(sum(decoded) - scored)
        scored += images_in(batch)
        return score(batch)

    with stage(decoder=counting, scorer=measure, max_decoded_images=20) as made:
        made.submit(fetched(*(message(offset, b"g" * 10) for offset in range(50))), epoch=1)
        taken = take_all(made, 500)

    assert column(taken, "offset") == [offset for offset in range(50) for _ in range(10)]
    # Two threads may each be at a message when the limit is reached, and the parcel that scoring
    # waits for is decoded whatever the limit.
    assert max(ahead) <= 20 + (2 + PARCEL_MESSAGES) * 10


def test_decoding_stays_near_scoring_where_images_are_large() -> None:
    """Each image takes 3 x 1,000 x 1,000 bytes; ten may wait beside a parcel and two on the way."""
    pixels = torch.zeros(3, 1_000, 1_000, dtype=torch.uint8)
    decoded = scored = 0
    ahead: list[int] = []

    def large(given: Message) -> DecodedRows:
        nonlocal decoded
        decoded += 1
        return replace(decode(given), pixels=(pixels,))

    def measure(batch: Sequence[DecodedRows]) -> pa.RecordBatch:
        nonlocal scored
        ahead.append(decoded - scored)
        scored += images_in(batch)
        return score(batch)

    with stage(decoder=large, scorer=measure, max_decoded_bytes=30_000_000) as made:
        made.submit(fetched(*(message(offset, b"g") for offset in range(50))), epoch=1)
        taken = take_all(made, 50)
        assert made.in_flight() == (0, 0)

    assert column(taken, "offset") == list(range(50))
    assert max(ahead) <= 10 + 2 + PARCEL_MESSAGES


def test_the_value_of_a_message_is_let_go_when_it_is_decoded() -> None:
    """What then counts are the pixels, and the payloads of failed images."""
    gate = threading.Event()

    def wait_and_score(decoded: Sequence[DecodedRows]) -> pa.RecordBatch:
        gate.wait(PATIENCE_S)
        return score(decoded)

    with stage(scorer=wait_and_score, batch_size=1) as made:
        made.submit(fetched(message(0, b"gb"), message(1, b"b" * 1_000)), epoch=1)
        # One of 3 x 2 x 2 pixels; 1,001 payloads of a byte each.
        wait_until(lambda: made.in_flight() == (1_002, 12 + 1_001), "both to be decoded")
        gate.set()
        take_all(made, 1_002)
        assert made.in_flight() == (0, 0)


def test_an_error_while_scoring_reaches_the_thread_that_takes() -> None:
    def fail(_decoded: Sequence[DecodedRows]) -> pa.RecordBatch:
        raise RuntimeError("CUDA error: out of memory")

    with stage(scorer=fail) as made:
        made.submit(fetched(message(0)), epoch=1)
        assert made.wait_until_done(frozenset([PARTITION]), PATIENCE_S)

        with pytest.raises(RuntimeError, match="out of memory"):
            made.take()


def test_an_error_while_decoding_reaches_the_thread_that_takes() -> None:
    def fail(_message: Message) -> DecodedRows:
        raise RuntimeError("a defect in the decoder")

    with stage(decoder=fail) as made:
        made.submit(fetched(message(0)), epoch=1)
        assert made.wait_until_done(frozenset([PARTITION]), PATIENCE_S)

        with pytest.raises(RuntimeError, match="a defect in the decoder"):
            made.take()


def test_close_ends_the_threads_and_may_be_called_twice() -> None:
    before = set(threading.enumerate())
    with stage() as made:
        made.submit(fetched(*(message(offset) for offset in range(100))), epoch=1)
        made.close()

    # One of an earlier test may have ended meanwhile.
    assert set(threading.enumerate()) <= before


def test_what_scoring_threads_wait_for_is_what_the_one_that_gathers_waits_for() -> None:
    clock = ManualClock()
    times = _Times(clock)
    first, second = times.begin(), times.begin()
    times.gatherer_waited("messages", 3.0)
    times.gatherer_waited("decode", 1.0)
    clock.advance(8.0)
    times.waited(first)
    # The log was slow during half of the second thread's wait for messages.
    times.note_log(is_slow=True)
    clock.advance(6.0)
    times.note_log(is_slow=False)
    times.gatherer_waited("messages", 9.0)
    clock.advance(2.0)
    times.waited(second)
    times.add("model", 5.0)

    # 16 s, of which 12 in 13 parts for messages and one for decoding; 6 of them for the log.
    second_messages = 16 * 12 / 13 - 6
    assert times.parts() == pytest.approx(
        {"messages": 6 + second_messages, "decode": 2 + 16 / 13, "log": 6, "model": 5}
    )


def test_the_time_of_scoring_threads_is_told_by_what_it_went_into() -> None:
    gate = threading.Event()

    def wait_and_score(decoded: Sequence[DecodedRows]) -> pa.RecordBatch:
        gate.wait(PATIENCE_S)
        return score(decoded)

    began_s = SystemClock().monotonic()
    with stage(scorer=wait_and_score) as made:
        wait_until(lambda: made.time_parts()["messages"] > 0.1, "a wait for messages")
        made.note_log(is_slow=True)
        wait_until(lambda: made.time_parts()["log"] > 0.1, "a wait for the log")
        made.submit(fetched(message(0)), epoch=1)
        wait_until(lambda: made.in_flight() == (1, 12), "the message to be decoded")
        gate.set()
        take_all(made, 1)
        parts = made.time_parts()

        passed_s = SystemClock().monotonic() - began_s

    assert parts["model"] > 0
    assert sum(parts.values()) <= passed_s, "no time is told twice"


def test_a_batch_has_no_more_images_than_asked_for_where_messages_have_few() -> None:
    """What would not fit is held for the next batch, not scored in a small pass of its own."""
    sizes: list[int] = []

    def measure(decoded: Sequence[DecodedRows]) -> pa.RecordBatch:
        sizes.append(images_in(decoded))
        return score(decoded)

    with stage(scorer=measure, batch_size=32, linger_s=PATIENCE_S) as made:
        for offset in range(9):
            made.submit(fetched(message(offset, b"g" * 10)), epoch=1)
        made.submit(fetched(message(9, b"g" * 40)), epoch=1)
        made.submit(fetched(message(10, b"g" * 32)), epoch=1)
        taken = take_all(made, 90 + 40 + 32)

    assert sizes == [30, 30, 30, 40, 32]
    assert (
        column(taken, "offset") == [o for o in range(9) for _ in range(10)] + [9] * 40 + [10] * 32
    )


def test_what_waits_for_a_slow_batch_is_bounded_and_holds_no_pixels() -> None:
    slow, numbers = threading.Event(), itertools.count()

    def first_is_slow(decoded: Sequence[DecodedRows]) -> pa.RecordBatch:
        if next(numbers) == 0:
            assert slow.wait(PATIENCE_S)
        return score(decoded)

    with stage(scorer=first_is_slow, batch_size=4, lanes=2, max_decoded_images=8) as made:
        made.submit(fetched(*(message(offset, b"gggg") for offset in range(200))), epoch=1)
        wait_until(lambda: len(made._finished) == 3, "three batches that wait for the first")
        waiting = next(iter(made._finished.values()))[0]
        assert not any(parcel.decoding.done() for parcel in waiting)
        in_flight = made.in_flight()
        made.note_log(is_slow=False)
        assert made.in_flight() == in_flight
        assert len(made._finished) == 3
        slow.set()
        taken = take_all(made, 800)

    assert column(taken, "offset") == [offset for offset in range(200) for _ in range(4)]
    assert made.in_flight() == (0, 0)
