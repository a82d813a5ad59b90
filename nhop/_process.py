"""What every command of ours does first."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """For the imports of a command: Ctrl-C meanwhile ends it without a word, as one does later."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)


def open_standard_streams() -> None:
    """Opens those of stdin, stdout and stderr that are closed on /dev/null.

    Else the next file or socket would take their place, and what is printed would go there.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor: this one


def raise_file_limit() -> None:
    """Lets this process have as many open files as the system allows it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # some systems promise more than they give
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
