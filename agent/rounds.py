"""What the agent does from time to time: renews leases, and gives up what nobody will ask for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from agent.absences import Absences
from agent.contacts import Contacts
from agent.domain import AttemptState, StopReason
from agent.events import CoordinatorSilent, StopRequested

if TYPE_CHECKING:
    from agent.runtime import Agent

logger = logging.getLogger(__name__)

SHORT_PAUSE = 0.5
"""Seconds between two looks at which coordinators are silent, and which leases are to be renewed."""


class Rounds:
    """Made several times within each of the limits that they are for.

    ``contacts`` is what the agent knows of coordinators, ``absences`` of studies without one.
    """

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._loop = asyncio.get_running_loop()
        self._timers: dict[Callable[[], None], asyncio.TimerHandle] = {}
        self.absences = Absences(agent.config.abandon_limit)
        self.contacts = Contacts()

    def begin(self) -> None:
        """Makes the first round; the others follow."""
        limits = self._agent.config
        self._repeat(min(SHORT_PAUSE, limits.orphan_limit / 8), self._renew_leases)
        self._repeat(limits.abandon_limit / 4, self._give_up_abandoned)
        self._repeat(SHORT_PAUSE, self._give_up_silent)

    def end(self) -> None:
        """Makes no more rounds."""
        for timer in self._timers.values():
            timer.cancel()

    def _repeat(self, pause: float, work: Callable[[], None]) -> None:
        self._timers[work] = self._loop.call_later(pause, self._repeat, pause, work)
        work()

    def _renew_leases(self) -> None:
        now = self._loop.time()
        for attempt in self._agent.attempts.values():
            limits = attempt.manifest.limits
            if limits is None or attempt.machine.state not in (AttemptState.RUNNING, AttemptState.STOPPING):
                continue
            seconds = limits.without_agent(self._agent.config.orphan_limit)
            if now - attempt.renewed_at >= seconds / 4:
                try:
                    attempt.renew_lease(seconds, now)
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

    def _give_up_silent(self) -> None:
        """Ends attempts whose coordinator will soon count this host as lost, or has done so."""
        now = self._loop.time()
        attempts = list(self._agent.attempts.values())
        studies = frozenset(attempt.id.study_id for attempt in attempts)
        self.contacts.forget(studies)
        self._agent.owners.forget(studies | self._agent.subscribers.studies)
        for attempt in attempts:
            limits = attempt.manifest.limits
            if attempt.machine.state is not AttemptState.RUNNING or limits is None or limits.silence is None:
                continue
            if self.contacts.silent_for(attempt.id.study_id, now) >= limits.silence:
                logger.warning("%s is ended: its coordinator is out of reach", attempt.id)
                self._agent.feed(attempt, CoordinatorSilent(limits.silence))
