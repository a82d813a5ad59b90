"""Reading a configuration's source: YAML text, a mapping, and ``with KEY=VALUE`` overrides.

What comes out is plain data and, for every value, where it was written. YAML is composed from
the parser's events, so that lines are known, repeated keys are seen, and neither depth, aliases
nor size can exhaust the program. Scalars are read as in YAML 1.1, but for numbers such as
``1e-5`` (text there, a number to everyone who writes it), and without its base-60 numbers and
dates.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from coordinator.errors import ConfigError, Problem

KeyPath = tuple[str | int, ...]

MAX_BYTES = 1 << 20
MAX_DEPTH = 20
MAX_VALUES = 20_000
MOST_PROBLEMS = 50
"""More of a configuration are not looked for."""

_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NULLS = {"", "~", "null"}
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)")
_FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"[-+]?\.(?:inf|nan)", re.IGNORECASE)
_MAX_DIGITS = 400
_CORE_TAGS = ("tag:yaml.org,2002:str", "!")


class TooManyProblemsError(Exception):
    """There are MOST_PROBLEMS; ``problems`` are these."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(f"{len(problems)} problems")
        self.problems = tuple(problems)


class Problems(list[Problem]):
    """What is wrong with a configuration."""

    def append(self, problem: Problem) -> None:
        """Adds a problem; TooManyProblemsError where it is the last that is worth telling."""
        super().append(problem)
        if len(self) >= MOST_PROBLEMS:
            raise TooManyProblemsError(self)


class NotAMappingError(ValueError):
    """A dotted key goes into something that has no keys."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was written: a line of the file, or an override such as ``opt_epoch=5``."""

    line: int | None = None
    override: str | None = None


@dataclass(slots=True)
class Document:
    """A configuration as it was written.

    ``name`` is what messages call it, ``origins`` says where each value stands, ``problems`` what was
    wrong with the form.
    """

    name: str
    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, Origin] = field(default_factory=dict)
    problems: Problems = field(default_factory=Problems)

    def origin(self, path: KeyPath) -> Origin:
        """Returns where the value, or the nearest one around it, was written."""
        for length in range(len(path), 0, -1):
            found = self.origins.get(path[:length])
            if found is not None:
                return found
        return Origin()

    def problem(self, path: KeyPath, message: str) -> Problem:
        """Makes the problem of the value at ``path``, with its place."""
        origin = self.origin(path)
        if origin.override is not None:
            place = dotted(path)
            inner = "" if origin.override.partition("=")[0].strip() == place else f"{place}: "
            return Problem(f"with {shorten(origin.override)}", f"{inner}{message}")
        return Problem(dotted(path), message, origin.line)

    def set(self, path: KeyPath, value: Any, origin: Origin) -> None:
        """Puts a value in its place; NotAMappingError where something around it is not a mapping."""
        target = self.data
        for depth, key in enumerate(path[:-1], start=1):
            inner = target.setdefault(str(key), {})
            if not isinstance(inner, dict):
                raise NotAMappingError(
                    f"{dotted(path[:depth])} is not a mapping, so it has no {path[depth]!r}"
                )
            target = inner
        target[str(path[-1])] = value
        for known in [known for known in self.origins if known[: len(path)] == path]:
            del self.origins[known]
        self.origins[path] = origin


def dotted(path: KeyPath) -> str:
    """Returns a key as it is written in messages: ``cluster.ps``, ``opt_stages[0]``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{shorten(part)}" if text else shorten(part)
    return text


def shorten(text: str, width: int = 60) -> str:
    """Cuts a long value of the user's short for a message."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 3] + "..."


def read_file(path: Path) -> Document:
    """Reads a YAML file; ConfigError where that cannot be done."""
    name = str(path)
    try:
        if path.is_dir():
            raise _unreadable(name, "is a folder, not a configuration file")
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise _unreadable(name, "does not exist") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise _unreadable(name, f"cannot be read: {reason or error}") from None
    if len(content) > MAX_BYTES:
        raise _unreadable(name, f"is larger than {MAX_BYTES // 1024} KiB: this is not a configuration")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        message = f"is not UTF-8 text (byte 0x{content[error.start]:02x}): save it as UTF-8"
        raise ConfigError(name, [Problem("", message, line)]) from None
    return read_text(text, name)


def read_text(text: str, name: str) -> Document:
    """Reads YAML text; ConfigError where it is not a mapping, or not YAML."""
    if len(text) > MAX_BYTES:
        raise _unreadable(name, f"is larger than {MAX_BYTES // 1024} KiB: this is not a configuration")
    composer = _Composer()
    try:
        value = composer.compose(text)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(name, [_malformed(error, text)]) from None
    except yaml.YAMLError as error:
        raise _unreadable(name, f"is not YAML: {shorten(str(error))}") from None
    except _TooMuchError as error:
        raise ConfigError(name, [Problem("", str(error), error.line)]) from None
    if value is None:
        raise _unreadable(name, "is empty; leave the file out to run the default study")
    if not isinstance(value, dict):
        raise ConfigError(name, [Problem("", f"must hold `key: value` lines, not {describe(value)}", 1)])
    return Document(name, value, composer.origins, composer.problems)


def read_mapping(values: Mapping[Any, Any], name: str = "configuration") -> Document:
    """Takes a mapping of Python values; what is not plain data becomes a problem."""
    document = Document(name)
    budget = [MAX_VALUES]
    plain = _plain(values, (), document, budget)
    if budget[0] < 0:
        raise _unreadable(name, f"holds more than {MAX_VALUES:,} values: this is not a configuration")
    document.data = plain
    return document


def apply_overrides(document: Document, overrides: Sequence[str]) -> None:
    """Puts ``KEY=VALUE`` texts over a document; wrong ones become its problems."""
    for override in overrides:
        key, separator, text = override.partition("=")
        key = key.strip()
        where = f"with {shorten(override)}"
        if not separator or not key:
            document.problems.append(
                Problem(where, "must have the form KEY=VALUE; quote a value that has spaces")
            )
            continue
        path = tuple(key.split("."))
        if not all(path):
            document.problems.append(Problem(where, f"{key!r} has an empty part"))
            continue
        composer = _Composer()
        try:
            value = composer.compose(text)
        except yaml.MarkedYAMLError as error:
            document.problems.append(Problem(where, _malformed(error, text).message))
            continue
        except (yaml.YAMLError, _TooMuchError) as error:
            document.problems.append(Problem(where, f"the value is not YAML: {shorten(str(error))}"))
            continue
        document.problems += [Problem(where, problem.message) for problem in composer.problems]
        try:
            document.set(path, value, Origin(override=override))
        except NotAMappingError as error:
            document.problems.append(Problem(where, str(error)))


def describe(value: Any) -> str:
    """Names a value in a message: ``the text 'abc'``, ``a list``, ``true``."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case str():
            return f"the text {shorten(value)!r}"
        case list():
            return "a list" if value else "an empty list"
        case dict():
            return "a mapping"
        case _:
            return shorten(str(value))


def scalar(text: str) -> Any:
    """Reads an unquoted YAML scalar."""
    lowered = text.lower()
    if lowered in _NULLS:
        return None
    if lowered in _BOOLEANS:
        return _BOOLEANS[lowered]
    if len(text) <= _MAX_DIGITS:
        if _INT.fullmatch(text):
            return int(text.replace("_", ""))
        if _FLOAT.fullmatch(text):
            return float(text.replace("_", ""))
        if _SPECIAL.fullmatch(text):
            return float(lowered.replace(".", ""))
    return text


class _TooMuchError(Exception):
    """The text is deeper or larger than any configuration."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, slots=True)
class _Anchored:
    value: Any
    size: int


class _Composer:
    """Builds plain data from the parser's events."""

    def __init__(self) -> None:
        self.origins: dict[KeyPath, Origin] = {}
        self.problems = Problems()
        self._anchors: dict[str, _Anchored | None] = {}
        self._values = 0
        self._events: Iterator[Any] = iter(())

    def compose(self, text: str) -> Any:
        """Returns the one document of ``text``, None where it has none."""
        self._events = iter(yaml.parse(text, Loader=yaml.SafeLoader))
        value: Any = None
        documents = 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    mark = event.start_mark
                    where = mark.line + 1 if mark else None
                    self.problems.append(Problem("", "a second document begins here: keep one", where))
                    break
                value = self._value(next(self._events), ())
        return value

    def _value(self, event: Any, path: KeyPath) -> Any:
        line = event.start_mark.line + 1
        self._count(1, line)
        if len(path) > MAX_DEPTH:
            raise _TooMuchError(f"values are nested more than {MAX_DEPTH} deep", line)
        if path:
            self.origins.setdefault(path, Origin(line))
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, path, line)
        before = self._values
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        if event.tag is not None and event.tag not in _CORE_TAGS:
            self._problem(path, f"the tag {shorten(event.tag)!r} is not supported: leave it out", line)
        value: Any
        if isinstance(event, yaml.SequenceStartEvent):
            value = []
            while not isinstance(inner := next(self._events), yaml.SequenceEndEvent):
                value.append(self._value(inner, (*path, len(value))))
        elif isinstance(event, yaml.MappingStartEvent):
            value = self._mapping(path)
        else:
            plain = event.style is None and event.tag is None
            value = scalar(event.value) if plain else event.value
        if event.anchor is not None:
            self._anchors[event.anchor] = _Anchored(value, self._values - before + 1)
        return value

    def _mapping(self, path: KeyPath) -> dict[str, Any]:
        value: dict[str, Any] = {}
        lines: dict[str, int] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            line = event.start_mark.line + 1
            if not isinstance(event, yaml.ScalarEvent):
                self._problem(path, "a key must be a name, not a list or mapping", line)
                self._value(event, (*path, "?"))
                self._value(next(self._events), (*path, "?"))
                continue
            key = event.value
            place = (*path, key)
            if key in lines:
                self._problem(place, f"is given twice (first in line {lines[key]})", line)
                self._value(next(self._events), (*path, key, "?"))
                continue
            lines[key] = line
            self.origins[place] = Origin(line)
            value[key] = self._value(next(self._events), place)
            if key == "<<" and event.style is None:
                self._problem(path, "merging with << is not supported: write the keys out", line)
                del value[key]
        return value

    def _alias(self, event: Any, path: KeyPath, line: int) -> Any:
        if event.anchor not in self._anchors:
            self._problem(path, f"there is no anchor &{event.anchor} before this *{event.anchor}", line)
            return None
        anchored = self._anchors[event.anchor]
        if anchored is None:
            self._problem(path, f"*{event.anchor} refers to itself", line)
            return None
        self._count(anchored.size, line)
        return anchored.value

    def _count(self, values: int, line: int) -> None:
        self._values += values
        if self._values > MAX_VALUES:
            raise _TooMuchError(f"more than {MAX_VALUES:,} values: this is not a configuration", line)

    def _problem(self, path: KeyPath, message: str, line: int) -> None:
        self.problems.append(Problem(dotted(path), message, line))


def _plain(value: Any, path: KeyPath, document: Document, budget: list[int]) -> Any:
    budget[0] -= 1
    if budget[0] < 0:
        return None
    if len(path) > MAX_DEPTH:
        document.problems.append(Problem(dotted(path[:3]), f"is nested more than {MAX_DEPTH} deep"))
        return None
    if hasattr(value, "tolist"):  # arrays and scalars of numpy
        return _plain(value.tolist(), path, document, budget)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        plain: dict[str, Any] = {}
        for key, inner in value.items():
            if isinstance(key, str):
                plain[key] = _plain(inner, (*path, key), document, budget)
            else:
                document.problems.append(
                    Problem(dotted(path), f"a key must be a text, not {shorten(repr(key))}")
                )
        return plain
    if isinstance(value, list | tuple):
        return [_plain(inner, (*path, index), document, budget) for index, inner in enumerate(value)]
    kind = type(value).__name__
    document.problems.append(
        Problem(dotted(path), f"must be a number, text, list or mapping, not an object of type {kind}")
    )
    return None


def _malformed(error: yaml.MarkedYAMLError, text: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    what = error.problem or error.context or "cannot be understood"
    if mark is None:
        return Problem("", f"is not YAML: {shorten(what)}")
    lines = text.rstrip().count("\n") + 1
    if mark.line >= lines or "stream end" in what or "end of stream" in what:
        begin = error.context_mark if error.context_mark and error.context_mark.line < lines else None
        line = begin.line + 1 if begin else lines
        return Problem("", "is not YAML: the text ends before this is complete (a bracket or quote?)", line)
    return Problem("", f"is not YAML: {shorten(what, 120)} (column {mark.column + 1})", mark.line + 1)


def _unreadable(name: str, message: str) -> ConfigError:
    return ConfigError(name, [Problem("", message)])
