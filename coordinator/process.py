"""The process of the command: how many files it may have open, and objects that stay for good."""

from __future__ import annotations

import gc
import resource

from coordinator.errors import HostsError
from nhop._process import raise_file_limit

OWN_FILES = 100
"""Open files besides the connections to agents: the store, logs, files under way, clients."""


class _Process:
    """``unsettled``: it is the command's own, and has not begun to work."""

    unsettled = False


def take_over() -> None:
    """Makes this process the command's own, with as many open files as the system lets it have."""
    _Process.unsettled = True
    raise_file_limit()


def check_file_limit(agents: int) -> None:
    """Raises HostsError where there cannot be connections to so many agents: each is an open file."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = agents + OWN_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        raise HostsError(
            f"{agents} agents need some {needed} open files, and this process may have {soft}: raise its "
            f"hard limit (ulimit -Hn {needed}, nofile in limits.conf, LimitNOFILE of a service), or list "
            "fewer hosts"
        )


def settle() -> None:
    """Once all connections are there: exempts the objects of now from looks for garbage.

    With a thousand agents a look at all of them takes a tenth of a second, in which nothing is
    answered. Does nothing the second time, and in a program that only uses NHOP.
    """
    if _Process.unsettled:
        _Process.unsettled = False
        gc.collect()
        gc.freeze()
