"""From one stage to the next: a smaller space around the best point (section II.B of the paper)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from coordinator.search.space import GRID_SLACK, Choice, Dimension, Float, Int, Layers, Space, tidy


def narrow(space: Space, original: Space, best: Mapping[str, Any], factor: float) -> dict[str, Dimension]:
    """Returns the space of the next stage: each numeric range becomes ``[p - factor*|p|, p + factor*|p|]``.

    ``p`` is the parameter's value in ``best``. The range is clipped to the one in ``original``,
    whole numbers are rounded, steps stay on the original's grid, choices are kept. For a list of
    layers the number of layers is narrowed around its length, and the nodes from the smallest to
    the largest layer. Where ``p`` is 0 the range has ``factor`` times the width of the one in
    ``space``, since it would otherwise shrink to a point. A parameter that ``best`` does not
    have keeps its range. The result contains ``best`` and lies within ``original``.
    """
    return {
        name: _narrow(dimension, original[name], best[name], factor) if name in best else dimension
        for name, dimension in space.items()
    }


def _narrow(current: Dimension, original: Dimension, best: Any, factor: float) -> Dimension:
    if isinstance(current, Float) and isinstance(original, Float):
        return _narrow_float(current, original, float(best), factor)
    if isinstance(current, Int) and isinstance(original, Int):
        return _narrow_int(current, original, int(best), int(best), factor)
    if isinstance(current, Layers) and isinstance(original, Layers):
        return _narrow_layers(current, original, best, factor)
    if isinstance(current, Choice):
        return current
    raise ValueError(f"cannot narrow {current} within {original}")


def _narrow_float(current: Float, original: Float, best: float, factor: float) -> Float:
    margin = factor * abs(best) or factor * (current.high - current.low) / 2
    low = max(best - margin, original.low)
    high = min(best + margin, original.high)
    if original.step is not None:
        # On the original's grid, so that the points of all stages are the same.
        steps = math.ceil((low - original.low) / original.step - GRID_SLACK)
        low = min(max(tidy(original.low + steps * original.step), original.low), best)
    return Float(low, high, log=original.log, step=original.step)


def _narrow_int(current: Int, original: Int, smallest: int, largest: int, factor: float) -> Int:
    spare = factor * (current.high - current.low) / 2
    low = max(math.ceil(smallest - (factor * abs(smallest) or spare) - 0.5), original.low)
    high = min(math.floor(largest + (factor * abs(largest) or spare) + 0.5), original.high)
    if original.step is not None:
        low = original.low + -(-(low - original.low) // original.step) * original.step
    return Int(min(low, smallest), max(high, largest), log=original.log, step=original.step)


def _narrow_layers(current: Layers, original: Layers, best: Sequence[int], factor: float) -> Layers:
    count = _narrow_int(current.count, original.count, len(best), len(best), factor)
    if not best:
        return Layers(count, current.nodes)
    return Layers(count, _narrow_int(current.nodes, original.nodes, min(best), max(best), factor))
