"""How long a coordinator waits for an agent, and an agent for its coordinator."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from coordinator.domain import Limits
from coordinator.errors import HostLimitError

NOTICE = 2.0
"""Seconds from the end of an agent's patience with us until it has begun to end the attempt."""
LEAST_SILENCE = 4.0
HEARTBEATS = 24
"""Heartbeats, at least, in the time after which a host counts as lost."""
SILENT_BEATS = 6
"""Heartbeats, at least, after whose loss an agent ends an attempt: fewer change nothing."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Limits of a link in seconds.

    ``command`` is the deadline of a command with its retries, ``prepare`` that of a PrepareAttempt
    (another host may have room), ``heartbeat`` the time between two and the deadline of one (but for
    SLOW_ANSWER), ``lost`` the time without any answer after which the host counts as lost.
    """

    command: float = 10.0
    prepare: float = 2.0
    heartbeat: float = 2.0
    lost: float = 90.0

    @classmethod
    def with_lost(cls, lost: float) -> Self:
        """The usual limits, but that a host counts as lost after so many seconds."""
        return cls(lost=lost, heartbeat=min(cls().heartbeat, lost / HEARTBEATS))

    def silence(self, limits: Limits) -> float | None:
        """Seconds without us after which an agent ends an attempt: it is gone before its host is lost.

        None where ``lost`` is too short for that (see ``least_lost``).
        """
        left = self.lost - _ladder(limits) - NOTICE
        return left if left > 0 else None


def least_lost(limits: Limits) -> float:
    """The smallest ``lost`` with which attempts end in time, and short silences change nothing."""
    spent = _ladder(limits) + NOTICE
    beats = min(spent / (1 - SILENT_BEATS / HEARTBEATS), spent + SILENT_BEATS * Patience().heartbeat)
    return float(math.ceil(max(spent + LEAST_SILENCE, beats)))


def check_lost(lost: float, limits: Limits) -> None:
    """Raises HostLimitError where attempts would still run when their host counts as lost."""
    least = least_lost(limits)
    if lost < least:
        raise HostLimitError(
            f"a host counts as lost after {lost:g} s (--host-limit), which must be at least {least:g} s so "
            f"that its tasks have ended by then (stop_grace is {limits.stop_grace:g} s, terminate_grace "
            f"{limits.terminate_grace:g} s); give the coordinator a longer --host-limit, or lower these"
        )


def _ladder(limits: Limits) -> float:
    # Workers first, then their parameter servers.
    return 2 * (limits.stop_grace + limits.terminate_grace)
