"""What can be wrong with a genesis marker."""

from dataclasses import dataclass

from nap_stream.errors import ChainBrokenError, ScoredLogError
from nap_stream.records import ChainPosition, TopicPartition
from nap_stream.scored_log.chain_end import sha256_hex
from nap_stream.scored_log.defects import Defect, DefectKind
from nap_stream.scored_log.genesis import decode_genesis
from nap_stream.scored_log.layout import genesis_path
from nap_stream.scored_log.store import SegmentStore


@dataclass(frozen=True, slots=True)
class GenesisFindings:
    """Where a chain starts, None where its marker does not say so, and what is wrong with that."""

    position: ChainPosition | None
    defects: tuple[Defect, ...] = ()


def read_genesis(
    store: SegmentStore, partition: TopicPartition, *, needed: bool
) -> GenesisFindings:
    """Check a partition's genesis marker.

    Args:
        store: Where the log lies.
        partition: Whose marker.
        needed: Whether the partition has segments, so that a missing marker is a defect.
    """
    path = genesis_path(partition)
    try:
        content = store.read(path)
        if content is not None:
            marker = decode_genesis(content, partition, path)
            start = ChainPosition(marker.offset, sha256_hex(content), topic_id=marker.topic_id)
            return GenesisFindings(start)
    except (ChainBrokenError, ScoredLogError) as error:
        return GenesisFindings(None, (Defect(path, DefectKind.GENESIS_UNREADABLE, error.problem),))
    if not needed:
        return GenesisFindings(None)
    detail = "there are segments, and no marker says where the chain starts"
    return GenesisFindings(None, (Defect(path, DefectKind.GENESIS_MISSING, detail),))
