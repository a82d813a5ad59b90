"""To whom each study belongs: the coordinator whose certificate first used its name here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from agent.domain import STUDY_ID
from nhop.security.identity import Identity

KEPT_SECONDS = 60.0
"""How long a claim holds without an attempt or a subscription of the study, from its last use on."""

MAX_CLAIMS = 20_000
"""Studies of one coordinator at a time; a claim that is not used does not last."""


class _Claim(NamedTuple):
    owner: str
    used: float


class Owners:
    """By study. What has no owner, as without TLS, anybody may touch. ``now``: seconds, monotonic."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._claims: dict[str, _Claim] = {}
        self._counts: Counter[str] = Counter()

    def claim(self, study_id: str, owner: str) -> None:
        """The study is the owner's, if it is nobody's yet; an empty owner is nobody."""
        if owner and study_id not in self._claims:
            self._put(study_id, owner)

    def of(self, study_id: str) -> str:
        """Whose it is; empty: nobody's."""
        claim = self._claims.get(study_id)
        return "" if claim is None else claim.owner

    def refuse(self, caller: Identity, studies: Sequence[str]) -> str:
        """Why the caller may not touch these studies, and then nothing changes; empty: it may.

        What was nobody's is now its own. Names that no study can have are left to whoever checks requests.
        """
        known: list[str] = []
        new: set[str] = set()
        for study_id in studies:
            claim = self._claims.get(study_id)
            if claim is not None and claim.owner != caller.uri:
                return f"study {study_id!r} is another coordinator's"
            if claim is not None:
                known.append(study_id)
            elif STUDY_ID.fullmatch(study_id):
                new.add(study_id)
        if new and self._counts[caller.uri] + len(new) > MAX_CLAIMS:
            return f"{MAX_CLAIMS:,} studies of this coordinator are known here already"
        for study_id in (*known, *new):
            self._put(study_id, caller.uri)
        return ""

    def forget(self, studies: frozenset[str]) -> None:
        """Drops claims on other studies than these that have not been used for a while."""
        oldest = self._now() - KEPT_SECONDS
        for study_id in [s for s, claim in self._claims.items() if claim.used < oldest and s not in studies]:
            owner = self._claims.pop(study_id).owner
            self._counts[owner] -= 1
            if not self._counts[owner]:
                del self._counts[owner]

    def _put(self, study_id: str, owner: str) -> None:
        self._counts[owner] += study_id not in self._claims
        self._claims[study_id] = _Claim(owner, self._now())
