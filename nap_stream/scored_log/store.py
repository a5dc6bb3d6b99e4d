"""What the chain needs of the place where its files lie."""

from typing import Protocol


class SegmentStore(Protocol):
    """Whole files by path, created exclusively. Paths are relative to the log's root."""

    def prepare(self, folder: str) -> None:
        """Make a folder where files are to be created; harmless where it is there.

        Raises:
            ScoredLogError: It cannot be made.
        """
        ...

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder, in any order; none where the folder is missing.

        Raises:
            ScoredLogError: It cannot be listed.
        """
        ...

    def read(self, path: str) -> bytes | None:
        """A whole file; None where it is missing.

        Raises:
            ScoredLogError: It cannot be read.
        """
        ...

    def create(self, path: str, content: bytes) -> bool:
        """Create a file with all its content, durably, or not at all.

        Returns:
            False where the name is taken: then nothing has changed.

        Raises:
            ScoredLogError: It could not be made durable. The name is free as a rule; where the
                failure came after the name was taken, the next `create` of it says so.
        """
        ...
