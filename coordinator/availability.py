"""What a study does about hosts: leaves those alone that have no room, waits for those that are gone."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

from coordinator import events as ev
from coordinator.attempt import Attempt
from coordinator.capacity import Capacity
from coordinator.domain import AttemptId, Cluster, Notice, PlacementRule, StopReason
from coordinator.instructions import ForgetHost, Instruction, SetTimer, StopAttempt, Tell
from coordinator.spell import Spell
from coordinator.transitions import AttemptState
from coordinator.wording import some
from nhop_models.contract import FailureKind

BACK_OFF = (0.1, 2.5)
"""Seconds until a host that refused is asked again: at first, and at most (doubled each time).

By chance it is up to twice as long. Of two coordinators that take a part of the hosts each, and
refuse each other the rest, both let go; the first to ask again then finds all hosts free for the
time that it needs, which the doubling reaches however slow the network is.
"""

HOSTS_GONE_LIMIT = 120.0
"""Seconds without enough usable slots after which the study fails."""

CROWDED_OUT_LIMIT = 30.0
"""Seconds of refusals, with no trial of the study under way, until the user is told."""


class Availability:
    """The capacity of the hosts, and how long there has been none."""

    def __init__(
        self, slots: Mapping[str, int], cluster: Cluster, rule: PlacementRule, rng: random.Random
    ) -> None:
        self.capacity = Capacity(slots, cluster, rule)
        self._rng = rng
        self._placed: set[AttemptId] = set()
        self._complaints: dict[str, str] = {}
        self._gone, self._crowded_out = Spell(), Spell()

    # --- hosts come and go --------------------------------------------------------------------

    def joined(self, host: str, slots: int, now: float) -> Iterator[Instruction]:
        """A host comes into use, or has another number of slots now."""
        before = self.capacity.slots_of(host)
        number = f"{slots} slot{'s'[: slots != 1]}"
        if self.capacity.join(host, slots):
            yield Tell(Notice(f"host {host} has joined: {number}"))
            yield from self._stop_abandoned(host)
        elif slots != before:
            yield Tell(Notice(f"host {host} has {number} now"))
        yield from self.check(now)

    def left(self, host: str, now: float) -> Iterator[Instruction]:
        """A host goes out of use; what runs there may end."""
        if not self.capacity.leave(host):
            yield from self.forget(host)  # it may have been about to join, and have a stream already
            return
        running = self.capacity.attempts_on(host)
        what = (
            f"{running} attempt{'s'[: running != 1]} may end there first" if running else "nothing runs there"
        )
        yield Tell(Notice(f"host {host} leaves the study: {what}"))
        yield from self.forget(host)
        yield from self.check(now)

    def forget(self, host: str) -> Iterator[Instruction]:
        """Lets a host go that has left, once nothing more is expected of it."""
        if self.capacity.is_through(host):
            yield ForgetHost(host)

    def lost(self, host: str, reason: str) -> Iterator[Instruction]:
        """A host is out of use; its attempts are the caller's."""
        self.capacity.set_lost(host, lost=True)
        yield Tell(Notice(f"host {host} is lost: {reason}", warning=True))
        yield from self.forget(host)

    def found(self, host: str, now: float) -> Iterator[Instruction]:
        """A lost host is back."""
        self.capacity.set_lost(host, lost=False)
        yield Tell(Notice(f"host {host} is back"))
        yield from self._stop_abandoned(host)
        self._gone.end()  # it gets time to end what is left there
        yield from self.check(now)

    def heard(self, host: str) -> Iterator[Instruction]:
        """A host that was silent answers again; what it was told meanwhile may not have arrived."""
        self.capacity.set_silent(host, silent=False)
        yield from self._stop_abandoned(host)

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
            # A gang that was refused elsewhere has learned nothing new of this host: its pause goes on.
            reopen = attempt.id in self._placed
            if over and self.capacity.release(attempt.id, host, reopen=reopen) and self.capacity.crowded:
                yield self._pause(host, now + BACK_OFF[0])
            yield from self.forget(host)
        if attempt.state is AttemptState.ENDED:
            self._placed.discard(attempt.id)

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
        """Leaves a host alone that has no room; tells the user where no trial has found any for long."""
        why = event.reason if isinstance(event, ev.PrepareRefused) else ""
        refusals = self.capacity.refuse(event.attempt, event.host, why)
        first, longest = BACK_OFF
        delay = min(first * 2 ** min(refusals - 1, 16), longest)
        yield self._pause(event.host, now + delay * (1 + self._rng.random()))
        if isinstance(event, ev.PrepareFailed) and event.failure.kind is FailureKind.RESOURCES:
            yield from self._complain(event.host, event.failure.message)
        if why and not self._placed and self._crowded_out.begin():
            timer = ev.CrowdedOutTimer(self._crowded_out.number)
            yield SetTimer(timer, now + CROWDED_OUT_LIMIT)

    def _complain(self, host: str, why: str) -> Iterator[Instruction]:
        """Says, once until a trial finds room there, what a host has no room for."""
        if self._complaints.get(host) != why:
            self._complaints[host] = why
            yield Tell(Notice(f"host {host} gets no trial now: {why}", warning=True))

    def _pause(self, host: str, until: float) -> SetTimer:
        return SetTimer(ev.BackOffTimer(host, self.capacity.pause(host)), until)

    def room_found(self, attempt: Attempt) -> None:
        """An attempt has all that it needs, on all its hosts."""
        self._placed.add(attempt.id)
        for host in attempt.hosts:
            # Not before: of a gang that is refused elsewhere, a host that had room would be asked
            # again as soon as ever, and the pauses would not grow.
            self.capacity.accept(host)
            self._complaints.pop(host, None)
        self._crowded_out.end()

    def tell_crowded_out(self, timer: ev.CrowdedOutTimer) -> Iterator[Instruction]:
        """Says that others use the hosts, if they still do."""
        if self._crowded_out.lasts_since(timer.spell):
            hosts = some(f"{host} ({why})" for host, why in self.capacity.full().items())
            message = f"no room for a trial for {CROWDED_OUT_LIMIT:g} s: others use {hosts}; still waiting"
            yield Tell(Notice(message, warning=True))
