"""The types of configuration values: what they accept, and what they say when they refuse."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from coordinator.config.source import describe, shorten
from coordinator.search.space import LARGEST_INT

_DURATION = re.compile(r"(?:(\d+)d)?\s*(?:(\d+)h)?\s*(?:(\d+)m)?\s*(?:(\d+(?:\.\d+)?)s)?")
_UNITS = (86400, 3600, 60, 1)

LONGEST = 10 * 365 * 86400
"""Seconds of the longest duration."""

MOST_TASKS = 1000
"""The most tasks that a trial may have."""

MOST_SLOTS = 10_000
"""The most slots of this machine."""

MOST_GPUS = 1000
"""The most GPUs of a machine."""

LONGEST_PATH = 2000
LONGEST_NAME = 255
"""Bytes of a path in a configuration, and of each name in it."""

LEAST_SHARE = 0.001
"""The smallest share of a GPU."""


class RefusedError(ValueError):
    """A value is not what its key takes; the message is for the user, without key and place."""


def whole(value: Any, low: int | None = None, high: int = LARGEST_INT) -> int:
    """Returns a whole number, ``1e3`` included; RefusedError for anything else or out of bounds."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise RefusedError(f"must be a whole number, not {describe(value)}")
    return int(_within(value, low, high))


def number(
    value: Any, low: float | None = None, high: float | None = None, *, above: float | None = None
) -> float:
    """Returns a finite number; RefusedError for anything else or out of bounds (``above`` is exclusive)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RefusedError(f"must be a number, not {describe(value)}")
    try:
        value = float(value)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise RefusedError(f"must be a finite number, not {describe(value)}")
    if above is not None and value <= above:
        raise RefusedError(f"must be above {above:g}, not {value:g}")
    return float(_within(value, low, high))


def duration(value: Any) -> float:
    """Returns seconds, above 0 and up to ten years, from a number or ``1d2h30m10s``; else RefusedError."""
    if isinstance(value, str):
        found = _DURATION.fullmatch(value.strip().lower())
        if found is None or not any(found.groups()):
            raise RefusedError(
                f"must be seconds or a time such as 90s, 45m or 2h30m, not the text {shorten(value)!r}"
            )
        value = sum(
            float(part) * unit for part, unit in zip(found.groups(), _UNITS, strict=True) if part is not None
        )
    seconds = number(value, above=0)
    if seconds > LONGEST:
        raise RefusedError(f"must be at most 10 years, not {seconds:g} seconds")
    return seconds


def text(value: Any) -> str:
    """Returns a text that is not empty; RefusedError for anything else."""
    if not isinstance(value, str):
        raise RefusedError(f"must be a text, not {describe(value)}")
    if not value.strip():
        raise RefusedError("must not be empty")
    return value


def place(value: Any) -> str:
    """Returns a path or a URL as it is written; RefusedError for what could be neither."""
    written = text(value)
    if len(written.encode(errors="replace")) > LONGEST_PATH:
        raise RefusedError(f"must be at most {LONGEST_PATH:,} bytes, not {describe(value)}")
    if "\0" in written:
        raise RefusedError(f"must be a path without a NUL, not {describe(value)}")
    if any(len(part.encode(errors="replace")) > LONGEST_NAME for part in written.split("/")):
        raise RefusedError(f"must have names of at most {LONGEST_NAME} bytes, not {describe(value)}")
    try:
        Path(written).expanduser()
    except RuntimeError:
        raise RefusedError(f"there is no home {shorten(written.partition('/')[0])}") from None
    return written


def flag(value: Any) -> bool:
    """Returns true or false; RefusedError for anything else."""
    if not isinstance(value, bool):
        raise RefusedError(f"must be true or false, not {describe(value)}")
    return value


def one_of(value: Any, *names: str) -> str:
    """Returns the one of ``names`` that is meant, upper and lower case aside; RefusedError for others."""
    for name in names:
        if isinstance(value, str) and value.strip().lower() == name.lower():
            return name
    raise RefusedError(f"must be {' or '.join(names)}, not {describe(value)}")


def addresses(value: Any) -> tuple[str, ...]:
    """Returns a list of addresses, given as a list or as text with commas; RefusedError for others."""
    if isinstance(value, str):
        value = [part for part in re.split(r"[,\s]+", value) if part]
    if not isinstance(value, list):
        raise RefusedError(f"must be a list of host:port, not {describe(value)}")
    found = tuple(text(item).strip() for item in value)
    if len(found) > MOST_TASKS:
        raise RefusedError(f"must be at most {MOST_TASKS:,} addresses, not {len(found):,}")
    repeated = [shorten(item) for item, times in Counter(found).items() if times > 1]
    if repeated:
        raise RefusedError(f"names {', '.join(sorted(repeated))} more than once")
    return found


def listed(value: Any, item: Callable[[Any], Any]) -> tuple[Any, ...]:
    """Returns a list of what ``item`` accepts, or of one such value; RefusedError for others."""
    values = value if isinstance(value, list) else [value]
    if not values:
        raise RefusedError("must not be an empty list")
    return tuple(item(inner) for inner in values)


def optional(accept: Callable[[Any], Any]) -> BeforeValidator:
    """Makes a validator that lets nothing (null) pass, too."""
    return BeforeValidator(lambda value: None if value is None else accept(value))


def bounded_whole(low: int | None, high: int = LARGEST_INT) -> Callable[[Any], int]:
    """Makes a check for whole numbers in [low, high]."""
    return lambda value: whole(value, low, high)


Flag = Annotated[bool, BeforeValidator(flag)]
Text = Annotated[str, BeforeValidator(text)]
Place = Annotated[str, BeforeValidator(place)]
OptionalPlace = Annotated[str | None, optional(place)]
OptionalText = Annotated[str | None, optional(text)]
Positive = Annotated[int, BeforeValidator(bounded_whole(1))]
OptionalPositive = Annotated[int | None, optional(bounded_whole(1))]
Tolerance = Annotated[float, BeforeValidator(lambda value: number(value, 0))]
Seconds = Annotated[float, BeforeValidator(duration)]
OptionalSeconds = Annotated[float | None, optional(duration)]
Seed = Annotated[int | None, optional(bounded_whole(0, 2**32 - 1))]
Addresses = Annotated[tuple[str, ...] | None, optional(addresses)]


def _within(value: float, low: float | None, high: float | None) -> float:
    if low is not None and value < low:
        raise RefusedError(f"must be at least {low:g}, not {_shown(value)}")
    if high is not None and value > high:
        raise RefusedError(f"must be at most {high:,.15g}, not {_shown(value)}")
    return value


def _shown(value: float) -> str:
    try:
        return f"{value:g}"
    except OverflowError:  # a whole number that no float can hold
        return "a number of more than 308 digits"
