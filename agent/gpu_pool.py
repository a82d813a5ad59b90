"""Which attempt holds how much of which GPU: whole ones, or exact shares of one.

Pure: what is on a GPU in truth is seen elsewhere (``agent.gpu_watch``) and told here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from agent.domain import AttemptId, TaskLease
from agent.gpus import GpuDevice

FINEST = 1000
"""Shares are fractions with at most this denominator: a third sent as 0.333... is a third again."""

Grant = tuple[tuple[str, ...], Fraction]
"""The UUIDs for a task, and its share of each."""
NOTHING: Grant = ((), Fraction(1))


def amount_of(value: float) -> Fraction:
    """What a number of GPUs means exactly."""
    return Fraction(value).limit_denominator(FINEST)


@dataclass(slots=True)
class Gpu:
    """A GPU and who holds it. ``leased`` counts how often it was; ``quarantined``: why it is not now."""

    device: GpuDevice
    held: dict[AttemptId, Fraction] = field(default_factory=dict)
    leased: int = 0
    quarantined: str = ""

    @property
    def free(self) -> Fraction:
        """The share that nobody holds; negative where an earlier agent gave out more."""
        return 1 - sum(self.held.values(), Fraction())


class NoGpuFreeError(Exception):
    """Too little is free; the message says what, ``wanted`` and ``free`` count GPUs."""

    def __init__(self, wanted: Fraction, free: Fraction, why: str) -> None:
        self.wanted = float(wanted)
        self.free = float(free)
        super().__init__(f"{self.wanted:.3g} GPUs wanted, {self.free:.3g} free{why}")


class GpuPool:
    """The GPUs of a host by UUID, in the order of the inventory."""

    def __init__(self, devices: Iterable[GpuDevice] = ()) -> None:
        self._gpus: dict[str, Gpu] = {}
        self.add(devices)

    def add(self, devices: Iterable[GpuDevice]) -> None:
        """GPUs that may be leased from now on."""
        self._gpus |= {device.uuid: Gpu(device) for device in devices}

    def __iter__(self) -> Iterator[Gpu]:
        return iter(self._gpus.values())

    def __getitem__(self, uuid: str) -> Gpu:
        return self._gpus[uuid]

    def take(self, attempt: AttemptId, amounts: Sequence[Fraction]) -> list[Grant]:
        """What each task is given: a whole number of GPUs, or a share of one.

        Whole GPUs are the least leased ones first. A share goes where least is left that is enough,
        so that shares fill the GPUs that are shared already. Raises NoGpuFreeError, and takes nothing.
        """
        free = {uuid: Fraction(0) if gpu.quarantined else gpu.free for uuid, gpu in self._gpus.items()}
        grants = [NOTHING] * len(amounts)
        for place in sorted(range(len(amounts)), key=lambda place: -amounts[place]):
            if amounts[place] == 0:
                continue
            grant = self._choose(amounts[place], free)
            if grant is None:
                raise self._too_little(sum(amounts, Fraction()))
            grants[place] = grant
            for uuid in grant[0]:
                free[uuid] -= grant[1]
        for uuids, share in grants:
            self._hold(attempt, uuids, share)
        return grants

    def restore(self, attempt: AttemptId, leases: Iterable[TaskLease]) -> None:
        """Takes over what an attempt of an earlier agent holds; without GPUs that are gone."""
        for lease in leases:
            self._hold(attempt, [uuid for uuid in lease.gpus if uuid in self._gpus], lease.share)

    def held(self, attempt: AttemptId) -> tuple[str, ...]:
        """The GPUs that an attempt holds, in whole or in part."""
        return tuple(uuid for uuid, gpu in self._gpus.items() if attempt in gpu.held)

    def give_back(self, attempt: AttemptId, uuids: Iterable[str]) -> None:
        """An attempt holds these no more."""
        for uuid in uuids:
            self._gpus[uuid].held.pop(attempt, None)

    def _choose(self, amount: Fraction, free: Mapping[str, Fraction]) -> Grant | None:
        by_use = sorted(free, key=lambda uuid: self._gpus[uuid].leased)  # stable: else as in the inventory
        if amount >= 1:
            whole = [uuid for uuid in by_use if free[uuid] == 1][: int(amount)]
            return (tuple(whole), Fraction(1)) if len(whole) == amount else None
        fitting = [uuid for uuid in by_use if free[uuid] >= amount]
        return ((min(fitting, key=free.__getitem__),), amount) if fitting else None

    def _hold(self, attempt: AttemptId, uuids: Iterable[str], share: Fraction) -> None:
        for uuid in uuids:
            gpu = self._gpus[uuid]
            gpu.held[attempt] = gpu.held.get(attempt, Fraction()) + share
            gpu.leased += 1

    def _too_little(self, wanted: Fraction) -> NoGpuFreeError:
        usable = [gpu for gpu in self._gpus.values() if not gpu.quarantined]
        free = sum((max(gpu.free, Fraction()) for gpu in usable), Fraction())
        out = [f"{gpu.device.uuid} is quarantined: {gpu.quarantined}" for gpu in self if gpu.quarantined]
        return NoGpuFreeError(wanted, free, "".join(f"; {each}" for each in out))
