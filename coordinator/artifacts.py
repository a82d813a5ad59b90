"""Files of trials on their way: from agents into the output directory, and checkpoints back to agents.

What is fetched lies in ``<output>/.artifacts/trial-N/`` until the machine has decided: it becomes
``best_model.keras`` and ``best_predictions.npz``, or is dropped. A file has its name only once it is
whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from coordinator import events as ev
from coordinator.agent_link import AgentLink
from coordinator.domain import AttemptId, Failure, Notice
from coordinator.instructions import (
    DropArtifacts,
    FetchArtifacts,
    FetchCheckpoint,
    FileWork,
    PublishModel,
    StartAttempt,
)
from coordinator.link_errors import TransferError
from coordinator.report.results import MODEL_FILE as BEST_MODEL
from coordinator.report.results import PREDICTIONS_FILE as BEST_PREDICTIONS
from nhop_models.contract import CHECKPOINT_FILE, MODEL_FILE, PREDICTIONS_FILE, RESTORE_FILE, FailureKind

FOLDER = ".artifacts"
TROUBLE_LIMIT = 30.0
"""Seconds for which a model is asked for again where its agent does not answer."""
PAUSE = 0.5
TELL_EVERY = 5.0
"""Seconds between two words about a model that the study waits for."""
MEGABYTE = 1_000_000

Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]


@dataclass(slots=True)
class _Model:
    """A model on its way; ``task`` ends when it is here, or ``problem`` says why not."""

    total: int
    received: int = 0
    saved: bool = False
    problem: str = ""
    task: asyncio.Task[None] | None = None


@dataclass(slots=True)
class _Checkpoints:
    """The checkpoints of a trial: one download at a time, of the newest."""

    wanted: FetchCheckpoint
    task: asyncio.Task[None] | None = None


class Artifacts:
    """Does what the machine wants with files, and posts what came of it.

    ``hold`` is told what has to be through before an agent may forget an attempt, ``waiting`` says
    whether nothing else is left to do in the study.
    """

    def __init__(
        self,
        output: Path,
        links: Mapping[str, AgentLink],
        *,
        spawn: Spawn,
        post: Callable[[ev.Event], None],
        tell: Callable[[Notice], None],
        hold: Callable[[AttemptId, str, asyncio.Task[None]], None],
        waiting: Callable[[], bool],
    ) -> None:
        self._output = output
        self._links = links
        self._spawn, self._post, self._tell = spawn, post, tell
        self._hold, self._waiting = hold, waiting
        self._models: dict[int, _Model] = {}
        self._checkpoints: dict[int, _Checkpoints] = {}
        self._best: int | None = None
        self._published: int | None = None
        self._publishing = asyncio.Lock()

    def begin(self, work: FileWork) -> None:
        """Begins what the machine wants; does not wait for it."""
        match work:
            case FetchArtifacts():
                model = self._models[work.attempt.trial] = _Model(sum(work.artifacts.values()))
                model.task = self._spawn(self._fetch_model(work, model))
                self._hold(work.attempt, work.host, model.task)
            case FetchCheckpoint():
                self._hold(work.attempt, work.host, self._fetch_newest(work))
            case PublishModel(trial):
                former = self._models.get(self._best) if self._best is not None else None
                if former is not None and former.task is not None:
                    former.task.cancel()  # it need not be here any more
                self._best = trial
                self._spawn(self._publish(trial))
            case DropArtifacts(trial):
                self._spawn(self._remove(trial))

    async def give_checkpoint(self, command: StartAttempt) -> Failure | None:
        """Gives the trial's checkpoint to an attempt that is prepared; what went wrong, or None."""
        path = self._folder(command.attempt.trial) / CHECKPOINT_FILE
        try:
            await self._links[command.host].transfers.write_artifact(command.attempt, RESTORE_FILE, path)
        except TransferError as error:
            return error.failure
        except OSError as error:
            return Failure(FailureKind.RESOURCES, f"{path}: cannot be read ({error.strerror})")
        return None

    async def close(self, model_trial: int | None) -> None:
        """Ends everything; what is published stays if it is the model of ``model_trial``."""
        self._best = None
        under_way: list[_Model | _Checkpoints] = [*self._models.values(), *self._checkpoints.values()]
        tasks = [work.task for work in under_way if work.task is not None]
        for task in tasks:
            task.cancel()
        async with self._publishing:
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._published is not None and self._published != model_trial:
                with contextlib.suppress(OSError):
                    self._unpublish()
            await asyncio.to_thread(shutil.rmtree, self._output / FOLDER, ignore_errors=True)

    def _folder(self, trial: int) -> Path:
        return self._output / FOLDER / f"trial-{trial}"

    # --- the best model -----------------------------------------------------------------------

    async def _fetch_model(self, work: FetchArtifacts, model: _Model) -> None:
        for name, size in work.artifacts.items():
            before = model.received

            def count(received: int, before: int = before) -> None:
                model.received = before + received

            problem = await self._fetch(work.attempt, work.host, name, size, count=count)
            if problem:
                model.problem = problem if name == MODEL_FILE else f"{name}: {problem}"
                return
            model.saved = model.saved or name == MODEL_FILE

    async def _publish(self, trial: int) -> None:
        model = self._models.get(trial)
        if model is not None and model.task is not None:
            await self._wait_for(trial, model, model.task)
        async with self._publishing:
            if self._best == trial:
                saved, problem = await asyncio.to_thread(self._put_in_place, trial, model)
                self._published = trial if saved else None
                self._post(ev.ModelPublished(trial, saved, problem))
            await self._remove(trial)

    async def _wait_for(self, trial: int, model: _Model, task: asyncio.Task[None]) -> None:
        while not task.done():
            await asyncio.wait([task], timeout=TELL_EVERY)
            if not task.done() and self._waiting():
                here = f"{model.received / MEGABYTE:.1f} of {model.total / MEGABYTE:.1f} MB are here"
                self._tell(Notice(f"waiting for the model of trial {trial}: {here}"))

    def _put_in_place(self, trial: int, model: _Model | None) -> tuple[bool, str]:
        """Replaces the former best files; whether there is a model now, and what went wrong."""
        try:
            self._unpublish(model=model is None or not model.saved)
            if model is None or not model.saved:
                return False, model.problem if model is not None else ""
            (self._folder(trial) / MODEL_FILE).replace(self._output / BEST_MODEL)
            with contextlib.suppress(FileNotFoundError):
                (self._folder(trial) / PREDICTIONS_FILE).replace(self._output / BEST_PREDICTIONS)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._unpublish()
            return False, f"{self._output}: {error.strerror}"
        return True, model.problem

    def _unpublish(self, *, model: bool = True) -> None:
        """Removes what is not the best any more; the predictions first: none are better than wrong ones."""
        (self._output / BEST_PREDICTIONS).unlink(missing_ok=True)
        if model:
            (self._output / BEST_MODEL).unlink(missing_ok=True)

    # --- checkpoints --------------------------------------------------------------------------

    def _fetch_newest(self, work: FetchCheckpoint) -> asyncio.Task[None]:
        running = self._checkpoints.get(work.attempt.trial)
        if running is None or running.task is None or running.task.done():
            running = self._checkpoints[work.attempt.trial] = _Checkpoints(work)
            running.task = self._spawn(self._follow(running))
        running.wanted = work
        assert running.task is not None
        return running.task

    async def _follow(self, checkpoints: _Checkpoints) -> None:
        done: FetchCheckpoint | None = None
        while checkpoints.wanted is not done:
            done = checkpoints.wanted
            problem = await self._fetch(done.attempt, done.host, CHECKPOINT_FILE, again=False)
            self._post(ev.CheckpointFetched(done.attempt, done.step, problem))

    # --- files --------------------------------------------------------------------------------

    async def _fetch(
        self,
        attempt: AttemptId,
        host: str,
        name: str,
        size: int | None = None,
        *,
        count: Callable[[int], None] = lambda received: None,
        again: bool = True,
    ) -> str:
        """Fetches a file into the trial's folder; what went wrong, or nothing."""
        path = self._folder(attempt.trial) / name
        loop = asyncio.get_running_loop()
        trouble: float | None = None
        while True:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                received = await self._receive(attempt, host, name, path, count, size)
                if size in (None, received):
                    return ""
                return f"{host}: {name} is not of the {size} bytes that were announced"
            except TransferError as error:
                trouble = trouble or loop.time()
                if not again or not error.passing or loop.time() - trouble > TROUBLE_LIMIT:
                    return error.failure.message
            except OSError as error:
                return f"{path}: cannot be written ({error.strerror}); is the disk full?"
            await asyncio.sleep(PAUSE)

    async def _receive(
        self,
        attempt: AttemptId,
        host: str,
        name: str,
        path: Path,
        count: Callable[[int], None],
        size: int | None,
    ) -> int:
        """Reads a file once, from its beginning, not far beyond ``size``; how many bytes came.

        Raises TransferError and OSError.
        """
        part = path.with_name(f"{name}.part")
        received = 0
        try:
            with part.open("wb") as file:
                pieces = self._links[host].transfers.read_artifact(attempt, name)
                async with contextlib.aclosing(pieces):
                    async for piece in pieces:
                        await asyncio.to_thread(file.write, piece)
                        received += len(piece)
                        count(received)
                        if size is not None and received > size:
                            return received
                await asyncio.to_thread(_write_out, file)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return received

    async def _remove(self, trial: int) -> None:
        """Ends what is under way for a trial, and removes its files."""
        works = (self._models.pop(trial, None), self._checkpoints.pop(trial, None))
        tasks = [work.task for work in works if work is not None and work.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(shutil.rmtree, self._folder(trial), ignore_errors=True)


def _write_out(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
