"""Agents to use: the hosts file, and whether what it lists can be used."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from coordinator.domain import Cluster
from coordinator.errors import HostsError, UsageError

DEFAULT_PORT = 7001
LOOPBACK = ("localhost", "127.0.0.1", "::1")
NEEDS_TLS = (
    "only loopback addresses and unix: sockets can be used: other hosts need TLS, which this version does "
    "not have. An SSH tunnel to a loopback port is a way until then"
)


@dataclass(frozen=True, slots=True)
class AgentAddress:
    """One agent; ``slots`` and ``gpus`` None: all that it has, ``name``: as in trials and messages."""

    target: str
    slots: int | None = None
    gpus: int | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.target)


@dataclass(frozen=True, slots=True)
class Inventory:
    """What an agent says that its host has; ``incarnation`` changes at every start of the agent.

    ``quarantined`` names the GPUs that it does not lease now, and why.
    """

    slots: int
    gpus: int
    incarnation: str
    quarantined: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Usable:
    """What studies may use of a host; ``quarantined`` as in Inventory."""

    slots: int
    gpus: int = 0
    quarantined: tuple[str, ...] = ()


def parse_hosts(text: str, source: str) -> tuple[AgentAddress, ...]:
    """Reads a hosts file: ``host[:port] [slots=N] [gpus=N]`` or ``unix:/path`` a line, ``#`` comments.

    Raises UsageError with all problems at once, each with its line.
    """
    addresses: list[AgentAddress] = []
    problems: list[str] = []
    lines: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = re.split(r"(?:^|\s)#", line, maxsplit=1)[0].split()
        if not words:
            continue
        try:
            address = _parse_line(words)
        except ValueError as error:
            problems.append(f"{source}:{number}: {error}")
            continue
        first = lines.setdefault(_same(address.target), number)
        if first != number:
            problems.append(f"{source}:{number}: {address.target} is listed already, in line {first}")
            continue
        addresses.append(address)
    if not addresses and not problems:
        problems.append(f"{source}: lists no host; write one 'host[:port] [slots=N] [gpus=N]' a line")
    if problems:
        raise UsageError("\n".join(problems))
    return tuple(addresses)


def parse_address(text: str) -> str:
    """The gRPC target of ``host[:port]`` (IPv6 in brackets) or ``unix:/path``.

    Raises ValueError for anything else, and for hosts that are not this machine.
    """
    if text.startswith("unix:"):
        if not text.removeprefix("unix:"):
            raise ValueError(f"{text!r} has no path; write unix:/path/to/socket")
        return text
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(?::(.*))?", text)
    if match is None:
        raise ValueError(f"{text!r} is not host[:port]; an IPv6 address is written in brackets: [::1]:7001")
    host, port = match[1], match[2] if match[2] is not None else str(DEFAULT_PORT)
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise ValueError(f"the port of {text!r} must be a number from 1 to 65535")
    if host.strip("[]").lower() not in LOOPBACK:
        raise ValueError(f"{host}: {NEEDS_TLS}")
    return f"{host}:{int(port)}"


def _parse_line(words: Sequence[str]) -> AgentAddress:
    options: dict[str, int] = {}
    for word in words[1:]:
        key, _, value = word.partition("=")
        if key not in ("slots", "gpus"):
            raise ValueError(f"unknown word {word!r}; a line is 'host[:port] [slots=N] [gpus=N]'")
        if key in options:
            raise ValueError(f"{key} is given twice")
        least = 1 if key == "slots" else 0
        if not re.fullmatch(r"[0-9]{1,6}", value) or int(value) < least:
            raise ValueError(f"{key} must be a whole number, at least {least}, not {value!r}")
        options[key] = int(value)
    return AgentAddress(parse_address(words[0]), options.get("slots"), options.get("gpus"))


def _same(target: str) -> str:
    """One spelling for all names of the same agent."""
    host, _, port = target.rpartition(":")
    return target if target.startswith("unix:") else f"{LOOPBACK[0] if _is_ipv4(host) else host}:{port}"


def _is_ipv4(host: str) -> bool:
    return host.lower() in ("localhost", "127.0.0.1")


def usable(inventories: Mapping[AgentAddress, Inventory]) -> dict[str, Usable]:
    """What to use of each host.

    Raises HostsError where the hosts file asks for more than there is, or names an agent twice.
    """
    problems = []
    for address, inventory in inventories.items():
        if address.slots is not None and address.slots > inventory.slots:
            problems.append(
                f"{address.name}: slots={address.slots}, but its agent has {inventory.slots}; "
                f"lower it, or start the agent with --slots {address.slots}"
            )
        if address.gpus is not None and address.gpus > inventory.gpus:
            problems.append(f"{address.name}: gpus={address.gpus}, but its agent has {inventory.gpus}")
    names: dict[str, str] = {}
    for address, inventory in inventories.items():
        first = names.setdefault(inventory.incarnation, address.name)
        if first != address.name:
            problems.append(f"{address.name}: is the same agent as {first}; list it once")
    if problems:
        raise HostsError("\n".join(problems))
    return {
        a.name: Usable(
            i.slots if a.slots is None else a.slots, i.gpus if a.gpus is None else a.gpus, i.quarantined
        )
        for a, i in inventories.items()
    }


def usable_slots(hosts: Mapping[str, Usable], cluster: Cluster) -> dict[str, int]:
    """Slots of each host for workers of such trials: no more than its GPUs carry, if they need any.

    Raises HostsError where the GPUs are too few for a trial.
    """
    slots = {name: host.slots for name, host in hosts.items()}
    if not cluster.gpus_per_worker:
        return slots
    carried = {
        name: min(host.slots, workers_on(host.gpus, cluster.gpus_per_worker)) for name, host in hosts.items()
    }
    if sum(carried.values()) < cluster.workers <= sum(slots.values()):
        wanted = f"gpus_per_worker is {cluster.gpus_per_worker:.3g}"
        listed = ", ".join(f"{name}: {host.gpus}" for name, host in hosts.items())
        if not any(host.gpus for host in hosts.values()):
            raise HostsError(
                f"{wanted}, but the hosts have no GPU ({listed}). Leave num_gpus and gpus_per_worker out to "
                "train on CPUs; where a host should have one, see what nvidia-smi says there, and start its "
                "agent again."
            )
        raise HostsError(
            f"{wanted}, but the GPUs of the hosts ({listed}) carry {sum(carried.values())} of the "
            f"{cluster.workers} workers of a trial. Lower cluster.workers or gpus_per_worker, or add hosts."
        )
    return carried


def workers_on(gpus: int, gpus_per_worker: float) -> int:
    """How many workers so many GPUs carry; a share is exact, as on the agent's side: 1/3 fits three times."""
    each = Fraction(gpus_per_worker).limit_denominator(1000)
    return int(gpus // each) if each >= 1 else gpus * int(1 // each)
