"""Work in the background that nobody waits for: what goes wrong in it is logged, not lost."""

from __future__ import annotations

import asyncio
import logging

logger = logging.getLogger(__name__)


def log_exception(task: asyncio.Task[None]) -> None:
    """A done-callback for tasks that nobody awaits."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("an unexpected error in the background; please report this", exc_info=error)
