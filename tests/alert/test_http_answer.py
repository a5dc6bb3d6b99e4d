import html
import json
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_stream.alert.webhook import MAX_ANSWER_BYTES, NOT_SHOWN, SHOWN_ANSWER, excerpt

TOKEN = "ab/cd+ef==\\gh'ij\"kl&mn<op>%2Fqr%" + "0123456789" * 3
FORMS = {
    "plain": TOKEN,
    "repr": repr(TOKEN),
    "json": json.dumps({"error": TOKEN}),
    "json of PHP": json.dumps(TOKEN).replace("/", "\\/"),
    "json of .NET": json.dumps(TOKEN).replace("+", "\\u002B").replace("<", "\\u003c"),
    "quote": quote(TOKEN),
    "quote_plus": quote_plus(TOKEN),
    "quote in lower case": quote(TOKEN, safe="").replace("%2F", "%2f"),
    "quote in JSON": json.dumps(quote(TOKEN, safe="")),
    "JSON in quote": quote(json.dumps(TOKEN), safe=""),
    "HTML": html.escape(TOKEN),
    "wrapped": "\r\n ".join(TOKEN[start : start + 7] for start in range(0, len(TOKEN), 7)),
    "UTF-16": "\0".join(TOKEN),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_an_answer_with_the_token_in_any_form_is_not_shown(form: str) -> None:
    answer = f"who is {form}?".encode()
    assert excerpt(answer, TOKEN) == NOT_SHOWN
    assert excerpt(answer, "another-token").startswith("who is ")


def test_a_token_longer_than_what_is_read_is_not_shown() -> None:
    token = "".join(f"{number:05x}" for number in range(1_500))
    assert len(token) > MAX_ANSWER_BYTES
    assert excerpt(f"Bearer {token}".encode()[:MAX_ANSWER_BYTES], token) == NOT_SHOWN
    assert excerpt(f"Bearer …{token[-40:]}".encode(), token) == NOT_SHOWN


@pytest.mark.parametrize("token", ["k", "s3cret", "s3cret-12chr"])
def test_a_short_token_counts_whole(token: str) -> None:
    assert excerpt(f"who is {token}?".encode(), token) == NOT_SHOWN
    other = f"who is {token[:-1]}?"
    assert excerpt(other.encode(), token) == other


@given(
    token=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1),
    before=st.text(),
    after=st.text(),
)
def test_no_surroundings_hide_a_token_from_the_search(token: str, before: str, after: str) -> None:
    answer = (before + token + after).encode(errors="replace")
    assert excerpt(answer, token) == NOT_SHOWN


def test_the_beginning_is_shown_on_one_line() -> None:
    assert excerpt(b"no \x1b[31m\r\n  such\xff route", None) == "no [31m such\ufffd route"
    assert excerpt(b"x" * 1_000, "s3cret") == "x" * SHOWN_ANSWER
    assert excerpt(b"no such route", None, "") == "no such route"


def test_each_secret_counts() -> None:
    assert excerpt(b"who is s3cret?", None, "other", "s3cret") == NOT_SHOWN
