"""RFC 3161 time stamps: that somebody else saw a note at a time. Needs the extra ``timestamps``.

A time stamp authority (TSA) is sent the digest of a note and answers with a token that it has
signed. The token stands beside the note, with the suffix ``.tsr``.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import urllib3
from cryptography.x509 import Certificate, load_pem_x509_certificates

from nap_stream.clock import Deadline, SystemClock
from nap_stream.errors import ConfigError, ProofError

SUFFIX = ".tsr"
MAX_BYTES = 2**20
"""Of a token, and of a file of certificates."""
TIMEOUT_S = 30.0
_MEDIA_TYPE = "application/timestamp-query"


def _library() -> Any:
    try:
        import rfc3161_client  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(
            "time stamps need rfc3161-client", "", 'Run pip install "nap-stream[timestamps]"'
        ) from error
    return rfc3161_client


def request_timestamp(url: str, note: bytes) -> bytes:
    """Ask a TSA for a token of a note. Whether the TSA's signature is valid `timestamp_ms` says.

    Raises:
        ConfigError: The extra is not installed.
        ProofError: The TSA does not answer in time, refuses, or stamps something else.
    """
    library, where = _library(), f"log.checkpoints.timestamp_url {urllib3.util.parse_url(url).host}"
    asked = library.TimestampRequestBuilder().data(note).build()
    headers = {"Content-Type": _MEDIA_TYPE}
    limits: dict[str, Any] = {
        "timeout": TIMEOUT_S,
        "retries": False,
        "redirect": False,
        "preload_content": False,
    }
    try:
        with urllib3.PoolManager() as pool:
            answer = pool.request("POST", url, body=asked.as_bytes(), headers=headers, **limits)
            deadline, token = Deadline(SystemClock(), TIMEOUT_S), b""
            while len(token) <= MAX_BYTES and (piece := answer.read1(MAX_BYTES)):
                token += piece
                if deadline.expired():
                    raise ProofError(f"the TSA's answer takes more than {TIMEOUT_S:g} s", where)
            answer.close()
        found = library.decode_timestamp_response(token)
        stamped = (found.status, found.tst_info.message_imprint.message, found.tst_info.nonce)
    except urllib3.exceptions.HTTPError as error:
        raise ProofError(f"the TSA does not answer: {type(error).__name__}", where) from error
    except ValueError as error:
        raise ProofError(
            f"the TSA's answer, of status {answer.status}, is no token", where
        ) from error
    if stamped != (library.PKIStatus.GRANTED, hashlib.sha512(note).digest(), asked.nonce):
        raise ProofError("the TSA refuses, or has stamped something else", where)
    return token


def timestamp_ms(token: bytes, note: bytes, roots: Sequence[Certificate]) -> int:
    """When a TSA that has a certificate of ``roots``, or by one, saw a note, since the epoch.

    Raises:
        ConfigError: The extra is not installed.
        ProofError: The token is none, not of this note, or not by such a TSA.
    """
    library = _library()
    try:
        found = library.decode_timestamp_response(token[: MAX_BYTES + 1])
        library.VerifierBuilder(roots=list(roots)).build().verify_message(found, note)
    except (ValueError, library.VerificationError) as error:
        raise ProofError(f"its time stamp is not valid: {error}") from error
    seconds: float = found.tst_info.gen_time.timestamp()
    return round(seconds * 1000)


def read_roots(path: Path, where: str) -> tuple[Certificate, ...]:
    """Certificates of TSAs, or of who certifies them, from a PEM file.

    Raises:
        ConfigError: It cannot be read, or has none.
    """
    try:
        with path.open("rb") as file:
            return tuple(load_pem_x509_certificates(file.read(MAX_BYTES)))
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", f"{where} {path}") from error
    except ValueError as error:
        raise ConfigError(f"no certificates in PEM: {error}", f"{where} {path}") from error
