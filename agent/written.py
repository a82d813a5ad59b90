"""Values that tasks wrote, where the user's code had a hand in it.

What is no number, or too large to be sent, is not passed on: one task must not end the stream of a study.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from nhop_models.contract import Outcome, printable

LAST_SECOND = 253_402_300_800
"""Of the year 9999: a timestamp goes no further."""


def whole(value: Any) -> int:
    """A whole number as the protocol can carry it; ValueError for anything else."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not -(2.0**63) <= value < 2.0**63:
        raise ValueError(f"not a whole number: {value!r:.50}")
    return int(value)


def number(value: Any) -> float:
    """A number, NaN and infinity included; ValueError for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    raise ValueError(f"not a number: {value!r:.50}")


def numbers(values: Any) -> dict[str, float]:
    """Numbers by name; ValueError for anything else."""
    if isinstance(values, dict):
        return {printable(name): number(value) for name, value in values.items()}
    raise ValueError(f"not a mapping: {values!r:.50}")


def time(value: Any) -> float:
    """Seconds since the epoch, as a timestamp can carry them; ValueError for anything else."""
    seconds = number(value)
    if not 0 <= seconds < LAST_SECOND:
        raise ValueError(f"not a time: {seconds}")
    return seconds


def checked(said: Outcome) -> Outcome:
    """A task's last word with the numbers that it must have; ValueError or TypeError where it has others."""
    return dataclasses.replace(
        said,
        step=whole(said.step),
        train_loss=None if said.train_loss is None else number(said.train_loss),
        val_loss=None if said.val_loss is None else number(said.val_loss),
        metrics=numbers(said.metrics),
        phase_seconds=numbers(said.phase_seconds),
        artifacts={str(name): size for name, size in dict(said.artifacts).items()},
    )
