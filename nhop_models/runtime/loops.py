"""Loops in the graph, so that one call makes many steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

v1 = tf.compat.v1
_CARRIERS = {"Enter", "Merge", "Switch", "NextIteration", "Exit"}


def loop(going_on: Callable[..., Any], body: Callable[..., Any], first: Sequence[Any]) -> Any:
    """Repeats ``body`` on the values of ``first`` while ``going_on``, one repetition after the other.

    By control flow v1, whose loops cross from a worker to its parameter servers and back. What
    ``body`` builds may loop by control flow v2 within: TensorArrays, and with them Keras' recurrent
    layers, work inside a v1 loop only so.

    Each of ``first`` stays on its device from one repetition to the next.
    """

    def inside(*values: Any) -> Any:
        v1.enable_control_flow_v2()
        try:
            return body(*values)
        finally:
            v1.disable_control_flow_v2()

    v1.disable_control_flow_v2()
    try:
        with v1.device(_place):
            return v1.while_loop(going_on, inside, list(first), parallel_iterations=1, back_prop=False)
    finally:
        v1.enable_control_flow_v2()


def _place(operation: tf.Operation) -> Any:
    """What carries a value through a loop belongs beside the value, else it would travel every time."""
    if not operation.inputs:
        return operation.device
    source = operation.inputs[0].op
    carries = operation.type in _CARRIERS or (operation.type == "Identity" and source.type == "Switch")
    return source.device if carries else operation.device
