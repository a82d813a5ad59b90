"""Which hosts run which tasks of a trial: the whole gang, or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coordinator.domain import Cluster
from nhop_models.contract import TaskId, TaskRole

Placement = Mapping[str, tuple[TaskId, ...]]
"""The tasks of each host; the chief's host comes first."""


@dataclass(frozen=True, slots=True)
class HostCapacity:
    """Slots of a host: all, those free now, and how many attempts were placed on it so far."""

    name: str
    slots: int
    free: int
    placed: int = 0


def why_never(hosts: Sequence[HostCapacity], cluster: Cluster) -> str | None:
    """Why no trial could ever be placed even if every slot were free, with the remedy; None: it can."""
    slots = sum(host.slots for host in hosts)
    if cluster.workers <= slots:
        return None
    listed = ", ".join(f"{host.name}: {host.slots}" for host in hosts)
    return (
        f"cluster.workers is {cluster.workers}, but the hosts have {slots} slots in all ({listed}), and each "
        f"worker takes one. Set cluster.workers to {slots} or less, or give the agents more slots (--slots)."
    )


def place(hosts: Sequence[HostCapacity], cluster: Cluster) -> Placement | None:
    """Places one trial on free slots, or None where it does not fit now.

    On one host where it fits, the least loaded first and, among equals, the one that was used
    least often; otherwise spread over as few hosts as possible. A worker takes one slot, a
    parameter server none; parameter servers stand beside the workers.
    """
    ordered = sorted(hosts, key=lambda host: (_load(host), host.placed))
    for host in ordered:
        if host.free >= cluster.workers:
            return {host.name: (*_tasks(TaskRole.PS, cluster.ps), *_tasks(TaskRole.WORKER, cluster.workers))}
    if sum(max(host.free, 0) for host in ordered) < cluster.workers:
        return None
    return _spread(sorted(ordered, key=lambda host: -host.free), cluster)


def _spread(hosts: Sequence[HostCapacity], cluster: Cluster) -> Placement:
    workers = _tasks(TaskRole.WORKER, cluster.workers)
    placed: dict[str, list[TaskId]] = {}
    begin = 0
    for host in hosts:
        if begin == len(workers) or host.free <= 0:
            break
        placed[host.name] = list(workers[begin : begin + host.free])
        begin += len(placed[host.name])
    names = list(placed)
    for ps in _tasks(TaskRole.PS, cluster.ps):
        placed[names[ps.index % len(names)]].append(ps)
    return {name: tuple(sorted(tasks)) for name, tasks in placed.items()}


def _load(host: HostCapacity) -> float:
    return (host.slots - host.free) / host.slots if host.slots else 1.0


def _tasks(role: TaskRole, number: int) -> tuple[TaskId, ...]:
    return tuple(TaskId(role, index) for index in range(number))
