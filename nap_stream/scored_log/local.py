"""The scored log on a local or shared POSIX file system."""

from pathlib import Path

import structlog

from nap_stream.clock import Clock
from nap_stream.records import ChainPosition, TopicPartition
from nap_stream.scored_log.chain import ChainedScoredLog
from nap_stream.scored_log.file_operations import FileOperations
from nap_stream.scored_log.layout import partition_folder
from nap_stream.scored_log.local_store import LocalStore

LEFTOVER_AGE_MS = 3_600_000
"""A temporary file so old belongs to a writer that died: writing one takes milliseconds."""


class LocalScoredLog(ChainedScoredLog):
    """The scored log in a folder that all writers share.

    The file system must support hard links and fsync;
    `nap_stream.scored_log.stores.check_writable` tells.

    Args:
        root: The log's folder.
        writer_id: Who writes, for people who read the footers.
        model_fingerprint: The model that scores all records of this writer.
        calibration_fingerprint: The calibration that judges all records of this writer.
        clock: Tells when files were made, and which temporary files are left over.
        operations: The steps by which files change.
    """

    def __init__(
        self,
        root: Path,
        *,
        writer_id: str,
        model_fingerprint: str,
        calibration_fingerprint: str,
        clock: Clock,
        operations: FileOperations | None = None,
    ) -> None:
        self._local = LocalStore(root, operations)
        super().__init__(
            self._local,
            writer_id=writer_id,
            model_fingerprint=model_fingerprint,
            calibration_fingerprint=calibration_fingerprint,
            clock=clock,
        )

    def end(self, partition: TopicPartition, hint: int | None = None) -> ChainPosition | None:
        """Where the chain ends now; also clears away what writers that died have left.

        Raises:
            ChainBrokenError: The chain cannot be read; see `ChainedScoredLog.end`.
            ScoredLogError: The folder cannot be read.
        """
        before_ms = self._clock.now_ms() - LEFTOVER_AGE_MS
        removed = self._local.remove_leftovers(partition_folder(partition), before_ms)
        if removed:
            structlog.get_logger().info(
                "temporary_files_removed", partition=str(partition), files=removed
            )
        return super().end(partition, hint)
