"""To whom each study belongs: the coordinator whose certificate first used its name here."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from nhop.security.identity import Identity

KEPT_SECONDS = 60.0
"""How long a claim holds without an attempt or a subscription of the study, from its last use on."""


class _Claim(NamedTuple):
    owner: str
    used: float


class Owners:
    """By study. What has no owner, as without TLS, anybody may touch. ``now``: seconds, monotonic."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._claims: dict[str, _Claim] = {}

    def claim(self, study_id: str, owner: str) -> None:
        """The study is the owner's, if it is nobody's yet; an empty owner is nobody."""
        if owner and study_id not in self._claims:
            self._claims[study_id] = _Claim(owner, self._now())

    def of(self, study_id: str) -> str:
        """Whose it is; empty: nobody's."""
        claim = self._claims.get(study_id)
        return "" if claim is None else claim.owner

    def refuse(self, caller: Identity, study_id: str) -> str:
        """Why the caller may not touch the study; empty: it may, and what was nobody's is now its own."""
        claim = self._claims.get(study_id)
        if claim is not None and claim.owner != caller.uri:
            return f"study {study_id!r} is another coordinator's"
        self._claims[study_id] = _Claim(caller.uri, self._now())
        return ""

    def forget(self, studies: frozenset[str]) -> None:
        """Drops claims on other studies than these that have not been used for a while."""
        oldest = self._now() - KEPT_SECONDS
        for study_id in [s for s, claim in self._claims.items() if claim.used < oldest and s not in studies]:
            del self._claims[study_id]
