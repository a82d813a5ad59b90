"""Several studies at once on the same agents."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from coordinator import events as ev
from coordinator.agent_link import AgentLink
from coordinator.announcement import Announcement
from coordinator.bundles import Bundles
from coordinator.config import StudyConfig
from coordinator.directory import StudyDirectory
from coordinator.domain import Notice, Report, Reports, Study, StudySpec, StudyState, Trial, Update
from coordinator.errors import ConfigError, NhopError, Problem, UsageError
from coordinator.hosts import Usable, usable_slots
from coordinator.naming import new_study_id
from coordinator.patience import check_lost
from coordinator.placement import check_hosts
from coordinator.report import write_results
from coordinator.runtime import STOP_LIMIT
from coordinator.shares import shares
from coordinator.study_run import StudyRun

NOTICES_KEPT = 50
"""The newest notices of a study, for those who begin to watch it."""

UPDATES_AHEAD = 10_000
"""Updates that may wait for a watcher before it is cut off."""


class StudyExistsError(UsageError):
    """The study id is taken."""


class OneStudyError(NhopError):
    """The coordinator runs one study, and takes no other."""


class ManagerClosedError(NhopError):
    """The coordinator ends: it takes no more studies."""


class Watcher:
    """One client's view of a study: a bounded queue. ``too_slow``: it overflowed, and was cut off."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Study | Trial | Report | Notice | None] = asyncio.Queue(UPDATES_AHEAD)
        self.too_slow = False

    def put(self, update: Study | Trial | Report | Notice | None) -> None:
        """Adds an update, None for the end; cuts the watcher off where it is full."""
        if self.too_slow:
            return
        try:
            self.queue.put_nowait(update)
        except asyncio.QueueFull:
            self.too_slow = True
            while not self.queue.empty():
                self.queue.get_nowait()
            self.queue.put_nowait(None)


@dataclass(slots=True, eq=False)
class ManagedStudy:
    """A study of this coordinator: its newest state, its trials, who watches it.

    ``changed`` is set by the next change of the study or a trial, and then replaced by another event.
    """

    spec: StudySpec
    config_yaml: str
    directory: StudyDirectory
    study: Study
    run: StudyRun | None = None
    trials: dict[int, Trial] = field(default_factory=dict)
    notices: deque[Notice] = field(default_factory=lambda: deque(maxlen=NOTICES_KEPT))
    watchers: set[Watcher] = field(default_factory=set)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def output_directory(self) -> str:
        """Where its results are."""
        return str(self.directory.path)

    def observe(self, update: Update) -> None:
        """Takes what is durable, and passes it on."""
        match update:
            case Study():
                self.study = update
                self._wake()
            case Trial():
                self.trials[update.number] = update
                self._wake()
            case Notice():
                self.notices.append(update)
        for watcher in self.watchers:
            for part in update if isinstance(update, Reports) else (update,):
                watcher.put(part)

    def ended(self, study: Study, trials: Sequence[Trial]) -> None:
        """Takes the last word of its run."""
        self.trials = {trial.number: trial for trial in trials}
        self.study = study

    def close(self) -> None:
        """It runs no more: ends what watches it."""
        self.run = None
        for watcher in self.watchers:
            watcher.put(None)
        self._wake()

    def _wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def fail(self, error: Exception) -> None:
        """Ends the study as failed, if it has not ended otherwise, and says why."""
        if isinstance(error, OSError):
            why = f"{self.directory.path}: the results cannot be written ({error.strerror or error})"
        else:
            why = str(error) if isinstance(error, NhopError) else f"{type(error).__name__}: {error}"
        reason = f"{self.study.reason}; {why}" if self.study.reason else why
        state = self.study.state if self.study.state.ended else StudyState.FAILED
        ended_at = self.study.ended_at or time.time()
        self.study = replace(self.study, state=state, reason=reason, ended_at=ended_at)

    @contextlib.contextmanager
    def watch(self) -> Iterator[Watcher]:
        """What happens from now on, the study itself first, then what was noticed before."""
        watcher = Watcher()
        watcher.put(self.study)
        for notice in self.notices:
            watcher.put(notice)
        if self.run is None:
            watcher.put(None)
        self.watchers.add(watcher)
        try:
            yield watcher
        finally:
            self.watchers.discard(watcher)


class StudyManager:
    """Starts and stops studies.

    ``total`` is how many slots they share, None: those of all hosts; ``remote``: the hosts do not share
    this machine's files; ``lost``: seconds after which a host counts as lost, None: that does not happen.
    ``tell`` is given what becomes of hosts. ``address`` is where programs of this user reach the studies,
    for their directories; empty: nowhere.
    """

    def __init__(
        self,
        links: Mapping[str, AgentLink],
        hosts: Mapping[str, Usable],
        runs: Path,
        total: int | None = None,
        *,
        remote: bool = False,
        lost: float | None = None,
        tell: Callable[[Notice], None] = lambda notice: None,
    ) -> None:
        self.remote = remote
        self._links = dict(links)
        self._hosts = dict(hosts)
        self.runs = runs
        self._given_total = total
        self._lost = lost
        self._tell = tell
        self._away: dict[str, ev.HostSilent | ev.HostLost] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self.studies: dict[str, ManagedStudy] = {}
        self.address = ""

    def submit(self, config: StudyConfig, study_id: str = "", bundles: Bundles | None = None) -> ManagedStudy:
        """Starts a study; ``bundles`` are its code and data, which it closes at its end.

        Raises ConfigError for a bad id, StudyExistsError for one that is taken, HostsError where no
        trial could ever be placed or attempts may take longer to end than hosts to be lost,
        UsageError where the output directory cannot be used,
        ManagerClosedError after ``close``.
        """
        if self._closed:
            raise ManagerClosedError("the coordinator ends: it takes no more studies")
        study_id = study_id or new_study_id()
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,63}", study_id):
            message = f"{study_id!r} must be 1 to 64 of a-z, 0-9 and '-', a letter or digit first"
            raise ConfigError("request", [Problem("study_id", message)])
        path = self.runs / study_id
        if study_id in self.studies or (path / "study.db").exists():
            raise StudyExistsError(f"the study {study_id} exists already; choose another id")
        bundles = bundles or Bundles()
        spec = bundles.put_into(config.to_spec(study_id))
        check_hosts(self._hosts, spec.cluster)
        if self._lost is not None:
            check_lost(self._lost, spec.limits)
        directory = StudyDirectory.create(path)
        now = asyncio.get_running_loop().time()
        run = StudyRun(
            spec,
            directory,
            self._links,
            usable_slots(self._hosts, spec.cluster),
            now=now,
            started_at=time.time(),
            observer=functools.partial(self._observe, study_id),
            released=functools.partial(self._announce_release, study_id),
            bundles=bundles,
        )
        for name, event in self._away.items():
            if name in self._links:  # it was said before this study came
                run.post(event)
        managed = ManagedStudy(spec, config.to_yaml(), directory, run.machine.study(), run)
        self.studies[study_id] = managed
        notes = [Notice(note) for note in config.notes]
        for notice in notes + [Notice(note, warning=True) for note in bundles.notes]:
            managed.observe(notice)
        if self.address:
            with contextlib.suppress(OSError):  # those who look for it there can name the address
                Announcement(self.address, study_id).write(directory.path)
        task = asyncio.create_task(self._drive(managed, run, bundles))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._share()
        return managed

    @property
    def _total(self) -> int:
        if self._given_total is not None:
            return self._given_total
        return sum(host.slots for host in self._hosts.values())

    def host_joined(self, link: AgentLink, usable: Usable) -> None:
        """A host may be used, or has other slots now."""
        if link.name not in self._links:
            self._away.pop(link.name, None)
        self._links[link.name], self._hosts[link.name] = link, usable
        self._tell(Notice(f"host {link.name} is used: {usable.slots} slot{'s'[: usable.slots != 1]}"))
        for run in self._running():
            run.host_joined(link, usable)
        self._share()

    def host_left(self, name: str) -> None:
        """A host is not wanted any more."""
        self._links.pop(name, None)
        self._hosts.pop(name, None)
        self._away.pop(name, None)
        for run in self._running():
            run.host_left(name)
        self._share()

    def host_changed(self, event: ev.HostEvent) -> None:
        """Passes on what a link says about its host."""
        match event:
            case ev.HostSilent() | ev.HostLost():
                self._away[event.host] = event
            case ev.HostHeard() | ev.HostFound():
                self._away.pop(event.host, None)
        match event:
            case ev.HostLost(host, reason):
                self._tell(Notice(f"host {host} is lost: {reason}", warning=True))
            case ev.HostFound(host):
                self._tell(Notice(f"host {host} is back"))
            case ev.HostRestarted(host):
                self._tell(Notice(f"the agent of host {host} was restarted", warning=True))
        for run in self._running():
            run.host_changed(event)

    def stop(self, study_id: str, reason: str) -> None:
        """Ends a study in order; one that has ended stays as it is."""
        run = self.studies[study_id].run
        if run is not None:
            run.stop(reason)

    async def close(self, reason: str, limit: float = STOP_LIMIT) -> None:
        """Ends all studies and takes no more; past ``limit`` seconds without waiting for their attempts."""
        self._closed = True
        for run in self._running():
            run.stop(reason, limit)
        if self._tasks:
            await asyncio.gather(*self._tasks)

    def abort(self, reason: str) -> None:
        """Fails all studies at once: their agents are gone."""
        for run in self._running():
            run.post(ev.StudyAborted(StudyState.FAILED, reason))

    async def _drive(self, managed: ManagedStudy, run: StudyRun, bundles: Bundles) -> None:
        try:
            study = await run.run()
            trials = run.machine.trials()
            managed.ended(study, trials)
            path = managed.directory.path
            await asyncio.to_thread(write_results, path, study, trials, managed.config_yaml, managed.spec)
        except Exception as error:  # noqa: BLE001 - whatever it is, the study has ended and its watchers wait
            managed.fail(error)
        finally:
            bundles.close()
            Announcement.remove(managed.directory.path)
            managed.directory.close()
            managed.close()
            self._share()

    def _observe(self, study_id: str, update: Update) -> None:
        self.studies[study_id].observe(update)

    def _running(self) -> list[StudyRun]:
        return [managed.run for managed in self.studies.values() if managed.run is not None]

    def _share(self) -> None:
        """Gives every study that runs its part of the slots, at least one trial."""
        runs = self._running()
        if not runs:
            return
        needs = [run.spec.cluster.workers for run in runs]
        crowded = sum(needs) > self._total and len(runs) > 1
        for run, share in zip(runs, shares(self._total, needs), strict=True):
            run.post(ev.ShareChanged(share, crowded))

    def _announce_release(self, study_id: str, host: str) -> None:
        for other, managed in self.studies.items():
            if other != study_id and managed.run is not None:
                managed.run.post(ev.SlotsReleased(host))
