"""Tells systemd how the agent is: the protocol of sd_notify(3), as far as a service of ours needs it.

Beats of the watchdog come from the event loop, so that an agent whose loop is blocked is restarted.
Without NOTIFY_SOCKET nothing is sent.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
from collections.abc import MutableMapping

logger = logging.getLogger(__name__)

EXTENSION_SECONDS = 20.0
"""How much longer than agreed a stop may take, counted anew from each beat."""
LONGEST_STOP_SECONDS = 600.0
"""A task that nothing can end, as where a disk hangs, must not keep a machine from being shut down."""
_STOP_BEAT_SECONDS = 5.0


class Notifier:
    """What systemd is told. ``interval``: seconds within which it wants a beat; None: it wants none."""

    def __init__(self, address: str, interval: float | None = None) -> None:
        """``address`` as in NOTIFY_SOCKET: a path, ``@`` and an abstract name, or empty: nobody listens."""
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._interval = interval
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> Notifier:
        """As systemd has set it; takes the variables away, for children are not to speak for this process."""
        address = environment.pop("NOTIFY_SOCKET", "")
        microseconds = environment.pop("WATCHDOG_USEC", "")
        meant = environment.pop("WATCHDOG_PID", "") in ("", str(os.getpid()))
        if not address.startswith(("/", "@")):
            address = ""
        wanted = meant and bool(address) and microseconds.isdecimal() and int(microseconds) > 0
        return cls(address, int(microseconds) / 1e6 if wanted else None)

    @property
    def watched(self) -> bool:
        """Whether this process is ended where its beats fail to come."""
        return self._interval is not None

    def ready(self, status: str) -> None:
        """The agent serves; beats begin."""
        self._send("READY=1", f"STATUS={status}")
        if self._interval is not None:
            self._beat("WATCHDOG=1", self._interval / 2)

    def stopping(self, status: str) -> None:
        """The agent ends in order; while its loop turns, it is given the time, up to LONGEST_STOP_SECONDS."""
        self._send("STOPPING=1", f"STATUS={status}")
        pause = _STOP_BEAT_SECONDS if self._interval is None else min(_STOP_BEAT_SECONDS, self._interval / 2)
        extension = f"EXTEND_TIMEOUT_USEC={EXTENSION_SECONDS * 1e6:.0f}"
        message = extension if self._interval is None else f"{extension}\nWATCHDOG=1"
        self._beat(message, pause, asyncio.get_running_loop().time() + LONGEST_STOP_SECONDS)

    def close(self) -> None:
        """No more beats."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _beat(self, message: str, pause: float, end: float = math.inf) -> None:
        self.close()
        loop = asyncio.get_running_loop()
        if self._address and loop.time() < end:
            self._send(message)
            self._timer = loop.call_later(pause, self._beat, message, pause, end)

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
                channel.setblocking(False)
                channel.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            # A service manager that is busy or away is no reason to end: it notices by itself what it misses.
            logger.warning("cannot tell systemd %s: %s", lines[0], error.strerror)
