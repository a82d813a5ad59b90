"""Places for Unix sockets of our own, which only this user can open."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

MAX_SOCKET_PATH = 107
"""Bytes of the path of a Unix socket at most: an output directory may be deeper than that."""

MAX_BASE = 60

_made: set[Path] = set()


def make_private_folder() -> Path:
    """Makes a folder with a short path, open to this user alone; OSError. ``remove_private_folder`` it."""
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    if not os.access(base, os.W_OK | os.X_OK) or len(base) > MAX_BASE:
        base = tempfile.gettempdir() if len(tempfile.gettempdir()) <= MAX_BASE else "/tmp"  # noqa: S108 - short
    folder = Path(tempfile.mkdtemp(prefix="nhop-", dir=base))
    _made.add(folder)
    return folder


def remove_private_folder(folder: Path) -> None:
    """Takes a folder away, with what is in it."""
    shutil.rmtree(folder, ignore_errors=True)
    _made.discard(folder)


def remove_private_folders() -> None:
    """Takes away those that are left: for a process that ends at once."""
    for folder in list(_made):
        remove_private_folder(folder)
