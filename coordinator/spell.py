"""Times during which something lasts, counted, so that the timer of one does not end another."""

from __future__ import annotations


class Spell:
    """Whether something lasts now, and the how-manieth time it is."""

    def __init__(self) -> None:
        self.number = 0
        self._lasts = False

    def begin(self) -> bool:
        """Notes that it is so; whether it has begun just now."""
        begins = not self._lasts
        self._lasts = True
        self.number += begins
        return begins

    def end(self) -> None:
        """Notes that it is over."""
        self._lasts = False

    def lasts_since(self, number: int) -> bool:
        """Whether it lasts, and has since the time of this number began."""
        return self._lasts and self.number == number
