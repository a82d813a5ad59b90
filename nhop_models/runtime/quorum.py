"""Whose gradients a synchronous step waits for: decisions alone, the clock is passed in.

A step needs the gradients of so many workers. One that is gone is not waited for; one that is slow
is waited for with patience, then the steps go on without it until it has pushed again. So no step
waits without an end, whatever becomes of the others.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

APPEARANCE_SECONDS = 3.0
"""How long a worker may take until its server is seen for the first time."""
SECOND_CALL_SECONDS = 5.0
"""After how long a worker that was given up is called again."""
LEAST_PATIENCE = 1.0
STEPS_OF_PATIENCE = 5.0
"""A worker is slow when a step has waited for it longer than both of these: seconds, mean steps."""


class _State(enum.Enum):
    EXPECTED = "expected"  # has not pushed yet
    PRESENT = "present"
    ABSENT = "absent"


class Quorum:
    """The workers of a synchronous training as its chief, worker 0, sees them."""

    def __init__(self, workers: int, backup: int, start_limit: float, now: float) -> None:
        self._backup = backup
        self._start_limit = start_limit
        self._states = [_State.PRESENT] + [_State.EXPECTED] * (workers - 1)
        self._pushed = [-1] * workers
        self._seen = [False] * workers
        self._left = [0] * workers  # the step at which a worker was last given up
        self._missed = [0] * workers
        self._since = [now] * workers  # when a worker was last given up, or came back
        self._began = now
        self._step = 0
        self._waiting_since: float | None = None  # when the chief itself had pushed for this step
        self._mean_step = 0.0

    def observe(self, step: int, pushed: Sequence[int], now: float) -> None:
        """``step`` is under way; ``pushed``: the last step that each worker has pushed, -1 for none."""
        if step != self._step:
            self._step, self._waiting_since = step, None
        for worker, last in enumerate(pushed):
            if last > self._pushed[worker]:
                self._pushed[worker] = last
                if self._states[worker] is _State.ABSENT:
                    self._come_back(worker, now)
                self._states[worker] = _State.PRESENT
        if self._waiting_since is None and self._pushed[0] >= step:
            self._waiting_since = now

    def made(self, steps: int, seconds: float) -> None:
        """So many steps took so long, all workers taking part."""
        if steps and all(state is _State.PRESENT for state in self._states):
            mean = seconds / steps
            self._mean_step = 0.9 * self._mean_step + 0.1 * mean if self._mean_step else mean

    @property
    def missing(self) -> list[int]:
        """Workers that the step waits for, once the chief has done its own part."""
        if self._waiting_since is None:
            return []
        return [
            worker
            for worker, state in enumerate(self._states)
            if state is not _State.ABSENT and self._pushed[worker] < self._step
        ]

    def call_again(self, now: float) -> list[bool]:
        """Of each worker, whether it was given up a while ago and may have missed its call.

        It takes part again once it pushes, and is not waited for until then.
        """
        called = [
            state is _State.ABSENT and now - since > SECOND_CALL_SECONDS
            for state, since in zip(self._states, self._since, strict=True)
        ]
        self._since = [now if again else since for again, since in zip(called, self._since, strict=True)]
        return called

    @property
    def needed(self) -> int:
        """How many workers beside the chief have to push before a step is applied."""
        awaited = sum(state is not _State.ABSENT for state in self._states)
        return max(min(len(self._states) - self._backup, awaited), 1) - 1

    @property
    def present(self) -> list[bool]:
        """Of each worker, whether it takes part."""
        return [state is not _State.ABSENT for state in self._states]

    def probed(self, worker: int, listens: bool, now: float) -> None:
        """Whether a missing worker's server listens; its process is gone where it does no longer."""
        expected = self._states[worker] is _State.EXPECTED
        self._seen[worker] = self._seen[worker] or listens or not expected
        since = self._began if expected else max(self._waiting_since or now, self._since[worker])
        waited = now - since
        if not listens:
            limit = 0.0 if self._seen[worker] else APPEARANCE_SECONDS
        elif expected:
            limit = self._start_limit
        else:
            limit = max(LEAST_PATIENCE, STEPS_OF_PATIENCE * self._mean_step)
        if waited >= limit:
            self._states[worker] = _State.ABSENT
            self._left[worker] = self._step
            self._since[worker] = now

    def _come_back(self, worker: int, now: float) -> None:
        self._missed[worker] += max(self._step - self._left[worker], 0)
        self._since[worker] = now

    def notes(self, first: int, last: int) -> list[str]:
        """For the user, after steps ``first`` to ``last`` (exclusive): who was missing, and how often."""
        found = []
        for worker, state in enumerate(self._states):
            missed = self._missed[worker]
            if state is _State.ABSENT:
                missed += max(last - self._left[worker], 0)
            if missed:
                found.append(f"worker/{worker} had no part in {missed} of {last - first} synchronous steps")
        return found
