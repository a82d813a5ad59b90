"""When the GPUs of an attempt that has ended are free again. Pure: times and pids are passed in.

The driver gives memory back some time after a process is gone, and sometimes not at all. So an
attempt departs from each of its GPUs: its part is leased again once the driver lists none of its
processes there; where that takes longer than a limit, the GPU is quarantined until it has happened.

Which of the processes that the driver lists count:

- one that lives on this host, outside of any attempt that ended, never counts: a desktop, a notebook,
  another attempt that shares the GPU;
- one that was listed while no attempt held the GPU never counts (in a container its pid says nothing);
- of the others, those of the attempt always count; unknown ones do where nobody else holds a part of the
  GPU: they are the attempt's own, if the driver counts in another pid namespace.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agent.domain import AttemptId
from agent.gpu_pool import GpuPool


@dataclass(frozen=True, slots=True)
class Sight:
    """The pids that the driver lists on a GPU, and those of them that live here and are no leftovers."""

    listed: frozenset[int]
    living: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Returned:
    """A GPU, or an attempt's part of it, may be leased again."""

    attempt: AttemptId
    uuid: str
    after_quarantine: bool


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A GPU is not leased until an attempt is off it."""

    attempt: AttemptId
    uuid: str
    reason: str


@dataclass(slots=True)
class _Departure:
    attempt: AttemptId
    pids: frozenset[int]
    begun: float
    quarantined: bool = False


class Departures:
    """The attempts that have ended and may still be on GPUs, by UUID in order. ``limit`` in seconds."""

    def __init__(self, pool: GpuPool, limit: float) -> None:
        self._pool = pool
        self._limit = limit
        self._by_gpu: dict[str, list[_Departure]] = {}
        self._strangers: dict[str, frozenset[int]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_gpu)

    @property
    def uuids(self) -> tuple[str, ...]:
        """The GPUs to look at."""
        return tuple(self._by_gpu)

    @property
    def pending(self) -> bool:
        """Whether a GPU may be back in a moment."""
        return any(not each.quarantined for found in self._by_gpu.values() for each in found)

    def begin(self, attempt: AttemptId, pids: Iterable[int], now: float) -> None:
        """The processes of an attempt are gone from this host; its GPUs are to be looked at."""
        departure = frozenset(pids)
        for uuid in self._pool.held(attempt):
            self._by_gpu.setdefault(uuid, []).append(_Departure(attempt, departure, now))

    def note_strangers(self, uuid: str, listed: frozenset[int]) -> None:
        """What the driver lists on a GPU; while nobody holds it, these are no tasks of ours."""
        if not self._pool[uuid].held:
            self._strangers[uuid] = listed

    def look(self, uuid: str, sight: Sight | str, now: float) -> list[Returned | Quarantined]:
        """What follows from what was seen on a GPU; a text says why nothing could be seen."""
        gpu = self._pool[uuid]
        said: list[Returned | Quarantined] = []
        for departure in list(self._by_gpu.get(uuid, ())):
            others = len(gpu.held) > 1
            why = sight if isinstance(sight, str) else self._left(uuid, departure, sight, others=others)
            if not why:
                self._by_gpu[uuid].remove(departure)
                self._pool.give_back(departure.attempt, [uuid])
                said.append(Returned(departure.attempt, uuid, departure.quarantined))
            elif now >= departure.begun + self._limit:
                if not departure.quarantined:
                    departure.quarantined = True
                    said.append(Quarantined(departure.attempt, uuid, why))
                gpu.quarantined = why
        if not any(departure.quarantined for departure in self._by_gpu.get(uuid, ())):
            gpu.quarantined = ""
        if not self._by_gpu.get(uuid):
            self._by_gpu.pop(uuid, None)
            if isinstance(sight, Sight):
                self.note_strangers(uuid, sight.listed)
        return said

    def _left(self, uuid: str, departure: _Departure, sight: Sight, *, others: bool) -> str:
        """In words; empty where nobody is."""
        suspects = sight.listed - sight.living
        ours = suspects & departure.pids
        if not others:
            ours |= suspects - self._strangers.get(uuid, frozenset())
        if not ours:
            return ""
        known = " and ".join(str(pid) for pid in sorted(ours)[:3])
        return (
            f"{departure.attempt} has ended, but the driver still lists process{'es' * (len(ours) > 1)} "
            f"{known}{', ...' * (len(ours) > 3)} on it"
        )
