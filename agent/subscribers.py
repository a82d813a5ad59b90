"""Who takes the events of which study now: one subscription each, the newest."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from agent.attempt import Attempt
from agent.domain import AttemptId
from agent.streams import Closed, Positions, Subscription


class Subscribers:
    """The subscriptions of an agent, by study."""

    def __init__(self) -> None:
        self._by_study: dict[str, Subscription] = {}

    @property
    def studies(self) -> frozenset[str]:
        """Studies whose events somebody takes."""
        return frozenset(self._by_study)

    def add(self, study_id: str, positions: Positions, attempts: Sequence[Attempt]) -> Subscription:
        """A stream of the events of a study's attempts, in the place of an earlier one."""
        earlier = self._by_study.get(study_id)
        if earlier is not None:
            earlier.close(Closed.REPLACED)
        subscription = Subscription(study_id, positions, attempts)
        self._by_study[study_id] = subscription
        return subscription

    def remove(self, subscription: Subscription) -> None:
        """The receiver is gone."""
        subscription.emptied.set()
        if self._by_study.get(subscription.study_id) is subscription:
            del self._by_study[subscription.study_id]

    def touch(self, attempt: Attempt) -> None:
        """The attempt may have new events."""
        subscription = self._by_study.get(attempt.id.study_id)
        if subscription is not None:
            subscription.touch(attempt)

    def forget(self, attempt: AttemptId) -> None:
        """The attempt is no more."""
        subscription = self._by_study.get(attempt.study_id)
        if subscription is not None:
            subscription.forget(attempt)

    async def wait_until_emptied(self, seconds: float) -> None:
        """Until every subscriber has taken all that there is, at most so long."""
        waits = [subscription.emptied.wait() for subscription in self._by_study.values()]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.gather(*waits)

    def close(self) -> None:
        """Ends every stream."""
        for subscription in self._by_study.values():
            subscription.close(Closed.SHUTDOWN)
