"""Signed notes and their Ed25519 keys, as https://c2sp.org/signed-note has them.

A note is text, a blank line, and a line for each signature. Key files are those of Go's
``golang.org/x/mod/sumdb/note``, a key a line:

    PRIVATE+KEY+<name>+<key id>+<base64 of 0x01 and the seed>    the private key
    <name>+<key id>+<base64 of 0x01 and the public key>          the public one, the vkey

The key id is the first 4 bytes of the SHA-256 of name, newline, 0x01 and public key, in hex. It
proves nothing: it says which key a signature is to be checked with.
"""

import base64
import hashlib
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from nap_stream.errors import ConfigError, ProofError, UnknownKeyError

KEY = "log.checkpoints.key_file"
"""The setting that names a monitor's key: errors say that, as its value may be the key itself."""
MAX_NOTE_BYTES = 2**24
"""A checkpoint of a hundred thousand partitions."""
MAX_SIGNATURES = 100
MAX_KEY_BYTES = 2**16
_ED25519 = b"\x01"
_KEY_BYTES, _ID_BYTES = 32, 4
_KEY_ID = re.compile(r"[0-9a-f]{8}", re.ASCII)
_PRIVATE = "PRIVATE+KEY+"
_DASH = "\u2014 "


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that signatures are checked with. ``raw`` are its 32 bytes; as text it is a vkey."""

    name: str
    raw: bytes

    @property
    def id(self) -> bytes:
        """The key id, 4 bytes."""
        named = self.name.encode() + b"\n" + _ED25519 + self.raw
        return hashlib.sha256(named).digest()[:_ID_BYTES]

    @property
    def label(self) -> str:
        """Name and key id, for people."""
        return f"{self.name}+{self.id.hex()}"

    def __str__(self) -> str:
        return f"{self.label}+{base64.b64encode(_ED25519 + self.raw).decode()}"


@dataclass(frozen=True, slots=True)
class Signer:
    """A private key and its name. Its text does not show the key."""

    name: str
    private: Ed25519PrivateKey = field(repr=False)

    @property
    def public(self) -> PublicKey:
        """The key that checks what this one signs."""
        return PublicKey(self.name, self.private.public_key().public_bytes_raw())

    def sign(self, text: str) -> bytes:
        """A note of a text that ends with a newline.

        Raises:
            ValueError: The text does not, or has other control characters.
        """
        if not text.endswith("\n") or _has_control(text):
            raise ValueError("a note's text ends with a newline, the only control character in it")
        signature = base64.b64encode(self.public.id + self.private.sign(text.encode()))
        return f"{text}\n{_DASH}{self.name} {signature.decode()}\n".encode()


@dataclass(frozen=True, slots=True)
class Note:
    """A text, and the labels of the known keys that have signed it.

    Signatures of ``unknown`` keys are not checked, and count for nothing.
    """

    text: str
    signers: tuple[str, ...]
    unknown: tuple[str, ...]


def open_note(content: bytes, keys: Iterable[PublicKey], where: str) -> Note:
    """The text of a note, if one of the keys has signed it.

    Raises:
        UnknownKeyError: Only other keys have.
        ProofError: It is no note, or a signature of a known key is not of this text.
    """
    try:
        text, signatures = _split(content)
    except ValueError as error:
        raise ProofError(f"not a signed note: {error}", where, "Take another copy") from error
    known = {(key.name, key.id): key for key in keys}
    labels: dict[bool, dict[str, None]] = {True: {}, False: {}}
    for name, key_id, signature in signatures:
        label, key = f"{name}+{key_id.hex()}", known.get((name, key_id))
        labels[key is not None][label] = None
        try:
            if key is not None:
                Ed25519PublicKey.from_public_bytes(key.raw).verify(signature, text.encode())
        except InvalidSignature as error:
            raise ProofError(
                f"the signature of {label} is not of this text",
                where,
                "It was changed after it was signed, or signed with another key of that name",
            ) from error
    if not labels[True]:
        raise UnknownKeyError(
            f"signed by {', '.join(labels[False])}, which no given key is",
            where,
            "Add the public key, if it is to be trusted",
        )
    return Note(text, tuple(labels[True]), tuple(labels[False]))


def claimed_signers(content: bytes) -> tuple[str, ...]:
    """The labels of those who are said to have signed a note; nothing is checked.

    Raises:
        ValueError: It is no note.
    """
    return tuple(f"{name}+{key_id.hex()}" for name, key_id, _ in _split(content)[1])


def _split(content: bytes) -> tuple[str, list[tuple[str, bytes, bytes]]]:
    """The text, and name, key id and signature of each line below."""
    if len(content) > MAX_NOTE_BYTES:
        raise ValueError(f"it has more than {MAX_NOTE_BYTES:,} bytes")
    text, blank, lines = content.decode("utf-8").rpartition("\n\n")
    if not blank or not lines.endswith("\n") or lines.count("\n") > MAX_SIGNATURES:
        raise ValueError(f"expected text, a blank line, 1 to {MAX_SIGNATURES} signatures")
    if _has_control(text + lines):
        raise ValueError("it has control characters")
    return f"{text}\n", [_signature(line) for line in lines.removesuffix("\n").split("\n")]


def _signature(line: str) -> tuple[str, bytes, bytes]:
    name, _, encoded = line.removeprefix(_DASH).partition(" ")
    decoded = base64.b64decode(encoded, validate=True)
    if not line.startswith(_DASH) or not _is_name(name) or len(decoded) <= _ID_BYTES:
        raise ValueError("a line of a signature is malformed")
    return name, decoded[:_ID_BYTES], decoded[_ID_BYTES:]


def _has_control(text: str) -> bool:
    return any(character < " " and character != "\n" for character in text)


def _is_name(name: str) -> bool:
    return bool(name) and "+" not in name and not any(c.isspace() or c < " " for c in name)


def parse_public_key(text: str) -> PublicKey:
    """Read a vkey.

    Raises:
        ValueError: It is none, or its parts contradict each other.
    """
    if text.startswith(_PRIVATE):
        raise ValueError("this is a private key, which is for who signs alone")
    name, key_id, raw = _parts(text)
    return _with_id(PublicKey(name, raw), key_id)


def parse_signer(text: str) -> Signer:
    """Read a private key, without showing it in an error.

    Raises:
        ValueError: It is none, or its parts contradict each other.
    """
    if not text.startswith(_PRIVATE):
        raise ValueError(f"expected {_PRIVATE}<name>+<key id>+<key>")
    name, key_id, seed = _parts(text.removeprefix(_PRIVATE))
    signer = Signer(name, Ed25519PrivateKey.from_private_bytes(seed))
    _with_id(signer.public, key_id)
    return signer


def _parts(text: str) -> tuple[str, str, bytes]:
    """Name, key id, and the 32 bytes of a key."""
    name, key_id, encoded = (*text.split("+", 2), "", "")[:3]
    if not _is_name(name) or not _KEY_ID.fullmatch(key_id):
        raise ValueError("expected <name>+<key id, 8 hex digits>+<base64>")
    decoded = base64.b64decode(encoded, validate=True)
    if decoded[:1] != _ED25519 or len(decoded) != 1 + _KEY_BYTES:
        raise ValueError("not an Ed25519 key")
    return name, key_id, decoded[1:]


def _with_id(key: PublicKey, key_id: str) -> PublicKey:
    if key.id.hex() != key_id:
        raise ValueError("the key id is not that of the key")
    return key


def create_key(path: Path, name: str) -> PublicKey:
    """Write a new private key to a file that nobody else may read; give its public key.

    Raises:
        ConfigError: The name cannot be one, or the file is there or cannot be written.
    """
    if not _is_name(name) or not name.isprintable():
        raise ConfigError(
            f"no name of a key: {name!r}", "--name", "Use no spaces and no +: example.org/line-3"
        )
    signer = Signer(name, Ed25519PrivateKey.generate())
    secret = base64.b64encode(_ED25519 + signer.private.private_bytes_raw()).decode()
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(f"{_PRIVATE}{signer.public.label}+{secret}\n".encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        problem = f"the key cannot be written: {error.strerror}"
        raise ConfigError(problem, str(path), "Name a file that is not there") from error
    return signer.public


def read_signer(path: Path, where: str) -> Signer:
    """Read a private key from a file; ``where`` is the setting or option that names it.

    Raises:
        ConfigError: It cannot be read, is no key, or everybody may use it or the group change it.
    """
    content, mode = _limited(path, where)
    if mode & (stat.S_IRWXO | stat.S_IWGRP):
        raise ConfigError(
            f"others may use the key: its file has the mode {stat.S_IMODE(mode):04o}",
            where,
            "Take the others' rights from it (chmod 600); if others did read it, make a new key",
        )
    try:
        return parse_signer(content.decode("ascii").strip())
    except ValueError as error:
        # What decoding says of the content may show a part of it.
        said = "not text" if isinstance(error, UnicodeError) else str(error)
        action = "Make one with `nap-stream checkpoint-key`"
        raise ConfigError(f"not a private key: {said}", where, action) from None


def read_public_keys(path: Path, where: str) -> tuple[PublicKey, ...]:
    """Read vkeys from a file, one a line; empty lines and those that begin with # are passed over.

    Raises:
        ConfigError: It cannot be read, has none, or a line is no vkey.
    """
    keys = []
    for number, line in enumerate(
        _limited(path, where)[0].decode("utf-8", "replace").split("\n"), 1
    ):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                keys.append(parse_public_key(line.strip()))
            except ValueError as error:
                raise ConfigError(
                    f"no public key: {error}",
                    f"{where} {path}, line {number}",
                    "Give what `nap-stream checkpoint-key` printed, one a line",
                ) from error
    if not keys:
        raise ConfigError("the file has no keys", f"{where} {path}")
    return tuple(keys)


def _limited(path: Path, where: str) -> tuple[bytes, int]:
    """A small regular file, and its mode."""
    try:
        # Does not wait for who may write into a pipe.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            mode, content = os.fstat(file.fileno()).st_mode, file.read(MAX_KEY_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"the key cannot be read: {error.strerror}", where) from error
    if not stat.S_ISREG(mode) or len(content) > MAX_KEY_BYTES:
        raise ConfigError("not a file of keys: no file, or too long", where)
    return content, mode
