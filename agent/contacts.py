"""When the coordinator of each study was last heard of, as far as it is sure that it hears us, too.

A coordinator counts a host as lost some time after the last answer that it received. What an agent may
rely on is therefore not that a request came in, but that the coordinator has received an answer: its
requests say which (``GetInventoryRequest``). So a connection that is cut in one direction only ends the
contact as well, and tasks are gone before their trial is tried again elsewhere.
"""

from __future__ import annotations


class Contacts:
    """Times in seconds on a monotonic clock that is passed in."""

    def __init__(self) -> None:
        self._newest: dict[str, float] = {}

    def answered(self, study_id: str, at: float) -> None:
        """The coordinator of the study has received what this agent answered ``at`` that time."""
        self._newest[study_id] = max(at, self._newest.get(study_id, at))

    def silent_for(self, study_id: str, now: float) -> float:
        """How long ago that was; 0 where nothing is known."""
        return now - self._newest.get(study_id, now)

    def forget(self, studies: frozenset[str]) -> None:
        """Keeps nothing of other studies than these."""
        self._newest = {study: at for study, at in self._newest.items() if study in studies}
