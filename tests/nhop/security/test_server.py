"""The serving end: connections that do not come to the point, too many of them, and who is trusted now."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from nhop.security.rotation import Rotation
from nhop.security.server import LIMITS, Trusted, server_credentials
from tests.certificates import AGENT, COORDINATOR, Office, trust
from tests.contract.harness import DEADLINE

MOST = 5


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path / "office")


@contextlib.asynccontextmanager
async def serving(office: Office | None, handshake_ms: int) -> AsyncIterator[int]:
    """A server with limits like ours, but smaller; its port."""
    names = [name for name, _ in LIMITS]
    server = grpc.aio.server(options=list(zip(names, (handshake_ms, MOST), strict=True)))
    if office is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", server_credentials(Rotation(office.issue(AGENT), AGENT)))
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


def test_the_limits_are_those_that_are_tried_here() -> None:
    assert [name for name, _ in LIMITS] == [
        "grpc.server_handshake_timeout_ms",
        "grpc.max_allowed_incoming_connections",
    ]


async def cut_off(reader: asyncio.StreamReader) -> None:
    """Waits until a connection is ended by the server."""
    with contextlib.suppress(ConnectionError):
        while await reader.read(1000):
            pass


@pytest.mark.parametrize("tls", [True, False])
async def test_who_says_nothing_is_cut_off(office: Office, tls: bool) -> None:
    async with serving(office if tls else None, 300) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.wait_for(cut_off(reader), DEADLINE)
        writer.close()


@pytest.mark.parametrize("tls", [True, False])
async def test_too_many_connections_are_refused(office: Office, tls: bool) -> None:
    async with serving(office if tls else None, 60_000) as port:
        opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MOST + 3)]
        ends = [asyncio.create_task(cut_off(reader)) for reader, _ in opened]
        async with asyncio.timeout(DEADLINE):
            while sum(end.done() for end in ends) < 3:
                await asyncio.wait(
                    [end for end in ends if not end.done()], return_when=asyncio.FIRST_COMPLETED
                )
        assert sum(end.done() for end in ends) == 3
        for end in ends:
            end.cancel()
        for _, writer in opened:
            writer.close()


def test_who_is_trusted_follows_the_files(office: Office, tmp_path: Path) -> None:
    new = Office(tmp_path / "new")
    folder = office.issue(AGENT)
    trust(folder, office, new)
    rotation = Rotation(folder, AGENT)
    trusted = Trusted(rotation)
    old_one, new_one = ((each.issue(COORDINATOR) / "tls.crt").read_bytes() for each in (office, new))
    assert trusted(old_one)
    assert trusted(new_one)
    new.issue(AGENT, place=folder)
    assert trusted(old_one)
    assert rotation.look()
    assert not trusted(old_one)
    assert trusted(new_one)
    assert not trusted(b"garbage")
