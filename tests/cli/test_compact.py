import json
from pathlib import Path

import pytest

from nap_stream.scored_log.compact import LockOwner, compaction_lock
from nap_stream.scored_log.format import segment_path
from nap_stream.scored_log.read import segments
from nap_stream.scored_log.stores.local import LocalStore
from tests.cli.program import Call
from tests.scored_log.builders import CARS, chain, make_version, origin, scored


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Five segments of a day that is long over."""
    chain(tmp_path / "log", [(end, [scored(origin(end - 1))]) for end in range(1, 6)])
    return tmp_path / "log"


def _files(log: Path) -> int:
    return len(segments(LocalStore(log), CARS))


def test_a_dry_run_only_says_what_would_be_done(nap: Call, log: Path) -> None:
    ended = nap("compact", "--log", log, "--dry-run")
    assert ended.exit_code == 0
    assert ended.out == "1 partitions: would merge 4 segments into 1 files, 4 rows\n"
    assert _files(log) == 5


def test_segments_are_merged_and_query_and_verify_see_the_same(nap: Call, log: Path) -> None:
    before = nap("query", "--log", log, "--format", "json").out
    ended = nap("compact", "--log", log)
    assert ended.exit_code == 0
    assert ended.out.startswith("1 partitions: merged 4 segments into 1 files, 4 rows\n")
    assert _files(log) == 2
    assert nap("query", "--log", log, "--format", "json").out == before


def test_query_says_what_it_took_from_the_index_and_can_do_without(nap: Call, log: Path) -> None:
    ask = ("query", "--log", log, "--by", "day,class", "--format", "csv")
    before = nap(*ask)
    assert "index" not in before.err
    nap("compact", "--log", log)
    ended = nap("query", "--log", log, "--sha256", "0" * 64)
    told = "1 files were listed by the index: 0 of them were counted by it, 1 passed over. "
    assert told in ended.err
    assert nap(*ask).out == before.out
    without = nap(*ask, "--no-index")
    assert (without.out, without.err) == (before.out, before.err)
    assert nap("compact", "--log", log, "--rebuild-index").out.endswith(
        "wrote the index of 1 files\n"
    )


def test_a_log_that_begins_in_version_3_is_compacted_version_by_version(
    nap: Call, log: Path
) -> None:
    make_version(LocalStore(log), CARS, 2)
    before = nap("query", "--log", log, "--format", "json").out
    assert before.count('"fdbd": null') == 5
    verified = nap("verify", "--log", log, "--deep")
    assert verified.exit_code == 0
    ended = nap("compact", "--log", log)
    assert ended.out.startswith("1 partitions: merged 4 segments into 2 files, 4 rows\n")
    assert _files(log) == 3
    assert nap("query", "--log", log, "--format", "json").out == before
    assert nap("verify", "--log", log, "--deep").exit_code == 0


def test_a_json_report(nap: Call, log: Path) -> None:
    report = json.loads(nap("compact", "--log", log, "--topic", "cars", "--json").out)
    assert report["clean"]
    assert (report["segments"], report["files"], report["rows"]) == (4, 1, 4)
    assert report["bytes_before"] > report["bytes_after"] > 0


def test_what_has_no_chain_is_refused(nap: Call, log: Path, tmp_path: Path) -> None:
    ended = nap("compact", "--log", log, "--topic", "dogs")
    assert (ended.exit_code, "no partition of the topic 'dogs'" in ended.err) == (2, True)
    (tmp_path / "empty").mkdir()
    ended = nap("compact", "--log", tmp_path / "empty")
    assert (ended.exit_code, "there is no chain here" in ended.err) == (2, True)


def test_limits_are_taken(nap: Call, log: Path) -> None:
    assert "into 2 files" in nap("compact", "--log", log, "--max-rows", 2).out
    assert nap("compact", "--log", log, "--max-mb", 0).exit_code == 2


def test_a_damaged_partition_is_named_and_the_exit_code_is_1(nap: Call, log: Path) -> None:
    (log / segment_path(CARS, 2)).unlink()
    ended = nap("compact", "--log", log)
    assert ended.exit_code == 1
    assert "left out  cars/0: " in ended.out
    assert "offsets [2, 3) are in no segment" in ended.out
    assert not json.loads(nap("compact", "--log", log, "--json").out)["clean"]


def test_a_lock_is_respected_until_it_is_broken(nap: Call, log: Path) -> None:
    owner = LockOwner("host-7", 4711, "2026-01-02T12:00:00+00:00")
    with compaction_lock(LocalStore(log), owner):
        ended = nap("compact", "--log", log)
        assert ended.exit_code == 1
        assert "process 4711 on host-7" in ended.err
        assert "--break-lock" in ended.err
        assert nap("compact", "--log", log, "--break-lock").exit_code == 0
    assert _files(log) == 2
