"""What a study knows about its hosts: slots, who holds them, and whom not to ask now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from coordinator.domain import AttemptId, Cluster, PlacementRule
from coordinator.placement import HostCapacity, Placement, place, why_never
from nhop_models.contract import TaskRole


@dataclass(slots=True, eq=False)
class _Host:
    name: str
    slots: int
    held: dict[AttemptId, int] = field(default_factory=dict)
    free: int = 0
    used: int = 0
    abandoned: set[AttemptId] = field(default_factory=set)
    placed: int = 0
    refusals: int = 0
    refusal: str = ""
    refusing: bool = False
    pauses: int = 0
    silent: bool = False
    lost: bool = False
    leaving: bool = False

    @property
    def usable(self) -> int:
        """All slots but those of attempts that were given up and may still run."""
        return self.slots - sum(self.held.get(attempt, 0) for attempt in self.abandoned)


class Capacity:
    """Slots of all hosts, as far as this study's own attempts and the hosts' refusals tell."""

    def __init__(
        self, slots: Mapping[str, int], cluster: Cluster, rule: PlacementRule = PlacementRule.PACK
    ) -> None:
        self._hosts = {name: _Host(name, number) for name, number in slots.items()}
        self._cluster = cluster
        self._rule = rule
        # Only hosts with room are looked at: with a thousand hosts nearly all are full nearly always.
        self._open: dict[str, _Host] = {}
        self._free = 0
        self.used = 0
        """Slots held on all hosts together, but those that are lost or leave: shares are of the others."""
        for host in self._hosts.values():
            self._count(host)
        self._awaited: set[str] = set()
        self.share: int | None = None
        self.crowded = False

    def place(self) -> Placement | None:
        """Places one more trial, or None where there is no room now."""
        if self._free < self._cluster.workers:
            return None
        if self.share is not None and self.used and self.used + self._cluster.workers > self.share:
            return None
        if self._awaited and self._rule is PlacementRule.SPREAD:
            return None  # the first host to be ready would have the trial for itself
        return place(self._open.values(), self._cluster, self._rule)

    def why_never(self) -> str | None:
        """Why no trial could be placed, even if all ended that is not given up: None where one could."""
        usable = {name: host.usable for name, host in self._hosts.items() if not (host.lost or host.leaving)}
        return why_never([HostCapacity(name, slots, slots) for name, slots in usable.items()], self._cluster)

    def join(self, name: str, slots: int) -> bool:
        """Takes a host into use, with so many slots; whether it was not in use before."""
        host = self._hosts.setdefault(name, _Host(name, 0, leaving=True))
        new, host.leaving, host.slots = host.leaving, False, slots
        if new:
            host.lost = host.silent = host.refusing = False
        self._count(host)
        return new

    def leave(self, name: str) -> bool:
        """Places nothing new on a host; whether that is news."""
        host = self._hosts.get(name)
        if host is None or host.leaving:
            return False
        host.leaving = True
        self._awaited.discard(name)
        self._count(host)
        return True

    def is_through(self, name: str) -> bool:
        """Whether nothing more is expected of a host that has left, or that never joined."""
        host = self._hosts.get(name)
        return host is None or (host.leaving and (host.lost or not host.held))

    def knows(self, name: str) -> bool:
        """Whether the study has had anything to do with a host."""
        return name in self._hosts

    def slots_of(self, name: str) -> int | None:
        """Slots of a host that is in use; None: it is not."""
        host = self._hosts.get(name)
        return None if host is None or host.leaving else host.slots

    def attempts_on(self, name: str) -> int:
        """How many attempts hold slots there, or may still run."""
        return len(self._hosts[name].held)

    def hold(self, attempt: AttemptId, placement: Placement) -> None:
        """Takes the slots of an attempt."""
        for name, tasks in placement.items():
            host = self._hosts[name]
            host.held[attempt] = sum(task.role is TaskRole.WORKER for task in tasks)
            host.placed += 1
            self._count(host)

    def release(self, attempt: AttemptId, name: str, *, reopen: bool = True) -> bool:
        """Gives the attempt's slots on a host back; whether there were any. ``reopen`` it, if so."""
        host = self._hosts[name]
        host.abandoned.discard(attempt)
        if host.held.pop(attempt, None) is None:
            return False
        host.refusing = host.refusing and not reopen
        self._count(host)
        return True

    def abandon(self, attempt: AttemptId, name: str) -> None:
        """Keeps the slots of an attempt of which the host does not report."""
        self._hosts[name].abandoned.add(attempt)

    def abandoned(self, name: str) -> frozenset[AttemptId]:
        """Attempts that may still run on a host, although the study is through with them."""
        return frozenset(self._hosts[name].abandoned)

    def refuse(self, attempt: AttemptId, name: str, why: str = "") -> int:
        """Notes that a host had no room, gives back what was held there; refusals in a row so far."""
        self.release(attempt, name)
        host = self._hosts[name]
        host.refusals += 1
        host.refusal = why
        return host.refusals

    def accept(self, name: str) -> None:
        """Notes that a host, and all others of the attempt, had room."""
        self._hosts[name].refusals = 0

    def pause(self, name: str) -> int:
        """Leaves a host to others until it is reopened; the number of the pause, by which to end it."""
        host = self._hosts[name]
        host.refusing = True
        host.pauses += 1
        self._count(host)
        return host.pauses

    def reopen(self, name: str, pause: int | None = None) -> None:
        """Lets a host be asked again; ``pause``: unless a newer one has begun."""
        host = self._hosts[name]
        if pause in (None, host.pauses):
            host.refusing = False
            self._count(host)

    def full(self) -> dict[str, str]:
        """Hosts that had no room since they were last part of a placed trial, each with what it said."""
        return {name: host.refusal for name, host in self._hosts.items() if host.refusals and host.refusal}

    def expect(self, name: str) -> None:
        """Places nothing new on a host until it is heard, and does not spread a trial without it."""
        self._awaited.add(name)
        self.set_silent(name, silent=True)

    def set_silent(self, name: str, *, silent: bool) -> None:
        """Places nothing new on a host for now, or again."""
        host = self._hosts[name]
        host.silent = silent
        if not silent:
            self._awaited.discard(name)
        self._count(host)

    def set_lost(self, name: str, lost: bool) -> None:
        """Takes a host out of use, or back."""
        host = self._hosts[name]
        host.lost = host.silent = lost
        host.refusing = False
        self._awaited.discard(name)
        self._count(host)

    def _count(self, host: _Host) -> None:
        """Counts the slots of a host that has changed anew."""
        held = sum(host.held.values())
        gone = host.lost or host.leaving
        self._free -= host.free
        self.used -= host.used
        host.free = 0 if gone or host.silent or host.refusing else max(0, host.slots - held)
        host.used = 0 if gone else held
        self._free += host.free
        self.used += host.used
        if host.free:
            self._open[host.name] = host
        else:
            self._open.pop(host.name, None)
