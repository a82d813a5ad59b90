"""How the studies of one coordinator share its slots."""

from __future__ import annotations

from collections.abc import Sequence


def shares(total: int, needs: Sequence[int]) -> list[int]:
    """Slots of each study, where one trial of it takes ``needs`` of them.

    Equal parts; but a study of which one trial takes more than that has what the trial takes, and
    the others share the rest. Else it would wait for ever beside studies of small trials, which
    fill their parts again as soon as one ends. Where not all can have a trial at once the parts are
    equal: they take turns (see ShareChanged).
    """
    if sum(needs) > total:
        return [total // len(needs)] * len(needs)
    parts = [0] * len(needs)
    rest = total
    by_need = sorted(range(len(needs)), key=lambda place: -needs[place])
    for done, place in enumerate(by_need):
        parts[place] = max(rest // (len(needs) - done), needs[place])
        rest -= parts[place]
    return parts
