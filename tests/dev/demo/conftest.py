import pytest

from nap_stream.demo.images import Splits, load_splits


@pytest.fixture(scope="session")
def splits() -> Splits:
    return load_splits(seed=3)
