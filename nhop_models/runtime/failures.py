"""Which failure kind an exception of a task is, and what the user is told of it."""

from __future__ import annotations

import errno
import re
import sysconfig
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import tensorflow as tf

from nhop_models.base import DataError
from nhop_models.contract import MAX_DETAIL, FailureKind, Outcome, TaskStatus
from nhop_models.fetching import NotNowError, with_urls

if TYPE_CHECKING:
    from nhop_models.runtime.task import Task

SHIPPED = {
    "Regressor": "nhop_models.regressor:RegressorNN",
    "Classifier": "nhop_models.classifier:ClassifierNN",
    "CNN": "nhop_models.cnn:ImageCNN",
    "RNN": "nhop_models.source_code:SourceCodeRNN",
}
"""The models that come with NHOP, by the names that ``nn_model`` has for them."""

_OWN_FOLDER = str(Path(__file__).resolve().parent.parent)
_SENT = re.compile(r".*/bundles/[0-9a-f]{64}/")
_STANDARD_LIBRARY = sysconfig.get_path("stdlib")
_PIPELINE = "IteratorGetNext"  # the operation that gives a pipeline's elements, as errors name it
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN}


class TaskError(Exception):
    """A failure that the runtime itself found; ``kind`` says which."""

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def outcome_of(error: BaseException, task: Task) -> Outcome:
    """The outcome of a task that ``error`` ended."""
    kind, message = classify(error, shipped=task.spec.model in SHIPPED, served=bool(task.spec.ps))
    detail = "" if isinstance(error, (TaskError, DataError)) else _traceback(error)
    return Outcome(
        TaskStatus.FAILED,
        failure_kind=kind,
        message=message,
        detail=detail,
        step=task.reporter.step,
        train_loss=task.reporter.train_loss,
        phase_seconds=dict(task.reporter.phase_seconds),
    )


def classify(error: BaseException, *, shipped: bool, served: bool) -> tuple[FailureKind, str]:
    """Kind and message of an exception; ``served``: by parameter servers, which it may have been lost.

    One that no other rule knows is the user's where their code raised it, or where the model is
    theirs (a wrong output shape is first seen in our code); else it is ours (INTERNAL).
    """
    name = type(error).__name__
    if isinstance(error, TaskError):
        return error.kind, str(error)
    if isinstance(error, DataError):
        passing = isinstance(error, NotNowError)
        return FailureKind.RESOURCES if passing else FailureKind.DATA, with_urls(str(error))
    if isinstance(error, SystemExit):
        return FailureKind.USER_CODE, f"the model's code called sys.exit({error.code!r})"
    if isinstance(error, (MemoryError, tf.errors.ResourceExhaustedError)):
        return FailureKind.RESOURCES, f"out of memory (a smaller batch_size needs less): {first_line(error)}"
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return FailureKind.RESOURCES, f"{name}: {first_line(error)}"
    if isinstance(error, tf.errors.OpError) and _PIPELINE in error.message:
        return FailureKind.DATA, f"the tf.data pipeline of load_data failed: {first_line(error)}"
    if served and isinstance(error, (tf.errors.UnavailableError, tf.errors.AbortedError)):
        return FailureKind.PEER_LOST, "a parameter server of this attempt is gone"
    where = _place(error)
    kind = FailureKind.USER_CODE if where or not shipped else FailureKind.INTERNAL
    return kind, f"{name}: {first_line(error)}{where}"


def _place(error: BaseException) -> str:
    """Innermost place that is neither ours nor a library's, as " (in model.py:12, build_model)"."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        f
        for f in frames
        if not f.filename.startswith((_OWN_FOLDER, _STANDARD_LIBRARY, "<"))
        and not any(folder in f.filename for folder in ("site-packages", "dist-packages"))
    ]
    if not own:
        return ""
    frame = own[-1]
    # Of code that was sent the user knows the folder, not where an agent keeps it.
    name = _SENT.sub("", frame.filename)
    return f" (in {name}:{frame.lineno}, {frame.name})"


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, 500 characters at most."""
    if isinstance(error, tf.errors.OpError):
        # A session puts a report of many lines around what it caught.
        caught = error.__context__ if isinstance(error.__context__, tf.errors.OpError) else error
        return _first_line(caught.message)
    return _first_line(str(error))


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[0][:500]


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-MAX_DETAIL:]
