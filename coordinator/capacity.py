"""What a study knows about its hosts: slots, who holds them, and whom not to ask now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from coordinator.domain import AttemptId, Cluster
from coordinator.placement import HostCapacity, Placement, place, why_never
from nhop_models.contract import TaskRole


@dataclass(slots=True)
class _Host:
    slots: int
    held: dict[AttemptId, int] = field(default_factory=dict)
    abandoned: set[AttemptId] = field(default_factory=set)
    placed: int = 0
    refusals: int = 0
    refusing: bool = False
    silent: bool = False
    lost: bool = False

    @property
    def usable(self) -> int:
        """All slots but those of attempts that were given up and may still run."""
        return self.slots - sum(self.held.get(attempt, 0) for attempt in self.abandoned)


class Capacity:
    """Slots of all hosts, as far as this study's own attempts and the hosts' refusals tell."""

    def __init__(self, slots: Mapping[str, int], cluster: Cluster) -> None:
        self._hosts = {name: _Host(number) for name, number in slots.items()}
        self._cluster = cluster
        self.share: int | None = None
        self.crowded = False

    def place(self) -> Placement | None:
        """Places one more trial, or None where there is no room now."""
        if self.share is not None:
            used = self.used
            if used and used + self._cluster.workers > self.share:
                return None
        return place(self._capacities(), self._cluster)

    @property
    def used(self) -> int:
        """Slots held on all hosts together."""
        return sum(sum(host.held.values()) for host in self._hosts.values())

    def why_never(self) -> str | None:
        """Why no trial could be placed, even if all ended that is not given up: None where one could."""
        usable = {name: host.usable for name, host in self._hosts.items() if not host.lost}
        return why_never([HostCapacity(name, slots, slots) for name, slots in usable.items()], self._cluster)

    def hold(self, attempt: AttemptId, placement: Placement) -> None:
        """Takes the slots of an attempt."""
        for name, tasks in placement.items():
            host = self._hosts[name]
            host.held[attempt] = sum(task.role is TaskRole.WORKER for task in tasks)
            host.placed += 1

    def release(self, attempt: AttemptId, name: str) -> bool:
        """Gives the attempt's slots on a host back, which may be asked again; whether there were any."""
        host = self._hosts[name]
        host.abandoned.discard(attempt)
        held = host.held.pop(attempt, None)
        if held is not None:
            host.refusing = False
        return held is not None

    def abandon(self, attempt: AttemptId, name: str) -> None:
        """Keeps the slots of an attempt of which the host does not report."""
        self._hosts[name].abandoned.add(attempt)

    def abandoned(self, name: str) -> frozenset[AttemptId]:
        """Attempts that may still run on a host, although the study is through with them."""
        return frozenset(self._hosts[name].abandoned)

    def refuse(self, attempt: AttemptId, name: str) -> int:
        """Notes that a host had no room, gives back what was held there; refusals in a row so far."""
        self.release(attempt, name)
        host = self._hosts[name]
        host.refusing = True
        host.refusals += 1
        return host.refusals

    def give_way(self, name: str) -> None:
        """Leaves a host to others until it is reopened."""
        self._hosts[name].refusing = True

    def accept(self, name: str) -> None:
        """Notes that a host had room."""
        self._hosts[name].refusals = 0

    def reopen(self, name: str) -> None:
        """Lets a host be asked again."""
        self._hosts[name].refusing = False

    def full(self) -> list[str]:
        """Hosts that had no room when they were last asked."""
        return [name for name, host in self._hosts.items() if host.refusals]

    def set_silent(self, name: str, *, silent: bool) -> None:
        """Places nothing new on a host for now, or again."""
        self._hosts[name].silent = silent

    def set_lost(self, name: str, lost: bool) -> None:
        """Takes a host out of use, or back."""
        self._hosts[name].lost = lost
        self._hosts[name].silent = lost
        self._hosts[name].refusing = False

    def _capacities(self) -> list[HostCapacity]:
        return [
            HostCapacity(
                name,
                host.slots,
                0 if host.lost or host.silent or host.refusing else host.slots - sum(host.held.values()),
                host.placed,
            )
            for name, host in self._hosts.items()
        ]
