"""The commands as a user runs them, with real TensorFlow processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

MARKER = "NHOP_TEST_RUN"
ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(sysconfig.get_path("scripts"))


class Commands:
    """Starts our commands with a mark in their environment, by which all that descends from them is found."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = uuid.uuid4().hex
        # Short: sockets are made there, whose paths have 107 bytes at most.
        self.temporary = Path(tempfile.mkdtemp(prefix="nhop-e2e-"))
        self.environment = {**os.environ, MARKER: self.mark, "TMPDIR": str(self.temporary), "COLUMNS": "200"}
        self._started: list[subprocess.Popen[str]] = []

    def start(
        self, name: str, *arguments: object, inside: Sequence[str] = (), **options: Any
    ) -> subprocess.Popen[str]:
        """``inside``: what to put before the command, such as that it runs in a network namespace."""
        process = subprocess.Popen(
            [*inside, SCRIPTS / name, *map(str, arguments)],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        self._started.append(process)
        return process

    def coordinator(
        self, *arguments: object, timeout: float = 100.0, inside: Sequence[str] = ()
    ) -> subprocess.CompletedProcess[str]:
        process = self.start("nhop-coordinator", *arguments, inside=inside)
        out, err = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def agent(self, *arguments: object, inside: Sequence[str] = ()) -> subprocess.Popen[str]:
        """Starts an agent and returns once it says that it listens."""
        process = self.start("nhop-agent", *arguments, inside=inside)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "listens on" in line, process.communicate(timeout=10)
        return process

    def processes(self, name: str = "") -> list[psutil.Process]:
        """Living processes that descend from our commands, those whose name begins with ``name``."""
        found = []
        for process in psutil.process_iter():
            try:
                if (
                    process.environ().get(MARKER) == self.mark
                    and process.status() != psutil.STATUS_ZOMBIE
                    and process.name().startswith(name)
                ):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def wait_for(self, condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < deadline, f"waited in vain for {what}"
            time.sleep(0.02)
        return value

    def end(self) -> list[str]:
        """Ends what is left; returns what should not have been there."""
        for process in self._started:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.communicate(timeout=10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.communicate()
            for stream in (process.stdout, process.stderr):
                if stream:
                    stream.close()
        left = [f"{process.pid} {process.name()}" for process in self.processes()]
        for process in self.processes():
            process.kill()
        return left


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    commands = Commands(tmp_path)
    yield commands
    left = commands.end()
    files = [path.name for path in commands.temporary.iterdir()]
    shutil.rmtree(commands.temporary)
    assert left == [], "processes left over"
    assert files == [], "temporary files left over"


def summary(directory: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((directory / "summary.json").read_text())
    return loaded
