"""What a server answers to bytes that are no message: INVALID_ARGUMENT.

Left to itself, grpc.aio ends such a call with UNKNOWN and the text of a Python exception, which it logs.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NoReturn, Self, cast

import grpc
from google.protobuf.message import DecodeError

Context = grpc.aio.ServicerContext[Any, Any]
Deserializer = Callable[[bytes], Any]


class UndecodableError(Exception):
    """A stream of requests holds what is no message."""


@dataclass(frozen=True, slots=True)
class _Undecodable:
    why: str


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Not so: that a call was over before its status was sent, as after a message that is too large."""
    return not str(record.msg).startswith("ExecuteBatchError")


class Decoding(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Stands before every method of a server."""

    def __init__(self) -> None:
        logging.getLogger("grpc._cython.cygrpc").addFilter(_is_worth_a_line)
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


# grpc.aio keeps the error of a refused call with the call, and the frames of the error hold the call and all
# that was at hand; who does not read a stream to its end leaves a circle, too. Only the garbage collector
# would end these, and messages of some MiB fill the memory before it comes. Hence what follows lets go of
# every request. (No context manager could: those of contextlib give errors their frames back.)


def _returning(behaviour: Callable[[Any, Context], Awaitable[Any]]) -> Any:
    async def guarded(request: Any, context: Context) -> Any:
        if isinstance(request, _Undecodable):
            await _refuse(context, request.why)
        requests = _Messages(request) if hasattr(request, "__aiter__") else None
        work = behaviour(requests or request, context)
        del request
        try:
            return await work
        except UndecodableError as error:
            await _refuse(context, str(error))
        except grpc.aio.AbortError as error:
            raise _without_frames(error) from None
        finally:
            if requests is not None:
                await requests.close()

    return guarded


def _answering(behaviour: Callable[[Any, Context], AsyncIterator[Any]]) -> Any:
    async def guarded(request: Any, context: Context) -> AsyncIterator[Any]:
        if isinstance(request, _Undecodable):
            await _refuse(context, request.why)
        requests = _Messages(request) if hasattr(request, "__aiter__") else None
        answers = cast("Any", behaviour(requests or request, context))
        del request
        try:
            async for answer in answers:
                yield answer
        except UndecodableError as error:
            await _refuse(context, str(error))
        except grpc.aio.AbortError as error:
            raise _without_frames(error) from None
        finally:
            await answers.aclose()
            if requests is not None:
                await requests.close()

    return guarded


def _without_frames(error: grpc.aio.AbortError) -> grpc.aio.AbortError:
    error.__context__ = None
    return error.with_traceback(None)


class _Messages:
    """The requests of a stream; it holds none of them, as a generator would until the next is wanted."""

    def __init__(self, requests: Any) -> None:
        self._requests = aiter(requests)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        message = await anext(self._requests)
        if isinstance(message, _Undecodable):
            raise UndecodableError(message.why)
        return message

    async def close(self) -> None:
        """Takes no more."""
        with contextlib.suppress(RuntimeError):  # somebody still waits for the next
            await self._requests.aclose()


async def _refuse(context: Context, why: str) -> NoReturn:
    message = f"the request cannot be read: {why}; is the client made from proto/nhop/v1?"
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)
