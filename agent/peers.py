"""Which addresses a firewall lets in: of the hosts that a hosts file lists, and of further ones by name."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from agent.config import UsageError
from nhop._hosts_file import UNIX, lines_of, split_address
from nhop._listening import is_loopback

Address = ipaddress.IPv4Network | ipaddress.IPv6Network
"""A network, or a single address as a network of that one."""
RESOLVER_FILE = Path("/etc/resolv.conf")


@dataclass(frozen=True, slots=True)
class Peers:
    """``hosts`` are those of the studies, ``coordinators`` may reach the agent beside them."""

    hosts: tuple[Address, ...] = ()
    coordinators: tuple[Address, ...] = ()


def find_peers(hosts: Path | None, coordinators: Iterable[str]) -> Peers:
    """Looks up all names now; UsageError where the file cannot be read, or a name has no address."""
    found: list[Address] = []
    if hosts is not None:
        try:
            text = hosts.read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
            raise UsageError(f"{hosts}: the hosts file cannot be read: {reason}") from error
        for number, words in lines_of(text):
            found += _of_line(words[0], f"{hosts}:{number}")
        if not found:
            raise UsageError(f"{hosts}: lists no host but this machine: there is nobody to let in")
    callers = [address for text in coordinators for address in addresses_of(text, "--coordinator")]
    return Peers(_sorted(found), _sorted(callers))


def _of_line(word: str, where: str) -> tuple[Address, ...]:
    if word.startswith(UNIX):
        return ()
    try:
        host, _ = split_address(word)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None
    bare = host.strip("[]")
    return () if is_loopback(bare) else addresses_of(bare, where)


def addresses_of(text: str, where: str) -> tuple[Address, ...]:
    """The addresses of a name, or the address or network that is written; UsageError behind ``where``."""
    try:
        return (ipaddress.ip_network(text.strip("[]")),)
    except ValueError as error:
        if "has host bits set" in str(error):
            raise UsageError(f"{where}: {text} is no network: {error}") from None
    try:
        found = socket.getaddrinfo(text, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no host's name"
        raise UsageError(f"{where}: {text} has no address: {reason}; write its address instead") from None
    return tuple({ipaddress.ip_network(str(entry[4][0]).partition("%")[0]) for entry in found})


def resolvers(text: str) -> tuple[Address, ...]:
    """The name servers of a ``resolv.conf``."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["nameserver"] and len(words) > 1:
            try:
                found.append(ipaddress.ip_network(words[1].partition("%")[0]))
            except ValueError:
                continue
    return _sorted(found)


def _sorted(addresses: Iterable[Address]) -> tuple[Address, ...]:
    return tuple(sorted(set(addresses), key=lambda a: (a.version, a)))


def written(address: Address) -> str:
    """As nftables and systemd read it: a single address without its length."""
    return str(address.network_address) if address.num_addresses == 1 else str(address)
