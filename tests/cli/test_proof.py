"""nap-stream checkpoint-key, checkpoint, and verify by what they sign."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from nap_stream.scored_log.format import segment_path
from nap_stream.scored_log.proof.checkpoint import FOLDER, LOG_FILE
from tests.cli.program import Call
from tests.scored_log.builders import CARS, chain, local_log, origin, scored


@pytest.fixture
def log(tmp_path: Path) -> Path:
    root = tmp_path / "log"
    chain(root, [(3, [scored(origin(0))]), (8, [scored(origin(6))])])
    return root


@pytest.fixture
def keys(nap: Call, tmp_path: Path) -> Path:
    """A file of the public key; ``key`` beside it is the private one."""
    ended = nap("checkpoint-key", "--out", tmp_path / "key", "--name", "example.org/line-3")
    assert (ended.exit_code, ended.err) == (0, "")
    assert ended.out.startswith("example.org/line-3+")
    assert len(ended.out.splitlines()) == 1
    path = tmp_path / "keys.txt"
    path.write_text(ended.out)
    return path


def _report(text: str) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(text)
    return tree


def test_a_log_is_signed_goes_on_and_is_cut_off(
    nap: Call, log: Path, keys: Path, tmp_path: Path
) -> None:
    ended = nap("checkpoint", "--log", log, "--key", tmp_path / "key")
    assert ended.exit_code == 0
    (note,) = (log / FOLDER).iterdir()
    log_id = json.loads((log / LOG_FILE).read_text())["id"]
    assert ended.out == f"{note}: 1 chains of the log {log_id}, by {keys.read_text()}"
    kept = tmp_path / note.name
    kept.write_bytes(note.read_bytes())
    verify = ("verify", "--log", log, "--checkpoints", keys)
    told = nap(*verify)
    assert told.exit_code == 0
    assert "anchor  cars/0: anchored until its end 8 at " in told.out
    writer = local_log(log)
    position = writer.end(CARS)
    assert position is not None
    writer.publish(CARS, position, 9, [scored(origin(8))])
    assert "; unanchored since: [8, 9)\n" in nap(*verify).out
    tree = _report(nap(*verify, "--json").out)
    time_ms = tree["anchors"]["newest_time_ms"]
    label = "+".join(keys.read_text().split("+")[:2])
    assert tree["anchors"] == {
        "log_id": log_id,
        "checkpoints": 1,
        "signers": [label],
        "newest_time_ms": time_ms,
        "unknown": [],
        "stamps": [],
        "unstamped": None,
        "unread": [],
        "chains": [
            {
                "topic": "cars",
                "partition": 0,
                "end_offset": 9,
                "anchored_offset": 8,
                "anchored_time_ms": time_ms,
                "disagrees": None,
                "stamped_offset": None,
                "stamped_ms": None,
            }
        ],
    }
    assert f", of the log {log_id}\n" in nap(*verify, "--log-id", log_id).out
    ended = nap(*verify, "--log-id", "another")
    assert (ended.exit_code, f"of the log {log_id}, and this is another" in ended.err) == (2, True)
    for base in (3, 8):
        (log / segment_path(CARS, base)).unlink()
    ended = nap("checkpoint", "--log", log, "--key", tmp_path / "key")
    assert (ended.exit_code, "not signed  cars/0: it was signed until 8 " in ended.err) == (1, True)
    for each in (log / FOLDER).iterdir():
        each.unlink()
    assert nap("verify", "--log", log, "--deep").exit_code == 0
    ended = nap(*verify)
    assert (ended.exit_code, ended.out) == (2, "")
    assert "no checkpoint is signed by a given key: there is none" in ended.err
    ended = nap(*verify, "--checkpoint", kept)
    assert ended.exit_code == 1
    assert f"defect  {'topic=cars/partition=0'}: truncated: by the checkpoint {kept}" in ended.out
    assert "anchor  cars/0: no checkpoint agrees with it\n" in ended.out


@pytest.mark.usefixtures("keys")
def test_mistakes_of_use_are_named(nap: Call, log: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    ended = nap("verify", "--log", log, "--checkpoint", key)
    assert (ended.exit_code, "expected --checkpoints KEYS" in ended.err) == (2, True)
    ended = nap("verify", "--log", log, "--checkpoints", key)
    assert (ended.exit_code, "this is a private key" in ended.err) == (2, True)
    assert key.read_text().strip()[-20:] not in ended.err
    key.chmod(0o644)
    ended = nap("checkpoint", "--log", log, "--key", key)
    assert (ended.exit_code, "others may use the key" in ended.err) == (2, True)
    key.chmod(0o600)
    (tmp_path / "empty").mkdir()
    ended = nap("checkpoint", "--log", tmp_path / "empty", "--key", key)
    assert (ended.exit_code, "there is no chain to sign" in ended.err) == (2, True)
    ended = nap("checkpoint-key", "--out", key, "--name", "a")
    assert (ended.exit_code, "the key cannot be written: File exists" in ended.err) == (2, True)
    (log / segment_path(CARS, 3)).write_bytes(b"PAR1")
    ended = nap("checkpoint", "--log", log, "--key", key)
    assert (ended.exit_code, "no chain to sign: cars/0 cannot be read" in ended.err) == (2, True)


def test_rows_are_exported_and_checked_without_the_log(
    nap: Call, log: Path, keys: Path, tmp_path: Path
) -> None:
    folder, key = tmp_path / "out", tmp_path / "key"
    export = ("query", "--log", log, "--export", folder, "--sign-with", key)
    ended = nap(*export, "--key", "camera-1", "--offset", "0-5")
    assert (ended.exit_code, ended.out) == (0, f"{folder}: 1 rows, signed by {keys.read_text()}")
    shutil.move(log, tmp_path / "moved")
    ended = nap("verify-export", folder, "--keys", keys)
    assert ended.exit_code == 0
    assert "filter  keys=['camera-1'], offsets=[0, 5]\nrows    1: 1 ok\n" in ended.out
    assert "proved  these rows are what the signer exported" in ended.out
    tree = _report(nap("verify-export", folder, "--keys", keys, "--json").out)
    assert (tree["manifest"]["rows"], tree["unknown"]) == (1, [])
    (folder / "rows.parquet").write_bytes(b"PAR1")
    ended = nap("verify-export", folder, "--keys", keys)
    assert (ended.exit_code, "was signed" in ended.err) == (1, True)


def test_an_export_without_some_rows_says_so(nap: Call, log: Path, keys: Path) -> None:
    folder, key = log.parent / "out", log.parent / "key"
    export = ("query", "--log", log, "--export", folder, "--sign-with", key)
    ended = nap(*export, "--key", "camera-1", "--key", "nobody")
    assert (ended.exit_code, "the log has no key 'nobody'" in ended.err) == (2, True)
    assert not folder.exists()
    (log / segment_path(CARS, 0)).write_bytes(b"PAR1")
    assert nap(*export).exit_code == 3
    ended = nap("verify-export", folder, "--keys", keys)
    assert (ended.exit_code, f"unread  {segment_path(CARS, 0)}: " in ended.out) == (3, True)
    assert nap("verify-export", folder, "--keys", keys, "--json").exit_code == 3


def test_an_export_takes_all_rows_and_needs_a_key(nap: Call, log: Path, tmp_path: Path) -> None:
    export = ("query", "--log", log, "--export", tmp_path / "out")
    for more in (["--by", "day"], ["--limit", "3"], ["--format", "csv"], ["--output", "x"]):
        ended = nap(*export, *more)
        assert (ended.exit_code, "it writes all rows" in ended.err) == (2, True)
    for arguments in (export, ("query", "--log", log, "--sign-with", tmp_path / "key")):
        ended = nap(*arguments)
        assert (ended.exit_code, "expected --export DIR and --sign-with" in ended.err) == (2, True)
    assert not (tmp_path / "out").exists()
