"""The settings of the scored log."""

from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, model_validator

from nap_stream.core.hidden_keys import CLEAR, HiddenKeys, Stored
from nap_stream.errors import ConfigError
from nap_stream.settings.values import (
    LogRoot,
    Positive,
    PositiveSeconds,
    SecretFile,
    Section,
    TopicName,
)

MIN_SECRET_BYTES, MAX_SECRET_BYTES = 16, 4_096


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


class StoredKeysSettings(Section):
    """How the log holds what names a camera or a person; alerts and metrics have the same."""

    key: Stored = Stored.CLEAR
    """The message's key (of an Arrow batch: the image's): clear, hashed (HMAC-SHA-256 with the
    secret, in place of the key) or dropped."""
    headers: dict[str, Stored] = Field(default={})
    """The same of headers that log.headers names; those that are not named here are in clear."""
    secret: SecretStr | None = None
    """Only from NAP_STREAM__LOG__KEYS__SECRET or `secret_file`. Another secret gives other hashes:
    keep it, or keys cannot be found again."""
    secret_file: SecretFile | None = None
    """A file that holds the secret, of 16 bytes at least, such as a mounted one."""

    @model_validator(mode="after")
    def _has_one_secret(self) -> Self:
        is_needed = Stored.HASHED in {self.key, *self.headers.values()}
        given = [each for each in (self.secret, self.secret_file) if each is not None]
        if len(given) != int(is_needed):
            raise ValueError(
                "expected one of secret (NAP_STREAM__LOG__KEYS__SECRET) and secret_file where "
                "anything is hashed, and neither where nothing is"
            )
        return self


class LogSettings(Section):
    """The scored log."""

    root: LogRoot
    """Where the log lies, the same for all workers: a folder, or s3://bucket/prefix,
    gs://bucket/prefix or az://container/prefix."""
    segment_max_rows: Positive = 10_000
    segment_max_bytes: Positive = 16 * 2**20
    """Of the rows in memory."""
    segment_max_age_s: PositiveSeconds = 5.0
    headers: tuple[str, ...] = ()
    """Names of the message headers to keep."""
    keys: StoredKeysSettings = StoredKeysSettings()
    """How keys and those headers are stored (docs/scored-log.md, "Keys")."""
    checkpoints: SignedCheckpointSettings | None = None
    """Sign where the chains end, so that it can be proved later that nothing up to there was
    changed (docs/proof.md); null for not. The monitor's checkpoints of its own state are others."""

    def require_key(self, by: str) -> None:
        """Refuse what is to name keys, ``key`` or ``header:NAME``, where rows do not have it.

        Raises:
            ValueError: The log does not keep that header, or drops it.
        """
        named = by.partition(":")[2]
        if named and named not in self.headers:
            raise ValueError(f"drift.keys.by names the header {named!r}: add it to log.headers")
        stored = self.keys.headers.get(named) if named else self.keys.key
        if stored is Stored.DROPPED:
            raise ValueError(f"drift.keys.by is {by!r}, and log.keys drops that")

    @model_validator(mode="after")
    def _keeps_what_it_hides(self) -> Self:
        unkept = sorted(self.keys.headers.keys() - set(self.headers))
        if unkept:
            raise ValueError(
                f"log.keys.headers names {unkept[0]!r}, which log.headers does not keep: add it "
                "there, or leave it out"
            )
        return self


def hidden_keys(settings: StoredKeysSettings) -> HiddenKeys:
    """What settings say of keys, with the secret.

    Raises:
        ConfigError: The secret cannot be read, or is too short.
    """
    if settings.secret is not None:
        secret = _trimmed(settings.secret.get_secret_value().encode(), "log.keys.secret")
    elif settings.secret_file is not None:
        secret = read_key_secret(settings.secret_file, "log.keys.secret_file")
    elif settings.key is Stored.CLEAR and not settings.headers:
        return CLEAR
    else:
        secret = b""
    return HiddenKeys(settings.key, tuple(settings.headers.items()), secret)


def read_key_secret(path: Path, where: str) -> bytes:
    """The secret in a file, without white space at its ends; ``where`` names the file in errors.

    Raises:
        ConfigError: It cannot be read, or is too short.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_SECRET_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"the secret cannot be read: {error.strerror}", where) from error
    return _trimmed(content, where)


def _trimmed(content: bytes, where: str) -> bytes:
    """A secret without white space at its ends: a file has a last newline, the environment none."""
    secret = content.strip()
    if len(content) > MAX_SECRET_BYTES or len(secret) < MIN_SECRET_BYTES:
        raise ConfigError(
            f"the secret must have {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes",
            where,
            "Make one with `openssl rand -hex 32`",
        )
    return secret
