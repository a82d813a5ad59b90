"""What every call passes before its handler: the caller's role, whose study it names, and its limits.

One interceptor for both services. A refusal is logged with the peer and the method, and no handler has
seen the call: nothing has changed.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any, Protocol, TypeAlias
from urllib.parse import unquote

import grpc
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from nhop.security.identity import Identity, Role

CALLS_AT_ONCE = 512
"""Of one peer; a coordinator has at most some hundred under way on an agent."""

CONNECTIONS_AT_ONCE = 32
"""Of one peer, with calls under way."""

_STUDIES = ("study_id", "study_ids")

Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic in its stubs only
Roles = Mapping[str, frozenset[Role]]
"""By full name of a service, or "/service/method" for one that differs from the rest of its service."""

EVERY_ROLE = frozenset(Role)


class Owners(Protocol):
    """Who knows to which caller each study belongs."""

    def refuse(self, caller: Identity, study_id: str) -> str:
        """Why the caller may not touch the study; empty: it may."""


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stubs only
    """``roles`` None: without TLS nobody is known, and only the limits hold.

    Methods of services that ``roles`` does not name are refused to everybody.
    """

    def __init__(
        self, roles: Roles | None, tell: Callable[[str], object], owners: Owners | None = None
    ) -> None:
        self._roles = roles
        self._tell = tell
        self._owners = owners
        self._calls: dict[str, Counter[str]] = {}
        self._guarded: dict[str, tuple[Handler, Handler]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Puts the checks around the handler of a method."""
        handler = await continuation(handler_call_details)
        if handler is None:  # no such method
            return handler
        method = handler_call_details.method
        known = self._guarded.get(method)
        if known is None or known[0] is not handler:
            known = self._guarded[method] = handler, self._guard(method, handler)
        return known[1]

    # --- around a handler -----------------------------------------------------------------------

    def _guard(self, method: str, handler: Handler) -> Handler:
        streams_in, streams_out = handler.request_streaming, handler.response_streaming
        kind = f"{'stream' if streams_in else 'unary'}_{'stream' if streams_out else 'unary'}"
        behaviour = getattr(handler, kind)
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        around = self._around_generator if inspect.isasyncgenfunction(behaviour) else self._around
        guarded = around(method, behaviour, streams=streams_in)
        guarded_handler: Handler = make(guarded, handler.request_deserializer, handler.response_serializer)
        return guarded_handler

    def _around(self, method: str, behaviour: Any, *, streams: bool) -> Any:
        async def call(request: Any, context: Context) -> Any:
            async with self._admitted(method, context) as caller:
                passed = await self._looked_at(method, request, context, caller, streams=streams)
                return await behaviour(passed, context)

        return call

    def _around_generator(self, method: str, behaviour: Any, *, streams: bool) -> Any:
        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            async with self._admitted(method, context) as caller:
                passed = await self._looked_at(method, request, context, caller, streams=streams)
                async with contextlib.aclosing(behaviour(passed, context)) as responses:
                    async for response in responses:
                        yield response

        return call

    async def _looked_at(
        self, method: str, request: Any, context: Context, caller: Identity | None, *, streams: bool
    ) -> Any:
        """The request, or the requests, once it is known that the caller may touch what they name."""
        if caller is None or self._owners is None:
            return request
        if streams:
            return self._first_looked_at(method, request, context, caller)
        await self._check_owner(method, request, context, caller)
        return request

    async def _first_looked_at(
        self, method: str, requests: AsyncIterator[Any], context: Context, caller: Identity
    ) -> AsyncIterator[Any]:
        """As they come; the first says what the stream is about."""
        first = True
        async for request in requests:
            if first:
                await self._check_owner(method, request, context, caller)
                first = False
            yield request

    # --- checks -----------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _admitted(self, method: str, context: Context) -> AsyncIterator[Identity | None]:
        """For the time of a call, whose caller may make it."""
        peer = context.peer()
        caller: Identity | None = None
        if self._roles is not None:
            caller = Identity.find(name.decode(errors="replace") for name in context.peer_identities() or ())
            problem = _role_problem(self._roles, method, caller)
            if problem:
                await self._refuse(context, grpc.StatusCode.PERMISSION_DENIED, method, caller, problem)
        key = caller.uri if caller is not None else _host(peer)
        calls = self._calls.setdefault(key, Counter())
        problem = _limit_problem(calls, peer)
        if problem:
            await self._refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, method, caller, problem)
        calls[peer] += 1
        try:
            yield caller
        finally:
            calls[peer] -= 1
            if not calls[peer]:
                del calls[peer]
            if not calls:
                self._calls.pop(key, None)

    async def _check_owner(self, method: str, request: Any, context: Context, caller: Identity) -> None:
        assert self._owners is not None
        for study_id in studies_named(request):
            problem = self._owners.refuse(caller, study_id)
            if problem:
                await self._refuse(context, grpc.StatusCode.PERMISSION_DENIED, method, caller, problem)

    async def _refuse(
        self, context: Context, code: grpc.StatusCode, method: str, caller: Identity | None, problem: str
    ) -> None:
        who = f" ({caller})" if caller is not None else ""
        self._tell(f"refused {method} to {_readable(context.peer())}{who}: {problem}")
        await context.abort(code, problem)


def warn(logger: logging.Logger) -> Callable[[str], object]:
    """A ``tell`` that logs warnings."""
    return functools.partial(logger.warning, "%s")


def _role_problem(roles: Roles, method: str, caller: Identity | None) -> str:
    if caller is None:
        return "the certificate has no role of NHOP"
    allowed = roles.get(method, roles.get(method.rpartition("/")[0].removeprefix("/"), frozenset()))
    if caller.role in allowed:
        return ""
    wanted = " or ".join(sorted(role.value for role in allowed)) or "nobody"
    return f"{method.rpartition('/')[2]} is not for a certificate of role {caller.role.value} (for: {wanted})"


def _limit_problem(calls: Counter[str], peer: str) -> str:
    if calls.total() >= CALLS_AT_ONCE:
        return f"{CALLS_AT_ONCE} calls of this peer are under way already"
    if peer not in calls and len(calls) >= CONNECTIONS_AT_ONCE:
        return f"{CONNECTIONS_AT_ONCE} connections of this peer are in use already"
    return ""


def studies_named(message: Any) -> Iterator[str]:
    """The studies that a request names, wherever it does."""
    if not isinstance(message, Message):
        return
    for field, value in message.ListFields():
        if field.name in _STUDIES:
            yield from [value] if isinstance(value, str) else value
        elif field.message_type is not None and _may_name(field.message_type):
            for each in [value] if isinstance(value, Message) else value:
                yield from studies_named(each)


@functools.cache
def _may_name(descriptor: Descriptor) -> bool:
    """Whether a study can be named somewhere in such a message."""
    seen: set[str] = set()
    left = [descriptor]
    while left:
        each = left.pop()
        if each.full_name in seen:
            continue
        seen.add(each.full_name)
        if any(name in each.fields_by_name for name in _STUDIES):
            return True
        left += [field.message_type for field in each.fields if field.message_type is not None]
    return False


def _host(peer: str) -> str:
    """Of gRPC's name for a peer, the host: all connections of a host without TLS count together."""
    return peer.rpartition(":")[0] if peer.startswith(("ipv4:", "ipv6:")) else peer


def _readable(peer: str) -> str:
    return unquote(peer).removeprefix("ipv4:").removeprefix("ipv6:")
