"""Strategies for search spaces, and whether a value lies in a dimension."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import strategies as st

from coordinator.search.space import Choice, Dimension, Float, Int, Layers


@st.composite
def floats(draw):
    log = draw(st.booleans())
    bounds = st.floats(1e-6 if log else -1e6, 1e6)
    low, high = sorted((draw(bounds), draw(bounds)))
    step = None if log else draw(st.none() | st.floats(1e-3, 10))
    return Float(low, high, log=log, step=step)


@st.composite
def ints(draw, least=-(10**6), most=10**6):
    log = draw(st.booleans()) and most > 0
    bounds = st.integers(max(least, 1) if log else least, most)
    low, high = sorted((draw(bounds), draw(bounds)))
    step = None if log else draw(st.none() | st.integers(1, 100))
    return Int(low, high, log=log, step=step)


layers = st.builds(Layers, ints(0, 12), ints(1, 2000))
choices = st.lists(
    st.text(max_size=5) | st.integers(-5, 5) | st.booleans() | st.tuples(st.integers(), st.integers()),
    min_size=1,
    max_size=4,
).map(lambda options: Choice(tuple(options)))


def spaces() -> st.SearchStrategy[dict[str, Dimension]]:
    return st.dictionaries(st.text(min_size=1, max_size=4), floats() | ints() | layers | choices, max_size=5)


def contains(dimension: Dimension, value: Any) -> bool:
    """Whether a value lies in a dimension, on its grid where it has steps."""
    match dimension:
        case Choice(options):
            return (tuple(value) if isinstance(value, list) else value) in options
        case Layers(count, nodes):
            return contains(count, len(value)) and all(contains(nodes, node) for node in value)
        case Float(low, high, _, None):
            return low <= value <= high
        case Float(low, high, _, step):
            steps = (value - low) / step
            return low <= value <= high and math.isclose(
                steps, round(steps), abs_tol=1e-4 + 1e-9 * abs(low) / step
            )
        case Int(low, high, _, step):
            return low <= value <= high and (step is None or (value - low) % step == 0)
