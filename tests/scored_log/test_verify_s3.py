"""Verification of a log in an object store, as its users call it."""

import json
from pathlib import Path

import pytest

from nap_stream.scored_log.format import partition_folder, segment_path
from nap_stream.scored_log.stores import store_at
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.verify.report import DefectKind
from tests.cli.program import call
from tests.scored_log.builders import CARS, chain, merged_segments, origin, scored


@pytest.mark.parametrize("deep", [False, True])
def test_a_log_in_an_object_store(
    tmp_path: Path,
    s3_root: str,
    deep: bool,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    paths = chain(tmp_path, [(n + 1, [scored(origin(n))]) for n in range(5)])
    local, store = LocalStore(tmp_path), store_at(s3_root)
    for name in local.names(partition_folder(CARS)):
        path = f"{partition_folder(CARS)}/{name}"
        assert store.create(path, local.read(path) or b"")
    store.replace(paths[0], merged_segments(store, paths[:2]))
    store.remove(paths[1:2])
    arguments = ["verify", "--log", s3_root, *(["--deep"] if deep else [])]

    ended = call(arguments, monkeypatch, capfd)

    assert ended.exit_code == 0, ended
    assert ended.out.splitlines()[0] == "1 partitions, 5 segments, 5 rows, 5 offsets"
    assert ended.out.splitlines()[2] == "merged  2 segments in 1 compacted files"
    store.replace(paths[3], b"PAR1")
    assert store.create(f"{partition_folder(CARS)}/export.parquet", b"")
    tree = json.loads(call([*arguments, "--json"], monkeypatch, capfd).out)
    assert tree["log"] == s3_root
    assert [(defect["file"], defect["kind"]) for defect in tree["defects"]] == [
        (segment_path(CARS, 3), DefectKind.UNREADABLE),
        (f"{partition_folder(CARS)}/export.parquet", DefectKind.STRAY_FILE),
    ]
