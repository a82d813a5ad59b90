"""Loops in the graph, so that one call makes many steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

v1 = tf.compat.v1


def loop(going_on: Callable[..., Any], body: Callable[..., Any], first: Sequence[Any]) -> Any:
    """Repeats ``body`` on the values of ``first`` while ``going_on``, one repetition after the other.

    By control flow v1, whose loops cross from a worker to its parameter servers and back. What
    ``body`` builds may loop by control flow v2 within: TensorArrays, and with them Keras' recurrent
    layers, work inside a v1 loop only so.
    """

    def inside(*values: Any) -> Any:
        v1.enable_control_flow_v2()
        try:
            return body(*values)
        finally:
            v1.disable_control_flow_v2()

    v1.disable_control_flow_v2()
    try:
        return v1.while_loop(going_on, inside, list(first), parallel_iterations=1, back_prop=False)
    finally:
        v1.enable_control_flow_v2()
