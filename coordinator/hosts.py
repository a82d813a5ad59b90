"""Agents to use: the hosts file, and whether what it lists can be used."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

from coordinator.domain import Cluster
from coordinator.errors import HostsError, UsageError
from coordinator.wording import some
from nhop._hosts_file import lines_of, split_address
from nhop._listening import is_local, is_loopback, is_wildcard
from nhop.security.client import Security

DEFAULT_PORT = 7001
LONGEST = 86_400.0
"""Seconds, of any limit of a HostPolicy."""

LONGEST_NAME = 253
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
NEEDS_TLS = "only loopback addresses and unix: sockets can be used without TLS"
LOCAL = Security(refusal=NEEDS_TLS)


@dataclass(frozen=True, slots=True)
class AgentAddress:
    """One agent; ``slots`` and ``gpus`` None: all that it has, ``name``: as in trials and messages.

    ``tls``: whether it is spoken to with TLS.
    """

    target: str
    slots: int | None = None
    gpus: int | None = None
    name: str = ""
    tls: bool = False

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.target)


class HostSource(Protocol):
    """What ``--hosts`` names; its text, as it is written there, stands for it in messages."""

    def read(self, *, refusal: str = NEEDS_TLS) -> tuple[AgentAddress, ...]:
        """The hosts that it lists now; it may block for some time.

        ``refusal`` as for ``parse_hosts``. Raises UsageError where the user has to change something,
        HostsError where there are no hosts now.
        """


@dataclass(frozen=True, slots=True)
class HostPolicy:
    """How a coordinator treats the hosts that it was given; times in seconds.

    ``wait``: how long a host that does not answer at the start is waited for; ``fewest``: go on with so
    many, and use the others once they answer. After ``lost`` without an answer a host is lost.
    ``source`` is what lists the hosts, and is read again on SIGHUP. ``security``: how hosts off this
    machine are spoken to.
    """

    wait: float = 60.0
    fewest: int | None = None
    lost: float = 90.0
    source: HostSource | None = None
    security: Security = LOCAL

    def check(self, agents: Sequence[AgentAddress] | None) -> None:
        """Raises UsageError where it fits no hosts, or not these; None: this machine alone is used."""
        for option, seconds in (("--wait-hosts", self.wait), ("--host-limit", self.lost)):
            if not 0 <= seconds <= LONGEST:  # which no NaN is
                raise UsageError(f"{option} {seconds:g}: must be from 0 to {LONGEST:g} seconds")
        if agents is None:
            if self.fewest is not None:
                raise UsageError("--min-hosts is for --hosts")
        elif self.fewest is not None and not 1 <= self.fewest <= len(agents):
            why = f"{self.source or 'hosts'} lists {len(agents)}" if self.fewest > 0 else "must be at least 1"
            raise UsageError(f"--min-hosts {self.fewest}: {why}")


def read_hosts(path: Path, *, refusal: str = NEEDS_TLS) -> tuple[AgentAddress, ...]:
    """Reads a hosts file; raises UsageError where it cannot be read, or as ``parse_hosts``."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{path}: is not UTF-8 text") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"{path}: the hosts file cannot be read: {reason}") from None
    return parse_hosts(text, str(path), refusal=refusal)


@dataclass(frozen=True, slots=True)
class Inventory:
    """What an agent says that its host has; ``incarnation`` changes at every start of the agent.

    ``quarantined`` names the GPUs that it does not lease now, and why. ``uptime`` is the agent's, in
    seconds; ``free_disk`` in bytes, of its state directory; ``clock_offset`` how many seconds its wall
    clock is ahead of ours; ``ports`` the first and last that tasks may listen on, at ``task_address``;
    ``certificate_left``: seconds until the agent's certificate ends, None without TLS;
    ``certificate_ends_soon``: it is time to issue a new one.
    """

    slots: int
    gpus: int
    incarnation: str
    quarantined: tuple[str, ...] = ()
    uptime: float = 0.0
    nhop_version: str = ""
    tensorflow_version: str = ""
    python_version: str = ""
    cpu_cores: int = 0
    free_disk: int = 0
    clock_offset: float = 0.0
    task_address: str = ""
    ports: tuple[int, int] = (0, 0)
    certificate_left: float | None = None
    certificate_ends_soon: bool = False


@dataclass(frozen=True, slots=True)
class Usable:
    """What studies may use of a host; ``quarantined`` and ``ports`` as in Inventory."""

    slots: int
    gpus: int = 0
    quarantined: tuple[str, ...] = ()
    ports: tuple[int, int] = (0, 0)


def parse_hosts(text: str, source: str, *, refusal: str = NEEDS_TLS) -> tuple[AgentAddress, ...]:
    """Reads a hosts file: ``host[:port] [slots=N] [gpus=N]`` or ``unix:/path`` a line, ``#`` comments.

    ``refusal``: why hosts other than this machine cannot be used; empty: they can. Raises UsageError with
    all problems at once, each with its line.
    """
    addresses: list[AgentAddress] = []
    problems: list[str] = []
    lines: dict[str, int] = {}
    refused: list[str] = []
    for number, words in lines_of(text):
        try:
            address = parse_line(words, refusal="")
        except ValueError as error:
            problems.append(f"{source}:{number}: {error}")
            continue
        first = lines.setdefault(same_agent(address.target), number)
        if first != number:
            problems.append(f"{source}:{number}: {address.target} is listed already, in line {first}")
            continue
        if refusal and not is_local(address.target):
            refused.append(f"{source}:{number}: {split_address(words[0])[0]}")
        addresses.append(address)
    if refused:
        others = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        problems.append(f"{refused[0]}{others}: {refusal}")
    if not addresses and not problems:
        problems.append(f"{source}: lists no host; write one 'host[:port] [slots=N] [gpus=N]' a line")
    if problems:
        raise UsageError("\n".join(problems))
    return tuple(addresses)


def parse_address(text: str, *, refusal: str = NEEDS_TLS, wildcard: bool = False) -> str:
    """The gRPC target of ``host[:port]`` (IPv6 in brackets) or ``unix:/path``.

    Raises ValueError for anything else, for hosts that are not this machine with ``refusal`` as the
    reason unless it is empty, and for the address that means every interface unless ``wildcard``.
    """
    if text.startswith("unix:"):
        if not text.removeprefix("unix:"):
            raise ValueError(f"{text!r} has no path; write unix:/path/to/socket")
        return text
    host, given = split_address(text)
    port = str(DEFAULT_PORT) if given is None else given
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise ValueError(f"the port of {text!r} must be a number from 1 to 65535")
    bare = host.strip("[]")
    if not is_loopback(bare):
        if refusal:
            raise ValueError(f"{host}: {refusal}")
        if not (wildcard and is_wildcard(bare)):
            _check_host(bare)
    if host != bare and ":" not in bare:
        raise ValueError(f"{host}: brackets are for IPv6 addresses; write {bare}")
    return f"{host}:{int(port)}"


def is_name(target: str) -> bool:
    """Whether a target has to be looked up by its name."""
    host = target.rpartition(":")[0]
    return not is_local(target) and not host.startswith("[") and not re.fullmatch(r"[0-9.]+", host)


def _check_host(host: str) -> None:
    """Raises ValueError for what can be no host's name or address."""
    no_host = f"{host} is no host's address: name the one at which its agent listens"
    if is_wildcard(host):
        raise ValueError(no_host)
    if ":" in host or re.fullmatch(r"[0-9.]+", host):
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            raise ValueError(f"{host} is not an IP address") from None
        if address.is_multicast:
            raise ValueError(no_host)
    elif len(host) > LONGEST_NAME or not all(map(_LABEL.fullmatch, host.removesuffix(".").split("."))):
        raise ValueError(f"{host!r} is neither the name nor the address of a host")


def parse_line(words: Sequence[str], *, refusal: str) -> AgentAddress:
    """Reads the words of one line of a hosts file; raises ValueError."""
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
    return AgentAddress(parse_address(words[0], refusal=refusal), options.get("slots"), options.get("gpus"))


def same_agent(target: str) -> str:
    """One spelling for all targets of the same agent, as far as they tell."""
    if target.startswith("unix:"):
        return target
    host, _, port = target.rpartition(":")
    host = host.lower().removesuffix(".")
    if host == "localhost":
        host = "127.0.0.1"
    elif host.startswith("["):
        host = ipaddress.ip_address(host.strip("[]")).compressed
    return f"{host}:{port}"


def asks_too_much(address: AgentAddress, inventory: Inventory) -> tuple[str, ...]:
    """What the hosts file asks of a host beyond what there is."""
    problems = []
    if address.slots is not None and address.slots > inventory.slots:
        problems.append(
            f"{address.name}: slots={address.slots}, but its agent has {inventory.slots}; "
            f"lower it, or start the agent with --slots {address.slots}"
        )
    if address.gpus is not None and address.gpus > inventory.gpus:
        problems.append(
            f"{address.name}: gpus={address.gpus}, but its agent has {inventory.gpus}; "
            "lower it, or see what nvidia-smi says there, and start its agent again"
        )
    return tuple(problems)


def usable(inventories: Mapping[AgentAddress, Inventory]) -> dict[str, Usable]:
    """What to use of each host.

    Raises HostsError where the hosts file asks for more than there is, or names an agent twice.
    """
    problems = [problem for a, i in inventories.items() for problem in asks_too_much(a, i)]
    names: dict[str, str] = {}
    for address, inventory in inventories.items():
        first = names.setdefault(inventory.incarnation, address.name)
        if first != address.name:
            problems.append(f"{address.name}: is the same agent as {first}; list it once")
    if problems:
        raise HostsError("\n".join(problems))
    return {
        a.name: Usable(
            i.slots if a.slots is None else a.slots,
            i.gpus if a.gpus is None else a.gpus,
            i.quarantined,
            i.ports,
        )
        for a, i in inventories.items()
    }


def usable_slots(hosts: Mapping[str, Usable], cluster: Cluster) -> dict[str, int]:
    """Slots of each host for workers of such trials: no more than its GPUs carry, if they need any.

    Raises HostsError where the GPUs or the ports are too few for a trial.
    """
    slots = {name: host.slots for name, host in hosts.items()}
    if cluster.ps:
        _check_ports(hosts, cluster)
    carried = {name: slots_for(host, cluster) for name, host in hosts.items()}
    if sum(carried.values()) < cluster.workers <= sum(slots.values()):
        wanted = f"gpus_per_worker is {cluster.gpus_per_worker:.3g}"
        listed = some(f"{name}: {host.gpus}" for name, host in hosts.items())
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


def slots_for(host: Usable, cluster: Cluster) -> int:
    """Slots of a host for workers of such trials: no more than its GPUs carry, if they need any."""
    if not cluster.gpus_per_worker:
        return host.slots
    return min(host.slots, workers_on(host.gpus, cluster.gpus_per_worker))


def _check_ports(hosts: Mapping[str, Usable], cluster: Cluster) -> None:
    tasks = cluster.ps + cluster.workers
    ranges = {name: host.ports for name, host in hosts.items() if host.ports[0]}
    ports = sum(last - first + 1 for first, last in ranges.values())
    if len(ranges) < len(hosts) or ports >= tasks:
        return
    listed = some(f"{name}: {first}-{last}" for name, (first, last) in ranges.items())
    raise HostsError(
        f"a trial has {tasks} tasks (cluster: {cluster.ps} ps, {cluster.workers} workers), each with a port "
        f"of its own, but the hosts have {ports} ports for tasks in all ({listed}). Start the agents with a "
        "larger --port-range, or lower cluster.workers."
    )


def workers_on(gpus: int, gpus_per_worker: float) -> int:
    """How many workers so many GPUs carry; a share is exact, as on the agent's side: 1/3 fits three times."""
    each = Fraction(gpus_per_worker).limit_denominator(1000)
    return int(gpus // each) if each >= 1 else gpus * int(1 // each)
