"""Which hosts run which tasks of a trial: the whole gang, or nothing."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from coordinator.domain import Cluster, PlacementRule
from coordinator.errors import HostsError
from coordinator.hosts import Usable, usable_slots
from coordinator.wording import some
from nhop_models.contract import TaskId, TaskRole

Placement = Mapping[str, tuple[TaskId, ...]]
"""The tasks of each host; the chief's host comes first."""


class Room(Protocol):
    """What placement asks of a host: its slots in all and free now, and the attempts placed on it so far."""

    @property
    def name(self) -> str:
        """What the host is called."""

    @property
    def slots(self) -> int:
        """All its slots."""

    @property
    def free(self) -> int:
        """Those that can be leased now; 0 or less where it is not to be asked."""

    @property
    def placed(self) -> int:
        """How many attempts were placed on it so far."""


@dataclass(frozen=True, slots=True)
class HostCapacity:
    """A host as it is now: see Room."""

    name: str
    slots: int
    free: int
    placed: int = 0


def why_never(hosts: Sequence[HostCapacity], cluster: Cluster) -> str | None:
    """Why no trial could ever be placed even if every slot were free, with the remedy; None: it can."""
    slots = sum(host.slots for host in hosts)
    if cluster.workers <= slots:
        return None
    listed = some(f"{host.name}: {host.slots}" for host in hosts)
    if not slots:
        where = listed or "there is no host"
        return f"no slot is left for a worker ({where}). Start agents again, or add hosts."
    return (
        f"cluster.workers is {cluster.workers}, but the hosts have {slots} slots in all ({listed}), and each "
        f"worker takes one. Set cluster.workers to {slots} or less, or give the agents more slots (--slots)."
    )


def place(
    hosts: Iterable[Room], cluster: Cluster, rule: PlacementRule = PlacementRule.PACK
) -> Placement | None:
    """Places one trial on free slots, or None where it does not fit now.

    A worker takes one slot, a parameter server none. Among hosts the least loaded comes first (the
    one with the largest free share of its slots), among equals the one that was used least often,
    then the one that stands first.

    PACK: on one host where it fits, otherwise on as few as possible; parameter servers stand beside
    the workers. SPREAD: the workers go around as many hosts as possible, one at a time; each
    parameter server goes where the fewest tasks of the trial are, to a host without any where one
    has free slots.
    """
    usable = [host for host in hosts if host.free > 0]
    if sum(host.free for host in usable) < cluster.workers:
        return None
    if rule is PlacementRule.SPREAD:
        return _spread(usable, cluster)
    whole = min((host for host in usable if host.free >= cluster.workers), key=_order, default=None)
    if whole is not None:
        return {whole.name: (*_tasks(TaskRole.PS, cluster.ps), *_tasks(TaskRole.WORKER, cluster.workers))}
    return _pack(usable, cluster)


def _pack(hosts: Sequence[Room], cluster: Cluster) -> Placement:
    """Over as few hosts as possible: those with the most free slots."""
    workers = _tasks(TaskRole.WORKER, cluster.workers)
    placed: dict[str, list[TaskId]] = {}
    begin = 0
    for host in sorted(hosts, key=lambda host: (-host.free, *_order(host))):
        if begin == len(workers):
            break
        placed[host.name] = list(workers[begin : begin + host.free])
        begin += len(placed[host.name])
    names = list(placed)
    for ps in _tasks(TaskRole.PS, cluster.ps):
        placed[names[ps.index % len(names)]].append(ps)
    return _sorted(placed)


def _spread(hosts: Sequence[Room], cluster: Cluster) -> Placement:
    # No task could go further down the list: those above are empty, or have fewer tasks, as well.
    hosts = heapq.nsmallest(cluster.workers + cluster.ps, hosts, key=_order)
    left = {host.name: host.free for host in hosts}
    placed: dict[str, list[TaskId]] = {host.name: [] for host in hosts}
    workers = iter(_tasks(TaskRole.WORKER, cluster.workers))
    worker = next(workers, None)
    while worker is not None:
        for name, tasks in placed.items():
            if worker is None:
                break
            if left[name]:
                left[name] -= 1
                tasks.append(worker)
                worker = next(workers, None)
    for ps in _tasks(TaskRole.PS, cluster.ps):
        name = min(placed, key=lambda name: (len(placed[name]), -left[name]))
        placed[name].append(ps)
        left[name] -= 1  # it takes no slot, but a part of the host's cores
    return _sorted(placed)


def _order(host: Room) -> tuple[float, int]:
    return (host.slots - host.free) / host.slots, host.placed


def _tasks(role: TaskRole, number: int) -> tuple[TaskId, ...]:
    return tuple(TaskId(role, index) for index in range(number))


def _sorted(placed: Mapping[str, Sequence[TaskId]]) -> Placement:
    return {name: tuple(sorted(tasks)) for name, tasks in placed.items() if tasks}


def check_hosts(hosts: Mapping[str, Usable], cluster: Cluster | None) -> None:
    """Raises HostsError where no trial of ``cluster`` could ever be placed on these hosts."""
    if cluster is not None:
        check_cluster(usable_slots(hosts, cluster), cluster)


def check_cluster(slots: Mapping[str, int], cluster: Cluster) -> None:
    """Raises HostsError where no trial of ``cluster`` could ever be placed on these slots."""
    reason = why_never([HostCapacity(name, number, number) for name, number in slots.items()], cluster)
    if reason is not None:
        raise HostsError(reason)
