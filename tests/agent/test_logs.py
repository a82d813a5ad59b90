"""A place in a log that grows, is not there yet, or is another file now."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.attempts import AttemptDirectory
from agent.logs import CHUNK_BYTES, LogReader
from nhop_models.contract import TASKS_FOLDER, TaskId

TASK = TaskId.parse("worker/0")


@pytest.fixture
def directory(tmp_path: Path) -> AttemptDirectory:
    (tmp_path / TASKS_FOLDER).mkdir()
    return AttemptDirectory(tmp_path)


@pytest.fixture
def reader(directory: AttemptDirectory) -> Iterator[LogReader]:
    reader = LogReader(directory, TASK)
    yield reader
    reader.close()


def write(directory: AttemptDirectory, text: str) -> None:
    with directory.log_path(TASK).open("a") as file:
        file.write(text)


async def test_what_is_added_is_read_once(directory: AttemptDirectory, reader: LogReader) -> None:
    assert await reader.read() == b""
    write(directory, "one")
    assert await reader.read() == b"one"
    assert await reader.read() == b""
    write(directory, "two")
    assert await reader.read() == b"two"


async def test_pieces_are_bounded(directory: AttemptDirectory, reader: LogReader) -> None:
    write(directory, "x" * (CHUNK_BYTES + 5))
    assert [len(await reader.read()) for _ in range(3)] == [CHUNK_BYTES, 5, 0]


async def test_nothing_is_read_beyond_an_end(directory: AttemptDirectory, reader: LogReader) -> None:
    write(directory, "123456789")
    assert [await reader.read(end=4), await reader.read(end=4)] == [b"1234", b""]


async def test_the_log_of_a_task_that_was_forked_anew_is_read_from_its_start(
    directory: AttemptDirectory, reader: LogReader
) -> None:
    write(directory, "of the lost one")
    await reader.read()
    directory.log_path(TASK).rename(directory.path / "kept")  # the same inode cannot come back
    write(directory, "again")
    assert await reader.read() == b"again"


async def test_a_log_that_was_opened_outlives_its_directory(
    directory: AttemptDirectory, reader: LogReader
) -> None:
    write(directory, "the end")
    reader.open()
    directory.delete()
    assert await reader.read() == b"the end"
