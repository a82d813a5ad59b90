"""Whether hosts reach each other's task ports: one answers with a token there, the others read it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from dataclasses import dataclass

from agent.leases import PortPool

OPEN_SECONDS = 30.0
"""How long a probe stays open."""
MOST_OPEN = 8
"""Probes of one agent at a time: one for each coordinator that starts just now."""
REACH_SECONDS = 4.0
CHECKS_AT_ONCE = 64
TOKEN_BYTES = 16


@dataclass(frozen=True, slots=True)
class Probe:
    """Where it listens, and what it answers."""

    port: int
    token: str


class Probes:
    """The probes of this agent."""

    def __init__(self, ports: PortPool) -> None:
        self._ports = ports
        self._open: dict[Probe, asyncio.Server] = {}
        self._loop = asyncio.get_running_loop()

    async def open(self) -> Probe:
        """Opens a probe for OPEN_SECONDS; NotEnoughError where no port is free. The oldest gives way."""
        while len(self._open) >= MOST_OPEN:
            self._close(next(iter(self._open)))
        (port,) = self._ports.take(1)
        probe = Probe(port, secrets.token_hex(TOKEN_BYTES))

        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                writer.write(probe.token.encode())
                await writer.drain()
                writer.close()
                await writer.wait_closed()

        try:
            # As a server of TensorFlow does, on all interfaces.
            server = await asyncio.start_server(answer, None, port)
        except BaseException:  # who asked may be gone, too
            self._ports.release([port])
            raise
        self._open[probe] = server
        self._loop.call_later(OPEN_SECONDS, self._close, probe)
        return probe

    def close(self) -> None:
        """Closes all."""
        for probe in list(self._open):
            self._close(probe)

    def _close(self, probe: Probe) -> None:
        server = self._open.pop(probe, None)
        if server is not None:
            server.close()
            self._ports.release([probe.port])


async def why_not_reached(host: str, port: int, token: str) -> str:
    """Why the probe cannot be reached from here; empty where it can."""
    try:
        async with asyncio.timeout(REACH_SECONDS):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                answer = await reader.read(2 * TOKEN_BYTES)
            finally:
                writer.close()
    except TimeoutError:
        return f"no answer in {REACH_SECONDS:g} s: is the port filtered?"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    except ValueError:
        return f"{host!r} can be no host's name"
    return "" if answer == token.encode() else "something else answers there"


async def check_all(targets: list[tuple[str, int, str]]) -> list[str]:
    """``why_not_reached`` of each, host, port and token, many at a time."""
    room = asyncio.Semaphore(CHECKS_AT_ONCE)

    async def check(target: tuple[str, int, str]) -> str:
        async with room:
            return await why_not_reached(*target)

    return list(await asyncio.gather(*map(check, targets)))
