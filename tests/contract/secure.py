"""An agent that speaks TLS, those who call it with their certificates, and strangers' connections."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc

from tests.certificates import credentials
from tests.contract.harness import DEADLINE, Harness, RealAgent, Stream

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"
"""With which an HTTP/2 connection begins."""

CHANGING = ("lease", "agent.reports", ".reports")
"""Files of a running attempt that change by themselves."""


class SecureAgent(RealAgent):
    """``nhop-agent`` with a certificate, on a port of the loopback interface."""

    directory: Path

    @classmethod
    async def start(cls, directory: Path, folder: Path, **config: Any) -> SecureAgent:
        config.setdefault("listen", "127.0.0.1:0")
        agent = await cls.launch(directory, tls=str(folder), **config)
        assert isinstance(agent, SecureAgent)
        agent.directory = directory
        return agent

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @property
    def log(self) -> str:
        return (self.directory / "stderr").read_text()

    async def logs(self, *words: str, since: int = 0) -> str:
        """Waits for a line of its log, behind the first ``since`` characters, that has all these words."""
        async with asyncio.timeout(DEADLINE):
            while True:
                for line in self.log[since:].splitlines():
                    if all(word in line for word in words):
                        return line
                await asyncio.sleep(0.02)

    @contextlib.asynccontextmanager
    async def called_by(self, folder: Path, target: str = "") -> AsyncIterator[Caller]:
        caller = Caller(target or self.address, folder)
        try:
            yield caller
        finally:
            await caller.close()

    def kept(self) -> dict[str, str]:
        """What is in the state directory, but for what running tasks write: path to digest."""
        return {
            str(path.relative_to(self.state_dir)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.state_dir.rglob("*"))
            if path.is_file() and not path.name.endswith(CHANGING) and "attempts" in path.parts
        } | {str(path.name): "folder" for path in (self.state_dir / "attempts").iterdir()}


class Caller(Harness):
    """Calls an agent with a certificate."""

    def __init__(self, address: str, folder: Path) -> None:
        super().__init__(address, grpc.aio.secure_channel(address, credentials(folder)))


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    """What a call is refused with."""
    try:
        answer = await asyncio.wait_for(call, DEADLINE)
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError(f"was answered: {answer}")


async def end_of(stream: Stream) -> grpc.aio.AioRpcError:
    """What ends a stream of events."""

    async def read() -> object:
        while await stream.call.read() is not grpc.aio.EOF:
            pass
        return "its end"

    return await refusal(read())


class Stranger:
    """Connects by hand: what gRPC would never send."""

    def __init__(self, port: int, authority: Path) -> None:
        self._port = port
        self._authority = authority

    def context(
        self,
        folder: Path | None = None,
        *,
        alpn: Sequence[str] = ("h2",),
        newest: ssl.TLSVersion | None = None,
    ) -> ssl.SSLContext:
        """``folder``: whose certificate is shown."""
        context = ssl.create_default_context(cafile=str(self._authority))
        if folder is not None:
            context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
        if alpn:
            context.set_alpn_protocols(list(alpn))
        if newest is not None:
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = newest
            context.set_ciphers("ALL:@SECLEVEL=0")
        return context

    def connect(
        self, context: ssl.SSLContext, session: ssl.SSLSession | None = None
    ) -> tuple[ssl.SSLSession | None, bool]:
        """Shakes hands and begins HTTP/2: the session, and whether that was resumed. OSError: refused."""
        with (
            socket.create_connection(("127.0.0.1", self._port), timeout=DEADLINE) as plain,
            context.wrap_socket(plain, server_hostname="localhost", session=session) as secured,
        ):
            secured.sendall(PREFACE)
            if not secured.recv(1):
                raise ConnectionResetError("ended")
            return secured.session, bool(secured.session_reused)

    def send(self, data: bytes) -> bytes:
        """What is answered to plain bytes."""
        with socket.create_connection(("127.0.0.1", self._port), timeout=DEADLINE) as plain:
            plain.sendall(data)
            with contextlib.suppress(ConnectionResetError):
                return plain.recv(100)
        return b""
