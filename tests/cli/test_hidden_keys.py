"""Asking a log whose keys are hashed, in whole or from some time on."""

import json
from pathlib import Path

import pytest

from nap_stream.core.hidden_keys import HiddenKeys, Stored
from nap_stream.records import Status
from nap_stream.scored_log.proof.note import create_key
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.summary import SummaryShape, summarise_chain
from nap_stream.settings.drift import KeySettings
from tests.cli.program import Call
from tests.scored_log.builders import CARS, chain, failed, origin, scored
from tests.support.scored_records import ScoredRecord

SECRET = b"0123456789abcdef"
HIDDEN = HiddenKeys(Stored.HASHED, (("camera", Stored.HASHED),), SECRET)
KEY, OTHER = b"camera-7", b"camera-8"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Four rows in clear, and four of the same cameras of when keys were hashed."""
    root = tmp_path / "log"
    chain(root, [(4, _rows(0, HiddenKeys())), (8, _rows(4, HIDDEN))])
    (tmp_path / "secret").write_bytes(SECRET + b"\n")
    return root


def _rows(base: int, hidden: HiddenKeys) -> list[ScoredRecord]:
    where = [
        origin(
            base + n, key=hidden.of_key(key), headers=tuple(hidden.of_headers([("camera", key)]))
        )
        for n, key in enumerate((KEY, OTHER, KEY, KEY))
    ]
    return [*(scored(each) for each in where[:3]), failed(where[3], Status.CORRUPT)]


def _offsets(out: str) -> list[int]:
    return [json.loads(line)["offset"] for line in out.splitlines()]


def test_a_key_is_found_in_clear_and_hashed_by_the_secret_and_by_its_hash(
    nap: Call, log: Path, tmp_path: Path
) -> None:
    asked = ("query", "--log", log, "--format", "json")
    secret = ("--key-secret", tmp_path / "secret")
    both = nap(*asked, "--key", KEY.decode(), *secret)
    assert _offsets(both.out) == [0, 2, 3, 4, 6, 7]
    assert "looked for in clear, and as hashes" in both.err
    header = nap(*asked, "--header", f"camera={KEY.decode()}", *secret)
    assert _offsets(header.out) == [0, 2, 3, 4, 6, 7]
    hashed = nap(*asked, "--key", HIDDEN.hashed(KEY).decode())
    assert _offsets(hashed.out) == [4, 6, 7]
    assert _offsets(nap(*asked, "--key", KEY.decode()).out) == [0, 2, 3]


def test_a_compacted_log_is_asked_for_the_hash_as_rows_are(nap: Call, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(SECRET)
    root = tmp_path / "log"
    chain(root, [(end, _rows(end - 4, HIDDEN)) for end in (4, 8, 12)])
    assert nap("compact", "--log", root).exit_code == 0
    asked = ("query", "--log", root, "--format", "json", "--key-secret", tmp_path / "secret")
    for index in ((), ("--no-index",)):
        found = nap(*asked, "--key", KEY.decode(), *index)
        assert _offsets(found.out) == [0, 2, 3, 4, 6, 7, 8, 10, 11]
        assert ("index" in found.err) is not bool(index)


def test_a_key_that_is_not_there_is_named_and_the_secret_asked_for(
    nap: Call, log: Path, tmp_path: Path
) -> None:
    alone = nap("query", "--log", log, "--key", "camera-9")
    assert alone.exit_code == 2
    assert "hashes are stored: give the hash, --config or --key-secret" in alone.err
    secret = ("--key-secret", tmp_path / "secret")
    known = nap("query", "--log", log, "--key", "camera-9", *secret)
    assert (known.exit_code, "hashes are stored" in known.err) == (2, False)
    (tmp_path / "secret").write_bytes(b"short")
    short = nap("query", "--log", log, "--key", "camera-7", *secret)
    assert (short.exit_code, "16 to 4096 bytes" in short.err) == (2, True)


def test_counts_by_key_say_that_keys_are_of_two_kinds(nap: Call, log: Path) -> None:
    assert "some as hashes" in nap("query", "--log", log, "--by", "key").err


def test_an_export_names_no_key_in_clear(nap: Call, log: Path, tmp_path: Path) -> None:
    create_key(tmp_path / "signing.key", "example.org")
    signed = ("--export", tmp_path / "out", "--sign-with", tmp_path / "signing.key")
    asked = ("--key", KEY.decode(), "--key-secret", tmp_path / "secret", "--offset", "4-9")
    assert nap("query", "--log", log, *asked, *signed).exit_code == 0
    note = (tmp_path / "out" / "manifest.note").read_text(encoding="utf-8")
    assert KEY.decode() not in note
    assert HIDDEN.hashed(KEY).decode() in note


@pytest.mark.parametrize("by", ["key", "header:camera"])
def test_what_the_monitor_is_told_has_one_name_for_a_camera_and_none_in_clear(
    by: str, log: Path
) -> None:
    shape = SummaryShape(1_000, 3, KeySettings(by=by), HIDDEN)
    found = list(summarise_chain(LocalStore(log), CARS, 0, 8, shape))
    names = {HIDDEN.hashed(key).decode() for key in (KEY, OTHER)}
    assert [set(summary.panes.keys) for summary in found] == [names, names]
    assert {each.key for summary in found for each in summary.unscored} <= names
    assert KEY.decode() not in repr(found)
