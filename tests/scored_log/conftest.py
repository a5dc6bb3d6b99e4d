from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests.support.s3 import BUCKET, FaultProxy, environment, fault_proxy, s3_server


@pytest.fixture(scope="session")
def s3_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with s3_server(tmp_path_factory.mktemp("s3")) as port:
        yield port


@pytest.fixture
def s3(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """The proxy before the S3 server; this process's environment leads to it."""
    with fault_proxy(s3_port) as proxy:
        for name, value in environment(proxy.endpoint).items():
            monkeypatch.setenv(name, value)
        yield proxy


@pytest.fixture
def s3_root(s3: FaultProxy) -> str:
    """The root of a log of its own."""
    assert s3.port
    return f"s3://{BUCKET}/logs/{uuid4().hex}"
