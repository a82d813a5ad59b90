"""The standard health service, with the one method that grpcio-health-checking leaves out for asyncio."""

from __future__ import annotations

from typing import Any, NoReturn

import grpc
from grpc_health.v1 import health


class Health(health.aio.HealthServicer):  # type: ignore[name-defined,misc]  # unknown to the stubs
    """As in grpc_health."""

    async def List(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> NoReturn:  # noqa: N802
        """Refuses in words, not with a traceback in the log."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "ask Check or Watch")
