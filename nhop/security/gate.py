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
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, Protocol, TypeAlias

import grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor
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
            passage = _Passage(self, method, context)
            try:
                with passage:
                    return await behaviour(passage.look_at(request, streams=streams), context)
            except RefusedError as refused:
                await self._refuse(passage, refused)

        return call

    def _around_generator(self, method: str, behaviour: Any, *, streams: bool) -> Any:
        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            passage = _Passage(self, method, context)
            try:
                with passage:
                    passed = passage.look_at(request, streams=streams)
                    async with contextlib.aclosing(behaviour(passed, context)) as responses:
                        async for response in responses:
                            passage.check_trust()  # the stream may have been there before the newest files
                            yield response
            except RefusedError as refused:
                await self._refuse(passage, refused)

        return call

    async def _refuse(self, passage: _Passage, refused: RefusedError) -> NoReturn:
        who = f" ({passage.caller})" if passage.caller is not None else ""
        self._tell(f"refused {passage.method} to {readable(passage.peer)}{who}: {refused}")
        await passage.context.abort(refused.code, str(refused))

    # --- checks; each raises RefusedError ---------------------------------------------------------

    def check_role(self, method: str, caller: Identity | None) -> None:
        """Whether the caller may make a call of the method."""
        if self._roles is not None:
            _check_role(self._roles, method, caller)

    def check_trust(self, certificate: bytes) -> None:
        """Whether the authority of a caller's certificate is trusted still."""
        if not self._trusted(certificate):
            problem = "the authority of the certificate is not trusted any more"
            raise RefusedError(grpc.StatusCode.PERMISSION_DENIED, problem)

    def check_owner(self, request: Any, caller: Identity) -> None:
        """Whether the caller may touch the studies that the request names."""
        if self._owners is None:
            return
        problem = self._owners.refuse(caller, studies_named(request))
        if problem:
            raise RefusedError(grpc.StatusCode.PERMISSION_DENIED, problem)

    def begin(self, key: str, peer: str) -> None:
        """Counts a call; ``end`` it."""
        calls = self._calls.setdefault(key, Counter())
        problem = _limit_problem(calls, peer)
        if problem:
            raise RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, problem)
        calls[peer] += 1

    def end(self, key: str, peer: str) -> None:
        """Counts a call down."""
        calls = self._calls[key]
        calls[peer] -= 1
        if not calls[peer]:
            del calls[peer]
        if not calls:
            del self._calls[key]

    @property
    def knows(self) -> bool:
        """Whether callers show certificates."""
        return self._roles is not None


class _Passage:
    """A call on its way through the gate; a context manager for its time. ``caller`` None: not known."""

    def __init__(self, gate: Gate, method: str, context: Context) -> None:
        self._gate = gate
        self.method = method
        self.context = context
        self.peer: str = context.peer()
        self.caller: Identity | None = None
        self._certificate = b""
        self._key = ""

    def __enter__(self) -> None:
        if self._gate.knows:
            shown = self.context.auth_context()
            # By its URIs alone: what else it is called could be anything.
            self.caller = _identity(tuple(shown.get("peer_uri", ())))
            self._gate.check_role(self.method, self.caller)
            (self._certificate,) = shown["x509_pem_cert"]
            self.check_trust()
        key = self.caller.uri if self.caller is not None else _host(self.peer)
        self._gate.begin(key, self.peer)
        self._key = key

    def __exit__(self, *_: object) -> None:
        self._gate.end(self._key, self.peer)

    def check_trust(self) -> None:
        """As the gate does, of those who are known."""
        if self.caller is not None:
            self._gate.check_trust(self._certificate)

    def look_at(self, request: Any, *, streams: bool) -> Any:
        """The request, or the requests, once it is known that the caller may touch what they name."""
        if self.caller is None:
            return request
        if streams:
            return self._look_at_each(request, self.caller)
        self._gate.check_owner(request, self.caller)
        return request

    async def _look_at_each(self, requests: AsyncIterator[Any], caller: Identity) -> AsyncIterator[Any]:
        async for request in requests:
            self.check_trust()
            self._gate.check_owner(request, caller)
            yield request


def warn(logger: logging.Logger) -> Callable[[str], object]:
    """A ``tell`` that logs warnings."""
    return functools.partial(logger.warning, "%s")


@functools.lru_cache(maxsize=1024)
def _identity(names: tuple[bytes, ...]) -> Identity | None:
    return Identity.find(name.decode(errors="replace") for name in names)


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


def studies_named(message: Any) -> list[str]:
    """The studies that a request names, wherever it does."""
    found: list[str] = []
    if isinstance(message, Message):
        _collect(message, found)
    return found


def _collect(message: Message, found: list[str]) -> None:
    for place in _places(message.DESCRIPTOR):
        if place.several:
            values = getattr(message, place.name)
            if place.is_study:
                found.extend(values)
            else:
                for each in values.values() if isinstance(values, Mapping) else values:
                    _collect(each, found)
        elif place.is_study:
            found.extend(filter(None, (getattr(message, place.name),)))
        elif message.HasField(place.name):
            _collect(getattr(message, place.name), found)


class _Place(NamedTuple):
    """A field that is a study's name, or a message in which a study may be named."""

    name: str
    is_study: bool
    several: bool


@functools.cache
def _places(descriptor: Descriptor) -> tuple[_Place, ...]:
    return tuple(
        _Place(field.name, field.name in _STUDIES, field.is_repeated)
        for field in descriptor.fields
        if field.name in _STUDIES or (field.message_type is not None and _may_name(_content(field)))
    )


def _content(field: FieldDescriptor) -> Descriptor:
    """The type of a field's messages; of a map, of its values."""
    kind = field.message_type
    assert kind is not None
    if kind.GetOptions().map_entry:
        return kind.fields_by_name["value"].message_type or kind
    return kind


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
