"""What systemd is told, over a real notify socket."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest

from agent import notify
from agent.notify import Notifier
from tests.contract.harness import DEADLINE, RealAgent, attempt_id, is_kind

INTERVAL = 0.4


class Manager:
    """The end of the notify socket that is systemd's."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._socket.setblocking(False)

    async def receive(self, seconds: float = DEADLINE) -> dict[str, str]:
        async with asyncio.timeout(seconds):
            data = await asyncio.get_running_loop().sock_recv(self._socket, 4096)
        return dict(line.split("=", 1) for line in data.decode().splitlines())

    async def until(self, name: str) -> dict[str, str]:
        while name not in (message := await self.receive()):
            pass
        return message

    def drain(self) -> int:
        """Takes what is there; how many messages that were."""
        number = 0
        while True:
            try:
                self._socket.recv(4096)
            except BlockingIOError:
                return number
            number += 1

    def environment(self) -> dict[str, str]:
        return {"NOTIFY_SOCKET": self.address, "WATCHDOG_USEC": f"{INTERVAL * 1e6:.0f}"}

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(str(tmp_path / "notify") if request.param == "path" else f"@nhop-test-{os.getpid()}")
    yield manager
    manager.close()


@pytest.fixture
async def notifier(manager: Manager) -> AsyncIterator[Notifier]:
    notifier = Notifier.from_environment({**manager.environment(), "WATCHDOG_PID": str(os.getpid())})
    yield notifier
    notifier.close()


async def test_readiness(manager: Manager, notifier: Notifier) -> None:
    notifier.ready("listens on [::1]:7001")
    assert await manager.receive() == {"READY": "1", "STATUS": "listens on [::1]:7001"}


async def test_beats_come_at_twice_the_rate_that_is_wanted(manager: Manager, notifier: Notifier) -> None:
    notifier.ready("")
    await manager.receive()
    begun = time.monotonic()
    for _ in range(6):
        assert await manager.receive() == {"WATCHDOG": "1"}
    # The first comes at once. Later is possible on a busy machine, earlier is not.
    assert time.monotonic() - begun >= 5 * INTERVAL / 2 - 0.1


async def test_a_blocked_loop_sends_none(manager: Manager, notifier: Notifier) -> None:
    notifier.ready("")
    await manager.until("WATCHDOG")
    manager.drain()
    time.sleep(2 * INTERVAL)  # noqa: ASYNC251 - this is what is tested
    assert manager.drain() == 0
    await manager.until("WATCHDOG")


async def test_a_stop_that_takes_long_is_given_the_time(
    manager: Manager, notifier: Notifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "_STOP_BEAT_SECONDS", 0.05)
    notifier.ready("")
    notifier.stopping("ends its tasks: SIGTERM")
    assert (await manager.until("STOPPING"))["STATUS"] == "ends its tasks: SIGTERM"
    for _ in range(3):
        assert await manager.receive() == {"EXTEND_TIMEOUT_USEC": "20000000", "WATCHDOG": "1"}


async def test_a_stop_that_never_ends_is_not_given_more(
    manager: Manager, notifier: Notifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "LONGEST_STOP_SECONDS", 0.3)
    notifier.stopping("")
    await manager.until("EXTEND_TIMEOUT_USEC")
    with pytest.raises(TimeoutError):
        while True:
            await manager.receive(2.0)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WATCHDOG_USEC": "1000000"},
        {"NOTIFY_SOCKET": "vsock:2:1", "WATCHDOG_USEC": "1000000"},
        {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"},
        {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "0"},
        {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "soon"},
    ],
)
def test_beats_that_nobody_wants_from_this_process(environment: dict[str, str]) -> None:
    assert not Notifier.from_environment(environment).watched
    assert environment == {}


async def test_a_manager_that_is_away_is_no_error(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    Notifier(str(tmp_path / "nobody")).ready("")
    assert "cannot tell systemd READY=1" in caplog.text


async def test_a_real_agent_from_its_start_to_its_end(
    manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in manager.environment().items():
        monkeypatch.setenv(name, value)
    agent = await RealAgent.launch(tmp_path)
    try:
        assert (await manager.until("READY"))["STATUS"] == f"listens on {agent.address}"
        await manager.until("WATCHDOG")
        await agent.run(attempt_id(), "worker/0", script={"worker/0": {"runs_for": None, "reports": 1}})
        async with agent.follow() as stream:
            await stream.until(is_kind("report"))
        for child in psutil.Process(agent.process.pid).children(recursive=True):
            assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & child.environ().keys()
        agent.process.send_signal(signal.SIGTERM)
        assert "SIGTERM" in (await manager.until("STOPPING"))["STATUS"]
        assert await agent.process.wait() == 0
    finally:
        await agent.close()


async def test_an_agent_whose_loop_is_blocked_says_by_what(
    tmp_path: Path, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in manager.environment().items():
        monkeypatch.setenv(name, value)
    agent = await RealAgent.launch(tmp_path)
    try:
        await manager.until("READY")
        agent.process.send_signal(signal.SIGABRT)  # as the watchdog does
        assert await agent.process.wait() == -signal.SIGABRT
        assert "Fatal Python error: Aborted" in (tmp_path / "stderr").read_text()
    finally:
        await agent.close()
