"""Reads what a task reports, as far as its reader has got."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from agent.domain import CheckpointSaved, Report, SpoolEvent, TaskReady
from agent.left import StrangeFileError, open_left
from agent.written import number, numbers, time, whole
from nhop_models.contract import MAX_RECORD_BYTES, Record, RecordKind, decode_records

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 18
_LARGEST_FRAME_BYTES = MAX_RECORD_BYTES + 64


class SpoolReader:
    """A place in a spool. Reads no more than it is asked for; the file is open only meanwhile."""

    def __init__(self, path: Path, skip: int = 0) -> None:
        """``skip``: number of records that the receiver already has."""
        self._path = path
        self._skip = skip
        self._offset = 0
        self._sequence = 0
        self._damaged = False

    def read(self, limit: int) -> list[tuple[int, float, SpoolEvent]]:
        """At most ``limit`` further records: number in the spool, seconds since the epoch, content.

        An empty list means that no further whole record is there now. What follows a damaged
        record is never read; that is logged once.
        """
        found: list[tuple[int, float, SpoolEvent]] = []
        while not found and not self._damaged:
            before = self._offset
            self._read_chunk(limit, found, CHUNK_BYTES)
            if self._offset == before and not self._damaged:
                if self._unread_bytes() <= CHUNK_BYTES:
                    break
                self._read_chunk(limit, found, _LARGEST_FRAME_BYTES)
                if self._offset == before:
                    break
        return found

    def check_end(self) -> None:
        """Logs it where the task died in the middle of a record."""
        rest = self._unread_bytes()
        if rest > 0 and not self._damaged:
            self._give_up(f"its last {rest} bytes are a record that was never finished")

    def _read_chunk(self, limit: int, found: list[tuple[int, float, SpoolEvent]], size: int) -> None:
        try:
            with open_left(self._path) as file:
                data = os.pread(file.fileno(), size, self._offset)
        except FileNotFoundError:
            return
        except (StrangeFileError, IsADirectoryError, PermissionError) as error:
            self._give_up(str(error.strerror))
            return
        try:
            for record, end in self._records(data):
                if self._sequence >= self._skip:
                    if len(found) == limit:
                        return
                    found.append((self._sequence + 1, time(record.time), _content(record)))
                self._sequence += 1
                self._offset = end
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            self._give_up(f"damaged after record {self._sequence}, byte {self._offset} ({error})")

    def _records(self, data: bytes) -> Iterator[tuple[Record, int]]:
        return decode_records(data, self._path, self._offset)

    def _unread_bytes(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            return self._path.lstat().st_size - self._offset
        return 0

    def _give_up(self, why: str) -> None:
        self._damaged = True
        logger.warning("%s: %s; the %d records before it are used", self._path, why, self._sequence)


def _content(record: Record) -> SpoolEvent:
    if record.kind is RecordKind.READY:
        return TaskReady()
    values = record.payload
    if record.kind is RecordKind.CHECKPOINT:
        return CheckpointSaved(step=whole(values["step"]), size=whole(values["size"]))
    val_loss = values["val_loss"]
    return Report(
        step=whole(values["step"]),
        train_loss=number(values["train_loss"]),
        val_loss=None if val_loss is None else number(val_loss),
        metrics=numbers(values["metrics"]),
    )
