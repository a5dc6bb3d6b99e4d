from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_stream.core.panes import MAX_KEY_CHARACTERS, NO_KEY, key_text


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (None, ""),
        (b"", ""),
        (b"camera 7", "camera 7"),
        ("Straße/東京".encode(), "Straße/東京"),
        (b"x" * 200, "x" * 200),
        ("ü".encode() * 200, "ü" * 200),
        (b"SHA256:x", "SHA256:x"),
    ],
)
def test_printable_text_is_shown_as_it_is(key: bytes | None, text: str) -> None:
    assert key_text(key) == text


@pytest.mark.parametrize(
    "key",
    [
        b"\xff\x00",
        b"two\nlines",
        b"\x00",
        "right\u202eleft".encode(),
        b"\xed\xb2\x80",
        b"x" * 201,
        b"sha256:",
        b"sha256:" + sha256(b"\xff\x00").hexdigest().encode(),
    ],
)
def test_other_keys_are_hashed(key: bytes) -> None:
    assert key_text(key) == "sha256:" + sha256(key).hexdigest()


@given(st.sets(st.binary(max_size=300) | st.text(max_size=300).map(str.encode)))
def test_different_keys_stay_different(keys: set[bytes]) -> None:
    texts = {key_text(key) for key in keys}
    assert len(texts) == len(keys)
    assert (NO_KEY in texts) == (b"" in keys)
    assert all(text.isprintable() and len(text) <= MAX_KEY_CHARACTERS for text in texts)
