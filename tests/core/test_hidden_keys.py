"""Keys as the log holds them."""

import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_stream.core.hidden_keys import CLEAR, PREFIX, HiddenKeys, Stored, is_hash

SECRET = b"0123456789abcdef"
HASHED = HiddenKeys(Stored.HASHED, (("camera", Stored.HASHED), ("person", Stored.DROPPED)), SECRET)
DROPPED = HiddenKeys(Stored.DROPPED)


def test_a_hash_is_that_of_rfc_4231() -> None:
    """Its test case 2."""
    hidden = HiddenKeys(Stored.HASHED, secret=b"Jefe")
    assert hidden.of_key(b"what do ya want for nothing?") == (
        b"hmac-sha256:5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    )


@given(st.binary(min_size=1))
def test_a_key_and_a_header_of_the_same_value_have_the_same_hash(value: bytes) -> None:
    hashed = HASHED.of_key(value)
    assert hashed == PREFIX + hmac.new(SECRET, value, "sha256").hexdigest().encode()
    assert HASHED.of_headers([("camera", value)]) == [("camera", hashed)]
    assert is_hash(hashed)
    assert not is_hash(value)


@given(st.binary() | st.none())
def test_what_is_stored_is_taken_as_it_would_be_stored_now_and_a_hash_stays(
    value: bytes | None,
) -> None:
    once = HASHED.of_stored("key", value)
    assert once == HASHED.of_key(value)
    assert HASHED.of_stored("key", once) == once
    assert HASHED.of_stored("header:camera", value) == once
    assert not HASHED.of_stored("header:person", value)
    assert CLEAR.of_stored("key", once) == once


def test_what_a_producer_sends_as_if_it_were_a_hash_is_hashed() -> None:
    forged = PREFIX + b"0" * 64
    assert HASHED.of_key(forged) not in {forged, None}


def test_what_is_dropped_is_nothing_and_a_dropped_header_is_not_there() -> None:
    assert DROPPED.of_key(b"camera-7") is None
    headers = [("site", b"a"), ("person", b"b"), ("camera", None), ("camera", b"")]
    assert HASHED.of_headers(headers) == [("site", b"a"), ("camera", None), ("camera", b"")]


@pytest.mark.parametrize("hidden", [HASHED, DROPPED])
def test_none_and_empty_keys_stay_none(hidden: HiddenKeys) -> None:
    assert hidden.of_key(None) is None
    assert not hidden.of_key(b"")


def test_of_a_dropped_key_nothing_tells_an_empty_one_from_none() -> None:
    assert DROPPED.of_key(b"") is None
    assert HASHED.of_key(b"") == b""


def test_the_secret_is_not_shown() -> None:
    assert "0123456789abcdef" not in f"{HASHED!r} {HASHED}"
    assert (HASHED.hides, DROPPED.hides, CLEAR.hides) == (True, True, False)
    assert not HiddenKeys(headers=(("a", Stored.CLEAR),)).hides
