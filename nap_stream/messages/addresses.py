"""Which hosts and addresses may be asked: a reference comes from whoever can write to the topic.

A host must be named in the settings, and so must the network of one that leads to an address which
is not public: whoever holds a name could point it at the machines behind the firewall, or at the
service that hands out a cloud machine's credentials. A name is looked up once, and the address that
was checked is the one that is connected to.
"""

import socket
from collections.abc import Callable, Iterator, Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Final

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolve = Callable[[str, int], Sequence[str]]
"""A host and a port → its addresses. Raises OSError where there are none."""

_METADATA: Final = frozenset(
    map(
        ip_address,
        # AWS and most others, AWS by IPv6, Alibaba, Azure, Oracle.
        (
            "169.254.169.254",
            "fd00:ec2::254",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
        ),
    )
)
_NAT64: Final = ip_network("64:ff9b::/96")
_UNICAST: Final = ip_network("2000::/3")
"""All that is public of IPv6. Beside it lie forms of IPv4 addresses, and site-local ones."""


def resolve_host(host: str, port: int) -> Sequence[str]:
    """Look a host up by the system's means."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class AllowedHosts:
    """The hosts and networks of the settings.

    Args:
        hosts: Names or addresses, in lower case, each with a port or for 80 and 443.
        networks: Networks that are not public in which they may lie.
        resolve: Looks hosts up.
    """

    def __init__(
        self, hosts: Sequence[str], networks: Sequence[Network], resolve: Resolve = resolve_host
    ) -> None:
        self._hosts, self._networks, self._resolve = frozenset(hosts), tuple(networks), resolve

    def allows(self, host: str, port: int, *, is_default_port: bool) -> bool:
        """Whether a host may be asked at a port; the host as it is looked up, in lower case."""
        return f"{host}:{port}" in self._hosts or (is_default_port and host in self._hosts)

    def addresses(self, host: str, port: int) -> list[str]:
        """The addresses of a host that may be connected to: none where all are refused.

        Raises:
            OSError: The host is not known.
        """
        literal = _address(host.strip("[]"))
        if literal is not None:
            return [str(literal)]
        found = [_address(text) for text in self._resolve(host, port)]
        return [str(one) for one in found if one is not None and self._may_reach(one)]

    def _may_reach(self, address: Address) -> bool:
        return all(self._may_reach_plain(form) for form in _forms(address))

    def _may_reach_plain(self, address: Address) -> bool:
        if address in _METADATA:
            return False
        is_unicast = address.version == 4 or address in _UNICAST  # noqa: PLR2004
        if address.is_global and is_unicast and not address.is_multicast:
            return True
        return any(
            address.version == network.version
            and address in network
            # A network of everything must not mean the addresses of one machine's own services.
            and (network.is_link_local or not address.is_link_local)
            for network in self._networks
        )


def _address(text: str) -> Address | None:
    try:
        return ip_address(text.partition("%")[0])
    except ValueError:
        return None


def _forms(address: Address) -> Iterator[Address]:
    """An address, and those that are reached through it."""
    if isinstance(address, IPv4Address):
        yield address
    elif address.ipv4_mapped is not None:
        yield address.ipv4_mapped
    elif address in _NAT64:
        yield IPv4Address(int(address) & 0xFFFFFFFF)
    else:
        yield address
        if address.sixtofour is not None:
            yield address.sixtofour
        if address.teredo is not None:
            yield address.teredo[1]
