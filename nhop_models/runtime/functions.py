"""Training by a plain function ``train(hp, context)``, for what does not fit a model class."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from nhop_models.base import HyperParameters
from nhop_models.contract import FailureKind, Outcome, TaskStatus
from nhop_models.runtime.failures import TaskError

if TYPE_CHECKING:
    import tensorflow as tf

    from nhop_models.runtime.task import Task

TrainFunction: TypeAlias = "Callable[[HyperParameters, Context], Any]"


class Context:
    """A function's place in its trial, and its way to speak.

    ``train_epoch`` is the budget of steps that the stage gives each trial, ``seed`` the trial's.
    ``task`` is such as ``worker/0``, which is the chief; ``cluster`` maps ``ps`` and ``worker`` to the
    addresses of all tasks, and ``server`` is this task's TensorFlow server, started (both empty with
    ``ps: 0``). The parameter servers run already, and only serve.
    """

    def __init__(self, task: Task, server: tf.distribute.Server | None) -> None:
        spec = task.spec
        self._task = task
        self.val_loss: float | None = None
        self.metrics: dict[str, float] = {}
        self.train_epoch = spec.train_epoch
        self.seed = spec.seed
        self.trial = spec.trial
        self.task = str(task.identity)
        self.task_index = task.identity.index
        self.is_chief = task.identity.is_chief
        self.threads = spec.threads
        self.cluster: dict[str, list[str]] = (
            {"ps": list(spec.ps), "worker": list(spec.workers)} if spec.ps else {}
        )
        self.server = server

    def report(self, step: int, loss: float, val_loss: float | None = None, **metrics: float) -> None:
        """Says how the training goes; may be called as often as you like.

        ``loss`` is the training loss at a step, ``val_loss`` the loss on held-out data where you have it
        (the last one counts). Raises TaskError (DIVERGED) where a loss is not finite.
        """
        for name, value in (("training loss", loss), ("loss on the held-out data", val_loss)):
            if value is not None and not math.isfinite(float(value)):
                raise TaskError(FailureKind.DIVERGED, f"the {name} became {value} at step {step}")
        self.metrics.update({name: float(value) for name, value in metrics.items()})
        if val_loss is not None:
            self.val_loss = float(val_loss)
        now = dict(self.metrics)
        self._task.reporter.report(
            int(step), float(loss), None, lambda: now, self.val_loss if val_loss is not None else None
        )

    def should_stop(self) -> bool:
        """Whether the task has been asked to end: return soon, it is ended a tenth of a second later."""
        return self._task.stop.is_set()


def run(task: Task, function: TrainFunction, hp: HyperParameters, server: Any) -> Outcome:
    """Calls the function; its result is the trial's: the loss on held-out data, or a mapping.

    A mapping has ``val_loss``, ``train_loss`` and further metrics. Without a result the last ``val_loss``
    that was reported counts. What other workers than the chief return is not looked at.
    """
    context = Context(task, server)
    reporter = task.reporter
    reporter.ready()
    with reporter.phase("steps"):
        result = function(hp, context)
    if not task.identity.is_chief:
        task.stop.wait()
    if task.stop.is_set():
        return task.outcome(TaskStatus.STOPPED)
    found = _read(result, task.spec.model)
    val_loss = found.pop("val_loss", context.val_loss)
    train_loss = found.pop("train_loss", reporter.train_loss)
    if val_loss is None and train_loss is None:
        raise TaskError(
            FailureKind.USER_CODE,
            f"{task.spec.model} has returned no loss: return the loss on held-out data, or call "
            "context.report(step, loss=..., val_loss=...)",
        )
    for name, value in (("val_loss", val_loss), ("train_loss", train_loss)):
        if value is not None and not math.isfinite(value):
            raise TaskError(FailureKind.DIVERGED, f"{task.spec.model} has returned {name} {value}")
    metrics = {**context.metrics, **found}
    reporter.finish(val_loss, metrics)
    return task.outcome(TaskStatus.COMPLETED, val_loss=val_loss, train_loss=train_loss, metrics=metrics)


def _read(result: Any, name: str) -> dict[str, float]:
    if result is None:
        return {}
    try:
        if isinstance(result, Mapping):
            return {str(key): float(value) for key, value in result.items()}
        return {"val_loss": float(result)}
    except (TypeError, ValueError) as error:
        raise TaskError(
            FailureKind.USER_CODE,
            f"{name} has returned {type(result).__name__}: return the loss on held-out data, a mapping of "
            f"names to numbers, or nothing ({error})",
        ) from error
