"""Opens what tasks left. The user's code has had a hand in it: it may be a trap for the agent.

The agent may read what tasks may not, its own keys above all. So no link is followed, a file that has
another name somewhere else is not read, and nothing is waited for, as a FIFO would have it.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import IO

FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class StrangeFileError(OSError):
    """What a task left is not a file of its own."""


def open_left(path: str | Path, folder: int | None = None) -> IO[bytes]:
    """Opens a regular file, unbuffered; ``folder``: the descriptor of that in which ``path`` is a name.

    Raises FileNotFoundError, StrangeFileError for anything but a plain file with one name, IsADirectoryError
    for a folder, and other OSErrors.
    """
    try:
        file = os.open(path, FLAGS, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
            raise _strange(path, "is not a regular file") from error
        raise
    status = os.fstat(file)
    if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1:
        return os.fdopen(file, "rb", buffering=0)
    os.close(file)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise _strange(path, "has another name" if stat.S_ISREG(status.st_mode) else "is not a regular file")


def _strange(path: str | Path, what: str) -> StrangeFileError:
    return StrangeFileError(errno.EINVAL, what, str(path))
