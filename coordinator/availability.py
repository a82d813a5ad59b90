"""What a study does about hosts: leaves those alone that have no room, waits for those that are gone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from coordinator import events as ev
from coordinator.attempt import Attempt
from coordinator.capacity import Capacity
from coordinator.domain import Cluster, Notice, StopReason
from coordinator.instructions import Instruction, SetTimer, StopAttempt, Tell
from coordinator.spell import Spell

BACK_OFF = (0.1, 5.0)
"""Seconds until a host that refused is asked again: at first, and at most (doubled each time)."""

HOSTS_GONE_LIMIT = 120.0
"""Seconds without enough usable slots after which the study fails."""

CROWDED_OUT_LIMIT = 30.0
"""Seconds without a free slot, and nothing of the study's under way, until the user is told."""


class Availability:
    """The capacity of the hosts, and how long there has been none."""

    def __init__(self, slots: Mapping[str, int], cluster: Cluster) -> None:
        self.capacity = Capacity(slots, cluster)
        self._gone, self._crowded_out = Spell(), Spell()

    # --- hosts come and go --------------------------------------------------------------------

    def lost(self, host: str, reason: str) -> Iterator[Instruction]:
        """A host is out of use; its attempts are the caller's."""
        self.capacity.set_lost(host, lost=True)
        yield Tell(Notice(f"host {host} is lost: {reason}", warning=True))

    def found(self, host: str, now: float) -> Iterator[Instruction]:
        """A lost host is back."""
        self.capacity.set_lost(host, lost=False)
        yield Tell(Notice(f"host {host} is back"))
        yield from self._stop_abandoned(host)
        self._gone.end()  # it gets time to end what is left there
        yield from self.check(now)

    def restarted(self, host: str) -> Iterator[Instruction]:
        """The agent of a host was started again; its attempts are the caller's."""
        yield Tell(Notice(f"the agent of host {host} was restarted", warning=True))
        yield from self._stop_abandoned(host)

    def _stop_abandoned(self, host: str) -> Iterator[Instruction]:
        for identity in sorted(self.capacity.abandoned(host)):
            yield StopAttempt(identity, host, StopReason.RELEASED)

    def check(self, now: float) -> Iterator[Instruction]:
        """Sets a time for giving the study up, if no trial can be placed until then."""
        why = self.capacity.why_never()
        if why is None:
            self._gone.end()
        elif self._gone.begin():
            yield Tell(Notice(f"waiting up to {HOSTS_GONE_LIMIT:g} s for hosts: {why}", warning=True))
            yield SetTimer(ev.HostsGoneTimer(self._gone.number), now + HOSTS_GONE_LIMIT)

    def why_give_up(self, timer: ev.HostsGoneTimer) -> str | None:
        """Why the study ends, now that the time of ``check`` is up; None where it need not."""
        if not self._gone.lasts_since(timer.spell):
            return None
        why = self.capacity.why_never()
        return f"too few hosts are reachable, or tasks on them do not end: {why}"

    # --- slots --------------------------------------------------------------------------------

    def give_back(self, attempt: Attempt, now: float) -> Iterator[Instruction]:
        """Frees the slots of hosts that are through with an attempt."""
        for host in attempt.hosts:
            over = attempt.is_over_on(host) and host not in attempt.lost_hosts
            if over and self.capacity.release(attempt.id, host) and self.capacity.crowded:
                self.capacity.give_way(host)
                yield SetTimer(ev.BackOffTimer(host), now + BACK_OFF[0])

    def leftover_gone(self, event: ev.AttemptEvent) -> bool:
        """Whether the event frees slots of an attempt that was given up while its host was out of reach."""
        gone = isinstance(event, ev.AttemptEnded) or (
            isinstance(event, ev.StopAnswered) and not event.was_active
        )
        if not gone or not self.capacity.release(event.attempt, event.host):
            return False
        if self.capacity.why_never() is None:
            self._gone.end()
        return True

    # --- room ---------------------------------------------------------------------------------

    def back_off(self, event: ev.PrepareRefused | ev.PrepareFailed, now: float) -> Iterator[Instruction]:
        """Leaves a host alone that has no room; tells the user where none has for long."""
        refusals = self.capacity.refuse(event.attempt, event.host)
        first, longest = BACK_OFF
        delay = min(first * 2 ** min(refusals - 1, 16), longest)
        yield SetTimer(ev.BackOffTimer(event.host), now + delay)
        refused = isinstance(event, ev.PrepareRefused) and self.capacity.used == 0
        if refused and self._crowded_out.begin():
            timer = ev.CrowdedOutTimer(self._crowded_out.number)
            yield SetTimer(timer, now + CROWDED_OUT_LIMIT)

    def room_found(self) -> None:
        """An attempt has all that it needs."""
        self._crowded_out.end()

    def tell_crowded_out(self, timer: ev.CrowdedOutTimer) -> Iterator[Instruction]:
        """Says that others use the hosts, if they still do."""
        if self._crowded_out.lasts_since(timer.spell):
            hosts = ", ".join(self.capacity.full())
            message = f"no free slots for {CROWDED_OUT_LIMIT:g} s: others use {hosts}; still waiting"
            yield Tell(Notice(message, warning=True))
