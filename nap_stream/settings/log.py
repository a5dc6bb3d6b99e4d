"""The settings of the scored log."""

from pydantic import Field

from nap_stream.settings.values import (
    LogRoot,
    Positive,
    PositiveSeconds,
    SecretFile,
    Section,
    TopicName,
)


class SignedCheckpointSettings(Section):
    """Signed checkpoints of the chains, in the folder _checkpoints of the log."""

    key_file: SecretFile
    """The private key that signs, of nap-stream checkpoint-key. Others may have no rights on the
    file, and its group none to change it. The coordinator reads it for each checkpoint: another key
    in its place signs from then on."""
    every_s: PositiveSeconds = 3_600.0
    """How often. One more is written at the end of a run."""
    topic: TopicName | None = None
    """A topic to which each is sent too, so that a copy is where the log's writers cannot reach it;
    null for none."""
    timestamp_url: str | None = Field(
        default=None, pattern=r"^https?://[^\s@?]+$", max_length=2_000, repr=False
    )
    """A time stamp authority (RFC 3161) that each is stamped by too; null for none. An address
    without user, password or query, as it is shown. Needs the extra timestamps."""


class LogSettings(Section):
    """The scored log."""

    root: LogRoot
    """Where the log lies, the same for all workers: a folder, or s3://bucket/prefix."""
    segment_max_rows: Positive = 10_000
    segment_max_bytes: Positive = 16 * 2**20
    """Of the rows in memory."""
    segment_max_age_s: PositiveSeconds = 5.0
    headers: tuple[str, ...] = ()
    """Names of the message headers to keep."""
    checkpoints: SignedCheckpointSettings | None = None
    """Sign where the chains end, so that it can be proved later that nothing up to there was
    changed (docs/proof.md); null for not. The monitor's checkpoints of its own state are others."""
