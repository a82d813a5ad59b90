"""The agents of a coordinator: connected, looked over, watched; hosts come and go while studies run."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from typing import Any, NamedTuple, Protocol

from coordinator import events as ev
from coordinator.agent_link import AgentLink
from coordinator.domain import Cluster, Notice
from coordinator.errors import HostsError, NhopError
from coordinator.hosts import (
    AgentAddress,
    HostPolicy,
    Inventory,
    Usable,
    asks_too_much,
    usable,
)
from coordinator.link_errors import HostUnreachableError
from coordinator.muster import muster
from coordinator.patience import Patience
from coordinator.placement import check_hosts
from coordinator.preflight import (
    Findings,
    Preflight,
    Reach,
    compare,
    examine,
    judge_reach,
    may_spread,
    rows_of,
)
from coordinator.process import check_file_limit
from coordinator.reach import find_reach
from coordinator.waiting import background, in_thread

HEARTBEATS_A_SECOND = 250
"""Of all agents together: each costs some 0.3 ms of CPU time."""

LISTING_LIMIT = 120.0
"""Seconds that it may take to list the hosts anew."""

REFUSED_PAUSE = 10.0
"""Seconds until a host that cannot be used is looked at again."""


class Listener(Protocol):
    """Whoever uses the hosts."""

    def host_joined(self, link: AgentLink, usable: Usable) -> None:
        """A host may be used, or has other slots now."""

    def host_left(self, name: str) -> None:
        """A host is not wanted any more."""

    def host_changed(self, event: ev.HostEvent) -> None:
        """A host is silent, lost, back, restarted."""


class _Beating(NamedTuple):
    """The heartbeat of a host that is, or was, in use; ``told`` is what it has found."""

    task: asyncio.Task[None]
    told: asyncio.Queue[ev.HostEvent]


class Fleet:
    """``open`` it, then ``follow``; ``links`` and ``hosts`` hold those that can be used."""

    def __init__(
        self,
        addresses: Sequence[AgentAddress],
        policy: HostPolicy,
        tell: Callable[[Notice], None],
        patience: Patience | None = None,
    ) -> None:
        self._addresses = {address.name: address for address in addresses}
        self._policy = policy
        self._tell = tell
        patience = patience or Patience.with_lost(policy.lost)
        beat = max(patience.heartbeat, len(addresses) / HEARTBEATS_A_SECOND)
        self._patience = replace(patience, heartbeat=beat)
        self._cluster: Cluster | None = None
        self._version = _version()
        self._all = {name: self._link(address) for name, address in self._addresses.items()}
        self._inventories: dict[str, Inventory] = {}
        self.hosts: dict[str, Usable] = {}
        self._listener: Listener | None = None
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._retiring: dict[str, asyncio.Task[None]] = {}
        self._beating: dict[str, _Beating] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._checking = asyncio.Lock()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def links(self) -> dict[str, AgentLink]:
        """The links of the hosts that can be used."""
        return {name: self._all[name] for name in self.hosts}

    async def close(self) -> None:
        """Ends all connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._failed.cancel()
        await asyncio.gather(*(link.close() for link in self._all.values()))

    # --- the start ----------------------------------------------------------------------------

    async def open(
        self,
        cluster: Cluster | None,
        show: Callable[[Preflight], None] | None = None,
        again: asyncio.Event | None = None,
    ) -> None:
        """Waits for the hosts and looks them over for trials of ``cluster`` (None: not known yet).

        ``show`` is given what was found, before HostsError is raised where they cannot be used. ``again``
        as for ``reread``: those that are then listed are waited for.
        """
        self._cluster = cluster
        self._spawn(self._follow_certificate())
        check_file_limit(len(self._all))
        self._inventories, unreachable = await self._muster(again or asyncio.Event())
        findings = Findings(tuple(self._missing(unreachable)))
        each = {
            name: examine(name, found, self._version) + Findings(asks_too_much(self._addresses[name], found))
            for name, found in self._inventories.items()
        }
        if not findings.problems:
            findings = sum(each.values(), findings)
            findings += compare(self._inventories, cluster)
        reach: Reach = {}
        if not findings.problems:
            try:
                # In the order of the hosts file, whoever answered first.
                addresses = [a for a in self._addresses.values() if a.name in self._inventories]
                self.hosts = usable({a: self._inventories[a.name] for a in addresses})
            except HostsError as error:
                findings += Findings((str(error),))
            else:
                reach = await self._reach(list(self.hosts), list(self.hosts))
                findings += judge_reach(reach, self._inventories, cluster)
        if show is not None:
            refused = {name for name, found in each.items() if found.problems}
            addresses = list(self._addresses.values())
            rows = rows_of(addresses, self._inventories, unreachable, reach, refused)
            show(Preflight(rows, findings))
        if findings.problems:
            raise HostsError("\n".join(findings.problems))
        for name in unreachable:
            self._tell(Notice(f"the study begins without host {name}, which is used once it answers"))
        check_hosts(self.hosts, cluster)

    async def _follow_certificate(self) -> None:
        """Takes our newest certificate into use, and says when it ends."""
        tls = self._policy.security.tls
        if tls is not None:
            await tls.rotation.follow(lambda text: self._tell(Notice(text, warning=True)), self._renew)

    def _renew(self) -> None:
        for link in self._all.values():
            if link.address.tls:
                link.renew()

    async def _muster(self, again: asyncio.Event) -> tuple[dict[str, Inventory], dict[str, str]]:
        """As ``muster``, of the hosts that are listed in the end."""
        while True:
            answering = muster(self._all, self._policy, self._tell)
            async with background(self._listed_anew(again)) as listing, background(answering) as mustering:
                await asyncio.wait((listing, mustering), return_when=asyncio.FIRST_COMPLETED)
                if mustering.done():
                    return mustering.result()
                addresses = listing.result()
            check_file_limit(len(addresses))
            before, self._addresses = self._all, {address.name: address for address in addresses}
            self._all = {a.name: before.get(a.name) or self._link(a) for a in addresses}
            gone = [link for name, link in before.items() if name not in self._all]
            await asyncio.gather(*(link.close() for link in gone))
            self._tell(Notice(f"{self._policy.source} was read again: it lists {len(addresses)}"))

    async def _listed_anew(self, again: asyncio.Event) -> Sequence[AgentAddress]:
        """What the source of hosts lists once ``again`` is set and that can be used."""
        while True:
            await again.wait()
            again.clear()
            try:
                addresses = await self._read(check=self._policy.check)
            except asyncio.CancelledError:
                again.set()  # for ``reread``
                raise
            if addresses is not None:
                return addresses

    def _missing(self, unreachable: Mapping[str, str]) -> list[str]:
        fewest = self._policy.fewest
        if fewest is None:
            return [f"{name}: {why}" for name, why in unreachable.items()]
        if len(self._inventories) >= fewest:
            return []
        lines = [f"{name}: {why}" for name, why in unreachable.items()]
        return [*lines, f"hosts that answer: {len(self._inventories)}, and --min-hosts asks for {fewest}"]

    async def _reach(self, origins: Sequence[str], targets: Sequence[str]) -> Reach:
        """Whether the origins reach the task ports of the targets, where trials may be spread over them."""
        if len({*origins, *targets}) < 2 or not may_spread(self._cluster):
            return {}
        links = {name: self._all[name] for name in (*origins, *targets) if name in self._all}
        known = [[name for name in names if name in links] for names in (origins, targets)]
        return await find_reach(links, *known)

    # --- while studies run --------------------------------------------------------------------

    async def follow(self, listener: Listener) -> None:
        """Tells the listener what becomes of the hosts, until cancelled."""
        self._listener = listener
        for name in self._all:
            self._keep(name)
        await self._failed

    async def reread(self, again: asyncio.Event) -> None:
        """Asks the source of hosts again whenever ``again`` is set; hosts then join and leave."""
        while True:
            await again.wait()
            again.clear()
            addresses = await self._read()
            if addresses is not None:
                self.change(addresses)

    async def _read(
        self, check: Callable[[Sequence[AgentAddress]], None] = lambda addresses: None
    ) -> Sequence[AgentAddress] | None:
        """The hosts that are listed now; None where nothing is to be changed, the user told why."""
        source = self._policy.source
        if source is None:
            return None
        read = functools.partial(source.read, refusal=self._policy.security.refusal)
        try:
            addresses = await in_thread(read, LISTING_LIMIT)
            check(addresses)
        except (NhopError, TimeoutError) as error:
            why = (
                f"{source}: not read after {LISTING_LIMIT:g} s" if isinstance(error, TimeoutError) else error
            )
            self._tell(Notice(f"the hosts stay as they are: {why}", warning=True))
            return None
        return addresses

    def change(self, addresses: Sequence[AgentAddress]) -> None:
        """Uses these hosts from now on."""
        wanted = {address.name: address for address in addresses}
        before = self._addresses
        self._addresses = wanted
        gone = [name for name in before if name not in wanted]
        new = [name for name in wanted if name not in before]
        changed = [name for name in wanted if name in before and before[name] != wanted[name]]
        if not (gone or new or changed):
            self._tell(Notice(f"{self._policy.source} was read again: nothing has changed"))
        for name in gone:
            self._retire(name)
        for name in new:
            retiring = self._retiring.pop(name, None)
            if retiring is not None:
                retiring.cancel()
            if name not in self._all:
                self._all[name] = self._link(wanted[name])
            self._keep(name, new=True)
        for name in changed:
            problem = self._take(name, self._inventories[name]) if name in self.hosts else ""
            if problem:
                wanted[name] = before[name]
                self._tell(Notice(f"host {name} stays as it is: {problem}", warning=True))

    def _retire(self, name: str) -> None:
        self._keepers.pop(name).cancel()
        if self.hosts.pop(name, None) is not None:
            self._using.host_left(name)
        self._retiring[name] = self._spawn(self._close_when_unused(name))

    async def _close_when_unused(self, name: str) -> None:
        link = self._all[name]
        passing = self._spawn(self._pass_on(link))
        try:
            await link.unused()
        finally:
            passing.cancel()
        del self._all[name], self._retiring[name]
        known = self._inventories.pop(name, None) is not None
        beating = self._beating.pop(name, None)
        if beating is not None:
            beating.task.cancel()
        await link.close()
        self._tell(Notice(f"host {name} has left" if known else f"host {name} is not waited for any more"))

    def _keep(self, name: str, *, new: bool = False) -> None:
        self._keepers[name] = self._spawn(self._keep_host(name, new=new))

    async def _keep_host(self, name: str, *, new: bool) -> None:
        """Uses a host whenever it can be used; ``new``: says so once where it does not answer."""
        link = self._all[name]
        while True:
            if name not in self.hosts:
                await self._admit(name, link, new=new)
            new = False
            await self._watch_until_unusable(name, link)

    async def _watch_until_unusable(self, name: str, link: AgentLink) -> None:
        """Passes on what is heard of a host that is used, until it cannot be used any more."""
        told = self._hear(link)
        while True:
            event = await told.get()
            try:
                again = isinstance(event, ev.HostFound | ev.HostRestarted)
                problem = await self._look_again(name, link) if again else ""
                if problem:
                    del self.hosts[name]
                    self._tell(Notice(f"host {name} is not used any more: {problem}", warning=True))
                    self._using.host_left(name)
            finally:  # should it be retired just now, too: its attempts need to know
                self._using.host_changed(event)
            if problem:
                return

    def _hear(self, link: AgentLink) -> asyncio.Queue[ev.HostEvent]:
        """What is heard of a host; from the first use on, since its attempts need our signs of life."""
        if link.name not in self._beating:
            told: asyncio.Queue[ev.HostEvent] = asyncio.Queue()

            async def beat() -> None:
                async with contextlib.aclosing(link.watch()) as events:
                    async for event in events:
                        told.put_nowait(event)

            self._beating[link.name] = _Beating(self._spawn(beat()), told)
        return self._beating[link.name].told

    async def _pass_on(self, link: AgentLink) -> None:
        """Tells those that still have attempts on a host that has left what becomes of it."""
        if link.in_use or link.name in self._beating:
            told = self._hear(link)
            while True:
                event = await told.get()
                if link.in_use:
                    self._using.host_changed(event)

    async def _admit(self, name: str, link: AgentLink, *, new: bool) -> None:
        """Waits until a host answers and can be used, and takes it into use."""
        passing = self._spawn(self._pass_on(link))
        try:
            said = ""
            while True:
                try:
                    inventory = await link.inventory()
                except HostUnreachableError as error:
                    if new:
                        self._tell(Notice(f"waiting for host {name}: {error}", warning=True))
                        new = False
                    await asyncio.sleep(self._patience.heartbeat)
                    continue
                problem = await self._check_and_take(name, inventory)
                if not problem:
                    return
                if problem != said:
                    self._tell(Notice(f"host {name} is not used: {problem}", warning=True))
                    said = problem
                await asyncio.sleep(REFUSED_PAUSE)
        finally:
            passing.cancel()

    async def _look_again(self, name: str, link: AgentLink) -> str:
        """Why a host whose agent was away cannot be used any more; empty where it can."""
        try:
            inventory = await link.inventory()
        except HostUnreachableError:
            return ""  # the next heartbeat tells
        return await self._check_and_take(name, inventory)

    async def _check_and_take(self, name: str, inventory: Inventory) -> str:
        """Takes a host into use, or says why not; one after the other, so that each knows of the others."""
        async with self._checking:
            return await self._why_not(name, inventory) or self._take(name, inventory)

    async def _why_not(self, name: str, inventory: Inventory) -> str:
        """Why a host cannot be used beside those that are; empty where it can."""
        for other, known in self._inventories.items():
            if other != name and known.incarnation == inventory.incarnation:
                if other in self.hosts:
                    return f"is the same agent as {other}; list it once"
                if self._all[other].in_use:
                    return f"is the same agent as {other}, on which attempts have not ended yet"
        inventories = {**{other: self._inventories[other] for other in self.hosts}, name: inventory}
        findings = examine(name, inventory, self._version) + compare(inventories, self._cluster)
        if not findings.problems:
            others = [other for other in self.hosts if other != name and self._all[other].answers]
            reach = {**await self._reach([name], others), **await self._reach(others, [name])}
            # Others may have left meanwhile, or not answer: that says nothing of this host. Those that are
            # found again are looked at in their turn.
            there = {name, *(other for other in self.hosts if self._all[other].answers)}
            reach = {pair: why for pair, why in reach.items() if {*pair} <= there}
            findings += judge_reach(reach, inventories, self._cluster)
        if name not in self.hosts and not findings.problems:
            for warning in findings.warnings:
                self._tell(Notice(warning, warning=True))
        return "; ".join(findings.problems)

    def _take(self, name: str, inventory: Inventory) -> str:
        """Takes a host into use, as its agent and the hosts file have it now; or says why not."""
        address = self._addresses[name]
        try:
            found = usable({address: inventory})[name]
        except HostsError as error:
            return str(error)
        self._inventories[name] = inventory
        if self.hosts.get(name) != found:
            self.hosts[name] = found
            self._using.host_joined(self._all[name], found)
        return ""

    def _link(self, address: AgentAddress) -> AgentLink:
        return AgentLink(address, self._patience, tls=self._policy.security.tls_for(address.target))

    @property
    def _using(self) -> Listener:
        assert self._listener is not None
        return self._listener

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None and not self._failed.done():
                self._failed.set_exception(error)

        task.add_done_callback(ended)
        return task


def _version() -> str:
    try:
        return metadata.version("nhop")
    except metadata.PackageNotFoundError:  # run from a checkout
        return ""
