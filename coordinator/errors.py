"""Errors that end a command: each carries a message for the user and the exit status."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nhop_models.contract import printable


class NhopError(Exception):
    """What went wrong, where, and what to do, in the user's words; never shown as a traceback."""

    exit_status = 1


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a configuration; ``line`` counts from 1, None where there is none."""

    key: str
    message: str
    line: int | None = None


class ConfigError(NhopError):
    """The configuration is wrong; all its problems at once."""

    exit_status = 2

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        lines = [
            f"{source}{f':{p.line}' if p.line else ''}: {f'{p.key}: ' if p.key else ''}{p.message}"
            for p in self.problems
        ]
        super().__init__(printable("\n".join(lines)))  # keys, values and paths may hold anything


class UsageError(NhopError):
    """The command line or the output directory cannot be used."""

    exit_status = 2


class HostsError(NhopError):
    """The hosts cannot be used."""

    exit_status = 3


class HostLimitError(HostsError):
    """A host would count as lost before attempts on it have ended for sure."""

    exit_status = 2


class StudyFailedError(NhopError):
    """The study could not go on."""

    exit_status = 1
