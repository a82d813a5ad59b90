"""Sentences that stay readable however much there is to name."""

from __future__ import annotations

from collections.abc import Iterable

MOST_NAMED = 5
"""So many things of a list are named; the others are counted."""


def some(things: Iterable[str], most: int = MOST_NAMED) -> str:
    """Joins the things by commas; those beyond the first ``most`` as ``and 45 more``."""
    named = list(things)
    rest = len(named) - most
    if rest <= 1:  # "and 1 more" is no shorter than its name
        return ", ".join(named)
    return f"{', '.join(named[:most])} and {rest:,} more"
