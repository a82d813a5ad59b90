"""What is said of those who connect: by names that people read, and not more than anybody would read."""

from __future__ import annotations

import time
from collections.abc import Callable
from urllib.parse import unquote

TOLD_A_SECOND = 10


class Sparing:
    """A ``tell`` for what others bring about at will: beyond some a second it only counts.

    ``more`` says what was counted, as in "17 more calls were refused within a second".
    """

    def __init__(
        self, tell: Callable[[str], object], more: str, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._tell = tell
        self._more = more
        self._now = now
        self._second = 0
        self._told = 0

    def __call__(self, text: str) -> None:
        """Says it, unless too much was said just now."""
        second = int(self._now())
        if second != self._second:
            if self._told > TOLD_A_SECOND:
                self._tell(f"{self._told - TOLD_A_SECOND} {self._more} within a second")
            self._second, self._told = second, 0
        self._told += 1
        if self._told <= TOLD_A_SECOND:
            self._tell(text)


def readable(peer: str) -> str:
    """A peer as gRPC names it, in the way that people do: ``10.0.0.1:4242``, ``[::1]:4242``."""
    return unquote(peer).removeprefix("ipv4:").removeprefix("ipv6:")
