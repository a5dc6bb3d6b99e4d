"""Every classifier of torchvision, against the table of the documentation."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.torchvision_models import classifiers, find

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"


@pytest.fixture(autouse=True)
def free_memory() -> Iterator[None]:
    yield
    gc.collect()


def documented() -> dict[str, str]:
    rows = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| ")]
    return {row.split()[1]: row for row in rows if row.split()[1] != "Model"}


def test_the_table_has_all_classifiers() -> None:
    assert sorted(documented()) == sorted(classifiers())


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", classifiers())
def test_prior_and_head_are_found_where_the_table_says(name: str) -> None:
    assert find(name).row() == documented()[name]
