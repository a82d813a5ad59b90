"""Several studies at once on the same agents."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from coordinator import events as ev
from coordinator.agent_link import AgentLink
from coordinator.config import StudyConfig
from coordinator.directory import StudyDirectory
from coordinator.domain import Notice, Report, Study, StudySpec, StudyState, Trial, Update
from coordinator.errors import ConfigError, NhopError, Problem, UsageError
from coordinator.hosts import Usable, usable_slots
from coordinator.naming import new_study_id
from coordinator.report import write_results
from coordinator.runtime import STOP_LIMIT, check_hosts
from coordinator.study_run import StudyRun

UPDATES_AHEAD = 10_000
"""Updates that may wait for a watcher before it is cut off."""


class StudyExistsError(UsageError):
    """The study id is taken."""


class ManagerClosedError(NhopError):
    """The coordinator ends: it takes no more studies."""


class Watcher:
    """One client's view of a study: a bounded queue. ``too_slow``: it overflowed, and was cut off."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Study | Trial | Report | None] = asyncio.Queue(UPDATES_AHEAD)
        self.too_slow = False

    def put(self, update: Study | Trial | Report | None) -> None:
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
    """A study of this coordinator: its newest state, its trials, who watches it."""

    spec: StudySpec
    config_yaml: str
    directory: StudyDirectory
    study: Study
    run: StudyRun | None = None
    trials: dict[int, Trial] = field(default_factory=dict)
    watchers: set[Watcher] = field(default_factory=set)

    @property
    def output_directory(self) -> str:
        """Where its results are."""
        return str(self.directory.path)

    def observe(self, update: Update) -> None:
        """Takes what is durable, and passes it on."""
        if isinstance(update, Notice):
            return
        if isinstance(update, Study):
            self.study = update
        elif isinstance(update, Trial):
            self.trials[update.number] = update
        for watcher in self.watchers:
            watcher.put(update)

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
        """What happens from now on, the study itself first."""
        watcher = Watcher()
        watcher.put(self.study)
        if self.run is None:
            watcher.put(None)
        self.watchers.add(watcher)
        try:
            yield watcher
        finally:
            self.watchers.discard(watcher)


class StudyManager:
    """Starts and stops studies. ``total`` is how many slots they share."""

    def __init__(
        self,
        links: Mapping[str, AgentLink],
        hosts: Mapping[str, Usable],
        runs: Path,
        total: int | None = None,
    ) -> None:
        self._links = links
        self._hosts = hosts
        self._runs = runs
        self._total = sum(host.slots for host in hosts.values()) if total is None else total
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self.studies: dict[str, ManagedStudy] = {}

    def submit(self, config: StudyConfig, study_id: str = "") -> ManagedStudy:
        """Starts a study.

        Raises ConfigError for a bad id, StudyExistsError for one that is taken, HostsError where no
        trial could ever be placed, UsageError where the output directory cannot be used,
        ManagerClosedError after ``close``.
        """
        if self._closed:
            raise ManagerClosedError("the coordinator ends: it takes no more studies")
        study_id = study_id or new_study_id()
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,63}", study_id):
            message = f"{study_id!r} must be 1 to 64 of a-z, 0-9 and '-', a letter or digit first"
            raise ConfigError("request", [Problem("study_id", message)])
        path = self._runs / study_id
        if study_id in self.studies or (path / "study.db").exists():
            raise StudyExistsError(f"the study {study_id} exists already; choose another id")
        spec = config.to_spec(study_id)
        check_hosts(self._hosts, spec.cluster)
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
        )
        managed = ManagedStudy(spec, config.to_yaml(), directory, run.machine.study(), run)
        self.studies[study_id] = managed
        task = asyncio.create_task(self._drive(managed, run))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._share()
        return managed

    def host_changed(self, event: ev.HostEvent) -> None:
        """Passes on what a link says about its host."""
        for run in self._running():
            run.post(event)

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

    async def _drive(self, managed: ManagedStudy, run: StudyRun) -> None:
        try:
            study = await run.run()
            trials = run.machine.trials()
            managed.trials = {trial.number: trial for trial in trials}
            managed.study = study
            path = managed.directory.path
            await asyncio.to_thread(write_results, path, study, trials, managed.config_yaml, managed.spec)
        except Exception as error:  # noqa: BLE001 - whatever it is, the study has ended and its watchers wait
            managed.fail(error)
        finally:
            managed.run = None
            managed.directory.close()
            for watcher in managed.watchers:
                watcher.put(None)
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
        crowded = sum(run.spec.cluster.workers for run in runs) > self._total
        for run in runs:
            run.post(ev.ShareChanged(self._total // len(runs), crowded and len(runs) > 1))

    def _announce_release(self, study_id: str, host: str) -> None:
        for other, managed in self.studies.items():
            if other != study_id and managed.run is not None:
                managed.run.post(ev.SlotsReleased(host))
