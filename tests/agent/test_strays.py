"""Processes that the agent may not end, and descriptors that it does not get."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NoReturn

import psutil
import pytest

from agent import processes as module
from agent.domain import Rung
from agent.processes import Processes, children, start_ticks


@pytest.fixture
async def processes() -> AsyncIterator[Processes]:
    processes = Processes(lambda _pid, _status: None, lambda: None, lambda: ())
    yield processes
    processes.close()


@pytest.fixture
async def stranger() -> AsyncIterator[int]:
    """A living child in a session of its own."""
    process = await asyncio.create_subprocess_exec("sleep", "60", start_new_session=True)
    yield process.pid
    process.terminate()
    await process.wait()


def refuse(*_: object, **__: object) -> NoReturn:
    raise PermissionError(errno.EPERM, "not permitted")


def no_descriptor(*_: object, **__: object) -> NoReturn:
    raise OSError(errno.EMFILE, "too many open files")


async def test_a_stray_that_may_not_be_killed_is_given_up(
    processes: Processes, stranger: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "CLEAN_UP_SECONDS", 0.05)
    monkeypatch.setattr(processes, "strays", lambda: [stranger])
    monkeypatch.setattr(os, "kill", refuse)
    await processes.clean_up()
    assert "do not go away" in caplog.text


async def test_a_task_that_may_not_be_signalled_is_logged(
    processes: Processes, stranger: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    processes.add(stranger)
    monkeypatch.setattr(signal, "pidfd_send_signal", refuse)
    processes.signal(stranger, Rung.STOP)
    assert "cannot be signalled" in caplog.text


def test_children_cannot_be_listed_without_a_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "iterdir", no_descriptor)
    monkeypatch.setattr(psutil, "Process", no_descriptor)
    assert children() == []


def test_the_start_of_a_process_is_unknown_without_a_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_bytes", no_descriptor)
    assert start_ticks(os.getpid()) is None
