"""The space of hyper-parameters: what may be drawn, and drawing from it.

All bounds are inclusive. A fixed value is a range with equal bounds, or a choice of one option.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

LARGEST_INT = 2**53
"""The largest whole number that every part of the system carries exactly (JSON, protobuf's Struct)."""

GRID_SLACK = 1e-9
"""Share of a step by which rounding may miss a point of the grid."""


@dataclass(frozen=True, slots=True)
class Float:
    """A number in [low, high]; ``log`` draws its logarithm uniformly, ``step`` a point of ``low + k * step``.

    Raises ValueError where the bounds are reversed or not finite, ``log`` has a bound that is not
    positive, or ``step`` is not positive or given with ``log``.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.high - self.low):
            raise ValueError(f"the bounds must be finite numbers, not {self.low} and {self.high}")
        _check_range(self)

    def sample(self, rng: np.random.Generator) -> float:
        """Draws a value."""
        if self.log:
            value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        elif self.step is not None:
            points = math.floor((self.high - self.low) / self.step + GRID_SLACK)
            value = tidy(self.low + int(rng.integers(points, endpoint=True)) * self.step)
        else:
            value = rng.uniform(self.low, self.high)
        return min(max(float(value), self.low), self.high)


@dataclass(frozen=True, slots=True)
class Int:
    """A whole number in [low, high], with ``log`` and ``step`` as for Float.

    Raises ValueError as Float does, and where a bound is beyond ``LARGEST_INT``.
    """

    low: int
    high: int
    log: bool = False
    step: int | None = None

    def __post_init__(self) -> None:
        if max(abs(self.low), abs(self.high)) > LARGEST_INT:
            raise ValueError(f"the bounds must lie within ±{LARGEST_INT}")
        _check_range(self)

    def sample(self, rng: np.random.Generator) -> int:
        """Draws a value."""
        if self.log:
            value = round(math.exp(rng.uniform(math.log(self.low - 0.5), math.log(self.high + 0.5))))
        elif self.step is not None:
            points = (self.high - self.low) // self.step
            value = self.low + int(rng.integers(points, endpoint=True)) * self.step
        else:
            value = int(rng.integers(self.low, self.high, endpoint=True))
        return min(max(value, self.low), self.high)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of ``options``, each a plain value; a tuple stands for a list. ValueError where there is none."""

    options: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.options:
            raise ValueError("there must be at least one option")

    def sample(self, rng: np.random.Generator) -> Any:
        """Draws a value."""
        option = self.options[int(rng.integers(len(self.options)))]
        return list(option) if isinstance(option, tuple) else option


@dataclass(frozen=True, slots=True)
class Layers:
    """A list of node counts, each drawn from ``nodes``, whose length is drawn from ``count``.

    Raises ValueError where a layer could have less than one node or the length be negative.
    """

    count: Int
    nodes: Int

    def __post_init__(self) -> None:
        if self.count.low < 0:
            raise ValueError("the number of layers cannot be negative")
        if self.nodes.low < 1:
            raise ValueError("a layer must have at least 1 node")

    def sample(self, rng: np.random.Generator) -> list[int]:
        """Draws a list."""
        return [self.nodes.sample(rng) for _ in range(self.count.sample(rng))]


Dimension = Float | Int | Choice | Layers
"""What one hyper-parameter may be."""

Space = Mapping[str, Dimension]
"""Hyper-parameters by name."""


def is_fixed(dimension: Dimension) -> bool:
    """Whether there is only one value to draw."""
    if isinstance(dimension, Choice):
        return len(dimension.options) == 1
    if isinstance(dimension, Layers):
        return is_fixed(dimension.count) and is_fixed(dimension.nodes)
    return dimension.low == dimension.high


def _check_range(dimension: Float | Int) -> None:
    if dimension.low > dimension.high:
        raise ValueError(f"the lower bound {dimension.low} is above the upper bound {dimension.high}")
    if dimension.log and dimension.low <= 0:
        raise ValueError(f"log needs bounds above 0, not {dimension.low}")
    if dimension.step is not None:
        if not (math.isfinite(dimension.step) and dimension.step > 0):
            raise ValueError(f"the step must be above 0, not {dimension.step}")
        if dimension.log:
            raise ValueError("log and step exclude each other")


def tidy(value: float) -> float:
    """Drops the rounding error of a point of a grid: 0.30000000000000004 becomes 0.3."""
    return float(f"{value:.12g}")


def sample(space: Space, rng: np.random.Generator) -> dict[str, Any]:
    """Draws one point: plain values that JSON can hold, in the space's order.

    The draw does not depend on that order: the same names and dimensions give the same point.
    """
    drawn = {name: space[name].sample(rng) for name in sorted(space)}
    return {name: drawn[name] for name in space}


def space_to_json(space: Space) -> dict[str, Any]:
    """Returns the space as plain values, in the form that ``search_space`` has in a configuration."""
    return {name: _to_json(dimension) for name, dimension in space.items()}


def space_from_json(data: Mapping[str, Any]) -> dict[str, Dimension]:
    """Reads the space that ``space_to_json`` wrote.

    Raises KeyError, TypeError or ValueError where the data are something else.
    """
    return {name: _from_json(value) for name, value in data.items()}


def _to_json(dimension: Dimension) -> dict[str, Any]:
    if isinstance(dimension, Choice):
        return {
            "type": "choice",
            "options": [list(o) if isinstance(o, tuple) else o for o in dimension.options],
        }
    if isinstance(dimension, Layers):
        return {"type": "layers", "count": _to_json(dimension.count), "nodes": _to_json(dimension.nodes)}
    data: dict[str, Any] = {
        "type": "float" if isinstance(dimension, Float) else "int",
        "low": dimension.low,
        "high": dimension.high,
    }
    if dimension.log:
        data["log"] = True
    if dimension.step is not None:
        data["step"] = dimension.step
    return data


def _from_json(data: Mapping[str, Any]) -> Dimension:
    match data["type"]:
        case "choice":
            return Choice(tuple(tuple(o) if isinstance(o, list) else o for o in data["options"]))
        case "layers":
            return Layers(_int_from_json(data["count"]), _int_from_json(data["nodes"]))
        case "int":
            return _int_from_json(data)
        case "float":
            step = data.get("step")
            return Float(
                float(data["low"]),
                float(data["high"]),
                log=bool(data.get("log", False)),
                step=None if step is None else float(step),
            )
        case other:
            raise ValueError(f"no such type of dimension: {other!r} (int, float, choice, layers)")


def _int_from_json(data: Mapping[str, Any]) -> Int:
    step = data.get("step")
    return Int(
        int(data["low"]),
        int(data["high"]),
        log=bool(data.get("log", False)),
        step=None if step is None else int(step),
    )
