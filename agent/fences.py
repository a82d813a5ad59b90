"""Which attempts may no longer be prepared or started here."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from agent.domain import AttemptId

MAX_TRIALS = 100_000
"""So many trials are remembered, the newest ones."""


class AttemptOverError(Exception):
    """The attempt has ended or was stopped, or a newer attempt of its trial is known."""


class Fences:
    """The newest attempt of each trial that has ended or was stopped."""

    def __init__(self) -> None:
        self._newest: OrderedDict[tuple[str, int], int] = OrderedDict()

    def put(self, attempt: AttemptId) -> None:
        """From now on refuses this attempt, and older ones of its trial."""
        trial = (attempt.study_id, attempt.trial)
        self._newest[trial] = max(attempt.attempt, self._newest.get(trial, 0))
        self._newest.move_to_end(trial)
        if len(self._newest) > MAX_TRIALS:
            self._newest.popitem(last=False)

    def check(self, attempt: AttemptId, known: Iterable[AttemptId]) -> None:
        """Raises AttemptOverError where the attempt, or one of the known ones that is newer, forbids it."""
        if attempt.attempt <= self._newest.get((attempt.study_id, attempt.trial), 0):
            raise AttemptOverError(f"{attempt} has ended or was stopped, or a newer attempt has")
        for other in known:
            if other.same_trial(attempt) and other.attempt > attempt.attempt:
                raise AttemptOverError(f"{other} is newer than {attempt}")
