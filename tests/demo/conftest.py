import pytest

from nap_stream.demo.digits import Splits, load_splits


@pytest.fixture(scope="session")
def splits() -> Splits:
    return load_splits(seed=3)
