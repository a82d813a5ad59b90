"""The one study of a plain run, for StudyService: other programs can follow it and stop it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordinator.announcement import Announcement
from coordinator.bundles import Bundles
from coordinator.config import StudyConfig
from coordinator.directory import StudyDirectory
from coordinator.domain import Notice, Update
from coordinator.manager import ManagedStudy, OneStudyError
from coordinator.runtime import StudyResult
from coordinator.study_run import StudyRun

if TYPE_CHECKING:
    from coordinator.own_service import OwnService

LAST_CALLS = 0.5
"""Seconds that those who follow the study have to take its end."""


class SingleStudy:
    """Serves from ``begin`` to ``close``; that it cannot costs a warning, never the study."""

    def __init__(self, config_yaml: str, directory: StudyDirectory, tell: Callable[[Notice], None]) -> None:
        self._config_yaml = config_yaml
        self._directory = directory
        self.remote = False
        self.runs = directory.path.parent
        self._tell = tell
        self._early: list[Notice] = []
        self._managed: ManagedStudy | None = None
        self._service: OwnService | None = None
        self._starting: asyncio.Task[None] | None = None

    @property
    def studies(self) -> Mapping[str, ManagedStudy]:
        """The study, by its id."""
        return {} if self._managed is None else {self._managed.spec.study_id: self._managed}

    def submit(self, config: StudyConfig, study_id: str = "", bundles: Bundles | None = None) -> ManagedStudy:
        """Raises OneStudyError."""
        raise OneStudyError(
            "this nhop-coordinator runs one study and takes no other; one that does: nhop-coordinator --serve"
        )

    def stop(self, study_id: str, reason: str) -> None:
        """Ends the study in order, if it has not ended."""
        run = self.studies[study_id].run
        if run is not None:
            run.stop(reason)

    def observe(self, update: Update) -> None:
        """Takes what is durable, and notices from before the study has begun."""
        if self._managed is not None:
            self._managed.observe(update)
        elif isinstance(update, Notice):
            self._early.append(update)

    def begin(self, run: StudyRun, folder: Path | None) -> None:
        """The study runs: serves it from now on, in the background; ``folder`` as for OwnService."""
        study = run.machine.study()
        self._managed = ManagedStudy(run.spec, self._config_yaml, self._directory, study, run)
        for notice in self._early:
            self._managed.observe(notice)
        self._starting = asyncio.create_task(self._start(folder))

    def ended(self, result: StudyResult) -> None:
        """The study has ended; who watches it is told."""
        if self._managed is not None:
            self._managed.ended(result.study, result.trials)
            self._managed.close()

    async def close(self) -> None:
        """Ends the service, and those who are still connected, within a moment."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        if self._managed is not None:
            if self._managed.run is not None:  # the run was broken off
                self._managed.close()
            Announcement.remove(self._directory.path)
        if self._service is not None:
            await self._service.close(LAST_CALLS)

    async def _start(self, folder: Path | None) -> None:
        assert self._managed is not None
        try:
            # In a thread, since the study does not wait for it: what it needs takes a tenth of a second.
            module: Any = await asyncio.to_thread(importlib.import_module, "coordinator.own_service")
            self._service = module.OwnService(self, folder)
            address = await self._service.start()
            announcement = Announcement(address, self._managed.spec.study_id)
            writing = asyncio.ensure_future(asyncio.to_thread(announcement.write, self._directory.path))
            try:
                await asyncio.shield(writing)
            finally:
                await asyncio.wait((writing,))  # or it would be there again after its removal
        except Exception as error:  # noqa: BLE001 - whatever it is, the study goes on
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            with contextlib.suppress(Exception):
                message = f"`nhop-coordinator logs` cannot follow this study while it runs: {why}"
                self._tell(Notice(message, warning=True))
