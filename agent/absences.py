"""Which studies have been left alone: their coordinator is gone, and does not come back."""

from __future__ import annotations

from collections.abc import Iterable


class Absences:
    """Since when each study has had no subscriber."""

    def __init__(self, limit: float) -> None:
        """``limit``: seconds without a subscriber after which a study is abandoned."""
        self._limit = limit
        self._since: dict[str, float] = {}

    def end(self, study_id: str) -> None:
        """The study has a subscriber: an absence of it has ended."""
        self._since.pop(study_id, None)

    def abandoned(self, absent: Iterable[str], now: float) -> set[str]:
        """Those of the studies without a subscriber at ``now`` that have had none for too long."""
        self._since = {study_id: self._since.get(study_id, now) for study_id in absent}
        return {study_id for study_id, since in self._since.items() if now - since >= self._limit}
