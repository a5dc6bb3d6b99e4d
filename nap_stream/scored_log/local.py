"""The scored log on a local or shared POSIX file system."""

from pathlib import Path

import structlog

from nap_stream.clock import Clock
from nap_stream.errors import LogRootError, ScoredLogError
from nap_stream.records import ChainPosition, TopicPartition
from nap_stream.scored_log.chain import ChainedScoredLog
from nap_stream.scored_log.layout import partition_folder, temporary_name
from nap_stream.scored_log.local_store import LocalStore

LEFTOVER_AGE_MS = 3_600_000
"""A temporary file so old belongs to a writer that died: writing one takes milliseconds."""


class LocalScoredLog(ChainedScoredLog):
    """The scored log in a folder that all writers share.

    The file system must support hard links and fsync; `check_writable` tells.

    Args:
        root: The log's folder.
        writer_id: Who writes, for people who read the footers.
        model_fingerprint: The model that scores all records of this writer.
        calibration_fingerprint: The calibration that judges all records of this writer.
        clock: Tells when files were made, and which temporary files are left over.
    """

    def __init__(
        self,
        root: Path,
        *,
        writer_id: str,
        model_fingerprint: str,
        calibration_fingerprint: str,
        clock: Clock,
    ) -> None:
        self._root = root
        self._local = LocalStore(root)
        super().__init__(
            self._local,
            writer_id=writer_id,
            model_fingerprint=model_fingerprint,
            calibration_fingerprint=calibration_fingerprint,
            clock=clock,
        )

    def end(self, partition: TopicPartition) -> ChainPosition | None:
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
        return super().end(partition)

    def check_writable(self) -> None:
        """Prove that the folder can hold the log; see the function `check_writable`.

        Raises:
            LogRootError: It cannot, and why.
        """
        check_writable(self._root)


def check_writable(root: Path) -> None:
    """Prove that a folder can hold a scored log: make it, write to it, create exclusively.

    Leaves an empty folder behind where there was none.

    Raises:
        LogRootError: It cannot, and why.
    """
    store = LocalStore(root)
    probe = f".probe-{temporary_name().removeprefix('.')}"
    try:
        store.prepare("")
        outcome = (store.create(probe, b"first"), store.create(probe, b"second"), store.read(probe))
        store.remove(probe)
    except LogRootError:
        raise
    except ScoredLogError as error:
        raise LogRootError(error.problem, error.where, error.action) from error
    if outcome != (True, False, b"first"):
        raise LogRootError(
            f"the file system does not create files exclusively: {outcome}",
            str(root),
            "Set log.root to a file system with hard links: a local disk or NFSv4",
        )
