"""How the services refuse: a status with details, small enough for every client.

A status travels in the trailing metadata of a call. Clients of gRPC take about 8 KiB of it, and see
RESOURCE_EXHAUSTED in place of a longer one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import grpc
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

ERROR_DOMAIN = "nhop"
MOST_MESSAGE = 1_000
"""The longest message, in bytes as it is sent."""
MOST_VIOLATIONS = 3_000
"""Bytes of all fields and descriptions together."""
_CUT = "..."


def cut(text: str, most: int = MOST_MESSAGE) -> str:
    """The text, or as much of its begin as makes ``most`` bytes of metadata; surrogates become "?"."""
    text = text[: most + 1].encode(errors="replace").decode()
    used = kept = 0
    for place, character in enumerate(text):
        # gRPC sends a byte that is not printable ASCII as three.
        used += 1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode())
        if used <= most - len(_CUT):
            kept = place + 1
        if used > most:
            return text[:kept] + _CUT
    return text


async def abort(
    context: grpc.aio.ServicerContext[Any, Any], code: int, message: str, detail: Message
) -> NoReturn:
    """Ends a call with a code of google.rpc, a message and one detail."""
    status = status_pb2.Status(code=code, message=cut(message))
    status.details.add().Pack(detail)
    answer = rpc_status.to_status(status)
    await context.abort(answer.code, answer.details, answer.trailing_metadata)


async def abort_invalid(
    context: grpc.aio.ServicerContext[Any, Any], message: str, problems: Sequence[tuple[str, str]]
) -> NoReturn:
    """Ends a call with INVALID_ARGUMENT and a violation for each problem: a field, and what is wrong."""
    await abort(context, code_pb2.INVALID_ARGUMENT, message, bad_request(problems))


def bad_request(problems: Sequence[tuple[str, str]]) -> error_details_pb2.BadRequest:
    """As many of the problems as there is room for; the last violation tells how many more there are."""
    bad = error_details_pb2.BadRequest()
    room = MOST_VIOLATIONS
    for number, problem in enumerate(problems):
        field, description = cut(problem[0], MOST_VIOLATIONS // 10), cut(problem[1], MOST_VIOLATIONS // 5)
        room -= len(field.encode()) + len(description.encode())
        if room < 0:
            bad.field_violations.add(description=f"and {len(problems) - number} more problems")
            break
        bad.field_violations.add(field=field, description=description)
    return bad
