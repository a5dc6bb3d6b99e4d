"""Keys of records as text: what names a camera, a line or a site."""

import hashlib

from nap_stream.core.panes import NO_KEY

MAX_KEY_CHARACTERS = 200
HASHED = "sha256:"
"""Begins the text of a key that is not shown as it is; 64 hexadecimal digits follow."""


def key_text(key: bytes | None) -> str:
    """Give a key as text that can be shown: no two keys have the same, but null and empty.

    `NO_KEY` for null and empty ones. Where it is not printable UTF-8 of at most
    `MAX_KEY_CHARACTERS`, the SHA-256 of its bytes stands for it.
    """
    if not key:
        return NO_KEY
    try:
        text = key.decode("utf-8")
    except UnicodeDecodeError:
        return _hashed(key)
    is_shown = text.isprintable() and len(text) <= MAX_KEY_CHARACTERS
    return text if is_shown and not text.startswith(HASHED) else _hashed(key)


def _hashed(key: bytes) -> str:
    return HASHED + hashlib.sha256(key).hexdigest()
