"""Where a user's code and data are, on this machine and for the hosts."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coordinator.config.keys import Keys
from coordinator.config.models import SHIPPED
from coordinator.config.source import Document
from coordinator.domain import Sources
from nhop_models.urls import is_url

_MODULE_SUFFIXES = ("", ".py", ".pyc", ".so")


class Places:
    """Finds what a document names; what is wrong becomes its problems, what the user should know ``notes``.

    ``folder`` is the study file's; ``from_program``: the document is a mapping of a program's, whose modules
    may be beside its script. ``remote``: the study runs on hosts that do not share this machine's files.
    """

    def __init__(
        self, document: Document, folder: Path, notes: list[str], *, from_program: bool, remote: bool
    ) -> None:
        self._document = document
        self._folder = folder
        self._notes = notes
        self._from_program = from_program
        self._remote = remote

    def place(self, key: str, value: str, folder: Path | None = None) -> Path:
        """A path of the configuration: in ``folder``, by default beside the study file."""
        beside = Path.cwd() if self._document.origin((key,)).override is not None else self._folder
        return Path(os.path.normpath((folder or beside) / Path(value).expanduser()))

    def code(self, keys: Keys) -> str | None:
        """The folder of the user's modules; None where there is none, or it is not known."""
        module = top_level_module(keys)
        if not module:
            if keys.code is not None:
                self._notes.append(f"code has no effect: {keys.nn_model} comes with NHOP")
            return None
        if keys.code is not None:
            folder = self.place("code", keys.code)
            if not folder.is_dir():
                self._problem("code", f"{folder}: is not a folder; name the one of your modules")
            return str(folder)
        if keys.python_path is not None:
            return None
        found = [folder for folder in self._near() if holds_module(folder, module)]
        if not found and self._remote:
            where = " or ".join(map(str, self._near()))
            self._notes.append(
                f"there is no module {module} in {where}: no code is sent, and the hosts must have it; "
                "where it is elsewhere, name its folder as code"
            )
        return str(found[0]) if found else None

    def data(self, keys: Keys) -> Path | None:
        """What ``data`` names."""
        if keys.data is None:
            return None
        place = self.place("data", keys.data)
        if not place.exists():
            self._problem("data", f"{place}: does not exist")
        return place

    def python_path(self, keys: Keys, code: str | None) -> tuple[str, ...] | None:
        """Where tasks look for modules, besides what is sent."""
        given = keys.python_path
        if self._remote:
            away = [folder for folder in given or () if not Path(folder).is_absolute()]
            if away:
                self._notes.append(
                    f"python_path: {', '.join(away)} has no effect on hosts, where only absolute paths of "
                    "their own are looked for: name the folder of your modules as code"
                )
            # What is there is not known here.
            return tuple(dict.fromkeys(folder for folder in given or () if folder not in away)) or None
        found = [Path(code)] if code is not None and keys.code is not None else []
        if given is not None:
            found += [self._folder / Path(folder).expanduser() for folder in given]
        elif not found:
            found = self._near()
        normal = [os.path.normpath(folder) for folder in found]
        return tuple(dict.fromkeys(folder for folder in normal if Path(folder).is_dir()))

    def _near(self) -> list[Path]:
        """Where the user's modules are looked for."""
        found = [self._folder, Path.cwd()]
        if self._from_program and sys.path and sys.path[0]:
            found.append(Path(sys.path[0]).absolute())
        return list(dict.fromkeys(found))

    def _problem(self, key: str, message: str) -> None:
        self._document.problems.append(self._document.problem((key,), message))


def is_elsewhere(keys: Keys) -> bool:
    """Whether ``load_data_dir`` says where something is on the hosts, or on a server."""
    location = keys.load_data_dir or ""
    return is_url(location) or Path(location).expanduser().is_absolute()


def top_level_module(keys: Keys) -> str:
    """The first part of the user's ``nn_model``; empty for a model that comes with NHOP."""
    return "" if keys.nn_model in SHIPPED else keys.nn_model.partition(":")[0].partition(".")[0]


def holds_module(folder: Path, name: str) -> bool:
    """Whether a module of that name would be imported from ``folder``."""
    try:
        if any((folder / f"{name}{suffix}").exists() for suffix in _MODULE_SUFFIXES):
            return True
        return any(folder.glob(f"{name}.*.so"))
    except OSError:
        return False


def data_root(data: Path) -> Path:
    """The folder that stands for ``data``: itself, or for a file the one around it."""
    return data.parent if data.is_file() else data


def sources(keys: Keys) -> Sources:
    """What goes along to the hosts."""
    return Sources(
        code=Path(keys.code) if keys.code else None,
        data=Path(keys.data) if keys.data else None,
        module=top_level_module(keys),
        runs=tuple(Path(folder, keys.train_log_dir).absolute() for folder in {".", keys.code or "."}),
    )


def settings_here(keys: Keys, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What models read where data is used in place."""
    return {**settings, "data_dir": str(data_root(Path(keys.data)))} if keys.data else dict(settings)


def settings_there(keys: Keys, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What models read on hosts: data that goes along is named within it."""
    location = keys.load_data_dir
    if not keys.data or location is None or is_url(location):
        return dict(settings)
    root = data_root(Path(keys.data))
    if not is_within(Path(location), root):
        return dict(settings)
    return {**settings, "load_data_dir": os.path.relpath(location, root)}


def is_within(path: Path, folder: Path) -> bool:
    """Whether a normalised path is ``folder`` or below it, by the names alone."""
    return path == folder or folder in path.parents
