"""Whether hosts can do what is wanted of them, before the first trial: what is wrong, what is only odd."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field

from coordinator.domain import Cluster
from coordinator.hosts import AgentAddress, Inventory
from coordinator.wording import some

LEAST_DISK = 100 << 20
LITTLE_DISK = 1 << 30
"""Bytes of free disk below which a host is refused, and below which the user is warned."""

CLOCK_SLACK = 2.0
"""Seconds that the clocks of two machines may differ before the user is told."""

SHOWN = 5
"""Pairs of hosts that are named; of the others only the number."""

ALL_IN_USE = "all in use"
"""In the place of a reason: the target has no port free, so nothing could be tried."""

Reach = Mapping[tuple[str, str], str]
"""Why the first host does not reach the task ports of the second; empty where it does."""


@dataclass(frozen=True, slots=True)
class Findings:
    """Sentences for the user: ``problems`` forbid the study, ``warnings`` do not."""

    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __add__(self, other: Findings) -> Findings:
        return Findings(self.problems + other.problems, self.warnings + other.warnings)


@dataclass(frozen=True, slots=True)
class HostRow:
    """A host as the table shows it; ``inventory`` None: it does not answer, ``state`` says why.

    ``ports`` says whether it and the others reach each other's task ports; empty: not asked.
    """

    name: str
    slots: int = 0
    inventory: Inventory | None = None
    state: str = "ready"
    ports: str = ""


@dataclass(frozen=True, slots=True)
class Preflight:
    """What was found of all hosts."""

    rows: tuple[HostRow, ...]
    findings: Findings = field(default_factory=Findings)


def examine(name: str, inventory: Inventory, version: str) -> Findings:
    """What one host's inventory says; ``version`` is ours, empty: not known."""
    problems, warnings = [], []
    if version and inventory.nhop_version and inventory.nhop_version != version:
        problems.append(
            f"{name}: its agent is of nhop {inventory.nhop_version}, this coordinator of {version}; install "
            "the same version on both, and start the agent again"
        )
    megabytes = inventory.free_disk >> 20
    if inventory.free_disk < LEAST_DISK:
        problems.append(
            f"{name}: {megabytes} MB of disk are free where its agent keeps its state; free some, or start "
            "the agent with another --state-dir"
        )
    elif inventory.free_disk < LITTLE_DISK:
        warnings.append(f"{name}: only {megabytes} MB of disk are free where its agent keeps its state")
    if abs(inventory.clock_offset) > CLOCK_SLACK:
        warnings.append(
            f"{name}: its clock is {abs(inventory.clock_offset):.0f} s "
            f"{'ahead of' if inventory.clock_offset > 0 else 'behind'} this machine's: times of its reports "
            "are off by as much, nothing else is; does it run an NTP client?"
        )
    if inventory.certificate_left is not None and inventory.certificate_ends_soon:
        warnings.append(
            f"{name}: its certificate ends in {max(inventory.certificate_left / 86_400, 0):.1f} days; "
            "issue it again (nhop-coordinator certs issue) and copy it there: no restart is needed"
        )
    return Findings(tuple(problems), tuple(warnings))


def may_spread(cluster: Cluster | None) -> bool:
    """Whether a trial may have tasks on several hosts that talk to each other; None: it is not known."""
    return cluster is None or (cluster.ps > 0 and cluster.workers > 1)


def compare(inventories: Mapping[str, Inventory], cluster: Cluster | None) -> Findings:
    """What does not fit together between hosts, for trials of ``cluster`` (None: not known)."""
    problems, warnings = [], []
    frameworks = _groups(inventories, lambda inventory: inventory.tensorflow_version)
    if len(frameworks) > 1:
        text = f"the hosts have different versions of TensorFlow ({_listed(frameworks)})"
        series = {version.rpartition(".")[0] for version in frameworks}
        if len(series) > 1 and cluster is not None and may_spread(cluster):
            problems.append(
                f"{text}: tasks of one trial on several of them may not understand each other; install the "
                "same one everywhere"
            )
        else:
            warnings.append(f"{text}: losses may differ by host")
    pythons = _groups(inventories, lambda inventory: inventory.python_version.rpartition(".")[0])
    if len(pythons) > 1:
        warnings.append(
            f"the hosts have different versions of Python ({_listed(pythons)}): your code has to run on each"
        )
    return Findings(tuple(problems), tuple(warnings))


def judge_reach(reach: Reach, inventories: Mapping[str, Inventory], cluster: Cluster | None) -> Findings:
    """What it means that hosts do not reach each other; a problem where trials may be spread over them."""
    if not may_spread(cluster):
        return Findings()
    full = sorted({target for (_, target), why in reach.items() if why == ALL_IN_USE})
    findings = Findings(warnings=tuple(_say_full(name, inventories[name]) for name in full))
    failed = [(pair, why) for pair, why in reach.items() if why not in ("", ALL_IN_USE)]
    if not failed:
        return findings
    lines = []
    for (origin, target), why in failed[:SHOWN]:
        ports = "-".join(map(str, inventories[target].ports))
        address = inventories[target].task_address
        lines.append(f"{origin} does not reach the task ports of {target} ({address}, TCP {ports}): {why}")
    if len(failed) > SHOWN:
        lines.append(f"and {len(failed) - SHOWN} more pairs of hosts")
    remedy = (
        "open these ports between the hosts (nhop-agent --port-range chooses them), let the agent say by "
        "which address others reach it (nhop-agent --advertise), or list only hosts that reach each other"
    )
    text = "\n".join([*lines[:-1], f"{lines[-1]}; {remedy}"])
    return findings + (Findings(problems=(text,)) if cluster is not None else Findings(warnings=(text,)))


def _say_full(name: str, found: Inventory) -> str:
    ports = "-".join(map(str, found.ports))
    return (
        f"{name}: all task ports ({ports}) are in use now, by trials or other programs: whether other hosts "
        "reach them could not be tried, and trials have to wait for them (nhop-agent --port-range)"
    )


def port_states(names: Sequence[str], reach: Reach) -> dict[str, str]:
    """How each host and its neighbours reach each other, in a word or two."""
    if not reach:
        return dict.fromkeys(names, "")
    full = {target for (_, target), why in reach.items() if why == ALL_IN_USE}
    bad: dict[str, int] = dict.fromkeys(names, 0)
    for (_, target), why in reach.items():
        bad[target] += bool(why)
    others = len(names) - 1
    states = {name: f"not by {n} of {others}" if n else "reached" for name, n in bad.items()}
    return {name: ALL_IN_USE if name in full else state for name, state in states.items()}


def rows_of(
    addresses: Sequence[AgentAddress],
    inventories: Mapping[str, Inventory],
    unreachable: Mapping[str, str],
    reach: Reach,
    refused: Container[str] = (),
) -> tuple[HostRow, ...]:
    """The table, in the order of the hosts file; ``refused`` are hosts that have problems of their own."""
    ports = port_states(list(inventories), reach)
    rows = []
    for address in addresses:
        inventory = inventories.get(address.name)
        if inventory is None:
            state = unreachable.get(address.name, "no answer")
            rows.append(HostRow(address.name, state=state))
        else:
            slots = inventory.slots if address.slots is None else address.slots
            state = "ready" if inventory.tensorflow_version else "TensorFlow is still loading"
            if address.name in refused:
                state = "cannot be used"
            rows.append(HostRow(address.name, slots, inventory, state, ports[address.name]))
    return tuple(rows)


def _groups(inventories: Mapping[str, Inventory], key: Callable[[Inventory], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, inventory in inventories.items():
        if value := key(inventory):
            groups.setdefault(value, []).append(name)
    return groups


def _listed(groups: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{value}: {some(names)}" for value, names in groups.items())
