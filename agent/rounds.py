"""What the agent does from time to time: renews leases, and gives up what nobody will ask for."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from agent.absences import Absences
from agent.domain import AttemptState, StopReason
from agent.events import StopRequested

if TYPE_CHECKING:
    from agent.runtime import Agent

logger = logging.getLogger(__name__)


class Rounds:
    """Made several times within each of the limits that they are for."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._loop = asyncio.get_running_loop()
        self._pause = min(agent.config.orphan_limit, agent.config.abandon_limit) / 4
        self._timer: asyncio.TimerHandle | None = None
        self.absences = Absences(agent.config.abandon_limit)

    def begin(self) -> None:
        """Makes the first round; the others follow."""
        self._timer = self._loop.call_later(self._pause, self.begin)
        self._renew_leases()
        self._give_up_abandoned()

    def end(self) -> None:
        """Makes no more rounds."""
        if self._timer is not None:
            self._timer.cancel()

    def _renew_leases(self) -> None:
        for attempt in self._agent.attempts.values():
            if attempt.machine.state in (AttemptState.RUNNING, AttemptState.STOPPING):
                try:
                    attempt.directory.renew_lease(self._agent.config.orphan_limit)
                except OSError as error:
                    logger.error("cannot renew the lease of %s: %s", attempt.id, error)  # noqa: TRY400

    def _give_up_abandoned(self) -> None:
        """Ends attempts of abandoned studies, and forgets those that have ended."""
        abandoned = self.absences.abandoned(self._agent.studies_alone(), self._loop.time())
        for attempt in [a for a in self._agent.attempts.values() if a.id.study_id in abandoned]:
            if not attempt.active:
                self._agent.forget(attempt)
            elif attempt.machine.state is not AttemptState.STOPPING:
                logger.warning("%s is ended: no coordinator has followed its study for too long", attempt.id)
                self._agent.feed(attempt, StopRequested(StopReason.RELEASED))
