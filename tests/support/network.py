"""Two machines in this one, with links that a test cuts: packets vanish, and nothing is closed."""

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_NOBODY = "02:00:00:00:00:01"
"""A hardware address that no interface has: what is sent there is dropped without a word."""


@dataclass(frozen=True)
class Network:
    """A far machine, and three addresses of this one that it reaches.

    ``far`` is the far machine's own address. A command after ``prefix`` runs there: it has the
    files and processes of this machine, and no network but this one.
    """

    name: str
    head: str
    broker: str
    store: str
    far: str

    @property
    def prefix(self) -> tuple[str, ...]:
        return "ip", "netns", "exec", self.name

    @contextmanager
    def cut(self, address: str) -> Iterator[None]:
        """Nothing that the far machine sends reaches an address of this one."""
        link = (address, "dev", self.name)
        _ip("-n", self.name, "neigh", "replace", *link, "lladdr", _NOBODY, "nud", "permanent")
        try:
            yield
        finally:
            _ip("-n", self.name, "neigh", "del", *link)


def why_not() -> str | None:
    """What is missing here to have such a network; None where it can be had."""
    if shutil.which("ip") is None:
        return "needs ip, of iproute2"
    return None if os.geteuid() == 0 else "needs the right to make network namespaces"


@contextmanager
def two_machines() -> Iterator[Network]:
    """The network; both its ends are gone afterwards."""
    mark = uuid.uuid4()
    name, subnet = f"nap{mark.hex[:8]}", f"10.{200 + mark.int % 50}.{mark.int // 50 % 250}"
    made = Network(name, *(f"{subnet}.{number}" for number in (1, 2, 3, 9)))
    _ip("netns", "add", name)
    try:
        _ip("link", "add", f"{name}-h", "type", "veth", "peer", "name", name, "netns", name)
        for address in (made.head, made.broker, made.store):
            _ip("addr", "add", f"{address}/24", "dev", f"{name}-h")
        _ip("link", "set", f"{name}-h", "up")
        _ip("-n", name, "addr", "add", f"{made.far}/24", "dev", name)
        _ip("-n", name, "link", "set", name, "up")
        _ip("-n", name, "link", "set", "lo", "up")
        yield made
    finally:
        # The other end of the link goes with it.
        _ip("netns", "del", name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
