"""StudyService of any running coordinator, on a Unix socket for the user who started it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import grpc

from coordinator.errors import NhopError
from coordinator.service import SERVER_OPTIONS, Studies, StudyService
from coordinator.sockets import MAX_SOCKET_PATH, make_private_folder, remove_private_folder
from nhop._decoding import Decoding
from nhop.v1 import study_pb2_grpc

SOCKET = "coordinator.sock"


class OwnService:
    """``start`` and ``close``. ``folder`` is a private one for the socket; None: it has one of its own."""

    def __init__(self, studies: Studies, folder: Path | None = None) -> None:
        self._studies = studies
        self._folder = folder
        self._made: Path | None = None
        self._server: grpc.aio.Server | None = None

    async def start(self) -> str:
        """Serves; returns the address. Raises OSError or NhopError where no socket can be made."""
        if self._folder is None:
            self._folder = self._made = make_private_folder()
        path = self._folder / SOCKET
        if len(os.fsencode(path)) > MAX_SOCKET_PATH:
            raise NhopError(f"{path}: the path of a socket has at most {MAX_SOCKET_PATH} bytes")
        address = f"unix:{path}"
        self._server = grpc.aio.server(options=SERVER_OPTIONS, interceptors=(Decoding(),))
        study_pb2_grpc.add_StudyServiceServicer_to_server(StudyService(self._studies), self._server)
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError:
            port = 0
        if port == 0:
            raise NhopError(f"{path}: no socket can be made there")
        await self._server.start()
        await asyncio.to_thread(path.chmod, 0o600)
        return address

    async def close(self, grace: float) -> None:
        """Takes no more calls, and cuts off those that have not ended after ``grace`` seconds."""
        if self._server is not None:
            await self._server.stop(grace)
        if self._made is not None:
            await asyncio.to_thread(remove_private_folder, self._made)
