import dataclasses

import pytest

from nap_stream.errors import ChainBrokenError
from nap_stream.records import TopicPartition
from nap_stream.scored_log.chain import Genesis, decode_genesis, encode_genesis

CARS = TopicPartition("cars", 3)
MARKER = Genesis("cars", 3, 17, "worker-0", 99, "dGhlIHRvcGlj")


def test_round_trip() -> None:
    assert decode_genesis(encode_genesis(MARKER), CARS, "x") == MARKER


def test_a_broker_without_topic_ids_leaves_it_null() -> None:
    marker = dataclasses.replace(MARKER, topic_id=None)
    content = encode_genesis(marker)
    assert b'"topic_id": null' in content
    assert decode_genesis(content, CARS, "x") == marker


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not valid"),
        (b"\xff", "decode"),
        (b"[" * 100_000, "not valid"),
        (b"[]", "expected a JSON object"),
        (encode_genesis(MARKER)[:-9], "not valid"),
        (encode_genesis(MARKER).replace(b"17", b"-17"), "negative offset"),
        (encode_genesis(MARKER).replace(b"17", b"true"), "offset is not of type int"),
        (encode_genesis(MARKER).replace(b'"version": 2', b'"version": 3'), "version 3"),
        (encode_genesis(MARKER).replace(b'"version": 2', b'"version": 1'), "version 1"),
        (encode_genesis(MARKER).replace(b'"topic_id"', b'"topic"'), "expected the keys"),
        (encode_genesis(MARKER).replace(b'"dGhlIHRvcGlj"', b"5"), "topic_id is not of type str or"),
        (encode_genesis(MARKER).replace(b"cars", b"dogs"), "belongs to dogs/3"),
    ],
)
def test_a_marker_that_is_wrong_is_refused(content: bytes, problem: str) -> None:
    with pytest.raises(ChainBrokenError, match=problem):
        decode_genesis(content, CARS, "x")
