"""Rules for nftables by which only the hosts of the studies reach task ports. Pure: text from values.

TensorFlow's servers, which tasks run, ask nobody who they are: whoever reaches such a port runs code.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agent.peers import Address, Peers, written

TABLE = "nhop"
CONNECTIONS = 64
"""Connections that one peer may have with the agent's port at a time: an address, of IPv6 a /64 network."""
_SUBNET = "ffff:ffff:ffff:ffff::"


@dataclass(frozen=True, slots=True)
class Ports:
    """The agent's port, None where it listens on a Unix socket, and the first and last one of tasks."""

    agent: int | None
    tasks: tuple[int, int]


def rules(ports: Ports, peers: Peers, connections: int = CONNECTIONS) -> str:
    """The table, in the place of an earlier one; all of it or nothing (``nft -f``).

    What comes over loopback or answers this machine is let in, and what is aimed at other ports is not
    looked at. Who may not reach a port does not so by a connection that is open already, either. Without
    coordinators everybody may reach the agent's port.
    """
    first, last = ports.tasks
    task_ports = f"tcp dport {first}-{last}" if first != last else f"tcp dport {first}"
    sets = [
        *_set("hosts4", "ipv4_addr", _of_version(4, peers.hosts)),
        *_set("hosts6", "ipv6_addr", _of_version(6, peers.hosts)),
    ]
    chain = [
        'iifname "lo" accept',
        "ct state established,related ct direction reply accept",
        f"{task_ports} ip saddr @hosts4 accept",
        f"{task_ports} ip6 saddr @hosts6 accept",
        f"{task_ports} drop",
    ]
    if ports.agent is not None:
        sets += [*_counted("of4", "ipv4_addr"), *_counted("of6", "ipv6_addr")]
        if peers.coordinators:
            callers = (*peers.hosts, *peers.coordinators)
            sets += _set("callers4", "ipv4_addr", _of_version(4, callers))
            sets += _set("callers6", "ipv6_addr", _of_version(6, callers))
            chain.append(f"tcp dport {ports.agent} ip saddr != @callers4 drop")
            chain.append(f"tcp dport {ports.agent} ip6 saddr != @callers6 drop")
        chain += [
            "ct state established accept",
            f"tcp dport {ports.agent} add @of4 {{ ip saddr ct count over {connections} }} drop",
            f"tcp dport {ports.agent} add @of6 {{ ip6 saddr & {_SUBNET} ct count over {connections} }} drop",
        ]
    lines = [
        "# By `nhop-agent firewall`. `nft -f FILE` loads it, `nft delete table inet nhop` removes it.",
        f"table inet {TABLE}",
        f"delete table inet {TABLE}",
        f"table inet {TABLE} {{",
        *_indented(sets),
        "    chain input {",
        "        type filter hook input priority filter; policy accept;",
        *_indented(_indented(chain)),
        "    }",
        "}",
    ]
    return "".join(f"{line}\n" for line in lines)


def _of_version(version: int, addresses: Iterable[Address]) -> list[str]:
    return [written(address) for address in addresses if address.version == version]


def _set(name: str, kind: str, elements: list[str]) -> list[str]:
    listed = [f"    elements = {{ {', '.join(elements)} }}"] if elements else []
    return [f"set {name} {{", f"    type {kind}", "    flags interval", "    auto-merge", *listed, "}"]


def _counted(name: str, kind: str) -> list[str]:
    return [f"set {name} {{", f"    type {kind}", "    flags dynamic", "    size 65535", "}"]


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"    {line}" for line in lines]
