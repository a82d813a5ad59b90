from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator

import pytest

from agent import probes
from agent.leases import NotEnoughError, PortPool, is_port_free
from agent.probes import MOST_OPEN, Probes, check_all, why_not_reached
from tests.contract.harness import DEADLINE

LOW = 18000


@pytest.fixture
def ports() -> PortPool:
    return PortPool(LOW, LOW + 99, random.Random())


@pytest.fixture
async def opened(ports: PortPool) -> AsyncIterator[Probes]:
    opened = Probes(ports)
    yield opened
    opened.close()


async def test_a_probe_is_reached(opened: Probes) -> None:
    probe = await opened.open()
    assert await why_not_reached("127.0.0.1", probe.port, probe.token) == ""


async def test_a_probe_answers_many(opened: Probes) -> None:
    probe = await opened.open()
    assert await check_all([("127.0.0.1", probe.port, probe.token)] * 100) == [""] * 100


async def test_another_token_is_no_probe_of_ours(opened: Probes) -> None:
    probe = await opened.open()
    assert await why_not_reached("127.0.0.1", probe.port, "other") == "something else answers there"


async def test_a_closed_port_is_refused(opened: Probes) -> None:
    probe = await opened.open()
    opened.close()
    why = await why_not_reached("127.0.0.1", probe.port, probe.token)
    assert why.startswith(("connect call failed", "connection refused"))  # as the loop says it


async def test_a_port_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "REACH_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        why = await why_not_reached("127.0.0.1", mute.getsockname()[1], "token")
    assert why == "no answer in 0.1 s: is the port filtered?"


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 80, ""])
async def test_what_is_no_host_is_a_reason_and_no_error(host: str) -> None:
    assert await why_not_reached(host, LOW, "token") != ""


async def test_a_closed_probe_gives_its_port_back(opened: Probes) -> None:
    port = (await opened.open()).port
    opened.close()
    assert is_port_free(port)


async def test_a_probe_closes_by_itself(
    opened: Probes, ports: PortPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back = asyncio.Event()
    monkeypatch.setattr(probes, "OPEN_SECONDS", 0.05)
    monkeypatch.setattr(ports, "release", lambda _: given_back.set())
    await opened.open()
    async with asyncio.timeout(DEADLINE):
        await given_back.wait()


async def test_the_oldest_of_too_many_gives_way(opened: Probes) -> None:
    first = await opened.open()
    for _ in range(MOST_OPEN):
        newest = await opened.open()
    assert await why_not_reached("127.0.0.1", first.port, first.token) != ""
    assert await why_not_reached("127.0.0.1", newest.port, newest.token) == ""


async def test_no_probe_without_a_free_port() -> None:
    ports = PortPool(LOW + 200, LOW + 200, random.Random())
    taken = ports.take(1)
    with pytest.raises(NotEnoughError):
        await Probes(ports).open()
    ports.release(taken)


async def test_who_gives_up_while_a_probe_is_opened_leaves_its_port_free() -> None:
    ports = PortPool(LOW + 201, LOW + 201, random.Random())
    opening = asyncio.create_task(Probes(ports).open())
    await asyncio.sleep(0)
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    assert ports.take(1) == [LOW + 201]
