"""The topics of a log."""

from nap_stream.errors import LogRootError
from nap_stream.records import TopicPartition
from nap_stream.scored_log.reader import partitions
from nap_stream.scored_log.store import SegmentStore


def topic_partitions(store: SegmentStore, topic: str) -> tuple[TopicPartition, ...]:
    """The partitions of a topic that the log has, in order; at least one.

    Raises:
        ConfigError: The topic cannot be the name of one.
        LogRootError: There is no log at the root, or it has no partition of the topic.
    """
    found = partitions(store, topic)
    if not found:
        others = sorted({partition.topic for partition in partitions(store)})
        held = f"its topics are {', '.join(others)}" if others else "it holds no topics"
        raise LogRootError(
            f"the log has no partition of the topic {topic!r}; {held}",
            store.root,
            "Name another root or topic",
        )
    return found
