"""Which files of a folder go along to hosts: what the user ignores is left out, and there are limits.

Everything is looked at before anything is read.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec

from coordinator.domain import Sources
from coordinator.errors import UsageError

IGNORE_FILE = ".nhopignore"
_RESULTS = {"study.db", "config.yaml"}  # what holds these is the folder of a study's results
_NAMES_SHOWN = 5
_LARGEST_SHOWN = 3
_DEEPEST = 100
MAX_NAME_BYTES = 2_000
"""The longest path within the folder; agents take no longer one."""


class PackError(UsageError):
    """``key`` of the configuration names what cannot be packed for the hosts."""

    def __init__(self, key: str, message: str) -> None:
        self.key = key
        self.message = message
        super().__init__(f"{key}: {message}")


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for a kind of folder: limits in bytes and entries, and what is left out."""

    most_bytes: int
    most_entries: int
    ignore_files: tuple[str, ...]
    always: tuple[str, ...]


CREDENTIALS = (".ssh/", ".gnupg/", ".aws/", ".azure/", ".kube/", ".docker/", ".config/gcloud/", ".netrc")
"""What opens other machines, where a home is sent: hosts get it from nobody but their own users."""

CODE_RULES = Rules(
    100 << 20,
    10_000,
    (IGNORE_FILE, ".gitignore"),
    (".git", "__pycache__/", "*.pyc", ".venv", "venv/", "node_modules/", ".ipynb_checkpoints/", *CREDENTIALS),
)
DATA_RULES = Rules(1 << 30, 100_000, (IGNORE_FILE,), (".git", ".ipynb_checkpoints/", *CREDENTIALS))
"""A .gitignore often keeps data out of git, and must not keep it from the hosts."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or folder to pack: its name within the archive, where it is, and its bytes."""

    name: str
    path: Path
    folder: bool
    size: int = 0
    executable: bool = True


def walk(name: str, source: Path, rules: Rules, sources: Sources, notes: list[str]) -> list[Entry]:
    """What goes along of ``source``, sorted by name; appends to ``notes`` what the user should know.

    ``name`` is the key of the configuration. Raises PackError where it is too much, cannot be read, or
    nothing is left.
    """
    walker = _Walker(name, source, rules, sources)
    try:
        if source.is_file():
            found = source.resolve()
            walker.add_file(source.name, found, found.stat())
        else:
            walker.add_folder("", source.resolve(strict=True), ())
    except OSError as error:
        raise PackError(name, f"{source}: cannot be read ({error.strerror or error})") from error
    walker.finish(notes)
    return walker.entries


class _Walker:
    """One look at a folder."""

    def __init__(self, name: str, source: Path, rules: Rules, sources: Sources) -> None:
        self.entries: list[Entry] = []
        self._name = name
        self._source = source
        self._root = source.resolve()
        self._rules = rules
        self._module = sources.module if name == "code" else ""
        # What goes along as data does not once more as code.
        self._data = sources.data.resolve() if sources.data is not None and name == "code" else None
        self._runs = {folder.resolve() for folder in sources.runs} - {self._root}
        self._ignored_by, self._ignored = self._read_ignored()
        self._size = 0
        self._sizes: Counter[str] = Counter()
        self._unreadable: list[str] = []
        self._skipped: list[str] = []

    def _read_ignored(self) -> tuple[str, GitIgnoreSpec]:
        for name in self._rules.ignore_files if self._source.is_dir() else ():
            path = self._source / name
            try:
                lines = path.read_text(encoding="utf-8-sig").splitlines()
            except FileNotFoundError:
                continue
            except (OSError, UnicodeDecodeError) as error:
                why = (error.strerror if isinstance(error, OSError) else None) or "it is not UTF-8 text"
                raise PackError(self._name, f"{path}: cannot be read: {why}") from error
            try:
                # Ours last: nothing brings back what no host needs.
                return name, GitIgnoreSpec.from_lines([*lines, *self._rules.always])
            except ValueError as error:
                raise PackError(self._name, f"{path}: {error}") from error
        return "", GitIgnoreSpec.from_lines(self._rules.always)

    def add_folder(self, prefix: str, folder: Path, around: tuple[Path, ...]) -> None:
        """Adds what is in a folder, whose names begin with ``prefix``; ``around`` are those that it is in."""
        try:
            with os.scandir(folder) as found:
                names = sorted(entry.name for entry in found)
        except PermissionError:
            self._unreadable.append(f"{prefix or '.'}")
            return
        if len(around) > _DEEPEST:
            raise self._error(f"{prefix[:80]}... is nested more than {_DEEPEST} folders deep")
        if prefix and (_RESULTS.issubset(names) or (folder in self._runs and "__init__.py" not in names)):
            self.entries.pop()
            return
        for name in names:
            self._add(f"{prefix}{name}", folder / name, (*around, folder))

    def _add(self, name: str, path: Path, around: tuple[Path, ...]) -> None:
        try:
            status = path.lstat()
        except OSError:  # such as where something is mounted whose server is gone
            if not self._is_ignored(name):
                self._unreadable.append(name)
            return
        if stat.S_ISLNK(status.st_mode):
            target = Path(os.path.realpath(path))  # resolve() raises where links lead in a circle
            if not target.is_relative_to(self._root):  # first: we need not be allowed to look there
                self._skip(name, "a link that leads out of the folder")
                return
            if not target.exists():
                self._skip(name, "a link to nothing")
                return
            path, status = target, target.stat()
            if path in around:
                self._skip(name, "a link to a folder around it")
                return
        if path == self._data:
            return
        folder = stat.S_ISDIR(status.st_mode)
        if self._ignored.match_file(f"{name}/" if folder else name):
            self._check_module(name)
        elif folder:
            self._count(Entry(name, path, folder=True))
            self.add_folder(f"{name}/", path, around)
        elif stat.S_ISREG(status.st_mode):
            self.add_file(name, path, status)
        else:
            self._skip(name, "a socket, FIFO or device")

    def add_file(self, name: str, path: Path, status: os.stat_result) -> None:
        """Adds a file."""
        if not os.access(path, os.R_OK):
            self._unreadable.append(name)
            return
        self._count(Entry(name, path, False, status.st_size, bool(status.st_mode & 0o100)))

    def _count(self, entry: Entry) -> None:
        if len(os.fsencode(entry.name)) > MAX_NAME_BYTES:
            raise self._error(f"the path {entry.name[:80]}... is longer than {MAX_NAME_BYTES} bytes")
        self.entries.append(entry)
        self._size += entry.size
        self._sizes[self._top(entry)] += entry.size
        rules = self._rules
        if self._size > rules.most_bytes:
            raise self._too_much(f"more than {human(rules.most_bytes)}", self._largest(self._sizes, human))
        if len(self.entries) > rules.most_entries:
            counts = Counter(self._top(each) for each in self.entries)
            largest = self._largest(counts, lambda number: f"{number:,} entries")
            raise self._too_much(f"more than {rules.most_entries:,} files and folders", largest)

    @staticmethod
    def _top(entry: Entry) -> str:
        first, slash, _ = entry.name.partition("/")
        return first + (slash or "/" * entry.folder)

    @staticmethod
    def _largest(counted: Counter[str], describe: Callable[[int], str]) -> str:
        return ", ".join(f"{name} {describe(n)}" for name, n in counted.most_common(_LARGEST_SHOWN))

    def _too_much(self, what: str, largest: str) -> PackError:
        so_far = f"{human(self._size)} in {len(self.entries):,} entries so far; largest: {largest}"
        if self._source.is_file():
            remedy = "put it on the hosts, and name its path there"
        else:
            remedy = (
                f"leave out what tasks do not need in {self._source / IGNORE_FILE}, or name another folder"
            )
            remedy += f" as {self._name}" + ", or put the data on the hosts" * (self._name == "data")
        return self._error(f"{what} cannot be sent to hosts ({so_far}); {remedy}")

    def _is_module(self, name: str) -> bool:
        return bool(self._module) and name in (self._module, f"{self._module}.py")

    def _check_module(self, name: str) -> None:
        if self._is_module(name):
            file = self._source / IGNORE_FILE
            if self._ignored_by == IGNORE_FILE:
                remedy = f"correct {file}"
            else:
                remedy = f"write what is to be left out into {file}, which is read instead"
            raise self._error(
                f"{name}, which nn_model names, is left out by {self._ignored_by or 'NHOP'}; {remedy}"
            )

    def _skip(self, name: str, what: str) -> None:
        if self._is_ignored(name):
            self._check_module(name)
        elif self._is_module(name):
            raise self._error(f"{name}, which nn_model names, is {what} and cannot be sent; put a copy there")
        else:
            self._skipped.append(f"{name} ({what})")

    def _is_ignored(self, name: str) -> bool:
        """Whether the user leaves it out, if it is a file or if it is a folder."""
        return self._ignored.match_file(name) or self._ignored.match_file(f"{name}/")

    def finish(self, notes: list[str]) -> None:
        """Raises PackError where something could not be read, or nothing is left."""
        if self._unreadable:
            remedy = f"change their permissions, or leave them out in {IGNORE_FILE}"
            raise self._error(f"cannot be read: {_some(self._unreadable)}; {remedy}")
        if all(entry.folder for entry in self.entries):
            raise self._error("holds no file to send to the hosts")
        with contextlib.suppress(RuntimeError):  # there may be no home
            if self._root == Path.home().resolve():
                what = "is your home: all that is in it goes to the hosts"
                notes.append(f"{self._name}: {self._source} {what}; better use a folder of its own")
        if self._skipped:
            notes.append(f"{self._name}: {self._source}: not sent: {_some(self._skipped)}")

    def _error(self, message: str) -> PackError:
        return PackError(self._name, f"{self._source}: {message}")


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def human(size: int) -> str:
    """Bytes in words: ``512 bytes``, ``100.0 MiB``."""
    value, unit = float(size), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{size} bytes" if unit == "bytes" else f"{value:.1f} {unit}"
