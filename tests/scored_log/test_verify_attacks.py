"""What finds which tampering: the table in docs/scored-log.md is what comes out here."""

import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

import duckdb
import pyarrow.parquet as pq
import pytest

from nap_stream.clock import ManualClock
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.verify.report import DefectKind
from nap_stream.scored_log.verify.run import verify
from nap_stream.scored_log.verify.segment import inspect_segment
from tests.scored_log.attacks import (
    ATTACKS,
    BEGIN,
    END,
    HEADER,
    SECOND,
    UNPROVED,
    Attack,
    Prepared,
    all_attacks,
    prepare,
    tried,
    write_log,
)

DOCS = Path(__file__).parents[2] / "docs" / "scored-log.md"


def _documented() -> dict[str, str]:
    text = DOCS.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]
    assert text.startswith(HEADER)
    rows = text.removeprefix(HEADER).splitlines(keepends=True)
    return {row.split(" | ")[0].removeprefix("| "): row for row in rows}


Prepare = Callable[[int, int], Prepared]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepare:
    """Give a log to attack of which so many segments were kept and signed, made once of a kind."""
    return cache(lambda *seen: prepare(tmp_path_factory.mktemp("prepared"), *seen))


@pytest.mark.parametrize(
    ("name", "attack", "seen"),
    [pytest.param(name, attack, seen, id=name) for name, attack, *seen in all_attacks()],
)
def test_what_the_table_says_of_an_attack(
    name: str, attack: Attack, seen: list[int], prepared: Prepare, tmp_path: Path
) -> None:
    """Where it fails, `python -m tests.scored_log.attacks` prints what is so now."""
    kept, signed = seen
    found = tried(attack, tmp_path, prepared(kept, signed))
    assert found.row(name) == _documented()[name]
    assert found.proved == (name not in UNPROVED), "all else is found without anything else"


def test_the_table_has_all_of_them_and_no_other(prepared: Prepare, tmp_path: Path) -> None:
    assert list(_documented()) == [name for name, *_ in all_attacks()]
    found = tried(lambda _root: None, tmp_path, prepared(3, 3))
    assert dataclasses.astuple(found) == (False,) * 6


def test_a_minimum_that_lies_hides_rows_from_readers_and_is_named(tmp_path: Path) -> None:
    write_log(tmp_path)
    asked = f"SELECT count(*) FROM read_parquet('{tmp_path / SECOND}') WHERE ood_p_value < 0.2"
    with duckdb.connect() as connection:
        before = connection.sql(asked).fetchall()
        ATTACKS["a minimum is raised"](tmp_path)
        after = connection.sql(asked).fetchall()
    assert (before, after) == ([(7,)], [(0,)])
    (defect,) = verify(LocalStore(tmp_path), deep=True, clock=ManualClock()).defects
    assert (defect.file, defect.kind) == (SECOND, DefectKind.STATISTICS)
    assert defect.detail == (
        f"row group 0, ood_p_value: min_value is 0.3, it should be {0.5 / 9!r}: "
        "readers skip rows by it"
    )


def test_no_bit_of_a_file_changes_unseen(tmp_path: Path) -> None:
    """But in the version of Arrow that wrote it, which changes nothing for a reader."""
    write_log(tmp_path)
    path, store = tmp_path / SECOND, LocalStore(tmp_path)
    content = path.read_bytes()
    before = inspect_segment(store, SECOND, deep=True)
    assert before is not None
    digits = pq.read_metadata(path).created_by.removeprefix("parquet-cpp-arrow version ").encode()
    version = content.rindex(b"version " + digits) + len(b"version ")
    chosen, unseen = Random(5), []
    for at in chosen.sample(range(len(content)), 300):
        changed = bytearray(content)
        changed[at] ^= 1 << chosen.randrange(8)
        path.write_bytes(changed)
        found = inspect_segment(store, SECOND, deep=True)
        assert found is not None
        # A footer that says something else is not the one that the next segment names.
        if not found.defects and found.sha256 == before.sha256:
            unseen.append(at)
    assert [at for at in unseen if not version <= at < version + len(digits)] == []


@pytest.mark.parametrize(
    ("name", "detail"),
    [
        ("a bloom filter is named", "ColumnMetaData has bloom_filter_offset, which nap-stream"),
        ("an unknown field is put in", "does not write (pyarrow after 26 may: install pyarrow<27"),
        ("a column index is named", "ColumnChunk has column_index_offset, which nap-stream"),
        ("the row group lies elsewhere (Spark)", "file_offset of row group 0: 1000000000 instead"),
        ("pages are said to be all of a dictionary", "fused: encoding_stats"),
        ("bytes are hidden behind the pages", "the place where the footer begins"),
        ("a schema for Spark is put in", "its metadata has the key b'org.apache.spark"),
    ],
)
def test_layout_is_named_by_what_is_wrong_in_it(name: str, detail: str, tmp_path: Path) -> None:
    write_log(tmp_path)
    ATTACKS[name](tmp_path)
    (defect,) = verify(LocalStore(tmp_path), deep=True, clock=ManualClock()).defects
    assert (defect.file, defect.kind) == (SECOND, DefectKind.LAYOUT)
    assert detail in defect.detail
