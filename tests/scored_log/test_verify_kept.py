"""Chains against the ends that an earlier report has kept."""

import json
import shutil
from pathlib import Path

import pytest

from nap_stream.errors import ConfigError
from nap_stream.scored_log.chain import ScoredLog
from nap_stream.scored_log.format import segment_path
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.verify.report import (
    ChainHead,
    Circumstances,
    DefectKind,
    encode_report,
    parse_kept,
)
from nap_stream.scored_log.verify.run import compare_with_kept, verify
from tests.scored_log.builders import CARS, local_log, merged_segments, origin, scored

FOLDER = "topic=cars/partition=0"


def _publish(log: ScoredLog, count: int, *, p_value: float = 0.5) -> None:
    position = log.end(CARS) or log.begin(CARS, 5)
    for _ in range(count):
        rows = [scored(origin(position.offset), p_value=p_value)]
        position = log.publish(CARS, position, position.offset + 1, rows).position


def _kept(root: Path) -> tuple[ChainHead, ...]:
    circumstances = Circumstances(str(root), None, "1", 0)
    return parse_kept(encode_report(verify(LocalStore(root)), None, circumstances), "kept.json")


def _kinds(root: Path, kept: tuple[ChainHead, ...]) -> list[tuple[str, DefectKind]]:
    return [(found.file, found.kind) for found in compare_with_kept(LocalStore(root), kept)]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_chain_that_went_on_and_was_compacted_still_has_its_kept_end(
    tmp_path: Path, count: int
) -> None:
    log = local_log(tmp_path)
    log.begin(CARS, 5)
    _publish(log, count)
    kept = _kept(tmp_path)
    assert [head.end_offset for head in kept] == [5 + count]
    assert _kinds(tmp_path, kept) == []
    _publish(log, 6 - count)
    assert _kinds(tmp_path, kept) == []
    store = LocalStore(tmp_path)
    paths = [segment_path(CARS, base) for base in range(5, 10)]
    store.replace(paths[0], merged_segments(store, paths))
    assert _kinds(tmp_path, kept) == []
    store.remove(paths[1:])
    assert verify(store, deep=True).clean
    assert _kinds(tmp_path, kept) == []


def test_a_chain_that_was_written_anew_is_clean_but_has_not_its_kept_end(tmp_path: Path) -> None:
    _publish(local_log(tmp_path), 3)
    kept = _kept(tmp_path)
    shutil.rmtree(tmp_path / FOLDER)
    _publish(local_log(tmp_path), 4, p_value=0.4)
    assert verify(LocalStore(tmp_path), deep=True).clean
    assert _kinds(tmp_path, kept) == [(FOLDER, DefectKind.KEPT_DIGEST)]


@pytest.mark.parametrize("cut", ["end", "chain"])
def test_what_was_cut_off_shows(tmp_path: Path, cut: str) -> None:
    _publish(local_log(tmp_path), 3)
    kept = _kept(tmp_path)
    if cut == "end":
        (tmp_path / segment_path(CARS, 7)).unlink()
    else:
        shutil.rmtree(tmp_path / FOLDER)
    assert verify(LocalStore(tmp_path), deep=True).clean
    (defect,) = compare_with_kept(LocalStore(tmp_path), kept)
    assert (defect.file, defect.kind) == (FOLDER, DefectKind.KEPT_DIGEST)
    assert "no segment ends there" in defect.detail


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        json.dumps({"kind": "other", "version": 1, "chains": []}),
        json.dumps({"kind": "nap-stream verify report", "version": 2, "chains": []}),
        json.dumps({"kind": "nap-stream verify report", "version": 1, "chains": [{"topic": 1}]}),
    ],
)
def test_what_is_no_report_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not a report"):
        parse_kept(text, "kept.json")
