"""How many steps a call makes: as many as keep it short enough to be interrupted."""

from __future__ import annotations

CALL_SECONDS = 0.1
"""A call is meant to take no longer: stops, reports and tolerances are looked at between calls."""
MOST_STEPS = 1000


class Pace:
    """Learns from each call how many steps the next one may make."""

    def __init__(self) -> None:
        self.steps = 1

    def took(self, steps: int, seconds: float) -> None:
        """A call made ``steps`` steps in ``seconds``; the next one makes twice as many at most."""
        if steps:
            fitting = int(CALL_SECONDS * steps / max(seconds, 1e-9))
            self.steps = max(1, min(fitting, 2 * steps, MOST_STEPS))
