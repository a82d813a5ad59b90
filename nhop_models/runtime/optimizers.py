"""Optimizers over flat variables: Keras' rules, each as one operation beside the parameters.

A fused operation reads, computes and writes where the variable lives. Optimizers made of separate
operations (Keras' own, for one) would lose whatever other workers apply between their read and
their write. Formulas and defaults are those of ``keras.optimizers``; TensorFlow's kernels for them
are in ``tensorflow/core/kernels/training_ops.cc``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

v1 = tf.compat.v1

_ADAM = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-7}


class Update:
    """How one flat variable is changed by a gradient; ``slots`` are the optimizer's own variables.

    Made outside of loops, on the device of ``variable``; ``apply`` may be called inside.
    """

    def __init__(self, name: str, hp: Mapping[str, Any], variable: Any, number: int) -> None:
        """``name`` is one of OPTIMIZERS; ``number`` makes the slots' names unique."""
        self.slots: list[Any] = []
        self._variable = variable
        self._number = number
        self._rule = OPTIMIZERS[name](self, hp)

    def apply(self, gradient: Any) -> Any:
        """The operation that applies a gradient of the variable's shape."""
        return self._rule(self._variable.handle, gradient)

    def vector(self, name: str, value: float = 0.0) -> Any:
        """A slot as large as the variable."""
        return self._slot(name, tf.fill(self._variable.shape, tf.constant(value, tf.float32)))

    def scalar(self, name: str, value: float) -> Any:
        """A slot of one number."""
        return self._slot(name, tf.constant(value, tf.float32))

    def _slot(self, name: str, initial: Any) -> Any:
        slot = v1.Variable(initial, trainable=False, name=f"{name}_{self._number}", use_resource=True)
        self.slots.append(slot)
        return slot

    @property
    def variable(self) -> Any:
        """What is changed."""
        return self._variable


Rule = Callable[[Any, Any], Any]
"""From the variable's handle and a gradient to the operation."""


def _rate(hp: Mapping[str, Any]) -> float:
    return float(hp["learning_rate"])


def _sgd(update: Update, hp: Mapping[str, Any]) -> Rule:
    return lambda var, grad: tf.raw_ops.ResourceApplyGradientDescent(var=var, alpha=_rate(hp), delta=grad)


def _momentum(update: Update, hp: Mapping[str, Any]) -> Rule:
    velocity = update.vector("velocity")
    momentum = float(hp.get("momentum", 0.9))
    return lambda var, grad: tf.raw_ops.ResourceApplyKerasMomentum(
        var=var, accum=velocity.handle, lr=_rate(hp), grad=grad, momentum=momentum
    )


def _adagrad(update: Update, hp: Mapping[str, Any]) -> Rule:
    # Keras divides by sqrt(accumulator + epsilon), the kernel by sqrt(accumulator).
    accumulator = update.vector("accumulator", 0.1 + 1e-7)
    return lambda var, grad: tf.raw_ops.ResourceApplyAdagrad(
        var=var, accum=accumulator.handle, lr=_rate(hp), grad=grad
    )


def _rmsprop(update: Update, hp: Mapping[str, Any]) -> Rule:
    mean_square, momentum = update.vector("mean_square"), update.vector("momentum")
    return lambda var, grad: tf.raw_ops.ResourceApplyRMSProp(
        var=var,
        ms=mean_square.handle,
        mom=momentum.handle,
        lr=_rate(hp),
        rho=0.9,
        momentum=float(hp.get("momentum", 0.0)),
        epsilon=1e-7,
        grad=grad,
    )


def _adam(update: Update, hp: Mapping[str, Any]) -> Rule:
    first, second = update.vector("first_moment"), update.vector("second_moment")
    updates = update.scalar("updates", 0.0)

    def apply(var: Any, grad: Any) -> Any:
        # Counted when the gradient is there, in one operation: no update of another worker is lost.
        with tf.control_dependencies([grad]):
            number = updates.assign_add(1.0, read_value=True)
        return tf.raw_ops.ResourceApplyAdam(
            var=var,
            m=first.handle,
            v=second.handle,
            beta1_power=tf.pow(_ADAM["beta1"], number),
            beta2_power=tf.pow(_ADAM["beta2"], number),
            lr=_rate(hp),
            grad=grad,
            **_ADAM,
        )

    return apply


def _adamw(update: Update, hp: Mapping[str, Any]) -> Rule:
    adam = _adam(update, hp)
    decay = float(hp.get("weight_decay", 0.004)) * _rate(hp)

    def apply(var: Any, grad: Any) -> Any:
        # One operation as well: the gradient descent of decay/2 * |w|^2.
        with tf.control_dependencies([grad]):
            weights = update.variable.read_value()
        decayed = tf.raw_ops.ResourceApplyGradientDescent(var=var, alpha=decay, delta=weights)
        with tf.control_dependencies([decayed]):
            return adam(var, grad)

    return apply


OPTIMIZERS: Mapping[str, Callable[[Update, Mapping[str, Any]], Rule]] = {
    "Adam": _adam,
    "sgd": _sgd,
    "Adagrad": _adagrad,
    "Momentum": _momentum,
    "RMSprop": _rmsprop,
    "AdamW": _adamw,
}
"""By the names that ``train_optimizer`` has for them. All read ``hp["learning_rate"]``; Momentum and
RMSprop read ``momentum``, AdamW ``weight_decay``, where the study has them."""
