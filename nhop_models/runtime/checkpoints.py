"""Checkpoints of the chief: everything that lives in variables of the cluster, in one NPZ file."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from nhop_models.contract import ARTIFACTS_FOLDER, CHECKPOINT_FILE, RESTORE_FILE
from nhop_models.runtime.graph import TrainingGraph

if TYPE_CHECKING:
    from nhop_models.runtime.task import Task


class Checkpoints:
    """Saves when so many global steps have passed, and restores what an earlier attempt has saved."""

    def __init__(self, task: Task, session: tf.compat.v1.Session, graph: TrainingGraph) -> None:
        self._task, self._session, self._graph = task, session, graph
        self._every = task.spec.checkpoint_every
        self._due = self._every
        self.notes: list[str] = []

    def restore(self) -> None:
        """Takes up an earlier attempt's checkpoint, where the coordinator has sent one."""
        snapshot = self._graph.snapshot
        if snapshot is None:
            return
        try:
            with np.load(self._task.directory / RESTORE_FILE, allow_pickle=False) as archive:
                values = {name: archive[name] for name in archive.files}
            feed = snapshot.feed(values)
        except FileNotFoundError:
            return
        except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            self._note(f"the checkpoint does not fit and was not used ({error})")
            return
        self._session.run(snapshot.restore, feed)
        step = int(values["global_step"])
        self._due = (step // self._every + 1) * self._every
        print(f"going on from the checkpoint at global step {step}", flush=True)

    def steps_until_due(self, step: int) -> int | None:
        """Steps from ``step`` until the next checkpoint; None: there is none."""
        return None if self._graph.snapshot is None else max(self._due - step, 1)

    def save_if_due(self, step: int) -> None:
        """Saves where it is time to; a full disk is noted, and does not end the training."""
        snapshot = self._graph.snapshot
        if snapshot is None or step < self._due:
            return
        self._due = (step // self._every + 1) * self._every
        with self._task.reporter.phase("checkpoints"):
            values = self._session.run(snapshot.values)
            try:
                size = self._write(values)
            except OSError as error:
                self._note(f"the checkpoint at step {step} could not be saved ({error.strerror})")
                return
        self._task.reporter.checkpoint(int(values["global_step"]), size)

    def _write(self, values: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]) -> int:
        folder = self._task.directory / ARTIFACTS_FOLDER
        folder.mkdir(mode=0o770, exist_ok=True)
        new = folder / f".{CHECKPOINT_FILE}"
        try:
            with new.open("wb") as file:
                np.savez(file, **values)  # type: ignore[arg-type]  # names of variables, no option of savez
                size = file.tell()
            new.replace(folder / CHECKPOINT_FILE)
        except OSError:
            new.unlink(missing_ok=True)
            raise
        return size

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
