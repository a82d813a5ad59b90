"""What attempts hold of this host: slots, GPUs and ports, all that an attempt needs or nothing."""

from __future__ import annotations

import errno
import logging
import random
import socket
from collections.abc import Iterable, Sequence

from agent.domain import AttemptId, TaskLease, TaskRequirement
from agent.gpu_pool import GpuPool, NoGpuFreeError

logger = logging.getLogger(__name__)


class NotEnoughError(Exception):
    """The host has too little free of something; ``resource`` is SLOTS, GPUS, PORTS, DISK or FOLLOWERS."""

    def __init__(self, resource: str, wanted: float, free: float, message: str = "") -> None:
        self.resource = resource
        self.wanted = wanted
        self.free = free
        super().__init__(message or f"{wanted} {resource.lower()} wanted, {free} free")


def no_room(attempt: AttemptId, error: OSError) -> NotEnoughError:
    """What a file that cannot be written means for an attempt; logs it."""
    text = f"cannot write the files of {attempt} in the state directory: {error.strerror or error}"
    logger.error(text)
    return NotEnoughError("DISK", 1, 0, text)


class PortPool:
    """Ports of a range that nobody listens on, each given to one attempt at a time.

    A held port is also held against other agents of this host, by a name in the abstract namespace
    of Unix sockets, which has the same extent as the ports and is freed by the kernel.
    """

    def __init__(self, low: int, high: int, rng: random.Random) -> None:
        self._low = low
        self._size = high - low + 1
        # From a random place, and on from there: a port that comes back is used again last.
        self._next = rng.randrange(self._size)
        self._held: dict[int, socket.socket | None] = {}

    def take(self, count: int) -> list[int]:
        """``count`` free ports; raises NotEnoughError, and takes none."""
        ports: list[int] = []
        for _ in range(self._size):
            if len(ports) == count:
                return ports
            port = self._low + self._next
            self._next = (self._next + 1) % self._size
            if self._hold(port):
                ports.append(port)
        if len(ports) < count:
            self.release(ports)
            last = self._low + self._size - 1
            text = (
                f"{count} ports wanted, {len(ports)} free of {self._low}-{last}: end what listens there, or "
                "start the agent with another --port-range"
            )
            raise NotEnoughError("PORTS", count, len(ports), text)
        return ports

    def take_exactly(self, ports: Iterable[int]) -> None:
        """Holds ports that tasks of an earlier agent may still use."""
        for port in ports:
            self._held.setdefault(port, None)

    def release(self, ports: Iterable[int]) -> None:
        """Gives ports back."""
        for port in ports:
            name = self._held.pop(port, None)
            if name is not None:
                name.close()

    def _hold(self, port: int) -> bool:
        if port in self._held:
            return False
        name = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            name.bind(f"\0nhop-port-{port}")
        except OSError:
            name.close()
            return False
        if not is_port_free(port):
            name.close()
            return False
        self._held[port] = name
        return True


def is_port_free(port: int) -> bool:
    """Whether a server could listen on all interfaces at the port, as TensorFlow's does."""
    for family, address in ((socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")):  # noqa: S104
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                probe.bind((address, port))
                return True
        except OSError as error:
            if family == socket.AF_INET or not _has_no_ipv6(error):
                return False
    return False


def _has_no_ipv6(error: OSError) -> bool:
    return error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


class LeaseBook:
    """Who holds what."""

    def __init__(self, slots: int, ports: PortPool, gpus: GpuPool | None = None) -> None:
        self.slots = slots
        self._ports = ports
        self.gpus = gpus or GpuPool()
        self._leases: dict[AttemptId, tuple[TaskLease, ...]] = {}

    @property
    def free_slots(self) -> int:
        """Slots that no attempt holds; negative where an earlier agent had more."""
        return self.slots - sum(lease.slots for leases in self._leases.values() for lease in leases)

    def lease(self, attempt: AttemptId, requirements: Sequence[TaskRequirement]) -> tuple[TaskLease, ...]:
        """Leases for each task in order; what the attempt already holds is given again.

        Raises NotEnoughError, and leases nothing.
        """
        if attempt in self._leases:
            return self._leases[attempt]
        wanted = sum(requirement.slots for requirement in requirements)
        if wanted > max(0, self.free_slots):
            raise NotEnoughError("SLOTS", wanted, max(0, self.free_slots))
        try:
            grants = self.gpus.take(attempt, [requirement.gpus for requirement in requirements])
        except NoGpuFreeError as error:
            raise NotEnoughError("GPUS", error.wanted, error.free, str(error)) from error
        try:
            ports = iter(self._ports.take(sum(requirement.port for requirement in requirements)))
        except NotEnoughError:
            self.gpus.give_back(attempt, self.gpus.held(attempt))
            raise
        leases = tuple(
            TaskLease(r.task, r.slots, next(ports) if r.port else None, *grant)
            for r, grant in zip(requirements, grants, strict=True)
        )
        self._leases[attempt] = leases
        return leases

    def restore(self, attempt: AttemptId, leases: Sequence[TaskLease]) -> None:
        """Takes over what an attempt of an earlier agent holds."""
        self._leases[attempt] = tuple(leases)
        self.gpus.restore(attempt, leases)
        self._ports.take_exactly(lease.port for lease in leases if lease.port is not None)

    def release(self, attempt: AttemptId, *, gpus: bool = True) -> None:
        """Gives back all that the attempt holds; ``gpus`` False: but for its GPUs, which come back later."""
        leases = self._leases.pop(attempt, ())
        if gpus:
            self.gpus.give_back(attempt, self.gpus.held(attempt))
        self._ports.release(lease.port for lease in leases if lease.port is not None)
