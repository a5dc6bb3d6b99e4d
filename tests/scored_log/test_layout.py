import pytest

from nap_stream.errors import ConfigError
from nap_stream.records import TopicPartition
from nap_stream.scored_log.format import (
    GENESIS_NAME,
    genesis_path,
    is_hidden,
    is_temporary,
    parse_partition_folder,
    parse_segment_name,
    parse_segment_path,
    parse_topic_folder,
    partition_folder,
    segment_path,
    temporary_name,
)


def test_paths() -> None:
    partition = TopicPartition("road.cars-2_x", 12)
    path = "topic=road.cars-2_x/partition=12/00000000000000000345.parquet"
    assert segment_path(partition, 345) == path
    assert parse_segment_path(path) == (partition, 345)
    assert genesis_path(partition) == "topic=road.cars-2_x/partition=12/_genesis.json"


@pytest.mark.parametrize(
    "topic",
    ["", ".", "..", "a/b", "a=b", "a b", "ä", "x" * 250, "__HIVE_DEFAULT_PARTITION__", "a\n"],
)
def test_a_topic_that_cannot_be_a_folder_is_refused(topic: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a topic"):
        partition_folder(TopicPartition(topic, 0))
    assert parse_topic_folder(f"topic={topic}") is None


def test_marker_and_temporary_files_are_hidden_and_no_segments() -> None:
    for name in (GENESIS_NAME, temporary_name()):
        assert is_hidden(name)
        assert not name.endswith(".parquet")
    assert is_temporary(temporary_name())
    assert not is_temporary(GENESIS_NAME)


@pytest.mark.parametrize(
    "name",
    ["1.parquet", "0" * 21 + ".parquet", "9" * 20 + ".parquet", "0" * 20 + ".parquet.tmp", "x"],
)
def test_other_names_are_no_segments(name: str) -> None:
    assert parse_segment_name(name) is None


@pytest.mark.parametrize(
    "name", ["partition=01", "partition=-1", "partition=", "p=1", "partition=1x"]
)
def test_other_names_are_no_partitions(name: str) -> None:
    assert parse_partition_folder(name) is None


@pytest.mark.parametrize("path", ["x", "topic=a/partition=0/x", "/topic=a/partition=0/" + "0" * 20])
def test_other_paths_are_no_segments(path: str) -> None:
    with pytest.raises(ValueError, match="not the path of a segment"):
        parse_segment_path(path)
