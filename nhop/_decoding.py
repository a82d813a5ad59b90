"""What a server answers to bytes that are no message: INVALID_ARGUMENT.

Left to itself, grpc.aio ends such a call with UNKNOWN and the text of a Python exception, which it logs.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import grpc
from google.protobuf.message import DecodeError

Context = grpc.aio.ServicerContext[Any, Any]
Deserializer = Callable[[bytes], Any]


class UndecodableError(Exception):
    """A stream of requests holds what is no message."""


@dataclass(frozen=True, slots=True)
class _Undecodable:
    why: str


class Decoding(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Stands before every method of a server."""

    def __init__(self) -> None:
        self._guarded: dict[str, tuple[Any, Any]] = {}

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        """The method with its guard; None where there is no such method."""
        handler = await continuation(details)
        if handler is None or handler.request_deserializer is None:
            return handler
        name = str(details.method)
        found, guarded = self._guarded.get(name, (None, None))
        if found is not handler:
            guarded = _guard(handler)
            self._guarded[name] = (handler, guarded)
        return guarded


def _guard(handler: Any) -> Any:
    arity = f"{_arity(handler.request_streaming)}_{_arity(handler.response_streaming)}"
    behaviour = getattr(handler, arity)
    make: Any = getattr(grpc, f"{arity}_rpc_method_handler")
    answers = _answering(behaviour) if inspect.isasyncgenfunction(behaviour) else _returning(behaviour)
    deserialize = _checked(handler.request_deserializer)
    return make(answers, request_deserializer=deserialize, response_serializer=handler.response_serializer)


def _arity(streaming: bool) -> str:
    return "stream" if streaming else "unary"


def _checked(deserialize: Deserializer) -> Deserializer:
    def checked(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError as error:
            return _Undecodable(str(error))

    return checked


def _returning(behaviour: Callable[[Any, Context], Awaitable[Any]]) -> Any:
    async def guarded(request: Any, context: Context) -> Any:
        if isinstance(request, _Undecodable):
            await _refuse(context, request.why)
        try:
            return await behaviour(_messages(request), context)
        except UndecodableError as error:
            await _refuse(context, str(error))

    return guarded


def _answering(behaviour: Callable[[Any, Context], AsyncIterator[Any]]) -> Any:
    async def guarded(request: Any, context: Context) -> AsyncIterator[Any]:
        if isinstance(request, _Undecodable):
            await _refuse(context, request.why)
        answers = cast("Any", behaviour(_messages(request), context))
        try:
            async for answer in answers:
                yield answer
        except UndecodableError as error:
            await _refuse(context, str(error))
        finally:
            await answers.aclose()

    return guarded


def _messages(request: Any) -> Any:
    """A single request as it is; those of a stream, until one is none."""
    return _each(request) if hasattr(request, "__aiter__") else request


async def _each(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        if isinstance(request, _Undecodable):
            raise UndecodableError(request.why)
        yield request


async def _refuse(context: Context, why: str) -> NoReturn:
    message = f"the request cannot be read: {why}; is the client made from proto/nhop/v1?"
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)
