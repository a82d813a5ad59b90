"""Checks of requests: what is wrong with each field, as far as it is worth telling."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from google.protobuf import duration_pb2, struct_pb2
from google.protobuf.message import Message

from agent.domain import STUDY_ID, AttemptId
from nhop.v1 import types_pb2
from nhop_models.contract import TaskId, TaskRole

MOST_PROBLEMS = 20
"""More of a request are not looked for."""
MAX_TASKS = 1_000
MAX_PARAMETER_DEPTH = 16
MAX_VALUES = 100_000
MAX_HOST = 255
"""Characters of a host's name: those of DNS have fewer."""
_PORT = re.compile(r"[0-9]{1,5}")
_WHOLE_NUMBERS = 2.0**53  # a double holds every whole number up to here
_ROLES = {types_pb2.TASK_ROLE_PS: TaskRole.PS, types_pb2.TASK_ROLE_WORKER: TaskRole.WORKER}


class InvalidRequestError(ValueError):
    """A request that breaks the protocol's rules: all that is wrong, by field."""

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{field}: {description}" for field, description in problems))


class Checker:
    """Collects what is wrong with a request."""

    def __init__(self) -> None:
        self.problems: list[tuple[str, str]] = []
        self._values = 0

    def require(self, holds: bool, field: str, description: str) -> bool:
        """Notes a problem unless ``holds``; gives ``holds``. Raises as ``finish`` once there are many."""
        if not holds:
            self.problems.append((field, description))
            if len(self.problems) >= MOST_PROBLEMS:
                self.finish()
        return holds

    def finish(self) -> None:
        """Raises InvalidRequestError where anything was wrong."""
        if self.problems:
            raise InvalidRequestError(self.problems)

    # --- parts ------------------------------------------------------------------------------

    def study_id(self, value: str, field: str) -> str:
        """A study's id."""
        text = "must be 1 to 64 of [a-z0-9-], a letter or digit first"
        self.require(STUDY_ID.fullmatch(value) is not None, field, text)
        return value

    def attempt(self, value: types_pb2.AttemptId, field: str = "attempt") -> AttemptId:
        """An attempt's id."""
        self.study_id(value.study_id, f"{field}.study_id")
        self.require(value.trial >= 1, f"{field}.trial", "must be at least 1")
        self.require(value.attempt >= 1, f"{field}.attempt", "must be at least 1")
        return AttemptId(value.study_id, value.trial, value.attempt)

    def task(self, value: types_pb2.TaskId, field: str) -> TaskId:
        """A task's id."""
        self.require(value.role in _ROLES, f"{field}.role", "must be TASK_ROLE_PS or TASK_ROLE_WORKER")
        self.require(
            0 <= value.index < MAX_TASKS, f"{field}.index", f"must be at least 0 and below {MAX_TASKS}"
        )
        return TaskId(_ROLES.get(value.role, TaskRole.WORKER), value.index)

    def address(self, value: str, field: str) -> tuple[str, int]:
        """A host and a port."""
        host, _, port = value.rpartition(":")
        valid = 0 < len(host) <= MAX_HOST and _PORT.fullmatch(port) is not None and 0 < int(port) < 65536
        self.require(valid, field, "must be host:port")
        return host, int(port) if valid else 0

    def seconds(self, value: duration_pb2.Duration, field: str) -> float:
        """A duration that is not negative."""
        seconds = value.seconds + value.nanos / 1e9
        self.require(seconds >= 0, field, "must not be negative")
        return seconds

    def not_negative(self, message: Message, field: str) -> int:
        """A whole number of the training."""
        value: int = getattr(message, field)
        self.require(value >= 0, f"training.{field}", "must not be negative")
        return value

    def values(self, value: struct_pb2.Struct, field: str) -> dict[str, Any]:
        """Parameters; numbers that are whole become integers."""
        return {name: self._plain(each, f"{field}.{name}", 1) for name, each in value.fields.items()}

    def _plain(self, value: struct_pb2.Value, field: str, depth: int) -> Any:
        if not self.require(depth <= MAX_PARAMETER_DEPTH, field, "is nested too deeply"):
            return None
        self._values += 1
        if self._values > MAX_VALUES:
            raise InvalidRequestError([("training", f"holds more than {MAX_VALUES:,} values")])
        match value.WhichOneof("kind"):
            case "number_value":
                number = value.number_value
                self.require(math.isfinite(number), field, "must be finite")
                whole = number.is_integer() and abs(number) < _WHOLE_NUMBERS
                return int(number) if whole else number
            case "string_value":
                return value.string_value
            case "bool_value":
                return value.bool_value
            case "struct_value":
                fields = value.struct_value.fields
                return {
                    name: self._plain(each, f"{field}.{name}", depth + 1) for name, each in fields.items()
                }
            case "list_value":
                return [
                    self._plain(each, f"{field}[{number}]", depth + 1)
                    for number, each in enumerate(value.list_value.values)
                ]
            case _:
                return None
