"""What the user sees of a running study: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from coordinator.domain import StudySpec, Update

if TYPE_CHECKING:
    from rich.console import Console

Observer = Callable[[Update], None]


def watch(spec: StudySpec, console: Console, logs: Path | None = None) -> AbstractContextManager[Observer]:
    """Shows a study for the time of the context; the observer that it gives takes the updates.

    ``logs`` is the folder where logs of failed trials are kept.
    """
    if console.is_terminal and not console.is_dumb_terminal:
        from coordinator.view.live import LiveView

        return LiveView(spec, console, logs)
    from coordinator.view.plain import PlainView

    return PlainView(spec, console, logs)
