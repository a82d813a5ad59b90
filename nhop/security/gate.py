"""What every call passes before its handler: the caller's role, whose study it names, and its limits.

One interceptor for both services. A refusal is logged with the peer and the method, and no handler has
seen the call, or the message of a stream: nothing has changed.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import grpc
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from nhop.security.identity import Identity, Role
from nhop.security.telling import Sparing, readable

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

    def refuse(self, caller: Identity, studies: Sequence[str]) -> str:
        """Why the caller may not touch one of these studies; empty: it may touch them all."""


class RefusedError(Exception):
    """The gate does not let a call, or a message of it, pass; the message says why."""

    def __init__(self, code: grpc.StatusCode, problem: str) -> None:
        super().__init__(problem)
        self.code = code


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stubs only
    """``roles`` None: without TLS nobody is known, and only the limits hold.

    Methods of services that ``roles`` does not name are refused to everybody. ``trusted`` says of a
    caller's certificate, in PEM, whether its authority is trusted still.
    """

    def __init__(
        self,
        roles: Roles | None,
        tell: Callable[[str], object],
        owners: Owners | None = None,
        trusted: Callable[[bytes], bool] = lambda certificate: True,
    ) -> None:
        self._roles = roles
        self._tell = Sparing(tell, "more calls were refused")
        self._owners = owners
        self._trusted = trusted
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
                passed = self._looked_at(request, context, caller, streams=streams)
                return await behaviour(passed, context)

        return call

    def _around_generator(self, method: str, behaviour: Any, *, streams: bool) -> Any:
        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            async with self._admitted(method, context) as caller:
                passed = self._looked_at(request, context, caller, streams=streams)
                async with contextlib.aclosing(behaviour(passed, context)) as responses:
                    async for response in responses:
                        if caller is not None:  # the stream may have been there before the newest files
                            self._check_trust(context)
                        yield response

        return call

    def _looked_at(self, request: Any, context: Context, caller: Identity | None, *, streams: bool) -> Any:
        """The request, or the requests, once it is known that the caller may touch what they name."""
        if caller is None:
            return request
        if streams:
            return self._each_looked_at(request, context, caller)
        self._check_owner(request, caller)
        return request

    async def _each_looked_at(
        self, requests: AsyncIterator[Any], context: Context, caller: Identity
    ) -> AsyncIterator[Any]:
        async for request in requests:
            self._check_trust(context)
            self._check_owner(request, caller)
            yield request

    # --- checks -----------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _admitted(self, method: str, context: Context) -> AsyncIterator[Identity | None]:
        """For the time of a call, whose caller may make it; what is refused within ends it."""
        caller: Identity | None = None
        try:
            if self._roles is not None:
                caller = _caller(context)
                _check_role(self._roles, method, caller)
                self._check_trust(context)
            with self._counted(context.peer(), caller):
                yield caller
        except RefusedError as refused:
            who = f" ({caller})" if caller is not None else ""
            self._tell(f"refused {method} to {readable(context.peer())}{who}: {refused}")
            await context.abort(refused.code, str(refused))

    @contextlib.contextmanager
    def _counted(self, peer: str, caller: Identity | None) -> Iterator[None]:
        key = caller.uri if caller is not None else _host(peer)
        calls = self._calls.setdefault(key, Counter())
        problem = _limit_problem(calls, peer)
        if problem:
            raise RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, problem)
        calls[peer] += 1
        try:
            yield
        finally:
            calls[peer] -= 1
            if not calls[peer]:
                del calls[peer]
            if not calls:
                self._calls.pop(key, None)

    def _check_trust(self, context: Context) -> None:
        (certificate,) = context.auth_context()["x509_pem_cert"]
        if not self._trusted(certificate):
            raise RefusedError(
                grpc.StatusCode.PERMISSION_DENIED, "the authority of the certificate is not trusted any more"
            )

    def _check_owner(self, request: Any, caller: Identity) -> None:
        problem = self._owners.refuse(caller, list(studies_named(request))) if self._owners else ""
        if problem:
            raise RefusedError(grpc.StatusCode.PERMISSION_DENIED, problem)


def warn(logger: logging.Logger) -> Callable[[str], object]:
    """A ``tell`` that logs warnings."""
    return functools.partial(logger.warning, "%s")


def _caller(context: Context) -> Identity | None:
    """Whose certificate it is: by its URIs alone, what else it is called could be anything."""
    return Identity.find(name.decode(errors="replace") for name in context.auth_context().get("peer_uri", ()))


def _check_role(roles: Roles, method: str, caller: Identity | None) -> None:
    if caller is None:
        raise RefusedError(grpc.StatusCode.PERMISSION_DENIED, "the certificate has no role of NHOP")
    allowed = roles.get(method, roles.get(method.rpartition("/")[0].removeprefix("/"), frozenset()))
    if caller.role not in allowed:
        wanted = " or ".join(sorted(role.value for role in allowed)) or "nobody"
        raise RefusedError(
            grpc.StatusCode.PERMISSION_DENIED,
            f"{method.rpartition('/')[2]} is not for a certificate of role {caller.role.value} "
            f"(for: {wanted})",
        )


def _limit_problem(calls: Counter[str], peer: str) -> str:
    if calls.total() >= CALLS_AT_ONCE:
        return f"{CALLS_AT_ONCE} calls of this peer are under way already"
    if peer not in calls and len(calls) >= CONNECTIONS_AT_ONCE:
        return f"{CONNECTIONS_AT_ONCE} connections of this peer are in use already"
    return ""


def studies_named(message: Any) -> Iterator[str]:
    """The studies that a request names, wherever it does."""
    if not isinstance(message, Message) or not _may_name(message.DESCRIPTOR):
        return
    for field, value in message.ListFields():
        if field.name in _STUDIES:
            yield from [value] if isinstance(value, str) else value
        elif field.message_type is not None and _may_name(field.message_type):
            if isinstance(value, Message):
                yield from studies_named(value)
            else:
                for each in value.values() if isinstance(value, Mapping) else value:
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
