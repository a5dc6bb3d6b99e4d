from collections.abc import Iterator

import pytest

from tests.support.torch_threads import one_torch_thread


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with one_torch_thread():
        yield
