"""Where the shared test data lies."""

import os
from pathlib import Path

import pytest

_DEFAULT = Path(__file__).parents[3] / "shared" / "data"


def shared_data(name: str) -> Path:
    """Give the path of a file of the shared data; skip the test where it is absent."""
    folder = Path(os.environ.get("NAP_STREAM_TEST_DATA", _DEFAULT))
    path = folder / name
    if not path.exists():
        pytest.skip(f"needs {path} (NAP_STREAM_TEST_DATA names the folder)")
    return path
